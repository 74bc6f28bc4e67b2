"""Refuse typed options that have no effect in a run."""

from __future__ import annotations

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from metafew.config import overrides
from metafew.errors import UsageError
from metafew.heads.adapting import AdaptingHead
from metafew.heads.inner import LEARNED
from metafew.training.checkpoint import trained_head
from metafew.training.learner import Learner
from metafew.training.parts import Parts

OF_TASKS = ("train.way", "train.shot", "train.support")
"""Options of training tasks that have no effect on minibatches, without ``train.query``, which published tables that
compare objectives set."""
OF_DRAWN_SPLITS = ("dataset.fractions", "dataset.split_seed")
"""Options of splits that are drawn at random."""


def check_for_idle_options(parts: Parts) -> None:
    """Check that no option is typed that this run does not use. In a multirun in one process, others may use it."""
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        return
    before = parts.start["metafew"]["overrides"] if parts.start else []
    typed = {overrides.key(word): word for word in parts.learner.provenance["overrides"] if word not in before}
    if parts.fits and parts.learner.objective.minibatches:
        check_options_of_tasks(parts, typed)
    if parts.start is not None and not parts.resumes:
        check_learned_rates(parts.learner, trained_head(parts.start), typed)
    if not any(source.drawn for source in parts.source.all_components()):
        check_options_of_splits(typed)


def check_options_of_tasks(parts: Parts, typed: dict[str, str]) -> None:
    """Check that no option of training tasks is typed with an objective that trains on minibatches."""
    # A linear output layer has as many rows as tasks have classes.
    fixed = any(head.fixed_way is not None for head in parts.learner.heads.values())
    for key in OF_TASKS[fixed:]:
        if key in typed:
            raise UsageError(
                f"expected no {key} with objective={parts.choices['objective']}, which trains on minibatches and not "
                f"on tasks, got {typed[key]}: type train.batch_size=64 for the images of a minibatch"
            )


def check_learned_rates(learner: Learner, trained: str | None, typed: dict[str, str]) -> None:
    """Check that no inner learning rate is typed for a trained head that has learned its own."""
    head = learner.heads[learner.trained]
    learned = learner.trained == trained and isinstance(head, AdaptingHead) and head.rates.kind in LEARNED
    if learned and "head.lr" in typed:
        raise UsageError(
            f"expected no head.lr, as the checkpoint contains learned rates, got {typed['head.lr']}: leave it out"
        )


def check_options_of_splits(typed: dict[str, str]) -> None:
    """Check that no option of random splits is typed for data that come with splits."""
    for key in OF_DRAWN_SPLITS:
        if key in typed:
            raise UsageError(
                f"expected no {key}, as the data come with their splits, got {typed[key]}: leave it out, or type "
                "dataset.layout=classes or dataset.splits=null to draw the splits of dataset=folder"
            )
