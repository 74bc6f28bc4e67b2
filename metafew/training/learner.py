"""The LightningModule: a backbone, the head that trains it, an objective, and the heads that evaluate it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.optim import Optimizer

from metafew.backbones.backbone import Backbone
from metafew.episode import Episode
from metafew.errors import UsageError
from metafew.evaluation.evaluator import Evaluator
from metafew.heads.head import Head
from metafew.meta_parameters import meta_parameters
from metafew.norms.running import commit
from metafew.objectives.objective import Objective, StepLoss
from metafew.training.cuda_graph import GraphedStep
from metafew.training.schedules import follow


class Learner(Evaluator):
    """Train a backbone with a head, and evaluate it with that head and others.

    Args:
        backbone: the feature extractor.
        heads: heads by name; the first one is trained, the others are frozen and only evaluate.
        objective: what a training step minimises.
        optimizer: makes an optimizer from parameter groups.
        schedule: makes a learning-rate schedule from the optimizer; stepped once per optimizer step.
        queries: test queries that share a forward pass: all ``together``, a ``single`` one, or those of one ``class``.
        provenance: plain values stored in every checkpoint to describe it.
        cuda_graph: whether training steps are captured once and replayed (:mod:`metafew.training.cuda_graph`).
    """

    def __init__(
        self,
        backbone: Backbone,
        heads: dict[str, Head],
        objective: Objective,
        optimizer: Callable,
        schedule: Callable,
        queries: str,
        provenance: dict,
        cuda_graph: bool = False,
    ):
        super().__init__(backbone, heads, queries)
        self.objective = objective
        self.task_losses = torch.empty(0)
        """Loss of each task of the latest meta-batch, ``(t,)``, detached."""
        for name, head in heads.items():
            head.requires_grad_(name == self.trained)
        self.make_optimizer, self.make_schedule = optimizer, schedule
        self.provenance = provenance
        self.graphed = GraphedStep(self, self.batch_loss, objective) if cuda_graph else None

    def training_step(self, batch: list[Episode], _: int) -> Tensor:
        """Return the loss of a meta-batch."""
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        self.objective.loss_scale = 1.0 if scaler is None else scaler.get_scale()
        self.objective.measures_accuracy = self.graphed is not None or self.logs_this_step
        loss, self.task_losses = (self.graphed or self.batch_loss)(batch)
        if self.graphed is None or self.logs_this_step:  # logging a step takes as long as replaying it
            self.log("train/loss", loss, prog_bar=True, sync_dist=self.trainer.world_size > 1)
        if self.objective.accuracy is not None and self.logs_this_step:
            self.log("train/accuracy", self.objective.accuracy, sync_dist=self.trainer.world_size > 1)
        return loss

    def batch_loss(self, batch: list[Episode]) -> StepLoss:
        """Return the loss of a meta-batch, computed directly."""
        return self.objective(self.backbone, self.heads[self.trained], batch)

    @property
    def logs_this_step(self) -> bool:
        """Whether loggers receive the values of this step; otherwise, values that are only logged are not computed."""
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]  # Lightning's constructor sets it
        return (self.trainer.global_step + 1) % every == 0

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Update running moments and inner optimizers with the values recorded in the step.

        Log the learning rate and the norm of the gradient of all weights, before it is clipped. All processes have the
        same gradient.
        """
        commit(self)
        if self.logs_this_step:
            norms = [p.grad.norm() for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            self.log("train/lr", optimizer.param_groups[0]["lr"])
            scale = self.objective.loss_scale if unscales_in_step(optimizer) else 1.0
            self.log("train/gradient_norm", torch.stack(norms).norm() / scale if norms else 0.0)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return the optimizer and a schedule that is stepped once per optimizer step."""
        optimizer = self.make_optimizer(self.parameter_groups())
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.make_schedule(optimizer), "interval": "step"},
        }

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the parameters that train, those exempt from weight decay in a group of their own."""
        undecayed = {id(p) for p in meta_parameters(self).values()}
        trainable = [p for p in self.parameters() if p.requires_grad]
        decayed = [p for p in trainable if id(p) not in undecayed]
        groups: list[dict[str, Any]] = [{"params": decayed}]
        if len(decayed) < len(trainable):
            groups.append({"params": [p for p in trainable if id(p) in undecayed], "weight_decay": 0.0})
        return groups

    def on_fit_end(self) -> None:
        """Free the memory of a captured step."""
        if self.graphed is not None:
            self.graphed.free()

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        """Add the provenance, the temperatures and the mean feature of training images to the checkpoint."""
        self.base_mean.update(self.backbone, self.trainer)
        mean = self.base_mean.value
        fitted = {"temperatures": dict(self.temperatures), "base_mean": None if mean is None else mean.cpu()}
        checkpoint["metafew"] = self.provenance | fitted

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        """Keep the weights already loaded, which fit this model, and the schedule of this run."""
        checkpoint["state_dict"] = self.state_dict()
        saved = checkpoint["optimizer_states"][0]["param_groups"]
        if [len(group["params"]) for group in saved] != [len(group["params"]) for group in self.parameter_groups()]:
            raise UsageError(
                "expected the state of an optimizer that exempts learned rates from weight decay, got that of an "
                "earlier version: type another seed and hydra.run.dir with ckpt=PATH for a new training from its "
                "weights"
            )
        follow(checkpoint, self.make_optimizer, self.make_schedule)


def unscales_in_step(optimizer: Optimizer) -> bool:
    """Return whether an optimizer, being fused, divides gradients by the loss scale of float16 only in its step."""
    return getattr(optimizer, "_step_supports_amp_scaling", False)
