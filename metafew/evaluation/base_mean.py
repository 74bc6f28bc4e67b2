"""The mean feature of training images, which some heads subtract from features in evaluation."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor

from metafew.backbones.backbone import Backbone
from metafew.data.datamodule import FewShot, to_model_input
from metafew.data.minibatches import MinibatchSampler
from metafew.data.sources.source import Source
from metafew.evaluation.eval_mode import evaluating
from metafew.evaluation.feature_cache import empty_of, images_per_pass
from metafew.heads.head import Head
from metafew.precision import precise

IMAGES = 10_000
"""Largest number of images of a dataset that are averaged."""


class BaseMean:
    """The mean feature of training images, in the heads that use it (``needs_base_mean``).

    During training it is computed anew for each validation and each checkpoint, so that every checkpoint has the mean
    under its own weights. A test computes it only if the checkpoint has none.

    Args:
        heads: all heads of a run.
    """

    def __init__(self, heads: Iterable[Head]):
        self.heads = [head for head in heads if head.needs_base_mean]
        self.step = -1  # training steps after which it was computed

    @property
    def value(self) -> Tensor | None:
        """The mean ``(d,)``; None before it is computed, or if no head uses it."""
        return self.heads[0].base_mean if self.heads else None

    @value.setter
    def value(self, mean: Tensor | None) -> None:
        for head in self.heads:
            head.base_mean = mean

    def update(self, backbone: Backbone, trainer: pl.Trainer) -> None:
        """Compute the mean if a head uses it and it is missing, or that of earlier weights."""
        outdated = trainer.state.fn == TrainerFn.FITTING and self.step != trainer.global_step
        if self.heads and (outdated or self.value is None):
            data = cast(FewShot, trainer.datamodule)  # type: ignore[attr-defined]  # set when the stage starts
            with evaluating(backbone), trainer.precision_plugin.forward_context():
                self.value = base_mean(backbone, data, empty_of(trainer.lightning_module))
            self.step = trainer.global_step


def without_training_images(source: Source) -> list[str]:
    """Return the titles of the datasets to train on that have no training images."""
    return [part.title for part in source.components("train") if not part.splits()["train"]]


@torch.no_grad()
def base_mean(backbone: Backbone, data: FewShot, like: Tensor) -> Tensor:
    """Return the mean feature ``(d,)`` of the training images of ``data``, or of :data:`IMAGES` random ones.

    Images have no views of ``augment`` for training. The context of norms is as many random images as the largest
    support set, or minibatch, in training. In a mixture, all datasets have the same weight.

    Args:
        backbone: a backbone in eval mode.
        data: the data of a run, whose stores have been built.
        like: a tensor of the model, for its device and precision.
    """
    means = [mean_feature(backbone, data, sampler, like) for sampler in data.minibatches(IMAGES)]
    return torch.stack(means).mean(0).to(like.device, torch.promote_types(like.dtype, torch.float32))


def mean_feature(backbone: Backbone, data: FewShot, sampler: MinibatchSampler, like: Tensor) -> Tensor:
    """Return the mean feature ``(d,)`` over all minibatches of ``sampler``, in float64 on the CPU."""
    spec, total = sampler.spec, torch.zeros(backbone.features, dtype=torch.float64)
    at_once = max(1, images_per_pass(backbone) // spec.chunk)
    for start in range(0, spec.total, at_once):
        batch = sampler.batch(range(start, min(start + at_once, spec.total)))
        (episode,) = data.transfer_batch_to_device(batch, like.device, 0)
        features, _ = backbone.embed(to_model_input(episode, like.dtype).support.images, record=False)
        total += precise(features).sum((0, 1)).cpu().double()
    return total / (spec.total * spec.chunk)
