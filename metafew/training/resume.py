"""Resume a training: find its checkpoint, compare options, copy its history, and exit after a signal."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from metafew.config.moved import add_options
from metafew.config.paths import typed_in
from metafew.config.quoting import to_paste
from metafew.data.datamodule import FewShot
from metafew.data.store import summary_of
from metafew.data.summary import describe_change, recorded
from metafew.data.task_spec import BALANCES, NATURAL
from metafew.distributed.launcher import is_rank_zero, job_of_queue
from metafew.distributed.output_folder import CHECKPOINTS, numbered
from metafew.distributed.subprocesses import TERMINATED
from metafew.errors import UsageError
from metafew.io import atomic_write, is_own, write_error
from metafew.loggers.metrics_file import copy_rows
from metafew.training import checkpoint

log = logging.getLogger(__name__)

CURVE = "metrics.csv"
FIGURES = ("learning_curve", "alpha", "episode", "projection", "confusion", "travel", "sufficient_condition")
OF_A_TRAINING = (
    *(CURVE, "results.json", "tasks.csv", "analysis.json"),
    *(f"{name}.{kind}" for name in FIGURES for kind in ("png", "svg")),
)
"""Files beside the checkpoints of a training, which would be taken for those of the next one."""
PATHS_OF_DATA = ("root", "splits", "labels")
"""Options of ``dataset`` that do not matter where the images themselves are compared."""
OF_VALIDATION_TASKS = ("way", "shot", "query", "balance", "total")
"""Options of ``val`` on which the validation tasks depend, without those that only matter for some values of these."""


def newest_of_this_run() -> str | None:
    """Return the newest checkpoint in the folder of this run, or None."""
    file = newest(Path(HydraConfig.get().runtime.output_dir))
    return None if file is None else str(file)


def newest_of_this_job(out: Path) -> str | None:
    """Return the newest checkpoint that this job wrote to ``out`` before its queue stopped it, or None."""
    if not any((out / "checkpoints").glob("*.ckpt")):
        return None
    file = newest(out)
    return str(file) if file and checkpoint.read(file)["metafew"].get("job") == job_of_queue() else None


def newest(out: Path) -> Path | None:
    """Return the newest readable checkpoint of the run in ``out``, and warn about newer unreadable ones.

    Raises:
        UsageError: if there are checkpoints but none can be read.
    """
    files = [file for file in (out / "checkpoints").glob("*.ckpt") if file.is_file()]  # rather than a dangling link
    files.sort(key=lambda file: file.stat().st_mtime_ns, reverse=True)
    weights_only: tuple[Path, int] | None = None
    for number, file in enumerate(files, 1):
        try:
            content = checkpoint.read(file)
        except UsageError as error:
            if number == len(files) and weights_only is None:
                raise
            log.warning("%s: trying the one before it", error)
        else:
            if "resume" in content:
                return further(file.with_name("last.ckpt"), file, content["global_step"])
            weights_only = weights_only or (file, content["global_step"])  # or of an earlier version
    if weights_only is not None:
        return further(weights_only[0].with_name("last.ckpt"), *weights_only)
    log.warning("ckpt=last resumes the training in %s, which has no checkpoint yet: starting a new training", out)
    return None


def further(last: Path, newest: Path, step: int) -> Path:
    """Return ``last`` if it is readable and no earlier than ``newest``, at ``step``, as times of copied files vary."""
    with suppress(UsageError):
        if last.is_file() and last != newest and checkpoint.read(last)["global_step"] >= step:
            return last
    return newest


def is_same_training(
    start: dict,
    training: dict,
    ckpt: str,
    out: Path,
    evaluation_options: Mapping[str, Sequence[str]],
    data: FewShot,
) -> bool:
    """Return whether a run resumes the training of a checkpoint rather than only starting from its weights.

    Args:
        start: the content of the checkpoint.
        training: :func:`metafew.config.carried.training_options` of this run, with ``train`` resolved.
        ckpt: path of the checkpoint.
        out: folder of this run.
        evaluation_options: for each group, the names of options that have no effect on training.
        data: the data of this run, whose stores are built if the options are equal.

    Raises:
        UsageError: if a different training would start in the folder of the checkpoint.
    """
    saved = start["metafew"]
    train = {"train": resolved(saved["config"], "train")} if "config" in saved else {}  # not in earlier versions
    before, now = (
        without_evaluation(options, evaluation_options)
        for options in (add_options(saved["training"] | train, training), training)
    )
    changed = [group for group in now if before.get(group) != now[group]]
    if not changed and "resume" in start:  # missing from checkpoints of earlier versions
        return is_same_data(start, ckpt, out, data)
    if changed and is_own(ckpt, out):
        raise UsageError(
            f"expected the options of the training in this folder, got different ones for {' and '.join(changed)} than "
            f"in {ckpt}: leave them out, or type another hydra.run.dir with {to_paste('ckpt', ckpt)} for a new "
            "training from its weights"
        )
    log.warning("%s is from another training: starting a new training from its weights", ckpt)
    return False


def is_same_data(start: dict, ckpt: str, out: Path, data: FewShot) -> bool:
    """Return whether the images of ``data`` are those at the start of the training of a checkpoint.

    Raises:
        UsageError: if they differ and the checkpoint is in the folder of this run.
    """
    before, trained_on = start["metafew"].get("data"), data.source.components("train")
    if before is None:
        log.warning("%s is of an earlier version, which did not record its images, so they are not compared", ckpt)
        return True
    data.prepare_data()
    now = {source.title: summary_of(source, data.folder(source)) for source in trained_on}
    changed = [source.title for source in trained_on if before.get(source.title) != recorded(now[source.title])]
    if not changed:
        return True
    differences = "; ".join(describe_change(title, before.get(title), now[title]) for title in changed)
    if is_own(ckpt, out):
        raise UsageError(
            f"expected the images with which the training in this folder began, got others ({differences}): restore "
            f"them, or type another hydra.run.dir with {to_paste('ckpt', ckpt)} for a new training from its weights"
        )
    log.warning("%s was trained on other images (%s): starting a new training from its weights", ckpt, differences)
    return False


def without_evaluation(training: dict, evaluation_options: Mapping[str, Sequence[str]]) -> dict:
    """Return the options that a training depends on, without those that only matter in evaluation."""
    return training | {
        group: {key: value for key, value in training[group].items() if key not in options}
        for group, options in evaluation_options.items()
    }


def resolved(config: Mapping, section: str) -> Any:
    """Return a section of a configuration as checkpoints store it, with resolved interpolations."""
    return OmegaConf.to_container(OmegaConf.create(dict(config))[section], resolve=True)


def has_same_validation(start: dict, config: Mapping) -> bool:
    """Return whether validation tasks are those of a checkpoint, so that accuracies can be compared; if not, warn.

    Args:
        start: the content of the checkpoint.
        config: the configuration of this run as checkpoints store it, with unresolved interpolations.
    """

    def tasks(of: Mapping) -> list:
        val = resolved(of, "val")
        own = [val["support"] if val["shot"] == NATURAL else None, val["balance"] != BALANCES[0] and val["dirichlet"]]
        return [*(val[key] for key in OF_VALIDATION_TASKS), *own, resolved(of, "test")["seed"]]

    saved = start["metafew"].get("config", config)  # missing from checkpoints of earlier versions
    if tasks(add_options(saved, dict(config))) == tasks(config):
        return True
    log.warning(
        "validation tasks differ from those of the checkpoint, so its validations do not count: best.ckpt is the best "
        "of those to come"
    )
    return False


def take_over(out: Path, ckpt: Path | None, step: int = 0) -> None:
    """Prepare the output folder for this training.

    Checkpoints of another training are set aside, so that they are never mistaken for checkpoints of this run. The
    history of a resumed training is copied: checkpoints and metrics.csv.

    Args:
        out: folder of the run.
        ckpt: the checkpoint of the training that the run resumes; None for a new training.
        step: its step.
    """
    if not is_rank_zero():
        return
    folder = out / "checkpoints"
    if ckpt is not None and ckpt.parent.resolve() == folder.resolve():  # which may be a link
        ckpt = folder / ckpt.name
    else:
        set_aside(folder)
    if ckpt is not None:
        copy_history(ckpt, step, out)


def set_aside(folder: Path) -> None:
    """Rename a folder of checkpoints by appending ``-1``, or the first free number, with :data:`OF_A_TRAINING`."""
    if any(folder.glob("*.ckpt")):
        aside = next(path for path in numbered(folder) if not path.exists())
        folder.rename(aside)
        for name in OF_A_TRAINING:
            if (file := folder.with_name(name)).is_file():
                shutil.move(file, aside / name)  # which may be a link to another file system
        log.warning("%s contained checkpoints of another training, which are now in %s", folder, aside)


def copy_history(ckpt: Path, step: int, out: Path) -> None:
    """Copy best.ckpt, last.ckpt and metrics.csv as of ``step``, that of ``ckpt``, which may be in ``out`` already."""
    folder = out / "checkpoints"
    best = ckpt.with_name("best.ckpt")
    named = CHECKPOINTS.fullmatch(ckpt.parent.name)
    # A curve that was set aside is beside its checkpoints.
    curve = (ckpt if named and named[1] else ckpt.parent).with_name(CURVE)
    copies = [(ckpt, folder / "last.ckpt")]
    if best.is_file() and checkpoint.read(best)["global_step"] > step:
        own = best == folder / "best.ckpt"
        log.warning(
            "%s was written after the step of %s, where training resumes, so it is %s",
            *(best, ckpt, "deleted" if own else "not copied"),
        )
        if own:
            best.unlink()
    else:
        copies.insert(0, (best, folder / "best.ckpt"))
    for old, new in copies:
        if old != new and old.is_file():
            folder.mkdir(exist_ok=True)
            with old.open("rb") as source, atomic_write(new, "wb") as file:
                shutil.copyfileobj(source, file)
    if curve.is_file():
        copy_rows(curve, out / CURVE, step)


def exit_after_signal(out: Path, fits: bool = True) -> NoReturn:
    """Report how to resume the run in ``out`` after a signal stopped it, and exit with :data:`TERMINATED`.

    Args:
        out: folder of the run.
        fits: whether it trains.
    """
    if not is_rank_zero():
        sys.exit()  # otherwise Lightning or torchrun would kill rank zero, which may still be writing
    how = f"type the same command again with {advice(out)}" if fits else "repeat its command"
    message = f"a signal stopped the run before its end: {how}"
    with suppress(OSError):  # of a full disk
        write_error(out, {"error": message})
    print(f"metafew: {message}", file=sys.stderr)
    sys.exit(TERMINATED)


def advice(out: Path) -> str:
    """Return the overrides that, added to its command, resume the training in ``out``."""
    sweep = typed_in() / HydraConfig.get().sweep.dir
    folder = ("hydra.sweep.dir", sweep) if out.is_relative_to(sweep) else ("hydra.run.dir", out)
    return f"ckpt=last {to_paste(*folder)}"
