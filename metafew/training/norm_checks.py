"""Check that the tasks of a run suit its norms, and warn of moments that would not be those that are meant."""

from __future__ import annotations

import logging

from metafew.data.task_spec import TaskSpec
from metafew.errors import UsageError
from metafew.norms.running import RunningNorm
from metafew.training.parts import Parts

log = logging.getLogger(__name__)


def check_tasks_form_one_batch(parts: Parts) -> None:
    """Check the head and the tasks if the norm pools moments over the tasks of a meta-batch."""
    learner, train = parts.learner, parts.data.train
    if not learner.backbone.couples_tasks:
        return
    norm, instead, running = "this norm", "norm=transductive", "norm=batch"
    if not any(norm.couples_tasks for norm in learner.backbone.norms):
        norm, instead = "this network", "norm=tasknorm backbone.norms=convert, which replace its batch norms"
        running = "norm=batch backbone.norms=convert"
    if learner.objective.trains_head and learner.heads[learner.trained].adapts_backbone:
        raise UsageError(
            f"head={learner.trained} adapts the backbone to one task at a time, and {norm} treats the tasks of "
            f"a meta-batch as one batch: type {instead}"
        )
    low, high = train.contexts
    if isinstance(train, TaskSpec) and low < high:
        raise UsageError(
            f"expected tasks all of one size, as {norm} treats the tasks of a meta-batch as one batch, got train.way"
            f"={train.way} with train.shot={train.shot}: type train.way=5 train.shot=1, or {running}"
        )
    if train.tasks > 1 and len(datasets := parts.source.components("train")) > 1:
        raise UsageError(
            f"expected training tasks of one dataset, as {norm} treats the tasks of a meta-batch as one batch, got "
            f"those of {', '.join(source.title for source in datasets)}: type {running}"
        )


def warn_of_context_sizes(parts: Parts) -> None:
    """Warn if TaskNorm is tested with context sizes outside those of its training."""
    low, high = parts.data.train.contexts
    sizes = [size for spec in parts.tested for size in spec.contexts]
    depends_on_size = any(alpha.scale is not None for alpha in parts.learner.alphas)
    if sizes and depends_on_size and not low <= min(sizes) <= max(sizes) <= high:
        log.warning(
            "TaskNorm was trained with contexts of %s images and is tested with %s: its alpha was never "
            "fitted there (norm.alpha=independent does not depend on the size)",
            *(" to ".join(map(str, sorted({*bounds}))) for bounds in ((low, high), (min(sizes), max(sizes)))),
        )


def warn_of_initial_moments(parts: Parts) -> None:
    """Warn if a norm whose running moments are those of an earlier training has the initial ones."""
    if parts.start is not None or parts.config["backbone"].get("weights"):
        return
    norms = [norm for norm in parts.learner.backbone.norms if isinstance(norm, RunningNorm)]
    if any(norm.requires_running_moments(fit=True) and not norm.running_mean.any() for norm in norms):
        log.warning(
            "norm=frozen has running moments of no training, mean 0 and variance 1, and does nothing: type "
            "backbone.weights=CKPT of a training with norm=batch"
        )


def warn_of_moments_of_one_process(parts: Parts) -> None:
    """Warn if batch norms of the network take their moments from a part of the tasks, those of one process."""
    backbone = parts.learner.backbone
    if parts.trainer.world_size == 1 or not backbone.couples_tasks:
        return
    if not any(norm.couples_tasks for norm in backbone.norms):
        log.warning(
            "the batch norms of this network take their moments from the tasks of one process, so that results depend "
            "on the number of processes: type norm=batch_shared backbone.norms=convert for the moments of all tasks, "
            "or trainer.devices=1"
        )
