"""Run train.py as a subprocess."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.measure import Bench

TRAIN = Path(__file__).parents[2] / "train.py"
BRIEF = ("trainer.enable_progress_bar=false", "trainer.max_steps=1", "stages=[fit]", "val.total=4")
"""The overrides of a training of one step and the smallest validation."""


def dataset() -> str:
    """Return ``omniglot`` if it has been downloaded, else ``glyphs``."""
    root = Path(os.environ.get("METAFEW_DATA", "data"), "omniglot")
    return "omniglot" if any(root.glob("images_background*")) else "glyphs"


def train(bench: Bench, *overrides: str, script: Path = TRAIN) -> None:
    """Run train.py, or a script that replaces it."""
    accelerator = "gpu" if bench.device.type == "cuda" else "cpu"
    defaults = [] if "--help" in overrides else [f"dataset={dataset()}", f"trainer.accelerator={accelerator}"]
    command = [sys.executable, script, *defaults, *overrides]
    # A script in another folder than train.py would import the installed package.
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": str(TRAIN.parent)}
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
