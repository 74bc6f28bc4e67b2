"""Find finished runs on disk, and report the reasons for omitting others. Imports no torch."""

from __future__ import annotations

import csv
import glob
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from metafew.analysis.compare.settings import flatten, non_default_settings
from metafew.config.moved import update_paths
from metafew.errors import UsageError

TaskKey = tuple[int, str]
"""The index of a test task and its dataset."""


class Omitted(NamedTuple):
    """An omitted file or folder, and the reason."""

    place: Path
    reason: str


@dataclass(frozen=True)
class Run:
    """One finished run: its results.json and the files in its folder. Files of earlier versions may lack keys.

    Attributes:
        file: its results.json.
        report: the content of this file, with what the runs in ``merged`` add.
        merged: older runs of the same training and tests, which evaluated further heads or analyzed features.
    """

    file: Path
    report: dict
    merged: tuple[Run, ...] = ()

    @classmethod
    def in_folder(cls, folder: Path) -> Run:
        """Return the run of a folder, finished or not."""
        return cls(folder / "results.json", update_paths(read_object(folder / "results.json")))

    @property
    def folder(self) -> Path:
        """The output folder."""
        return self.file.parent

    @property
    def folders(self) -> list[Path]:
        """The output folder and those of merged runs."""
        return [self.folder, *(run.folder for run in self.merged)]

    @cached_property
    def values(self) -> dict:
        """The choices of all groups and all values of the configuration, by override key."""
        return flatten(self.report.get("config", {})) | self.report.get("choices", {}) | self._distinct

    @cached_property
    def settings(self) -> dict:
        """The choices and values that are not implied by other choices, without seed and paths."""
        return non_default_settings(self.report) | self._distinct

    @property
    def _distinct(self) -> dict:
        """A key that prevents runs without a recorded configuration from being grouped with others."""
        return {} if {"config", "choices", "seed"} <= self.report.keys() else {"folder": str(self.folder)}

    @property
    def seed(self) -> int | None:
        """The seed of initialisation and training tasks."""
        return self.report.get("seed")

    @property
    def heads(self) -> list[str]:
        """The tested heads, with the trained one first."""
        names = [name.split("/") for name in self.report.get("metrics", {})]
        return [parts[1] for parts in names if len(parts) == 3 and parts[0] == "test" and parts[2] == "accuracy"]

    @cached_property
    def evaluated(self) -> dict[str, dict]:
        """The settings of each head of ``evaluate`` that are not its defaults."""
        names = self.report.get("config", {}).get("evaluate") or {}
        return {
            name: {key: self.settings[key] for key in self.settings if key.startswith(f"evaluate.{name}.")}
            for name in names
        }

    @property
    def trained_head(self) -> str | None:
        """The trained head, tested or not."""
        return self.heads[0] if self.heads else self.report.get("choices", {}).get("head")

    @property
    def shots(self) -> list:
        """The shot of each test."""
        shots = self.report.get("config", {}).get("test", {}).get("shot")
        return shots if isinstance(shots, list) else [shots]

    @property
    def sources(self) -> list[str]:
        """The datasets of a mixture; empty for a single dataset."""
        sources = list(self.report.get("sources", {}))
        return sources if len(sources) > 1 else []

    @cached_property
    def validations(self) -> dict[int, float]:
        """The validation accuracy of the trained head by step; empty without metrics.csv."""
        return self._validated("accuracy")

    @cached_property
    def failed_validation_tasks(self) -> int:
        """The number of failed tasks over all validations."""
        return int(sum(self._validated("failed").values()))

    def _validated(self, measure: str) -> dict[int, float]:
        """Return the validation measurements of the trained head, by step."""
        head = self.report.get("choices", {}).get("head") or self.trained_head
        name = f"val/{head}/{measure}"
        return {int(row["step"]) + 1: float(row[name]) for row in self.csv_rows("metrics.csv") if row.get(name)}

    @property
    def analyzed(self) -> Path:
        """The folder with the newest analysis.json."""
        return next((folder for folder in self.folders if (folder / "analysis.json").is_file()), self.folder)

    @cached_property
    def analysis(self) -> dict:
        """The content of analysis.json; empty without ``stages=[analyze]``."""
        return read_object(self.analyzed / "analysis.json")

    @property
    def seconds_per_step(self) -> float | None:
        """The seconds per training step; None if unknown, as for a resumed run, which only times its last part."""
        seconds, steps = self.report.get("seconds", {}).get("fit"), self.report.get("steps")
        return seconds / steps if seconds and steps and not self.values.get("ckpt") else None

    @cached_property
    def _accuracies(self) -> dict[tuple[str | None, int], dict[TaskKey, float]]:
        """The accuracy of each task in tasks.csv, by head and number of the test; empty if unreadable."""
        of_others = [run._accuracies for run in reversed(self.merged)]
        return {key: tasks for each in [*of_others, self._own_accuracies()] for key, tasks in each.items()}

    def _own_accuracies(self) -> dict[tuple[str | None, int], dict[TaskKey, float]]:
        """Return the accuracies in the folder of this run."""
        found: dict[tuple[str | None, int], dict[TaskKey, float]] = {}
        seen: Counter[tuple[str, TaskKey]] = Counter()
        for row in self.csv_rows("tasks.csv"):
            try:
                task = int(row["index"]), row["source"]
                accuracy = float(row["accuracy"])
            except (KeyError, TypeError, ValueError):  # of another version, or truncated
                return {}
            number = seen[row["head"], task]  # a list of shots measures the same tasks one shot after the other
            seen[row["head"], task] += 1
            found.setdefault((row["head"], number), {})[task] = accuracy
        return found

    def task_accuracies(self, head: str | None, number: int, source: str | None = None) -> dict[TaskKey, float]:
        """Return the accuracy of each task for one head and test, optionally restricted to one dataset of a mixture."""
        found = self._accuracies.get((head, number), {})
        return {task: value for task, value in found.items() if source in (None, task[1])}

    def csv_rows(self, name: str) -> Iterator[dict]:
        """Yield the rows of a CSV file in the run's folder, if it exists."""
        if (self.folder / name).is_file():
            with (self.folder / name).open(newline="", encoding="utf-8", errors="replace") as lines:
                yield from csv.DictReader(lines)


