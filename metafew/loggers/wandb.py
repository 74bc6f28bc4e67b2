"""Weights & Biases: online with a key, on disk without."""

from __future__ import annotations

import netrc
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from pytorch_lightning.loggers import WandbLogger

from metafew.errors import UsageError

KEPT = ("best", "last")


class Wandb(WandbLogger):
    """Logs to Weights & Biases; without a key it writes to disk only, and so never asks or waits.

    Args:
        project: name of the project.
        name: what the run is called.
        group: runs of one group are shown together; None for the sweep or experiment that ``save_dir`` belongs to, and
            for the tags where there is none.
        tags: labels of the run.
        checkpoints: which of ``best`` and ``last`` become artifacts when the run is over.
        ckpt: where the run starts from; a file below ``save_dir`` goes on with the run that is logged there.
        save_dir: folder of the run; ``wandb sync`` sends an offline one later.

    Raises:
        UsageError: ``checkpoints`` names others.
    """

    def __init__(
        self,
        project: str,
        name: str,
        group: str | None,
        tags: Sequence[str],
        checkpoints: Sequence[str],
        ckpt: str | None,
        save_dir: str,
    ):
        self.checkpoints = [checkpoints] if isinstance(checkpoints, str) else list(checkpoints)
        if set(self.checkpoints) - set(KEPT):
            raise UsageError(
                f"logger.wandb.checkpoints is a list of best and last, not {self.checkpoints}: "
                "type logger.wandb.checkpoints=[best,last]"
            )
        folder = Path(save_dir).resolve()
        going = ckpt is not None and Path(ckpt).resolve().is_relative_to(folder)
        mode = os.environ.get("WANDB_MODE") or ("online" if has_wandb_key() else "offline")
        super().__init__(
            name=name,
            save_dir=save_dir,
            version=newest_id(folder) if going else None,
            project=project,
            add_file_policy="immutable",
            group=group or group_of(folder) or " ".join(tags),
            tags=list(tags),
            mode=mode,
        )


def has_wandb_key() -> bool:
    """Tell whether Weights & Biases could log in without asking."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def newest_id(folder: Path) -> str | None:
    """Return the id of the newest Weights & Biases run that was logged in ``folder``, if there is one."""
    names = (re.fullmatch(r"(?:offline-)?run-(\d+_\d+)-(.+)", path.name) for path in folder.glob("wandb/*"))
    return max((name.groups() for name in names if name), default=(None, None))[1]


def group_of(folder: Path) -> str | None:
    """Return a name for the sweep or experiment that the run in ``folder`` is a cell of: its last two folders."""
    for above in folder.parents:
        # Hydra leaves the first in the folder of a sweep; an experiment has its cells in the other.
        if (above / "multirun.yaml").is_file() or (above / "cells") in (folder, *folder.parents):
            return "-".join(above.parts[-2:])
    return None


def close() -> None:
    """End the Weights & Biases run, if there is one, so that the next run of a sweep starts its own."""
    if package := sys.modules.get("wandb"):
        package.finish()
