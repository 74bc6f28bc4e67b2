"""Measure during training how tightly features cluster by class."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.trainer.states import TrainerFn

from metafew.backbones.backbone import Backbone
from metafew.data.datamodule import FewShot, to_model_input
from metafew.data.task_spec import BALANCES
from metafew.objectives.clustering import draw_pairs, pairwise, variance_ratio
from metafew.precision import precise

LOGGED = ("feature_clustering", "hyperplane_variation")


class ClusteringMonitor(Callback):
    """Log, at validations, how the features of validation tasks cluster by class.

    ``val/feature_clustering`` and ``val/hyperplane_variation`` are means over pairs of classes, ``val/variance_ratio``
    is the mean over tasks of the variance ratio of their classes. The context is that of the task.

    Args:
        every: measure at the first validation after each ``every`` steps.
        tasks: number of validation tasks, or all of them if there are fewer.
    """

    def __init__(self, every: int, tasks: int):
        self.every, self.tasks = every, tasks

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure if due; every process measures the same tasks."""
        step = trainer.global_step
        # Derived from the step, so that a resumed run measures at the same steps.
        before = step - trainer.val_check_interval // trainer.accumulate_grad_batches
        training = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        if not training or step // self.every == before // self.every:
            return
        data = cast(FewShot, trainer.datamodule)  # type: ignore[attr-defined]  # set when the stage starts
        backbone, dtype = cast(Backbone, pl_module.backbone), cast(torch.dtype, pl_module.dtype)
        # Balanced, as pairs need two images of each class.
        sampler = data.sampler(replace(data.val, total=min(self.tasks, data.val.total), balance=BALANCES[0]))
        pairs, ratios = [], []
        for index in range(sampler.spec.total):
            (episode,) = data.transfer_batch_to_device([sampler.task(index)], pl_module.device, 0)
            episode = to_model_input(episode, dtype)
            with trainer.precision_plugin.forward_context():
                embedded = backbone.embed(episode.support.images, episode.query.images)
            features = precise(torch.cat(embedded, 1)).cpu()
            labels = torch.cat([episode.support.labels, episode.query.labels], 1).cpu()
            pairs += pairwise(draw_pairs(features, labels, episode.index)[0])
            ratios.append(variance_ratio(features[0], labels[0]))
        found: dict[str, Any] = {name: sum(pair[name] for pair in pairs) / len(pairs) for name in LOGGED}
        found["variance_ratio"] = torch.stack(ratios).mean()
        for name, value in found.items():
            pl_module.log(f"val/{name}", value, sync_dist=trainer.world_size > 1)
