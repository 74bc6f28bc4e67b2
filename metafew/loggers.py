"""Loggers that need a decision before they are made."""

from __future__ import annotations

import netrc
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec

from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger

from metafew.errors import UsageError


def has_wandb_key() -> bool:
    """Tell whether Weights & Biases could log in without asking."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def wandb(project: str, group: str, tags: Sequence[str], save_dir: str) -> WandbLogger:
    """Return a Weights & Biases logger; without a key it writes to disk only, and so never asks or waits.

    Args:
        project: name of the project.
        group: runs of one group are shown together.
        tags: labels of the run.
        save_dir: folder of the run; ``wandb sync`` sends an offline one later.
    """
    mode = os.environ.get("WANDB_MODE") or ("online" if has_wandb_key() else "offline")
    return WandbLogger(project=project, group=group, tags=list(tags), save_dir=save_dir, offline=mode != "online")


def tensorboard(save_dir: str) -> TensorBoardLogger:
    """Return a TensorBoard logger that writes below ``save_dir/tensorboard``."""
    if find_spec("tensorboard") is None:
        raise UsageError(
            "logger=tensorboard wants the package tensorboard, which is not installed: "
            "type pip install 'metafew[tensorboard]'"
        )
    return TensorBoardLogger(save_dir, name="tensorboard", version="")


def close() -> None:
    """End the Weights & Biases run, if there is one, so that the next run of a sweep starts its own."""
    if package := sys.modules.get("wandb"):
        package.finish()
