"""The rows and columns of a comparison of runs: settings that differ, and measures."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import NamedTuple

from metafew.analysis.compare.merge import agreeing
from metafew.analysis.compare.runs import STARTS, Run, TaskKey
from metafew.analysis.compare.settings import format_overrides, in_group_order, natural_value, varying_keys

TASK_KEYS = re.compile(r"dataset(\..*)?|analyze\.split|test\.(way|shot|support|balance|dirichlet)")
"""Settings that define the test tasks, or the classes of an analysis, and so distinguish columns instead of rows."""
ROOT = "dataset.root"
TRAINED = "trained head"


@dataclass
class Row:
    """Runs whose settings are equal except for the seed and the test tasks.

    Attributes:
        label: the settings as overrides.
        runs: the runs.
        settings: the settings that distinguish the row from others; empty for a single row.
        head: the head that the row measures, if rows are heads; None for all of its runs.
    """

    label: str
    runs: list[Run]
    settings: dict[str, object] = field(default_factory=dict)
    head: str | None = None

    @property
    def transductive(self) -> bool:
        """Whether predictions may depend on other queries in all runs of the row."""
        return all(run.is_transductive(self.head) for run in self.runs)


class Column(NamedTuple):
    """A measure: its test tasks, head or baseline, index of the shot, and dataset of a mixture."""

    tasks: str
    head: str
    number: int = 0
    source: str | None = None
    baseline: bool = False

    def measure(self, run: Run) -> dict | None:
        """Return the measure from the results.json of a run."""
        if self.tasks != task_key(run) or self.number >= len(run.shots):
            return None
        shot = [f"shot{run.shots[self.number]}"] if self.number else []
        if self.baseline:
            return run.report.get("baselines", {}).get("/".join([self.head, *shot]))
        source = [] if self.source is None else [self.source]
        return run.report["metrics"].get("/".join(["test", self.head_of(run), *shot, *source, "accuracy"]))

    def seconds(self, run: Run) -> float | None:
        """Return the seconds per task of the head of a run in this test; None if they are unknown."""
        shot = [f"shot{run.shots[self.number]}"] if self.number else []
        return run.head_entries.get("/".join([self.head_of(run), *shot]), {}).get("seconds_per_task")

    def task_accuracies(self, run: Run) -> dict[TaskKey, float]:
        """Return the accuracy of each test task of a run; empty for baselines, which do not record it."""
        return {} if self.baseline else run.task_accuracies(self.head_of(run), self.number, self.source)

    def head_of(self, run: Run) -> str:
        """Return the head of a run that the column measures."""
        return run.heads[0] if self.head == TRAINED else self.head


def group_rows(runs: Sequence[Run]) -> list[Row]:
    """Group runs that only differ in seed and test tasks, and sort the groups by the settings in which they differ.

    Checkpoints only separate runs with the same seed: by the names of their files, and by their paths if necessary. So
    do the images of the tests, by their fingerprints.
    """
    separated: list[tuple[list[Run], tuple, str | None]] = []
    for group in agreeing(runs, training_settings):
        if not repeats(group):
            separated.append((group, (), None))
            continue
        varying = varying_keys(run.starts for run in group)
        starts = tuple(start for start in STARTS if start in varying)
        separated += [(part, starts, images) for same in by_start(group) for images, part in by_images(same)]
    keys = varying_keys(union(map(row_settings, group)) for group, _, _ in separated)
    rows = []
    for group, starts, images in separated:
        values = union(run.values for run in group)
        settings = {key: values[key] for key in in_group_order(keys) if key in values}
        for key in starts:  # seeds may have checkpoints of their own
            start, *others = {run.starts[key] for run in group}
            settings[key] = Path(start).name if start and others else start
        settings |= {"images": images} if images else {}
        label = format_overrides(settings, settings) or format_overrides(values, ("head", "norm"))
        rows.append(Row(label or group[0].folder.name, group, settings))
    order = in_group_order([*keys, *STARTS, "images"])
    return sorted(rows, key=lambda row: [natural_value(row.settings.get(key)) for key in order])


def repeats(runs: Iterable[Run]) -> bool:
    """Return whether two runs have the same seed and test tasks."""
    return max(Counter((task_key(run), run.seed) for run in runs).values()) > 1


def by_start(runs: Iterable[Run]) -> Iterator[list[Run]]:
    """Yield groups of runs that start from checkpoints of one name, such as best.ckpt, or else of one path."""
    for names in divide(runs, lambda path: Path(path).name):
        yield from divide(names, str) if repeats(names) else [names]


def by_images(runs: list[Run]) -> list[tuple[str | None, list[Run]]]:
    """Return groups of runs with the same test images, and a name of these; one without a name if no seed repeats."""
    if not repeats(runs):
        return [(None, runs)]
    found = grouped(runs, lambda run: sha256(canonical(run.tested_images).encode()).hexdigest()[:6])
    return [*found.items()] if len(found) > 1 else [(None, runs)]


def divide(runs: Iterable[Run], name: Callable[[str], str]) -> list[list[Run]]:
    """Divide runs by ``name`` of the checkpoints from which they start."""

    def names(run: Run) -> str:
        return canonical([None if start is None else name(start) for start in run.starts.values()])

    return list(grouped(runs, names).values())


def grouped(runs: Iterable[Run], key: Callable[[Run], str]) -> dict[str, list[Run]]:
    """Return the runs of each ``key``, in order."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(key(run), []).append(run)
    return found


