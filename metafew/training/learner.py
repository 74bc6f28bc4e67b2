"""The LightningModule: a backbone, the head that trains it, an objective, and the heads that evaluate it."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from metafew.backbones.backbone import Backbone
from metafew.episode import Episode
from metafew.evaluation.evaluator import Evaluator
from metafew.norms.running import commit
from metafew.training.schedules import follow


class Learner(Evaluator):
    """Trains a backbone through a head and measures it through that head and others.

    Args:
        backbone: the feature extractor.
        heads: heads by name; the first one trains, the others only measure and are frozen.
        objective: ``objective(backbone, head, batch)`` is the loss of a meta-batch.
        optimizer: makes an optimizer from parameter groups.
        schedule: makes a learning-rate schedule from the optimizer; it advances once a step.
        queries: how many test queries are asked at once: all ``together``, a ``single`` one, or those of one ``class``.
        provenance: plain values that every checkpoint carries, so that it can say what it is.
    """

    def __init__(
        self,
        backbone: Backbone,
        heads: dict[str, nn.Module],
        objective: nn.Module,
        optimizer: Callable,
        schedule: Callable,
        queries: str,
        provenance: dict,
    ):
        super().__init__(backbone, heads, queries)
        self.objective = objective
        for name, head in heads.items():
            head.requires_grad_(name == self.trained)
        self.make_optimizer, self.make_schedule = optimizer, schedule
        self.provenance = provenance

    def training_step(self, batch: list[Episode], _: int) -> Tensor:
        """Return the loss of a meta-batch."""
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        self.objective.loss_scale = 1.0 if scaler is None else scaler.get_scale()
        loss = self.objective(self.backbone, self.heads[self.trained], batch)
        self.log("train/loss", loss, prog_bar=True, sync_dist=self.trainer.world_size > 1)
        return loss

    def on_before_optimizer_step(self, _) -> None:
        """Let running moments and inner optimizers take over what the step recorded."""
        commit(self)

    def configure_optimizers(self) -> dict:
        """Return the optimizer and a schedule that advances once a step."""
        spared = {id(getattr(module, name)) for module in self.modules() for name in getattr(module, "undecayed", ())}
        trainable = [p for p in self.parameters() if p.requires_grad]
        decayed = [p for p in trainable if id(p) not in spared]
        groups = [{"params": decayed}]
        if len(decayed) < len(trainable):
            groups.append({"params": [p for p in trainable if id(p) in spared], "weight_decay": 0.0})
        optimizer = self.make_optimizer(groups)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.make_schedule(optimizer), "interval": "step"},
        }

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        """Write where the checkpoint comes from into it, as plain values."""
        checkpoint["metafew"] = self.provenance

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        """Keep the weights that the run has already fitted to this model; let the schedule be that of this run."""
        checkpoint["state_dict"] = self.state_dict()
        follow(checkpoint, self.make_optimizer, self.make_schedule)
