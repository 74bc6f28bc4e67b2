"""A backbone and heads that are measured on validation and test tasks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.utils.data import DataLoader

from metafew.backbones.backbone import Backbone, targets_at_once
from metafew.data.sampler import Sampler
from metafew.episode import Episode
from metafew.evaluation.baselines import nearest_neighbour
from metafew.evaluation.feature_cache import FeatureCache, pays, together
from metafew.evaluation.metrics import PerTask, summary
from metafew.heads.head import FeatureHead
from metafew.norms.alpha import Alpha


class Evaluator(pl.LightningModule):
    """Measures a backbone through one head or several, on the same tasks.

    Args:
        backbone: the feature extractor.
        heads: heads by name; the first one is the one that trains, the others only measure.
        queries: how many test queries are asked at once: all ``together``, a ``single`` one, or those of one ``class``.
    """

    def __init__(self, backbone: Backbone, heads: Mapping[str, nn.Module], queries: str):
        super().__init__()
        self.backbone = backbone
        self.heads = nn.ModuleDict(heads)
        self.trained = next(iter(heads))
        self.queries = queries
        self.baseline = "pixels_1nn" if backbone.image_size > 1 else "vectors_1nn"
        self.val_tasks: dict[str, PerTask] = {}
        self.validation: dict[str, dict[str, float]] = {}
        self.test_tasks: list[dict[str, PerTask]] = []
        self.feature_caches: list[FeatureCache | None] = []
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

    def on_validation_epoch_start(self) -> None:
        """Start a table of tasks for everything that is measured."""
        self.val_tasks = {name: PerTask().to(self.device) for name in self.measured}
        self.feature_caches = [self._feature_cache(self.trainer.val_dataloaders)]

    def validation_step(self, batch: list[Episode], _: int) -> None:
        """Measure every head on a batch of validation tasks."""
        self._measure(batch, self.val_tasks, self.feature_caches[0])

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
        self.feature_caches = []
        for loader in self.trainer.test_dataloaders:  # all of one split, whose features are computed once
            self.feature_caches.append(next(filter(None, self.feature_caches), None) or self._feature_cache(loader))

    def test_step(self, batch: list[Episode], _: int, dataloader_idx: int = 0) -> None:
        """Measure every head, and the nearest neighbour, on a batch of test tasks."""
        tables, cache = self.test_tasks[dataloader_idx], self.feature_caches[dataloader_idx]
        for episode in batch:
            # The queries of a class are consecutive, and equally many for each class.
            size = {"together": None, "single": 1, "class": episode.query.labels.shape[1] // episode.way}
            with targets_at_once(size[self.queries]):
                self._measure([episode], tables, cache)
            tables[self.baseline].update(nearest_neighbour(episode.support, episode.query.images, episode.way), episode)

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
            return together(self.backbone, sampler) if self._pays(sampler) else sampler.spec.tasks

    def _pays(self, sampler: Sampler) -> bool:
        """Tell whether it pays to compute the features of all images before ``sampler`` draws tasks."""
        return all(isinstance(head, FeatureHead) for head in self.heads.values()) and pays(self.backbone, sampler)

    def _feature_cache(self, loader: DataLoader) -> FeatureCache | None:
        """Return the features of all images that ``loader`` draws tasks from, where it pays to compute them first."""
        sampler = loader.dataset.sampler
        if not self._pays(sampler):
            return None
        with self.trainer.precision_plugin.forward_context():
            return FeatureCache(self.backbone, sampler, like=next(self.backbone.parameters(), torch.empty(0)))

    def _measure(self, batch: list[Episode], tables: dict[str, PerTask], cache: FeatureCache | None) -> None:
        for episode in batch:
            support, images = episode.support, episode.query.images
            if any(isinstance(head, FeatureHead) for head in self.heads.values()):
                # One embedding serves them all.
                context, targets = cache(episode) if cache else self.backbone.embed(support.images, images)
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
