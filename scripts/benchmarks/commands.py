"""train.py in a process of its own, as it is typed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.measure import Bench

TRAIN = Path(__file__).parents[2] / "train.py"
BRIEF = ("trainer.enable_progress_bar=false", "trainer.max_steps=1", "stages=[fit]", "val.total=4")
"""Training that is over after one step and the smallest validation."""


def dataset() -> str:
    """Return ``omniglot`` where it is at hand, else ``glyphs``."""
    root = Path(os.environ.get("METAFEW_DATA", "data"), "omniglot")
    return "omniglot" if any(root.glob("images_background*")) else "glyphs"


def train(bench: Bench, *typed: str, script: Path = TRAIN) -> None:
    """Run train.py, or a script that stands in for it, in a process of its own."""
    accelerator = "gpu" if bench.device.type == "cuda" else "cpu"
    words = [*typed] if "--help" in typed else [f"dataset={dataset()}", f"trainer.accelerator={accelerator}", *typed]
    # A script elsewhere than train.py would find what is installed.
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": str(TRAIN.parent)}
    subprocess.run([sys.executable, script, *words], check=True, env=environment, stdout=subprocess.DEVNULL)