def read_object(file: Path) -> dict:
    """Return the object in a JSON file; empty if the file is missing, damaged or contains something else."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def find_runs(places: Sequence[str]) -> tuple[list[Run], list[Omitted]]:
    """Return the finished runs in ``places``, and the omitted folders and files.

    Args:
        places: folders, searched recursively, results.json files, or glob patterns of either.

    Raises:
        UsageError: if a place does not exist, or no run is finished.
    """
    runs: list[Run] = []
    omitted: list[Omitted] = []
    for file in dict.fromkeys(file.resolve() for place in places for file in find_results(place)):
        found = read_run(file)
        if isinstance(found, Run):
            runs.append(found)
        else:
            omitted.append(found)
    runs, repeated = merge_runs(runs)
    omitted += repeated
    if not runs:
        first = f" (first: {omitted[0].place}: {omitted[0].reason})" if omitted else ""
        raise UsageError(
            f"expected RUNS to be folders of finished runs, got none among the {len(omitted)} in {' '.join(places)}"
            f"{first}: type python train.py to train one"
        )
    return runs, omitted


def find_results(place: str) -> Iterator[Path]:
    """Yield each results.json in a place, including its expected path in folders of unfinished runs."""
    paths = [Path(place)] if Path(place).exists() else [Path(path) for path in sorted(glob.glob(place, recursive=True))]
    if not paths:
        raise UsageError(f"expected RUNS to be folders or results.json files, got {place}: type outputs or multirun")
    for path in paths:
        if path.is_file():
            yield path
        for folder, inside, files in os.walk(path):
            if "results.json" in files or ".hydra" in inside or "metrics.csv" in files:
                yield Path(folder) / "results.json"
            inside[:] = sorted(name for name in inside if name != "checkpoints" and not name.startswith("."))


def read_run(file: Path) -> Run | Omitted:
    """Return the run of a results.json, or the reason for omitting it."""
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        steps = [int(row["step"]) for row in Run(file, {}).csv_rows("metrics.csv") if (row.get("step") or "").isdigit()]
        stopped = f"after {max(steps) + 1} logged steps" if steps else "before anything was logged"
        return Omitted(file.parent, f"no results.json: still running, or stopped {stopped}")
    except (OSError, ValueError) as error:
        return Omitted(file, f"foreign: it cannot be read as JSON ({error})")
    metrics = report.get("metrics") if isinstance(report, dict) else None
    if isinstance(report, dict) and "error" in report:
        return Omitted(file.parent, f"failed: {report['error']}")
    if isinstance(report, dict) and "rows" in report:
        return Omitted(file.parent, "the table of an experiment: pass the folders of its runs instead")
    if not isinstance(metrics, dict) or not all(isinstance(v, dict) and "mean" in v for v in metrics.values()):
        return Omitted(file, "foreign: it does not hold the results of a run")
    run = Run(file, update_paths(report))
    if run.heads or report.get("analysis"):
        return run
    return Omitted(file.parent, "finished without a test: there is nothing to compare")


def merge_runs(runs: list[Run]) -> tuple[list[Run], list[Omitted]]:
    """Merge runs that differ only in the heads that they evaluate, or in whether they analyze features.

    Of what several of them measured, the newest counts. A run that only measured what newer ones did is left out.

    Args:
        runs: all runs that were found.

    Returns:
        The runs, in which merged ones are one, and the runs that are left out.
    """
    newest_first = sorted(runs, key=lambda run: run.file.stat().st_mtime, reverse=True)
    merged, repeated = {}, []
    for newest, *others in agreeing(newest_first, same_model):
        run = newest
        for other in others:
            if adds_to(run, other):
                run = merge(run, other)
            else:
                reason = f"repeated: the same choices and seed as the newer {newest.folder}"
                repeated.append(Omitted(other.folder, reason))
        merged[newest.file] = run
    return [merged[run.file] for run in runs if run.file in merged], repeated


def same_model(run: Run) -> Any:
    """Return what two runs share if they test the same model on the same tasks."""
    settings = {key: value for key, value in run.settings.items() if not key.startswith("evaluate.")}
    return [settings, run.values.get("ckpt"), run.values.get("backbone.weights"), run.seed]


def agreeing(runs: Iterable[Run], key: Callable[[Run], Any]) -> list[list[Run]]:
    """Group runs with equal ``key`` that evaluate no head with different options.

    Args:
        runs: the runs.
        key: returns plain values.
    """
    groups: dict[str, list[list[Run]]] = {}
    for run in runs:
        of_key = groups.setdefault(json.dumps(key(run), sort_keys=True), [])
        found = next((group for group in of_key if all(agree(run, other) for other in group)), None)
        if found is None:
            of_key.append([run])
        else:
            found.append(run)
    return [group for of_key in groups.values() for group in of_key]


def agree(one: Run, other: Run) -> bool:
    """Return whether two runs evaluate the heads that both of them evaluate with the same options."""
    return all(one.evaluated[name] == other.evaluated[name] for name in one.evaluated.keys() & other.evaluated.keys())


def adds_to(run: Run, other: Run) -> bool:
    """Return whether another run measured what ``run`` did not."""
    return bool({*other.heads} - {*run.heads} or (other.report.get("analysis") and not run.report.get("analysis")))


def merge(run: Run, other: Run) -> Run:
    """Return a run with what an older one adds to it."""
    report = other.report | run.report
    report["metrics"] = run.report["metrics"] | {
        name: value for name, value in other.report["metrics"].items() if name not in run.report["metrics"]
    }
    config, older = run.report.get("config", {}), other.report.get("config", {})
    report["config"] = config | {"evaluate": (older.get("evaluate") or {}) | (config.get("evaluate") or {})}
    report["transductive"] = any(each.report.get("transductive") for each in (run, other))
    return Run(run.file, report, (*run.merged, other))
