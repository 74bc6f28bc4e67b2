"""What an experiment runs: trainings and their tests, in folders that follow from their words. Imports no torch."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from metafew.config.overrides import merge
from metafew.errors import UsageError
from metafew.io import read_json

WORDS = ("experiment", "budget", "seeds", "jobs", "cells")
"""What is typed to an experiment itself; all other words hold for each of its runs."""


EVALUATION = re.compile(r"(test\.|analyze\.|evaluate|data_dir=|cache_dir=)")
"""Words that do not change a training."""


@dataclass(frozen=True)
class Command:
    """One run.

    Args:
        folder: what it leaves behind.
        words: what is typed for it, but for its folder.
    """

    folder: Path
    words: tuple[str, ...]

    @property
    def typed(self) -> list[str]:
        """Return all words."""
        return [*self.words, f"hydra.run.dir={self.folder}"]

    @property
    def report(self) -> dict:
        """Return what stands in its results.json."""
        return read_json(self.folder / "results.json")

    @property
    def finished(self) -> bool:
        """Tell whether it has succeeded."""
        return "metrics" in self.report


@dataclass(frozen=True)
class Cell:
    """One row of the table with one seed.

    Args:
        row: the panel and the row with a slash between, or the row alone.
        seed: of weights and training tasks.
        fit: the training, which other cells may share.
        test: what is measured of it.
        before: the training that its backbone comes from, if it comes from one.
    """

    row: str
    seed: int
    fit: Command
    test: Command
    before: Command | None = None

    @property
    def error(self) -> str | None:
        """Return the sentence that its training or its test ended with."""
        return next((report["error"] for each in self.commands if "error" in (report := each.report)), None)

    @property
    def diverged(self) -> bool:
        """Tell whether its training went to numbers that are not finite."""
        return any(each.report.get("diverged") for each in self.commands)

    @property
    def finished(self) -> bool:
        """Tell whether its figures are there."""
        return all(command.finished for command in self.commands)

    @property
    def commands(self) -> list[Command]:
        """Return its runs, in order."""
        return [*([self.before] if self.before else []), self.fit, self.test]


def plan(
    experiment: dict, typed: Sequence[str], budget: str, seeds: Sequence[int], cells: Path, groups: Sequence[str]
) -> list[Cell]:
    """Return the cells of every row and seed.

    The words of a training are those of the whole table (``settings`` and its budget), of its panel (``panels``, whose
    names begin those of rows) and of its row, each with ``train`` and words of the budget, then what was typed; later
    ones win. Those of a test are ``test`` of the same three, then what their budgets say of evaluation. ``from`` is a
    training before, with words of its own, whose backbone every row freezes. A run stands in a folder that is named
    after its words, so that every table that wants it finds it there.

    Args:
        experiment: what stands below ``experiment`` in the YAML.
        typed: what was typed beside the experiment, for every run.
        budget: which of ``experiment["budgets"]``.
        seeds: one training for each of them.
        cells: the folder of all runs.
        groups: the groups of the configuration.

    Raises:
        UsageError: a row or panel has other entries, or the checkpoint is said for all budgets; there is no such
            budget, or no seed, or what was typed belongs to the experiment itself.
    """
    budgets, panels = experiment["budgets"], experiment.get("panels", {})
    for name, layer in [*panels.items(), *experiment["rows"].items()]:
        if unknown := layer.keys() - {"train", "test", *budgets}:
            given = ", ".join(sorted(unknown))
            raise UsageError(f"{name} wants {', '.join(['train', 'test', *budgets])}, not {given}: leave out {given}")
    if budget not in budgets:
        raise UsageError(f"budget is {' or '.join(budgets)}, not {budget}: type budget={next(iter(budgets))}")
    if not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds) or len(set(seeds)) < len(seeds):
        raise UsageError(f"seeds wants a list of different whole numbers, not {seeds}: type seeds=[0,1,2]")
    if own := [word for word in typed if word.startswith(("seed=", "stages="))]:
        raise UsageError(f"an experiment has seeds and stages of its own, and {own[0]} was typed: type seeds=[0,1,2]")
    stages = f"stages=[{','.join(experiment.get('stages', ['test']))}]"
    checkpoints = experiment.get("checkpoint", {})
    if not isinstance(checkpoints, dict):
        wanted = f"checkpoint: {{{budget}: {checkpoints}}}"
        raise UsageError(f"checkpoint is said for each budget, not {checkpoints} for all: write {wanted}")
    chosen = f"{checkpoints.get(budget, 'last')}.ckpt"
    table = {"train": experiment["settings"], "test": experiment.get("test"), **budgets}
    planned = []
    for row, own in experiment["rows"].items():
        layers = [table, panels.get(row.partition("/")[0], {}), own]
        trained = [words for layer in layers for words in (layer.get("train"), layer.get(budget))]
        budgeted = filter(EVALUATION.match, together([layer.get(budget) for layer in layers], groups))
        test = together([*(layer.get("test") for layer in layers), list(budgeted), typed], groups)
        for seed in seeds:
            before, weights = None, []
            if first := experiment.get("from"):
                before = training(together([first["train"], first.get(budget), typed], groups), seed, cells)
                weights = [f"backbone.weights={before.folder / 'checkpoints' / chosen}"]
            fit = training(together([*trained, typed, weights], groups), seed, cells)
            words = (stages, f"ckpt={fit.folder / 'checkpoints' / chosen}", *test)
            measure = Command(fit.folder / fingerprint([stages, *test]), words)
            planned.append(Cell(row, seed, fit, measure, before))
    return planned


def training(words: Sequence[str], seed: int, cells: Path) -> Command:
    """Return the training of these words, which goes on where it was interrupted."""
    words = [*words, f"seed={seed}", "stages=[fit]", "ckpt=last"]
    return Command(cells / fingerprint([word for word in words if not EVALUATION.match(word)]), tuple(words))


def together(parts: Sequence[Sequence[str | list[str]] | None], groups: Sequence[str]) -> list[str]:
    """Return the words of all parts; where two disagree, the later wins.

    >>> together([["norm=batch", "seed=1"], None, [["norm=layer"], "norm.eps=1"]], ["norm"])
    ['seed=1', 'norm=layer', 'norm.eps=1']
    """
    words: list[str] = []
    for part in parts:  # a YAML can name a list of words once, and put it into others
        for each in part or []:
            words = merge(words, each if isinstance(each, list) else [each], groups)
    return words


def fingerprint(words: Sequence[str]) -> str:
    """Return a short name that follows from the words, in whatever order and wherever the folder of all runs is.

    >>> fingerprint(["norm=batch", "seed=0"]) == fingerprint(["seed=0", "norm=batch"])
    True
    """
    names = [re.sub(r"^backbone\.weights=.*/(\w+)/checkpoints/", r"backbone.weights=\1/", word) for word in words]
    return hashlib.sha256(json.dumps(sorted(names)).encode()).hexdigest()[:12]
