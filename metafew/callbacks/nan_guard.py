"""What stops a training that cannot end well: a loss that is not finite."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from metafew.distributed.collective import gather_objects
from metafew.episode import Episode
from metafew.errors import Diverged


class Step(NamedTuple):
    """A step that is yet to be looked at.

    Attributes:
        number: its number, from 1.
        lr: its learning rate.
        loss: its loss, a scalar.
        tasks: the loss of each task, ``(t,)``.
        index: the numbers of the tasks, ``(t,)``.
    """

    number: int
    lr: float
    loss: Tensor
    tasks: Tensor
    index: Tensor


class NanGuard(Callback):
    """Stop training, in all processes at once, where the loss of a step is not finite; nothing else is ever saved.

    On a CPU each loss is looked at before its gradient is taken: the weights are those of the step before, and
    last.ckpt takes them over. On a GPU the host would have to wait for each loss, so that those of
    ``log_every_n_steps`` steps are looked at together, and before a checkpoint is written: last.ckpt stays as it was.

    With a gradient scaler (float16) a loss may overflow: the scaler leaves out such a step and halves its factor. Only
    where that has gone below 1 is the loss itself to blame.
    """

    def __init__(self):
        self.index = torch.empty(0)
        self.recent: list[Step] = []

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: list[Episode], _: int
    ) -> None:
        """Note which tasks the step has."""
        self.index = torch.cat([episode.index for episode in batch])

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Note the loss of the step, and look at it when its turn has come."""
        if getattr(trainer.precision_plugin, "scaler", None) is not None and pl_module.objective.loss_scale >= 1:
            return
        lr = trainer.optimizers[0].param_groups[0]["lr"]
        tasks = torch.cat(pl_module.objective.latest)
        self.recent.append(Step(trainer.global_step + 1, lr, loss.detach(), tasks, self.index))
        if pl_module.device.type == "cpu" or len(self.recent) >= trainer.log_every_n_steps:
            self.look(trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Refuse to write weights that are not finite over those that are."""
        self.look(trainer, pl_module)
        if not finite(pl_module):
            lr = trainer.optimizers[0].param_groups[0]["lr"]
            stop(trainer, pl_module, f"a weight is not finite after step {trainer.global_step}", lr)

    def look(self, trainer: pl.Trainer, learner: pl.LightningModule) -> None:
        """Stop at the first of the recent steps whose loss is not finite in some process."""
        recent, self.recent = self.recent, []
        if not recent:
            return
        ill = 1.0 - torch.stack([step.loss for step in recent]).isfinite().float()
        ill = trainer.strategy.reduce(ill, reduce_op="max").tolist()
        if not any(ill):
            return
        step = recent[ill.index(1.0)]
        tasks = sorted(task for part in gather_objects(step.index[~step.tasks.isfinite()].tolist()) for task in part)
        named = f" of task{'s' * (len(tasks) > 1)} {', '.join(map(str, tasks))}" if tasks else ""
        batch = trainer.fit_loop.epoch_loop.batch_progress.current.ready - 1
        if finite(learner) and batch % trainer.accumulate_grad_batches == 0:
            trainer.save_checkpoint(last(trainer))
        stop(trainer, learner, f"the training loss{named} is not finite in step {step.number}", step.lr)


def stop(trainer: pl.Trainer, learner: pl.LightningModule, what: str, lr: float) -> NoReturn:
    """Raise a sentence: what went wrong, where the last weights that were finite are, and what to type."""
    kept = f" ({last(trainer)} holds the weights from before)" if last(trainer).exists() else ""
    lrs = getattr(learner.heads[learner.trained], "lrs", ())
    inner = f", or a head.lr below {max(lrs):g}" if lrs else ""
    raise Diverged(f"{what}, with a learning rate of {lr:g}{kept}: type optimizer.lr={lr / 10:g}{inner}")


def finite(learner: pl.LightningModule) -> bool:
    """Tell whether all weights and moments are."""
    values = (value for value in learner.state_dict().values() if isinstance(value, Tensor))
    return all(bool(value.isfinite().all()) for value in values)


def last(trainer: pl.Trainer) -> Path:
    """Return the path of the newest checkpoint."""
    return Path(trainer.checkpoint_callback.dirpath, "last.ckpt")
