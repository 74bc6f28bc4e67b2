"""The LightningModule: a backbone, the head that trains it, an objective, and the heads that evaluate it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.utils.data import DataLoader

from metafew.backbones.backbone import Backbone, targets_at_once
from metafew.baselines import nearest
from metafew.data.sampler import Sampler
from metafew.embedded import Embedded, pays, together
from metafew.episode import Episode
from metafew.heads.head import FeatureHead
from metafew.metrics import PerTask, summary
from metafew.norms.alpha import Alpha
from metafew.norms.running import commit
from metafew.schedules import follow


class Learner(pl.LightningModule):
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
        super().__init__()
        self.backbone, self.objective = backbone, objective
        self.heads = nn.ModuleDict(heads)
        self.trained = next(iter(heads))
        for name, head in heads.items():
            head.requires_grad_(name == self.trained)
        self.make_optimizer, self.make_schedule = optimizer, schedule
        self.queries, self.provenance = queries, provenance
        self.baseline = "pixels_1nn" if backbone.image_size > 1 else "vectors_1nn"
        self.val_tasks: dict[str, PerTask] = {}
        self.validation: dict[str, dict[str, float]] = {}
        self.test_tasks: list[dict[str, PerTask]] = []
        self.known: list[Embedded | None] = []
        self.tables: list[dict[str, Tensor]] = []

    @property
    def alphas(self) -> list[Alpha]:
        """What TaskNorm learned to blend by, from the first layer to the last."""
        return [module for module in self.backbone.modules() if isinstance(module, Alpha)]

    @property
    def measured(self) -> list[str]:
        """Names of everything that evaluation measures: each head, and below it whatever else it reads."""
        return [n for name, head in self.heads.items() for n in (name, *(f"{name}/{e}" for e in self._extras(head)))]

    def _extras(self, head: nn.Module) -> list[str]:
        """Return the names of what a head reads beside its result: nothing while training goes on."""
        return [] if self.trainer.state.fn == TrainerFn.FITTING else getattr(head, "extra", [])

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

    def on_validation_epoch_start(self) -> None:
        """Start a table of tasks for everything that is measured."""
        self.val_tasks = {name: PerTask().to(self.device) for name in self.measured}
        self.known = [self._known(self.trainer.val_dataloaders)]

    def validation_step(self, batch: list[Episode], _: int) -> None:
        """Measure every head on a batch of validation tasks."""
        self._measure(batch, self.val_tasks, self.known[0])

    def on_validation_epoch_end(self) -> None:
        """Log accuracy and loss of every head, and TaskNorm's alphas at the largest context of training."""
        for name, metric in self.val_tasks.items():
            table = metric.compute()
            self.validation[name] = {measure: summary(table, measure)["mean"] for measure in ("accuracy", "loss")}
            for measure, mean in self.validation[name].items():
                shown = name == self.trained and measure == "accuracy"
                self.log(f"val/{name}/{measure}", mean, prog_bar=shown, sync_dist=self.trainer.world_size > 1)
        for number, alpha in enumerate(self.alphas, 1):
            value = alpha(self.trainer.datamodule.train.contexts[1]).mean()
            self.log(f"alpha/layer{number}", value, sync_dist=self.trainer.world_size > 1)

    def on_test_epoch_start(self) -> None:
        """Start a table of tasks for every test and head."""
        self.test_tasks = [
            {name: PerTask().to(self.device) for name in (*self.measured, self.baseline)}
            for _ in self.trainer.test_dataloaders
        ]
        self.known = []
        for loader in self.trainer.test_dataloaders:  # all of one split, whose features are computed once
            self.known.append(next(filter(None, self.known), None) or self._known(loader))

    def test_step(self, batch: list[Episode], _: int, dataloader_idx: int = 0) -> None:
        """Measure every head, and the nearest neighbour, on a batch of test tasks."""
        tables, known = self.test_tasks[dataloader_idx], self.known[dataloader_idx]
        for episode in batch:
            # The queries of a class are consecutive, and equally many for each class.
            size = {"together": None, "single": 1, "class": episode.query.labels.shape[1] // episode.way}
            with targets_at_once(size[self.queries]):
                self._measure([episode], tables, known)
            tables[self.baseline].update(nearest(episode.support, episode.query.images, episode.way), episode)

    def on_test_epoch_end(self) -> None:
        """Keep, for each test, one table of tasks a head."""
        self.tables = [{name: metric.compute() for name, metric in test.items()} for test in self.test_tasks]

    @torch.no_grad()
    def predict(self, episode: Episode) -> Tensor:
        """Return the probabilities ``(t, q, w)`` that the trained head gives to the queries of ``episode``."""
        self.eval()
        logits = self.heads[self.trained](self.backbone, episode.support, episode.query.images, episode.way)
        return logits.softmax(-1)

    def tasks_of_a_step(self, sampler: Sampler) -> int:
        """Return how many of the tasks that ``sampler`` draws a step of evaluation has."""
        with evaluating(self.backbone):
            return together(self.backbone, sampler) if self._pays(sampler) else sampler.plan.tasks

    def _pays(self, sampler: Sampler) -> bool:
        """Tell whether it pays to compute the features of all images before ``sampler`` draws tasks."""
        return all(isinstance(head, FeatureHead) for head in self.heads.values()) and pays(self.backbone, sampler)

    def _known(self, loader: DataLoader) -> Embedded | None:
        """Return the features of all images that ``loader`` draws tasks from, where it pays to compute them first."""
        sampler = loader.dataset.sampler
        if not self._pays(sampler):
            return None
        with self.trainer.precision_plugin.forward_context():
            return Embedded(self.backbone, sampler, like=next(self.backbone.parameters(), torch.empty(0)))

    def _measure(self, batch: list[Episode], tables: dict[str, PerTask], known: Embedded | None) -> None:
        for episode in batch:
            support, images = episode.support, episode.query.images
            if any(isinstance(head, FeatureHead) for head in self.heads.values()):
                # One embedding serves them all.
                context, targets = known(episode) if known else self.backbone.embed(support.images, images)
            for name, head in self.heads.items():
                if isinstance(head, FeatureHead):
                    readings = {"": head.label(context, support.labels, targets, episode.way)}
                elif self._extras(head):
                    readings = head.readings(self.backbone, support, images, episode.way)
                else:
                    readings = {"": head(self.backbone, support, images, episode.way)}
                for reading, logits in readings.items():
                    tables[f"{name}/{reading}".rstrip("/")].update(logits, episode)

    def choose(self) -> dict[str, dict]:
        """Let every head that has candidates take the best of the last validation; return what each took."""
        chosen = {}
        for name, head in self.heads.items():
            candidates = [extra for extra in self._extras(head) if extra in head.candidates]
            if candidates:
                best = max(candidates, key=lambda extra: self.validation[f"{name}/{extra}"]["accuracy"])
                head.chosen = best
                lr, steps = head.candidates[best]
                accuracy = self.validation[f"{name}/{best}"]["accuracy"]
                chosen[name] = {"lr": lr, "test_steps": steps, "validation_accuracy": accuracy}
        return chosen

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


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Let ``module`` be in evaluation mode inside, and each part of it in its own mode afterwards."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode
