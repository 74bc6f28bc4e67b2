"""Plan the runs of an experiment: trainings and tests, in folders named after their overrides. Imports no torch."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from metafew.config.overrides import merge
from metafew.config.quoting import override
from metafew.errors import UsageError, nearest
from metafew.io import read_json

EXPERIMENT_KEYS = ("experiment", "budget", "seeds", "jobs", "cells")
"""Keys of the experiment itself; all other overrides apply to each of its runs."""
HEADS = ("heads", "slow_heads")
ENTRIES = (
    "title", "paper", "setting", "report", "settings", "parts", "minutes", "budgets", "from", "panels", "test", *HEADS,
    "stages", "checkpoint", "rows", "columns", "figures", "claims", "ours", "published",
)  # fmt: skip
"""Entries of the node ``experiment`` of a YAML."""
STARTED = ("name", "budget", "command", "flags")
"""Entries that the command line adds to them."""
EVALUATION = re.compile(r"(test\.(?!seed=)|analyze\.(?!every=)|evaluate|data_dir=|cache_dir=)")
"""Overrides that do not affect training, as ``test.seed``, which draws validation tasks, and ``analyze.every`` do."""


@dataclass(frozen=True)
class Command:
    """One run.

    Args:
        folder: its output folder.
        overrides: its overrides, without the output folder.
    """

    folder: Path
    overrides: tuple[str, ...]

    @property
    def arguments(self) -> list[str]:
        """The command line."""
        return [*self.overrides, override("hydra.run.dir", self.folder)]

    @property
    def report(self) -> dict:
        """The content of its results.json; empty before it ends."""
        return read_json(self.folder / "results.json")

    @property
    def finished(self) -> bool:
        """Whether it ended without an error, and after its last step rather than at its time limit."""
        report = self.report
        return "metrics" in report and report.get("finished", True)


@dataclass(frozen=True)
class Cell:
    """One row of the table with one seed.

    Args:
        row: ``"panel/row"``, or the row of a table without panels.
        seed: the seed of initialization and training tasks.
        fit: the training, which several cells may share.
        test: the run that tests or analyzes it.
        pretraining: the training of its frozen backbone, if any.
        further: for each further head, its training on the network of ``fit``, frozen, and its test; or for a head that
            needs none, ``fit`` and its test.
    """

    row: str
    seed: int
    fit: Command
    test: Command
    pretraining: Command | None = None
    further: tuple[tuple[Command, Command], ...] = ()

    @property
    def commands(self) -> list[Command]:
        """Its runs, in order, without those of further heads."""
        return [*([self.pretraining] if self.pretraining else []), self.fit, self.test]

    @property
    def all_commands(self) -> list[Command]:
        """Its runs, in order, and then those of further heads."""
        return [*self.commands, *chain.from_iterable(self.further)]

    @property
    def error(self) -> str | None:
        """The error message of its first failed run, including those of further heads, or of its data."""
        reports = {command: command.report for command in self.all_commands}
        for report in reports.values():
            if "error" in report:
                return report["error"]
            if not report.get("finished", True):
                return (
                    f"trainer.max_time ended the training after {report['steps']} steps: repeat the command to resume"
                )
        if any(word.startswith("dataset") for word in self.test.overrides):  # the test has data of its own
            return None
        trained, tested = (reports[command].get("data", {}) for command in (self.fit, self.test))
        for name, summary in trained.items():
            if summary["fingerprint"] != tested.get(name, summary)["fingerprint"]:
                return f"it was trained and tested on different images of dataset={name}: type another cells=DIR"
        return None

    @property
    def diverged(self) -> bool:
        """Whether its training or pretraining diverged."""
        return any(each.report.get("diverged") for each in self.commands)

    @property
    def finished(self) -> bool:
        """Whether its runs, except those of further heads, are finished."""
        return all(command.finished for command in self.commands)


def plan_cells(
    experiment: dict, overrides: Sequence[str], budget: str, seeds: Sequence[int], folder: Path, groups: Sequence[str]
) -> list[Cell]:
    """Return the cells of every row and seed.

    The overrides of a training are those of the table (``settings`` and its budget), of its panel (``panels``, named
    after the prefix of rows) and of its row, each with ``train`` and its budget, followed by those of the command line;
    later ones take precedence. The overrides of a test are ``test`` of the same three, followed by the evaluation
    settings of their budgets. ``from`` is a pretraining with its own overrides, whose frozen backbone every row uses.
    ``heads`` of the same three are heads that are trained, too, each on the frozen network of the row, and tested like
    it; those of ``slow_heads`` need no training, and each is tested in a run of its own, with its default options. The
    folder of a run is named after its overrides, and that of a test of another checkpoint than the last also after that
    checkpoint, so that tables can share runs.

    Args:
        experiment: the node ``experiment`` of the YAML.
        overrides: command-line overrides for every run.
        budget: one of ``experiment["budgets"]``.
        seeds: the seeds, one training for each.
        folder: the folder of all runs.
        groups: the groups of the configuration.

    Raises:
        UsageError: if the experiment, a row or a panel has unknown entries, the checkpoint is not set for each budget,
            budget or seeds are invalid, or an override sets what the experiment sets itself.
    """
    check_experiment(experiment, overrides, budget, seeds)
    stages = f"stages=[{','.join(experiment.get('stages', ['test']))}]"
    checkpoint = f"{experiment.get('checkpoint', {}).get(budget, 'last')}.ckpt"
    table = {"train": experiment["settings"], "test": experiment.get("test"), **experiment["budgets"]}
    table |= {entry: experiment.get(entry, []) for entry in HEADS}
    cells = []
    for row, own in experiment["rows"].items():
        layers = [table, experiment.get("panels", {}).get(row.partition("/")[0], {}), own]
        training = [part for layer in layers for part in (layer.get("train"), layer.get(budget))]
        evaluation = filter(EVALUATION.match, merge_parts([layer.get(budget) for layer in layers], groups))
        test = merge_parts([*(layer.get("test") for layer in layers), list(evaluation), overrides], groups)
        heads, slow = ([head for layer in layers for head in layer.get(entry, [])] for entry in HEADS)
        for seed in seeds:
            pretraining, weights = None, []
            if first := experiment.get("from"):
                parts = [first["train"], first.get(budget), overrides]
                pretraining = training_command(merge_parts(parts, groups), seed, folder)
                weights = weights_of(pretraining, checkpoint)
            fit = training_command(merge_parts([*training, overrides, weights], groups), seed, folder)
            tested = [(fit, [f"evaluate=[{head}]"]) for head in slow]
            for choice in (f"head={head}" for head in heads):
                parts = [*training, overrides, [choice], weights_of(fit, checkpoint)]
                own = training_command(merge_parts(parts, groups), seed, folder)
                tested.append((own, [choice, "evaluate=[]"]))
            further = (
                (own, test_command(own, stages, checkpoint, merge_parts([test, words], groups)))
                for own, words in tested
            )
            cells.append(Cell(row, seed, fit, test_command(fit, stages, checkpoint, test), pretraining, tuple(further)))
    return cells


def weights_of(training: Command, checkpoint: str) -> list[str]:
    """Return the override that starts from the network of a training, frozen."""
    return [override("backbone.weights", training.folder / "checkpoints" / checkpoint)]


def check_experiment(experiment: dict, overrides: Sequence[str], budget: str, seeds: Sequence[int]) -> None:
    """Raise UsageError if an experiment, or its overrides, budget or seeds are invalid."""
    budgets, checkpoint = experiment["budgets"], experiment.get("checkpoint", {})
    own, of_rows = {key: experiment[key] for key in experiment.keys() - STARTED}, ("train", "test", *HEADS, *budgets)
    layers = [*experiment.get("panels", {}).items(), *experiment["rows"].items()]
    for name, layer, allowed in [("experiment", own, ENTRIES), *((*each, of_rows) for each in layers)]:
        if unknown := sorted(layer.keys() - allowed):
            near, entries = nearest(unknown[0], allowed), ", ".join(allowed)
            advice = f"write {near}" if near else f"leave out {unknown[0]}"
            raise UsageError(f"expected {name} to have the entries {entries}, got {unknown[0]}: {advice}")
        for entry in HEADS:
            if not isinstance(heads := layer.get(entry, []), list):
                raise UsageError(f"expected {entry} of {name} to be a list, got {heads}: write {entry}: [{heads}]")
    if budget not in budgets:
        options = " or ".join(budgets)
        raise UsageError(f"expected budget to be {options}, got {budget}: type budget={next(iter(budgets))}")
    if not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds) or len(set(seeds)) < len(seeds):
        raise UsageError(f"expected seeds to be different non-negative integers, got {seeds}: type seeds=[0,1,2]")
    if own := [word for word in overrides if word.startswith(("seed=", "stages="))]:
        raise UsageError(f"expected no seed and no stages, which the experiment sets, got {own[0]}: type seeds=[0,1,2]")
    if not isinstance(checkpoint, dict):
        mapping = f"checkpoint: {{{budget}: {checkpoint}}}"
        raise UsageError(f"expected checkpoint to be set for each budget, got {checkpoint}: write {mapping}")


def training_command(overrides: Sequence[str], seed: int, folder: Path) -> Command:
    """Return a training that resumes from its last checkpoint."""
    overrides = [*overrides, f"seed={seed}", "stages=[fit]", "ckpt=last"]
    name = fingerprint([word for word in overrides if not EVALUATION.match(word)])
    return Command(folder / name, tuple(overrides))


def test_command(fit: Command, stages: str, checkpoint: str, overrides: Sequence[str]) -> Command:
    """Return the test, or other stages, of a training's checkpoint."""
    tested = (stages, override("ckpt", fit.folder / "checkpoints" / checkpoint), *overrides)
    marked = [] if checkpoint == "last.ckpt" else [checkpoint]  # folders of the last one keep their names
    return Command(fit.folder / fingerprint([stages, *overrides, *marked]), tested)


def merge_parts(parts: Sequence[Sequence[str | list[str]] | None], groups: Sequence[str]) -> list[str]:
    """Return the overrides of all parts; later ones take precedence.

    >>> merge_parts([["norm=batch", "seed=1"], None, [["norm=layer"], "norm.eps=1"]], ["norm"])
    ['seed=1', 'norm=layer', 'norm.eps=1']
    """
    merged: list[str] = []
    for part in parts:
        for each in part or []:  # a YAML anchor inserts a list into a list
            merged = merge(merged, each if isinstance(each, list) else [each], groups)
    return merged


def fingerprint(overrides: Sequence[str]) -> str:
    """Return a short name that depends on the overrides, but not on their order or the folder of all runs.

    >>> fingerprint(["norm=batch", "seed=0"]) == fingerprint(["seed=0", "norm=batch"])
    True
    """
    names = [
        re.sub(r"^backbone\.weights=.*/(\w+)/checkpoints/([\w.]+).*", r"backbone.weights=\1/\2", word)
        for word in overrides
    ]
    return hashlib.sha256(json.dumps(sorted(names)).encode()).hexdigest()[:12]
