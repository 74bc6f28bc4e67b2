"""Suggest settings that need less memory when memory runs out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities.memory import is_oom_error

from metafew.errors import UsageError
from metafew.training.learner import Learner

EVALUATING: dict[TrainerFn | None, str] = {TrainerFn.TESTING: "test", TrainerFn.PREDICTING: "analyze"}
"""Stages by the state of the Trainer; any other evaluation is a validation."""


@contextmanager
def enough_memory(trainer: pl.Trainer, learner: Learner) -> Iterator[None]:
    """Raise UsageError with settings that need less memory if memory runs out inside this context."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and not is_oom_error(error):
            raise
        reason = " ".join(str(error).split(". ")[0].split()).rstrip(".")
        stage = "train" if learner.training else EVALUATING.get(trainer.state.fn, "val")
        settings = ", ".join(smaller(learner, stage))
        raise UsageError(
            f"memory ran out in a step of {stage} ({reason}): type {settings}, or trainer.precision=bf16-mixed"
        ) from error


def smaller(learner: Learner, stage: str) -> list[str]:
    """Return settings that reduce the memory of a step of ``train``, ``val``, ``test`` or ``analyze``."""
    split = "test" if stage == "analyze" else stage  # whose tasks an analysis draws, for the trained head only
    heads = [learner.trained] if stage in ("train", "analyze") else [*learner.heads]
    options = {name: learner.heads[name].memory_option for name in heads if learner.heads[name].adapts_backbone}
    name = next((name for name, option in options.items() if option), None)
    if split == "train" and learner.objective.minibatches:
        return ["a smaller train.batch_size", "trainer.accumulate_grad_batches=2 with half of it"]
    if name:
        second = f"{'head' if name == learner.trained else f'evaluate.{name}'}.{options[name]}"
    elif split == "train":
        second = "trainer.accumulate_grad_batches=2 with half of it"
    else:
        second = "test.queries=class" if stage == "test" else f"a smaller {split}.query"
    first = "a smaller train.tasks" if split == "train" else f"{split}.tasks=1"
    # Where every head adapts, a step of val or test has as many tasks as head.memory allows.
    return [second] if stage in ("val", "test") and len(options) == len(heads) else [first, second]
