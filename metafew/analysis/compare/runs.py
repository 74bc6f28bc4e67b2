"""Find finished runs on disk, and report the reasons for omitting others. Imports no torch."""

from __future__ import annotations

import csv
import glob
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

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
    """One finished run: its results.json and the files in its folder. Files of earlier versions may lack keys."""

    file: Path
    report: dict

    @classmethod
    def in_folder(cls, folder: Path) -> Run:
        """Return the run of a folder, finished or not."""
        return cls(folder / "results.json", update_paths(read_object(folder / "results.json")))

    @property
    def folder(self) -> Path:
        """The output folder."""
        return self.file.parent

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

    @cached_property
    def analysis(self) -> dict:
        """The content of analysis.json; empty without ``stages=[analyze]``."""
        return read_object(self.folder / "analysis.json")

    @property
    def seconds_per_step(self) -> float | None:
        """The seconds per training step; None if unknown, as for a resumed run, which only times its last part."""
        seconds, steps = self.report.get("seconds", {}).get("fit"), self.report.get("steps")
        return seconds / steps if seconds and steps and not self.values.get("ckpt") else None

    @cached_property
    def _accuracies(self) -> dict[tuple[str | None, int], dict[TaskKey, float]]:
        """The accuracy of each task in tasks.csv, by head and number of the test; empty if unreadable."""
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
    runs, repeated = drop_repeats(runs)
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


def drop_repeats(runs: list[Run]) -> tuple[list[Run], list[Omitted]]:
    """Drop runs that were repeated by a newer run with the same settings, seed and checkpoint."""
    newest: dict[str, Run] = {}
    repeated = []
    for run in sorted(runs, key=lambda run: run.file.stat().st_mtime, reverse=True):
        start = run.values.get("ckpt"), run.values.get("backbone.weights"), run.seed
        newer = newest.setdefault(json.dumps([run.settings, start, bool(run.heads)], sort_keys=True), run)
        if newer is not run:
            repeated.append(Omitted(run.folder, f"repeated: the same choices and seed as the newer {newer.folder}"))
    places = {place for place, _ in repeated}
    return [run for run in runs if run.folder not in places], repeated
