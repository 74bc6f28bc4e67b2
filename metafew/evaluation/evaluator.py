"""Evaluate a backbone with its heads on validation and test tasks."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric

from metafew.backbones.backbone import Backbone, target_chunks
from metafew.data.datamodule import FewShot
from metafew.data.loader import MetaBatches
from metafew.data.sampler import Sampler
from metafew.data.task_spec import TaskSpec
from metafew.distributed.collective import gather_objects
from metafew.episode import Episode
from metafew.evaluation.base_mean import BaseMean
from metafew.evaluation.baselines import nearest_neighbour
from metafew.evaluation.calibration import CalibrationError, ValidationLogits, fit_temperatures
from metafew.evaluation.eval_mode import evaluating
from metafew.evaluation.feature_cache import FeatureCache, empty_of, is_worthwhile, tasks_per_step
from metafew.evaluation.metrics import PerTask, summary
from metafew.evaluation.statistics import score
from metafew.heads.head import FeatureHead, Head
from metafew.heads.shared_features import SharedFeatures
from metafew.norms.alpha import Alpha, alphas
from metafew.predictions import probabilities

log = logging.getLogger(__name__)


class Evaluator(pl.LightningModule):
    """Evaluate a backbone with one or several heads, on the same tasks.

    Args:
        backbone: the feature extractor.
        heads: heads by name; the first one is trained, the others only evaluate.
        queries: test queries that share a forward pass: all ``together``, a ``single`` one, or those of one ``class``.

    Attributes:
        base_mean: the mean feature of training images, for heads that use it.
        temperatures: the temperature of each head, which divides logits before the softmax
            (:mod:`metafew.evaluation.calibration`): that of the last validation, or of the checkpoint that is tested or
            resumed.
        calibration: the temperature and the calibration errors of each head, for each test.
        seconds: the mean seconds per task of each head, for each test, without the embedding that feature heads share.
    """

    backbone: Backbone
    heads: Mapping[str, Head]

    def __init__(self, backbone: Backbone, heads: Mapping[str, Head], queries: str):
        super().__init__()
        self.backbone = backbone
        self.heads = nn.ModuleDict(heads)  # type: ignore[assignment]  # a mapping, whose values are the heads
        self.base_mean = BaseMean(heads.values())
        self.trained = next(iter(heads))
        self.queries = queries
        self.baseline = "pixels_1nn" if backbone.image_size > 1 else "vectors_1nn"
        self.temperatures: dict[str, float] = {}
        self.calibration: list[dict[str, dict[str, Any]]] = []
        self.val_tasks: dict[str, PerTask] = {}
        self.val_logits: dict[str, ValidationLogits] = {}
        self.validation: dict[str, dict[str, Any]] = {}
        self.test_tasks: list[dict[str, PerTask]] = []
        self.test_errors: list[dict[str, CalibrationError]] = []
        self.feature_caches: list[FeatureCache | None] = []
        self.test_seconds: list[dict[str, MeanMetric]] = []
        self.seconds: list[dict[str, float]] = []
        self.tables: list[dict[str, Tensor]] = []

    @property
    def alphas(self) -> list[Alpha]:
        """TaskNorm's alphas, from the first layer to the last."""
        return alphas(self.backbone)

    @property
    def transductive(self) -> dict[str, bool]:
        """For each head, by name, whether one query can change the logits of another in evaluation."""
        return {name: self.backbone.transductive or head.transductive for name, head in self.heads.items()}

    @property
    def measured(self) -> list[str]:
        """Names of all measurements: each head, and ``HEAD/READING`` for its extra readings."""
        return [n for name, head in self.heads.items() for n in (name, *(f"{name}/{e}" for e in self._extras(head)))]

    def _extras(self, head: Head) -> list[str]:
        """Return the names of a head's extra readings; none during training."""
        return [] if self.trainer.state.fn == TrainerFn.FITTING else head.extra_readings

    def on_validation_epoch_start(self) -> None:
        """Start a table of tasks for each measurement."""
        self.base_mean.update(self.backbone, self.trainer)
        self.val_tasks = {name: PerTask().to(self.device) for name in self.measured}
        candidates = [f"{name}/{option}" for name, head in self.heads.items() for option in head.candidates]
        self.val_logits = {n: ValidationLogits() for n in self.measured if n in (*self.heads, *candidates)}
        loader: Any = self.trainer.val_dataloaders  # a single one
        self.feature_caches = [self._feature_cache(loader)]

    def validation_step(self, batch: list[Episode], _: int) -> None:
        """Evaluate every head on a batch of validation tasks."""
        self._measure(batch, self.val_tasks, self.val_logits, self.feature_caches[0])

    def on_validation_epoch_end(self) -> None:
        """Log accuracy, loss and failed tasks of every head, and TaskNorm's alphas for the largest training context.

        After training, where options are chosen, only those of the candidates are logged.
        """
        chooses = self.trainer.state.fn == TrainerFn.VALIDATING
        for name, metric in self.val_tasks.items():
            table = metric.compute()
            accuracy = summary(table, "accuracy")
            found = {"accuracy": accuracy["mean"], "loss": summary(table, "loss")["mean"], "failed": accuracy["failed"]}
            self.validation[name] = found
            if chooses and name in self.heads:
                continue
            for measure, value in found.items():
                shown = name == self.trained and measure != "loss"
                self.log(f"val/{name}/{measure}", value, prog_bar=shown, sync_dist=self.trainer.world_size > 1)
        if not self.trainer.sanity_checking:
            self.temperatures = fit_temperatures(self.val_logits)
        self.val_logits, self.feature_caches = {}, []
        data = cast(FewShot, self.trainer.datamodule)  # type: ignore[attr-defined]  # set when the stage starts
        for number, alpha in enumerate([] if chooses else self.alphas, 1):
            value = alpha(data.train.contexts[1]).mean()
            self.log(f"alpha/layer{number}", value, sync_dist=self.trainer.world_size > 1)

    def on_test_epoch_start(self) -> None:
        """Start a table of tasks for every test and head."""
        self.base_mean.update(self.backbone, self.trainer)
        loaders: Any = self.trainer.test_dataloaders  # a list with one entry per shot
        self.test_tasks = [
            {name: PerTask().to(self.device) for name in (*self.measured, self.baseline)} for _ in loaders
        ]
        self.test_errors = [
            {name: CalibrationError(self.temperatures.get(name)).to(self.device) for name in self.heads}
            for _ in loaders
        ]
        self.test_seconds = [
            {name: MeanMetric(nan_strategy="disable").to(self.device) for name in self.heads} for _ in loaders
        ]
        self.feature_caches = []
        for loader in loaders:  # all from one split, so they share a cache
            self.feature_caches.append(next(filter(None, self.feature_caches), None) or self._feature_cache(loader))

    def test_step(self, batch: list[Episode], _: int, dataloader_idx: int = 0) -> None:
        """Evaluate every head, and the nearest neighbour, on a batch of test tasks."""
        tables, errors = self.test_tasks[dataloader_idx], self.test_errors[dataloader_idx]
        cache, seconds = self.feature_caches[dataloader_idx], self.test_seconds[dataloader_idx]
        for episode in batch:
            if self.queries == "class":
                episode = episode.grouped_by_class()
            # Each class of a task has the same number of queries.
            size = {"together": None, "single": 1, "class": episode.query.labels.shape[1] // episode.way}
            with target_chunks(size[self.queries]):
                self._measure([episode], tables, errors, cache, size[self.queries], seconds)
            tables[self.baseline].update(nearest_neighbour(episode.support, episode.query.images, episode.way), episode)

    def on_test_epoch_end(self) -> None:
        """Compute a table of tasks and the calibration for every test and head."""
        self.feature_caches = []
        self.tables = [{name: metric.compute() for name, metric in test.items()} for test in self.test_tasks]
        self.calibration = [{name: error.summary() for name, error in test.items()} for test in self.test_errors]
        self.seconds = [{name: mean.compute().item() for name, mean in test.items()} for test in self.test_seconds]

    @torch.no_grad()
    def predict(self, episode: Episode) -> Tensor:
        """Return the calibrated :func:`probabilities` ``(t, q, w)`` of the queries under the trained head."""
        self.eval()
        logits = self.heads[self.trained](self.backbone, episode.support, episode.query.images, episode.way)
        return probabilities(logits / self.temperatures.get(self.trained, 1.0))

    def tasks_of_a_step(self, sampler: Sampler) -> int:
        """Return the number of tasks per evaluation step on the tasks of ``sampler``, which may exceed the spec's."""
        with evaluating(self):
            if self._caches_features(sampler):
                return tasks_per_step(self.backbone, sampler)
            together = [
                adapted_together(head, self.backbone, sampler.spec, self.device) for head in self.heads.values()
            ]
            return max(sampler.spec.tasks, min(gather_objects(min(together))))  # processes may have unlike GPUs

    def _caches_features(self, sampler: Sampler) -> bool:
        """Return whether computing the features of all images in advance saves time for the tasks of ``sampler``."""
        return all(isinstance(head, FeatureHead) for head in self.heads.values()) and is_worthwhile(
            self.backbone, sampler
        )

    def _feature_cache(self, loader: DataLoader) -> FeatureCache | None:
        """Return the features of all images that ``loader`` can draw, if computing them in advance saves time."""
        sampler = cast(MetaBatches, loader.dataset).sampler
        if not self._caches_features(sampler):
            return None
        with self.trainer.precision_plugin.forward_context():
            return FeatureCache(self.backbone, sampler, like=empty_of(self))

    def _measure(
        self,
        batch: list[Episode],
        tables: dict[str, PerTask],
        calibrations: Mapping[str, ValidationLogits | CalibrationError],
        cache: FeatureCache | None,
        at_once: int | None = None,
        seconds: Mapping[str, MeanMetric] | None = None,
    ) -> None:
        for episode in batch:
            # Otherwise the support set would keep the features of a pass with the first queries. Heads that adapt the
            # backbone then adapt for each part of the queries, also those whose logits do not use such features.
            apart = at_once if self.backbone.context_depends_on_targets else None
            shared = cast(Backbone, SharedFeatures(self.backbone, episode, cache(episode) if cache else None))
            if apart is None and any(isinstance(head, FeatureHead) for head in self.heads.values()):
                # Here, so that its time is not attributed to the first head.
                shared.embed(episode.support.images, episode.query.images)
            for name, head in self.heads.items():
                backbone = shared if isinstance(head, FeatureHead) else self.backbone
                with timed(seconds[name] if seconds else None, episode):
                    readings = self._readings(head, backbone, episode, at_once if head.transductive else apart)
                for reading, logits in readings.items():
                    measured = f"{name}/{reading}".rstrip("/")
                    tables[measured].update(logits, episode)
                    if measured in calibrations:
                        calibrations[measured].update(logits, episode.query.labels)

    def _readings(self, head: Head, backbone: Backbone, episode: Episode, at_once: int | None) -> dict[str, Tensor]:
        """Return the logits of a head under ``""``, and its extra readings, for ``at_once`` queries per call."""
        call = head.readings if self._extras(head) else lambda *args: {"": head(*args)}
        images = episode.query.images
        parts = [images] if at_once is None else images.split(at_once, 1)
        readings = [call(backbone, episode.support, part, episode.way) for part in parts]
        return readings[0] if len(readings) == 1 else {n: torch.cat([r[n] for r in readings], 1) for n in readings[0]}

    def choose(self) -> dict[str, dict]:
        """Set every head with candidates to the best candidate of the last validation, and return the selection.

        Candidates are compared by :func:`~metafew.evaluation.statistics.score`: one with failed tasks is selected only
        if all others have failed tasks, too, and then a warning is logged.
        """
        chosen = {}
        for name, head in self.heads.items():
            candidates = [extra for extra in self._extras(head) if extra in head.candidates]
            if candidates:
                found = {extra: self.validation[f"{name}/{extra}"] for extra in candidates}
                scores = {extra: score(value["accuracy"], value["failed"]) for extra, value in found.items()}
                head.chosen = best = max(scores, key=scores.__getitem__)
                if fitted := self.temperatures.get(f"{name}/{best}"):
                    self.temperatures[name] = fitted
                measured = {f"validation_{measure}": found[best][measure] for measure in ("accuracy", "failed")}
                chosen[name] = {**head.candidates[best], **measured}
                if failed := found[best]["failed"]:
                    log.warning(
                        "all %d candidates of head=%s have failed validation tasks, with logits that are not finite: "
                        "one with the fewest is selected (%d failed), and a smaller head.lr may help",
                        *(len(found), name, failed),
                    )
        return chosen


def adapted_together(head: Head, backbone: Backbone, spec: TaskSpec, device: torch.device) -> int:
    """Return how many of the largest tasks of ``spec`` a head adapts to at once; 1 if it adapts no backbone."""
    if not head.adapts_backbone:
        return 1
    (_, support), (_, images), size = spec.contexts, spec.images, backbone.image_size
    task = torch.empty((), device=device).expand(1, images, backbone.channels, size, size)  # without memory
    return head.tasks_per_chunk(backbone, task[:, :support], task[:, support:]) or 1


@contextmanager
def timed(mean: MeanMetric | None, episode: Episode) -> Iterator[None]:
    """Add the duration per task of this context to ``mean``, if any, with the number of tasks as its weight."""
    if mean is None:
        yield
        return
    begin, tasks = clock(mean.device), len(episode.index)
    yield
    mean.update((clock(mean.device) - begin) / tasks, tasks)


def clock(device: torch.device) -> float:
    """Return the time in seconds, after all work on ``device``."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
