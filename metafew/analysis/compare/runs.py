"""A finished run on disk, read from its folder. Imports no torch."""

from __future__ import annotations

import csv
import json
import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from metafew.analysis.compare.settings import flatten, format_overrides, non_default_settings
from metafew.config.compose import MAIN
from metafew.config.groups import searched
from metafew.config.moved import update_record
from metafew.data.formats.names import data_name
from metafew.distributed.sweep import without_own_ckpt
from metafew.io import is_own

OWN_DATA = ("folder", "features")
"""Options of ``dataset`` for images and vectors of the user's own."""
STARTS = ("ckpt", "backbone.weights")
"""Options that name the checkpoint a run starts from, which differs between seeds."""
TaskKey = tuple[int, str]
"""The index of a test task, and its dataset in a mixture."""


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
        return cls(folder / "results.json", update_record(read_object(folder / "results.json")))

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
    def dataset(self) -> str | None:
        """The name of the dataset in tables: that of the folder or file for the user's own data."""
        dataset, root = self.values.get("dataset"), self.values.get("dataset.root")
        return data_name(root) if dataset in OWN_DATA and root else dataset

    @property
    def starts(self) -> dict[str, str | None]:
        """The values of :data:`STARTS`; None for a checkpoint of the run itself, which only means that it resumed."""
        found = {key: self.values.get(key) for key in STARTS}
        return without_own_ckpt(found, self.folder)

    @property
    def tested_images(self) -> dict:
        """What determines the images of the tests: fingerprints of the data, and random views of test images."""
        data, sources = self.report.get("data", {}), self.report.get("sources") or {}
        tested = sources if sources and sources.keys() <= data.keys() else data  # a folder has its own name in sources
        views = {key: value for key, value in self.values.items() if key.startswith("augment.views")}
        augmented = "test" in (self.values.get("augment.splits") or [])
        return {title: data[title]["fingerprint"] for title in tested} | (views if augmented else {})

    @property
    def command(self) -> str:
        """The command that repeats the run, in any folder, from the overrides that Hydra recorded, or its settings."""
        words = self._recorded("overrides.yaml")
        if not isinstance(words, list):
            words = [*(format_overrides(self.settings, [key]) for key in self.settings), f"seed={self.seed}"]
        # A repetition in another folder has nothing to resume.
        words = [str(word) for word in words if word != "ckpt=last"]
        return shlex.join(["metafew", "train", *self._search_path, *words])

    @property
    def _search_path(self) -> list[str]:
        """The words of the command line for other folders of options or another main configuration.

        Hydra records them apart from overrides.
        """
        recorded: Any = self._recorded("hydra.yaml")
        match recorded:
            case {"hydra": {"overrides": {"hydra": list(words)}, "runtime": {"config_sources": list(sources)}}}:
                folders = [source["path"] for source in sources if source.get("provider") == "command-line"]
                flags = [word for folder in folders for word in ("--config-dir", folder)]
                main = recorded["hydra"].get("job", {}).get("config_name") or MAIN
                flags += ["--config-name", main] * (main != MAIN)
                return flags + searched(words)
        return []

    def _recorded(self, name: str) -> object:
        """Return the content of a YAML file that Hydra wrote in the folder; None if there is none that can be read."""
        try:
            return yaml.safe_load((self.folder / ".hydra" / name).read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            return None

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
    def head_entries(self) -> dict[str, dict]:
        """What is recorded of each head, and of each of its further shots as ``HEAD/shotN``.

        Results of earlier versions only say whether all heads together are transductive.
        """
        marked = {"transductive": bool(self.report.get("transductive"))}
        return dict.fromkeys(self.heads, marked) | self.report.get("heads", {})

    def is_transductive(self, head: str | None = None) -> bool:
        """Return whether a query may change the predictions of others under a head, or under all if none is named."""
        marks = [self.head_entries[name]["transductive"] for name in ([head] if head in self.heads else self.heads)]
        return all(marks) if marks else bool(self.report.get("transductive"))

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
        """The number of failed tasks over all validations but the one before the first step."""
        return int(sum(failed for step, failed in self._validated("failed").items() if step))

    def _validated(self, measure: str) -> dict[int, float]:
        """Return the validation measurements of the trained head, by step."""
        head = self.report.get("choices", {}).get("head") or self.trained_head
        name = f"val/{head}/{measure}"
        return {int(row["step"]) + 1: float(row[name]) for row in self.csv_rows("metrics.csv") if row.get(name)}

    @property
    def analyzed(self) -> Path:
        """The folder with the newest analysis, if any."""
        return next(filter(is_analyzed, self.folders), self.folder)

    @cached_property
    def analysis(self) -> dict:
        """The content of analysis.json; empty without ``stages=[analyze]``."""
        return read_object(self.analyzed / "analysis.json") if is_analyzed(self.analyzed) else {}

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
                task = int(row["index"]), row["source"] if self.sources else ""
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


def is_analyzed(folder: Path) -> bool:
    """Return whether a folder has an analysis.json of the weights of its results.json.

    A training that was resumed leaves behind the analysis of its earlier weights.
    """
    report = read_object(folder / "results.json")
    recorded = report.get("analysis", True)  # missing from results of earlier versions
    ckpt = report.get("config", {}).get("ckpt")
    only_tests = "fit" not in report.get("seconds", {}) and isinstance(ckpt, str) and is_own(ckpt, folder)
    return bool(recorded or only_tests) and (folder / "analysis.json").is_file()


def read_object(file: Path) -> dict:
    """Return the object in a JSON file; empty if the file is missing, damaged or contains something else."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
