"""The Weights & Biases logger: online with an API key, offline without."""

from __future__ import annotations

import netrc
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from metafew.errors import UsageError
from metafew.io import is_own

KEPT = ("best", "last")
CLOUD = "api.wandb.ai"
"""The host for which older versions of wandb write a key."""


class Wandb(WandbLogger):
    """Log to Weights & Biases, or without an API key only to disk, so that it never prompts.

    Args:
        project: name of the project.
        name: name of the run.
        group: runs of a group are shown together; None for the sweep or experiment of ``save_dir``, or else the tags.
        tags: labels of the run.
        checkpoints: which of ``best`` and ``last`` to upload as artifacts at the end of the run.
        ckpt: the checkpoint that the run starts from; with one in ``save_dir``, the run logged there is resumed.
        save_dir: folder of the run; ``wandb sync`` uploads an offline run later.

    Raises:
        UsageError: if ``checkpoints`` contains other names.
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
                f"expected logger.wandb.checkpoints to be a list of best and last, got {self.checkpoints}: "
                "type logger.wandb.checkpoints=[best,last]"
            )
        folder = Path(save_dir).resolve()
        resumed = is_own(ckpt, folder)
        logs = rank_zero_only.rank == 0  # type: ignore[attr-defined]  # Lightning sets it
        mode = os.environ.get("WANDB_MODE") or ("online" if logs and has_wandb_key() else "offline")
        super().__init__(
            name=name,
            save_dir=save_dir,
            version=newest_id(folder) if resumed else None,
            project=project,
            add_file_policy="immutable",
            group=group or group_of(folder) or " ".join(tags),
            tags=list(tags),
            mode=mode,
        )


def has_wandb_key() -> bool:
    """Return whether Weights & Biases can log in without a prompt."""
    import wandb

    settings = wandb.setup().settings  # of the environment and of wandb's own files
    if settings.api_key:
        return True
    hosts = [urlsplit(settings.base_url).netloc, *([] if settings.is_local else [CLOUD])]
    try:
        keys = netrc.netrc(os.environ.get("NETRC"))  # where wandb login writes
    except (OSError, netrc.NetrcParseError):
        return False
    return any(keys.authenticators(host) for host in hosts)


def newest_id(folder: Path) -> str | None:
    """Return the id of the newest Weights & Biases run in ``folder``, if any."""
    names = (re.fullmatch(r"(?:offline-)?run-(\d+_\d+)-(.+)", path.name) for path in folder.glob("wandb/*"))
    return max((name.groups() for name in names if name), default=(None, None))[1]


def group_of(folder: Path) -> str | None:
    """Return a name for the sweep or experiment that contains the cell ``folder``: the last two parts of its path."""
    for above in folder.parents:
        # Hydra writes multirun.yaml to the folder of a sweep, and the cells of an experiment are in the folder cells.
        if (above / "multirun.yaml").is_file() or (above / "cells") in (folder, *folder.parents):
            return "-".join(above.parts[-2:])
    return None


@contextmanager
def closing() -> Iterator[None]:
    """Finish the Weights & Biases run that starts inside this context, if any, so that the next run starts its own."""
    before = is_open()  # by the user's own code, which may log more
    try:
        yield
    finally:
        if is_open() and not before:
            sys.modules["wandb"].finish()


def is_open() -> bool:
    """Return whether a Weights & Biases run is open in this process."""
    package = sys.modules.get("wandb")
    return package is not None and package.run is not None
