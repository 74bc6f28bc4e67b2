"""Measure processes of train.py: its help, and one training step."""

from __future__ import annotations

import tempfile

from benchmarks.commands import BRIEF, dataset, train
from benchmarks.measure import Bench, Tables

ROUNDS = 3


def tables(bench: Bench) -> Tables:
    """Measure both; the warm-up round builds the store."""
    with tempfile.TemporaryDirectory() as folder:
        calls = {
            "train.py --help": bench.timed(lambda: train(bench, "--help")),
            "one training step, 4 validation tasks": bench.timed(
                lambda: train(bench, *BRIEF, f"hydra.run.dir={folder}/run")
            ),
        }
        rows = bench.measure("startup", calls, ROUNDS)
    return {f"from the command to its end, {dataset()} with its store built": rows}
