"""Going on with a training: from which checkpoint, whether it is the same one, and how one ends before its time."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from metafew.distributed.launch import ENDED, is_rank_zero
from metafew.errors import UsageError
from metafew.io import atomic_write, write_json
from metafew.training import checkpoint

log = logging.getLogger(__name__)


def newest(out: Path) -> Path | None:
    """Return the newest checkpoint of the run in ``out`` that can be read; warn of newer ones that cannot.

    Raises:
        UsageError: there are some, and none can be read.
    """
    files = sorted((out / "checkpoints").glob("*.ckpt"), key=lambda file: file.stat().st_mtime_ns, reverse=True)
    for number, file in enumerate(files, 1):
        try:
            checkpoint.read(file)
        except UsageError as error:
            if number == len(files):
                raise
            log.warning("%s: the one before it is tried", error)
        else:
            return file
    log.warning("ckpt=last goes on with the training in %s, where no checkpoint is yet: a new training starts", out)
    return None


def goes_on(
    cfg: DictConfig, start: dict | None, provenance: dict, out: Path, evaluation_options: dict[str, Sequence[str]]
) -> Path | None:
    """Return the checkpoint whose training goes on; None where training starts, be it from a checkpoint's weights.

    Raises:
        UsageError: training would start anew in the folder of another training, from its weights.
    """
    if start is None:
        return None
    before, now = (of_training(saved["training"], evaluation_options) for saved in (start["metafew"], provenance))
    changed = [group for group in now if before.get(group) != now[group]]
    if not changed and "resume" in start:  # else of an earlier version
        return adopted(Path(cfg.ckpt).resolve(), out.resolve())
    if changed and Path(cfg.ckpt).resolve().is_relative_to(out.resolve()):
        raise UsageError(
            f"a training goes on in its folder with the choices that it began with, and those typed below "
            f"{' and '.join(changed)} are not those of {cfg.ckpt}: leave them out, or type another hydra.run.dir with "
            f"ckpt={cfg.ckpt} for a new training from its weights"
        )
    log.warning("the training of %s was another one: a new training starts from its weights", cfg.ckpt)
    return None


def of_training(cfg: dict, evaluation_options: dict[str, Sequence[str]]) -> dict:
    """Return ``cfg`` without the options of each group that have no effect on training."""
    return cfg | {
        group: {key: value for key, value in cfg[group].items() if key not in options}
        for group, options in evaluation_options.items()
    }


def adopted(ckpt: Path, out: Path) -> Path:
    """Return ``ckpt``, once the run in ``out`` has the past of the one that wrote it: its best and its metrics.csv."""
    folder = out / "checkpoints"
    past = {ckpt.with_name("best.ckpt"): folder / "best.ckpt", ckpt: folder / "last.ckpt"}
    past[ckpt.parents[1] / "metrics.csv"] = out / "metrics.csv"
    for old, new in past.items():
        if old != new and old.is_file() and is_rank_zero():
            folder.mkdir(exist_ok=True)
            with old.open("rb") as source, atomic_write(new, "wb") as file:
                shutil.copyfileobj(source, file)
    return ckpt


def end(out: Path) -> None:
    """Say how to go on with the run in ``out``, which a signal ends, and exit as after that signal."""
    if not is_rank_zero():
        sys.exit()  # else Lightning or torchrun would kill the first, which may still be writing
    sweep = Path(HydraConfig.get().sweep.dir).absolute()
    folder = f"hydra.sweep.dir={sweep}" if out.is_relative_to(sweep) else f"hydra.run.dir={out}"
    sentence = f"the run was asked to end before it was done: type its words again with ckpt=last {folder}"
    write_json(out / "results.json", {"error": sentence})
    print(f"metafew: {sentence}", file=sys.stderr)
    sys.exit(ENDED)