def find_columns(runs: Sequence[Run]) -> dict[Column, str]:
    """Return the columns and their names.

    If runs trained different heads and tested only those, one column contains the trained head of each run.
    """
    trained = len({run.heads[0] for run in runs}) > 1 and len({frozenset(run.heads) for run in runs}) > 1
    further = {head for run in runs for head in run.heads[trained:]}
    examples: dict[Column, Run] = {}
    for run in runs:
        heads = [TRAINED] * trained + [head for head in run.heads if head in further]
        baselines = [name for name in run.report.get("baselines", {}) if "/" not in name]
        tasks, numbers = task_key(run), range(len(run.shots))
        measured = [Column(tasks, *measure) for measure in product(heads, numbers, (None, *run.sources))]
        measured += [Column(tasks, name, number, baseline=True) for name, number in product(baselines, numbers)]
        for column in measured:
            examples.setdefault(column, run)
    order = {tasks: number for number, tasks in enumerate(dict.fromkeys(column.tasks for column in examples))}
    columns = dict(sorted(examples.items(), key=lambda item: (item[0].baseline, order[item[0].tasks])))
    keys = named_by_folder(runs, varying_keys(map(task_settings, examples.values())))
    names = name_columns(columns, [key for key in keys if key != "test.shot"])
    counts = Counter(names.values())
    full_names = name_columns(columns, keys)
    return {column: full_names[column] if counts[name] > 1 else name for column, name in names.items()}


def name_columns(columns: dict[Column, Run], keys: Iterable[str]) -> dict[Column, str]:
    """Name columns by the settings ``keys`` of a run, and by head, shot and dataset where these differ."""
    heads = {column.head for column in columns if not column.baseline}
    shots = {column: run.shots[column.number] for column, run in columns.items()}
    several_shots = len(set(map(str, shots.values()))) > 1
    names = {}
    for column, run in columns.items():
        shot = f"{shots[column]}-shot" if several_shots and shots[column] else ""
        head = column.head if len(heads) > 1 or column.baseline else ""
        parts = [format_overrides(run.values | {"dataset": run.dataset}, keys), head, shot, column.source]
        names[column] = ", ".join(filter(None, parts)) or "accuracy"
    return names


def named_by_folder(runs: Iterable[Run], keys: Iterable[str]) -> list[str]:
    """Return ``keys`` with ``dataset`` in place of ``dataset.root``, if the names of folders identify the datasets."""
    keys = list(keys)
    names = {run.values.get(ROOT): run.dataset for run in runs}
    if ROOT not in keys or len(set(names.values())) < len(names):
        return keys
    return list(dict.fromkeys(["dataset", *(key for key in keys if key != ROOT)]))


def task_settings(run: Run) -> dict:
    """Return the settings that distinguish columns."""
    return {name: value for name, value in run.settings.items() if TASK_KEYS.fullmatch(name)}


def row_settings(run: Run) -> dict:
    """Return the settings that distinguish rows."""
    return {name: value for name, value in run.settings.items() if not TASK_KEYS.fullmatch(name)}


def training_settings(run: Run) -> dict:
    """Return the settings that distinguish rows, apart from options of heads that were only evaluated."""
    return {name: value for name, value in row_settings(run).items() if not name.startswith("evaluate.")}


def union(mappings: Iterable[dict]) -> dict:
    """Return the items of all mappings; of a key with several values, the first."""
    merged: dict = {}
    for mapping in mappings:
        merged = mapping | merged
    return merged


def task_key(run: Run) -> str:
    """Return a string that identifies the test tasks of a run."""
    return canonical(task_settings(run))


def canonical(settings: object) -> str:
    """Return a string that is the same for equal settings in any order."""
    return json.dumps(settings, sort_keys=True)
