"""The stages of a run: fit, selection of options on validation tasks, test, analyze."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from traceback import walk_tb
from typing import Any

from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import Timer
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from metafew.analysis.features import analyze
from metafew.callbacks.validation_at_start import ValidationAtStart
from metafew.distributed.report_once import wait_for_other_ranks
from metafew.errors import UsageError, reason
from metafew.training import checkpoint, resume
from metafew.training.conversion import images_of_training, warn_of_other_conversions
from metafew.training.data_report import check_base_images, report_data
from metafew.training.out_of_memory import enough_memory
from metafew.training.parts import Parts
from metafew.training.sufficient_data import needed_tasks

log = logging.getLogger(__name__)


@dataclass
class Outcome:
    """The results of the stages of a run, except the metrics that the learner collects.

    Attributes:
        seconds: duration of each stage, excluding the validation before the first step.
        finished: False if ``trainer.max_time`` ended training before its last step.
        selected: whether the ``best`` or the ``last`` checkpoint is tested after training.
        chosen: for each head with candidates, the best options on validation tasks.
        analysis: the scalar measures of ``analyze``.
        data: for each dataset, the fingerprint of its content and its summary.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    finished: bool = True
    selected: str | None = None
    chosen: dict[str, dict] = field(default_factory=dict)
    analysis: dict | None = None
    data: dict[str, dict] = field(default_factory=dict)


def prepare(parts: Parts) -> dict[str, dict]:
    """Build the stores of all datasets, and return the fingerprint of the content of each and its summary.

    Raises:
        UsageError: if data are missing, or are not those that the run needs.
    """
    # Before Lightning launches other ranks, which would wait forever if this rank failed to build a store.
    parts.data.prepare_data()
    found = report_data(parts)
    for need in needed_tasks(parts):
        parts.data.sampler(need.spec)  # raises an error if too few images remain without copies
    if parts.start is not None and not parts.fits:
        warn_of_other_conversions(parts.source, parts.start, parts.config["ckpt"])
    check_base_images(parts)
    parts.learner.provenance["model"] |= images_of_training(parts.data)
    wait_for_other_ranks()
    return found


def run_stages(parts: Parts, fingerprints: dict[str, dict]) -> Outcome:
    """Run the stages in order.

    Args:
        parts: the model, the data and the trainer.
        fingerprints: what :func:`prepare` returned.

    Raises:
        UsageError: if memory runs out, or training diverges.
    """
    learner, data, trainer = parts.learner, parts.data, parts.trainer
    outcome = Outcome(data=fingerprints)
    with enough_memory(trainer, learner), suitable_callbacks(), closing(data):
        if parts.fits:
            seconds = timed(trainer.fit, learner, data, ckpt_path=resumed(parts), weights_only=True)
            outcome.seconds["fit"] = round(seconds - seconds_at_start(trainer), 2)
            outcome.finished = report_end(parts)
            outcome.selected = load_selected(parts)
        if parts.selects_on_validation:
            trainer.validate(learner, data, verbose=False)
            outcome.chosen = learner.choose()
        if "test" in parts.stages:
            outcome.seconds["test"] = timed(trainer.test, learner, data, verbose=False)
        if "analyze" in parts.stages:
            outcome.analysis = analyze.analyze(trainer, learner, data, parts.out)
    return outcome


@contextmanager
def suitable_callbacks() -> Iterator[None]:
    """Raise UsageError if a Lightning callback turns out, in the first steps, not to work in this run."""
    try:
        yield
    except Exception as error:
        raised_in = [str(frame.f_globals.get("__name__")) for frame, _ in walk_tb(error.__traceback__)][-1]
        of_callback = raised_in.startswith(("pytorch_lightning.callbacks.", "pytorch_lightning.tuner."))
        if isinstance(error, UsageError | MisconfigurationException) or not of_callback:
            raise
        raise UsageError(
            f"expected callbacks that work in this run, got one that does not ({reason(error)}): correct its options "
            "in trainer.callbacks, or leave it out"
        ) from error


def resumed(parts: Parts) -> Path | None:
    """Prepare the output folder for training, and return the checkpoint to resume, or None."""
    ckpt = Path(parts.config["ckpt"]).absolute() if parts.resumes else None  # its folder may be a link
    if ckpt is not None and parts.start is not None:
        parts.checkpoints.comparable = resume.has_same_validation(parts.start, parts.learner.provenance["config"])
        if parts.start["global_step"] > parts.config["trainer"]["max_steps"]:
            log.warning(
                "%s is after %d steps, more than trainer.max_steps=%d: its weights are tested as they are",
                *(ckpt, parts.start["global_step"], parts.config["trainer"]["max_steps"]),
            )
    resume.take_over(parts.out.resolve(), ckpt, parts.start["global_step"] if parts.start else 0)
    return ckpt


def report_end(parts: Parts) -> bool:
    """Return whether training is finished, and log the reason if it ended before ``trainer.max_steps``.

    Raises:
        UsageError: if it ended before its first step.
    """
    trainer = parts.trainer
    if trainer.global_step == 0:
        raise UsageError(
            "expected a step of training before trainer.max_time is over or a callback ends it, got none: "
            "type ++trainer.max_time=00:12:00:00, or leave it out"
        )
    if trainer.global_step >= trainer.max_steps:
        return True
    callbacks = trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it in its constructor
    remaining = [callback.time_remaining() for callback in callbacks if isinstance(callback, Timer)]
    if any(seconds is not None and seconds <= 0 for seconds in remaining):
        if trainer.is_global_zero:
            log.warning(
                "training is unfinished, as trainer.max_time ended it after %d of %d steps: to resume it, type the "
                "same command again with %s",
                *(trainer.global_step, trainer.max_steps, resume.advice(parts.out)),
            )
        return False
    log.info("a callback ended training after %d of %d steps", trainer.global_step, trainer.max_steps)
    return True


def load_selected(parts: Parts) -> str:
    """Load the weights of the checkpoint that ``test.select`` names, and return its name."""
    folder, which = parts.checkpoints.folder, parts.config["test"]["select"]
    if not parts.data.val.total:
        log.info("no validation took place, as val.total=0: best.ckpt and last.ckpt hold the last weights")
        which = "last"
    if which == "best" and not (folder / "best.ckpt").is_file():  # one of this training: others are set aside
        log.warning("no validation took place in this run: the last weights are tested")
        which = "last"
    if parts.checkpoints.failed:
        log.warning(
            "every validation had failed tasks, with logits that are not finite: best.ckpt is from the validation with "
            "the fewest (%d of %d tasks failed), and a smaller optimizer.lr or head.lr may help",
            *(parts.checkpoints.failed, parts.config["val"]["total"]),
        )
    file = folder / f"{which}.ckpt"
    selected = checkpoint.read(file)
    # A resumed training may evaluate other heads than those of the checkpoint.
    state = checkpoint.complete_state(checkpoint.trained_state(selected), parts.learner, str(file), fit=True)
    parts.learner.load_state_dict(state)
    parts.learner.temperatures = selected["metafew"]["temperatures"]
    parts.learner.base_mean.value = selected["metafew"]["base_mean"]
    return which


def seconds_at_start(trainer: Trainer) -> float:
    """Return the duration of the validation before the first step."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it in its constructor
    return sum(callback.seconds for callback in callbacks if isinstance(callback, ValidationAtStart))


def timed(function: Callable, *args: Any, **kwargs: Any) -> float:
    """Call ``function`` and return its duration."""
    begin = time.perf_counter()
    function(*args, **kwargs)
    return round(time.perf_counter() - begin, 2)
