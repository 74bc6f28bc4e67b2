"""The rows and columns of a table of runs: what was decided, and what was measured."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from metafew.analysis.compare.runs import Run
from metafew.analysis.compare.settings import differing, typed

TASKS = re.compile(r"dataset(\..*)?|test\.(way|shot|support)")
"""Settings that tell columns apart: what is tested."""
STARTS = ("ckpt", "backbone.weights")
"""What a run starts from: other files for other seeds."""
OWN = "own head"


@dataclass
class Row:
    """Runs that are equal but for the seed and for what they were tested on."""

    label: str
    runs: list[Run]

    @property
    def transductive(self) -> bool:
        """Whether a query could see other queries."""
        return any(run.report.get("transductive") for run in self.runs)


class Column(NamedTuple):
    """A measure: the test tasks, which head (or baseline), which of the shots, which dataset of a mixture."""

    tasks: str
    head: str
    number: int = 0
    source: str | None = None
    baseline: bool = False

    def of(self, run: Run) -> dict | None:
        """Return the measure as it stands in a results.json."""
        if self.tasks != tasks_of(run) or self.number >= len(run.shots):
            return None
        shot = [f"shot{run.shots[self.number]}"] if self.number else []
        if self.baseline:
            return run.report.get("baselines", {}).get("/".join([self.head, *shot]))
        head = run.heads[0] if self.head == OWN else self.head
        source = [] if self.source is None else [self.source]
        return run.report["metrics"].get("/".join(["test", head, *shot, *source, "accuracy"]))


def rows_of(runs: Sequence[Run]) -> list[Row]:
    """Return one row for runs that are equal but for seed and tasks; checkpoints only part runs of one seed."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(key(decided(run)), []).append(run)
    parted: list[tuple[list[Run], tuple]] = []
    for group in groups.values():
        if max(Counter((tasks_of(run), run.seed) for run in group).values()) == 1:
            parted.append((group, ()))
            continue
        starts: dict[str, list[Run]] = {}
        for run in group:
            starts.setdefault(key([run.facts.get(start) for start in STARTS]), []).append(run)
        parted += [(part, tuple(differing(run.facts for run in group))) for part in starts.values()]
    words = differing(decided(group[0]) for group, _ in parted)
    rows = []
    for group, split in parted:
        facts = group[0].facts
        label = typed(facts, [*words, *(start for start in STARTS if start in split)])
        rows.append(Row(label or typed(facts, ("head", "norm")) or group[0].folder.name, group))
    return rows


def columns_of(runs: Sequence[Run]) -> dict[Column, str]:
    """Return the columns and their names; a head that only trained itself is no column, its row has it as its own."""
    own = len({run.heads[0] for run in runs}) > 1 and len({frozenset(run.heads) for run in runs}) > 1
    beside = {head for run in runs for head in run.heads[own:]}
    found, shots = {}, {}
    for run in runs:
        tests = range(len(run.shots))
        heads = [OWN] * own + [head for head in run.heads if head in beside]
        for head in heads:
            for number in tests:
                for source in (None, *run.sources):
                    found.setdefault(Column(tasks_of(run), head, number, source), run)
        for name in run.report.get("baselines", {}):
            if "/" not in name:
                for number in tests:
                    found.setdefault(Column(tasks_of(run), name, number, baseline=True), run)
        shots |= {(tasks_of(run), number): run.shots[number] for number in tests}
    words = differing(map(tested, found.values()))
    order = {tasks: number for number, tasks in enumerate(dict.fromkeys(column.tasks for column in found))}
    found = dict(sorted(found.items(), key=lambda item: (item[0].baseline, order[item[0].tasks])))
    heads = {column.head for column in found if not column.baseline}
    several = len({str(shot) for shot in shots.values()}) > 1

    def name(column: Column, shown: Iterable[str]) -> str:
        shot = shots[column.tasks, column.number]
        shot = f"{shot}-shot" if several and shot else ""
        head = column.head if len(heads) > 1 or column.baseline else ""
        return ", ".join(filter(None, [typed(found[column].facts, shown), head, shot, column.source])) or "accuracy"

    names = {column: name(column, [word for word in words if word != "test.shot"]) for column in found}
    twice = {label for label, count in Counter(names.values()).items() if count > 1}
    return {column: name(column, words) if label in twice else label for column, label in names.items()}


def tested(run: Run) -> dict:
    """Return the settings that tell columns apart."""
    return {name: value for name, value in run.settings.items() if TASKS.fullmatch(name)}


def decided(run: Run) -> dict:
    """Return the settings that tell rows apart."""
    return {name: value for name, value in run.settings.items() if not TASKS.fullmatch(name)}


def tasks_of(run: Run) -> str:
    """Return what tells the test tasks of columns apart, as one text."""
    return key(tested(run))


def key(settings: object) -> str:
    """Return one text for equal settings, in whatever order."""
    return json.dumps(settings, sort_keys=True)
