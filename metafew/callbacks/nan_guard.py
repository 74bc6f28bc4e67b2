"""Stop training when the loss is not finite."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, NoReturn, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from metafew.callbacks.checkpoints import Checkpoints
from metafew.distributed.collective import gather_objects
from metafew.episode import Episode
from metafew.errors import Diverged
from metafew.evaluation.evaluator import Evaluator
from metafew.objectives.objective import Objective


class Step(NamedTuple):
    """A step whose loss has not been checked yet.

    Attributes:
        number: its number, from 1.
        lr: its learning rate.
        loss: its loss, a scalar.
        task_losses: the loss of each task, ``(t,)``.
        task_numbers: the numbers of the tasks, ``(t,)``, on the CPU.
    """

    number: int
    lr: float
    loss: Tensor
    task_losses: Tensor
    task_numbers: Tensor


class NanGuard(Callback):
    """Stop training in all processes when the loss of a step is not finite, and never save non-finite weights.

    On a CPU, each loss is checked before its gradient is computed, and last.ckpt receives the weights before the step.
    On a GPU this would synchronize in every step, so losses are checked every ``log_every_n_steps`` steps and before a
    checkpoint is written, and last.ckpt is left unchanged.

    With a gradient scaler (float16), a loss may overflow: the scaler skips the step and halves its factor. Training
    only stops if the factor is below 1.
    """

    def __init__(self):
        self.task_numbers = torch.empty(0)
        self.recent: list[Step] = []

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: list[Episode], _: int
    ) -> None:
        """Record the numbers of the step's tasks."""
        self.task_numbers = torch.cat([episode.index for episode in batch])

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Record the loss of the step, and check the recorded losses when due."""
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        if scaled and cast(Objective, pl_module.objective).loss_scale >= 1:
            return
        losses = cast(Tensor, pl_module.task_losses)
        lr = trainer.optimizers[0].param_groups[0]["lr"]
        self.recent.append(Step(trainer.global_step + 1, lr, loss.detach(), losses, self.task_numbers))
        interval: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # Lightning sets it in its constructor
        if pl_module.device.type == "cpu" or len(self.recent) >= interval:
            self.check_recent(trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Refuse to save non-finite weights."""
        self.check_recent(trainer, pl_module)
        if not finite(trainer, pl_module):
            lr = trainer.optimizers[0].param_groups[0]["lr"]
            stop(trainer, pl_module, f"a weight is not finite after step {trainer.global_step}", lr)

    def check_recent(self, trainer: pl.Trainer, learner: pl.LightningModule) -> None:
        """Stop if the loss of a recent step is not finite on any rank, and report the first such step."""
        recent, self.recent = self.recent, []
        if not recent:
            return
        failed = 1.0 - torch.stack([step.loss for step in recent]).isfinite().float()
        failed = trainer.strategy.reduce(failed, reduce_op="max").tolist()
        if not any(failed):
            return
        step = recent[failed.index(1.0)]
        diverged = step.task_numbers[~step.task_losses.isfinite().cpu()].tolist()
        tasks = sorted(task for part in gather_objects(diverged) for task in part)
        named = f" of task{'s' * (len(tasks) > 1)} {', '.join(map(str, tasks))}" if tasks else ""
        batch = trainer.fit_loop.epoch_loop.batch_progress.current.ready - 1
        if finite(trainer, learner) and batch % trainer.accumulate_grad_batches == 0:
            trainer.save_checkpoint(last(trainer))
        stop(trainer, learner, f"the training loss{named} is not finite in step {step.number}", step.lr)


def stop(trainer: pl.Trainer, learner: pl.LightningModule, what: str, lr: float) -> NoReturn:
    """Raise Diverged, whose message says what is not finite, where the last finite weights are, and what to type."""
    kept = f" ({last(trainer)} holds the weights from before)" if last(trainer).exists() else ""
    measured = cast(Evaluator, learner)
    lrs = measured.heads[measured.trained].learning_rates
    inner = f", or a head.lr below {max(lrs):g}" if lrs else ""
    raise Diverged(f"{what}, with a learning rate of {lr:g}{kept}: type optimizer.lr={lr / 10:g}{inner}")


def finite(trainer: pl.Trainer, learner: pl.LightningModule) -> bool:
    """Return whether all weights and moments are finite on all ranks, which save checkpoints together."""
    values = [value for value in learner.state_dict().values() if isinstance(value, Tensor)]
    failed = torch.tensor(float(not all(bool(value.isfinite().all()) for value in values)), device=values[0].device)
    return not trainer.strategy.reduce(failed, reduce_op="max").item()


def last(trainer: pl.Trainer) -> Path:
    """Return the path of the newest checkpoint."""
    return cast(Checkpoints, trainer.checkpoint_callback).folder / "last.ckpt"
