"""Runs that stand in folders: the finished ones, and why others are none. Imports no torch."""

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

from metafew.analysis.compare.settings import flat, settings
from metafew.errors import UsageError

Task = tuple[int, str]
"""The index of a test task and the dataset that it comes from."""


class Omitted(NamedTuple):
    """A folder without a finished run, or a file that is none, and the reason."""

    place: Path
    reason: str


@dataclass(frozen=True)
class Run:
    """One finished run: its results.json and what stands in it, where versions before may lack keys."""

    file: Path
    report: dict

    @classmethod
    def of(cls, folder: Path) -> Run:
        """Return the run of a folder, whatever it has done."""
        return cls(folder / "results.json", content(folder / "results.json"))

    @property
    def folder(self) -> Path:
        """Where all that the run left is."""
        return self.file.parent

    @cached_property
    def facts(self) -> dict:
        """The words of all groups and every value of the configuration, under the key that is typed."""
        return flat(self.report.get("config", {})) | self.report.get("choices", {}) | self.unknown

    @cached_property
    def settings(self) -> dict:
        """Those of the facts that do not follow from others, without seed and places."""
        return settings(self.report) | self.unknown

    @property
    def unknown(self) -> dict:
        """What keeps a run apart that does not say all that was decided: it may equal no other."""
        return {} if {"config", "choices", "seed"} <= self.report.keys() else {"folder": str(self.folder)}

    @property
    def seed(self) -> int | None:
        """The seed of weights and training tasks."""
        return self.report.get("seed")

    @property
    def heads(self) -> list[str]:
        """The heads that were measured, the trained one first."""
        names = [name.split("/") for name in self.report.get("metrics", {})]
        return [parts[1] for parts in names if len(parts) == 3 and parts[0] == "test" and parts[2] == "accuracy"]

    @property
    def trained(self) -> str | None:
        """The head that was trained, which a run without a test has too."""
        return self.heads[0] if self.heads else self.report.get("choices", {}).get("head")

    @property
    def shots(self) -> list:
        """The shot of each test."""
        shots = self.report.get("config", {}).get("test", {}).get("shot")
        return shots if isinstance(shots, list) else [shots]

    @property
    def sources(self) -> list[str]:
        """The datasets of a mixture; none where there is one alone."""
        sources = list(self.report.get("sources", {}))
        return sources if len(sources) > 1 else []

    @cached_property
    def validations(self) -> dict[int, float]:
        """The validation accuracy of the trained head after each step with a validation; empty where unknown."""
        file, choices = self.folder / "metrics.csv", self.report.get("choices", {})
        name = f"val/{choices.get('head') or next(iter(self.heads), None)}/accuracy"
        if not file.is_file():
            return {}
        with file.open(newline="", encoding="utf-8") as lines:
            return {int(row["step"]) + 1: float(row[name]) for row in csv.DictReader(lines) if row.get(name)}

    @cached_property
    def analysis(self) -> dict:
        """What stages=[analyze] measured; empty where it did not."""
        return content(self.folder / "analysis.json")

    @property
    def pace(self) -> float | None:
        """The seconds of a training step; None where it is unknown, as where only the last stretch was timed."""
        seconds, steps = self.report.get("seconds", {}).get("fit"), self.report.get("steps")
        return seconds / steps if seconds and steps and not self.facts.get("ckpt") else None

    @cached_property
    def accuracies(self) -> dict[tuple[str, int], dict[Task, float]]:
        """The accuracy of each task in tasks.csv, by head and number of the test; empty without that file."""
        file, found, seen = self.folder / "tasks.csv", {}, Counter()
        if not file.is_file():
            return {}
        with file.open(newline="", encoding="utf-8") as lines:
            for row in csv.DictReader(lines):
                try:
                    task = int(row["index"]), row["source"]
                    accuracy = float(row["accuracy"])
                except (KeyError, TypeError, ValueError):  # of another version, or cut off
                    return {}
                number = seen[row["head"], task]  # a list of shots measures the same tasks one after the other
                seen[row["head"], task] += 1
                found.setdefault((row["head"], number), {})[task] = accuracy
        return found

    def of_tasks(self, head: str | None, number: int, source: str | None = None) -> dict[Task, float]:
        """Return the accuracy of a head in each task of a test, or in those of one dataset."""
        found = self.accuracies.get((head, number), {})
        return {task: value for task, value in found.items() if source in (None, task[1])}


def content(file: Path) -> dict:
    """Return what a JSON file holds; nothing where there is none, or one of something else."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def find(places: Sequence[str]) -> tuple[list[Run], list[Omitted]]:
    """Return the finished runs in ``places``, and the folders and files that are none.

    Args:
        places: folders, which are searched at any depth, results.json files, or patterns of either.

    Raises:
        UsageError: a place does not exist, or there is no finished run in any.
    """
    runs, omitted = [], []
    for file in dict.fromkeys(file.resolve() for place in places for file in results_in(place)):
        found = read(file)
        (runs if isinstance(found, Run) else omitted).append(found)
    runs, repeated = newest(runs)
    omitted += repeated
    if not runs:
        first = f" (first: {omitted[0].place}: {omitted[0].reason})" if omitted else ""
        raise UsageError(
            f"RUNS wants folders of finished runs, and there is none among the {len(omitted)} in {' '.join(places)}"
            f"{first}: train one with python train.py"
        )
    return runs, omitted


def results_in(place: str) -> Iterator[Path]:
    """Yield each results.json in a place, and where it would stand in the folder of a run without one."""
    paths = [Path(place)] if Path(place).exists() else [Path(path) for path in sorted(glob.glob(place, recursive=True))]
    if not paths:
        raise UsageError(f"RUNS wants folders or results.json files, and {place} is neither: type outputs or multirun")
    for path in paths:
        if path.is_file():
            yield path
        for folder, inside, files in os.walk(path):
            if "results.json" in files or ".hydra" in inside or "metrics.csv" in files:
                yield Path(folder) / "results.json"
            inside[:] = sorted(name for name in inside if name != "checkpoints" and not name.startswith("."))


def read(file: Path) -> Run | Omitted:
    """Return the run of a results.json, or why it is none."""
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Omitted(file.parent, f"no results.json: still running, or stopped {progress(file.parent)}")
    except (OSError, ValueError) as error:
        return Omitted(file, f"foreign: it cannot be read as JSON ({error})")
    if not isinstance(report, dict):
        return Omitted(file, "foreign: it holds no results of a run")
    if "error" in report:
        return Omitted(file.parent, f"failed: {report['error']}")
    if "rows" in report:
        return Omitted(file.parent, "the table of an experiment: its cells are runs of their own")
    metrics = report.get("metrics")
    if not isinstance(metrics, dict) or not all(isinstance(v, dict) and "mean" in v for v in metrics.values()):
        return Omitted(file, "foreign: it holds no results of a run")
    run = Run(file, report)
    if run.heads or report.get("analysis"):
        return run
    return Omitted(file.parent, "finished without a test: there is nothing to compare")


def progress(folder: Path) -> str:
    """Return how far a run has come that left no results."""
    file = folder / "metrics.csv"
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else ()
    steps = [int(row["step"]) for row in csv.DictReader(lines) if (row.get("step") or "").isdigit()]
    return f"after {max(steps) + 1} logged steps" if steps else "before anything was logged"


def newest(runs: list[Run]) -> tuple[list[Run], list[Omitted]]:
    """Return the runs without those that a newer one repeats: the same settings, seed and checkpoint."""
    kept: dict[str, Run] = {}
    repeated = []
    for run in sorted(runs, key=lambda run: run.file.stat().st_mtime, reverse=True):
        start = run.facts.get("ckpt"), run.facts.get("backbone.weights"), run.seed
        newer = kept.setdefault(json.dumps([run.settings, start, bool(run.heads)], sort_keys=True), run)
        if newer is not run:
            repeated.append(Omitted(run.folder, f"repeated: the same choices and seed as the newer {newer.folder}"))
    places = {place for place, _ in repeated}
    return [run for run in runs if run.folder not in places], repeated
