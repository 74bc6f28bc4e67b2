"""Evaluation on cached features: the same results as embedding every task, in less time."""

from __future__ import annotations

from typing import cast

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from metafew.backbones.backbone import Backbone
from metafew.data.augment import as_float
from metafew.data.sampler import MixtureSampler, Sampler
from metafew.data.store import Split
from metafew.episode import Episode

IMAGES_PER_PASS, PIXELS_PER_PASS = 256, 2**23
"""Maximum sizes of a pass, of which the second bounds the memory for large images."""
CACHE_BYTES = 2**31  # maximum size of cached features
STEP_BYTES = 2**23  # size of the tasks of a step; more would not fit in the processor's cache


class FeatureCache:
    """The features of every image of a split, or of the splits of a mixture.

    Args:
        backbone: a backbone that embeds each image independently of others.
        sampler: draws the tasks.
        like: a tensor of the model, for its device and precision.
    """

    def __init__(self, backbone: Backbone, sampler: Sampler, like: Tensor):
        self.tables = [table(backbone, part.split, like) for part in parts(sampler)]

    def __call__(self, episode: Episode) -> tuple[Tensor, Tensor]:
        """Return features ``(t, s, d)`` of the support and ``(t, q, d)`` of the queries."""
        assert episode.ids is not None  # samplers set the ids of images in each episode
        support, query = episode.ids
        return self.tables[episode.source][support], self.tables[episode.source][query]


def empty_of(model: pl.LightningModule) -> Tensor:
    """Return an empty tensor with the device and precision of a model, whose backbone may have no parameters."""
    return torch.empty(0, device=model.device, dtype=cast(torch.dtype, model.dtype))


def is_worthwhile(backbone: Backbone, sampler: Sampler) -> bool:
    """Return whether caching the features of all images of a split is valid and saves time.

    It is valid if no image changes the features of another and no task draws random views. It saves time if the tasks
    contain more images in total than the split, and the features fit in memory.
    """
    if not backbone.per_image or any(part.views for part in parts(sampler)):
        return False
    images = sum(rows(part.split) for part in parts(sampler))
    drawn = sampler.spec.total * sampler.spec.images[0]
    return images <= drawn and 4 * images * backbone.features <= CACHE_BYTES


def tasks_per_step(backbone: Backbone, sampler: Sampler) -> int:
    """Return the tasks per step on cached features: as many as fit in :data:`STEP_BYTES`, at least the spec's.

    The size of a task is that of the pixels and features of its images and, for the computations of heads and of the
    nearest neighbour, one value per support image, image and class.
    """
    spec, values = sampler.spec, backbone.channels * backbone.image_size**2 + backbone.features
    task = spec.images[1] * (values + spec.contexts[1] * spec.bounds("way")[1])
    return max(spec.tasks, STEP_BYTES // (4 * task))


def parts(sampler: Sampler) -> list[Sampler]:
    """Return the samplers of a mixture, or the single one."""
    return sampler.samplers if isinstance(sampler, MixtureSampler) else [sampler]


def rows(split: Split) -> int:
    """Return the number of rows of a table, which has one row per image and quarter turn."""
    return len(split.images) * (1 + int(split.turns.max(initial=0)))


def images_per_pass(backbone: Backbone) -> int:
    """Return the number of images that a backbone embeds at once."""
    return max(1, min(IMAGES_PER_PASS, PIXELS_PER_PASS // backbone.image_size**2))


def table(backbone: Backbone, split: Split, like: Tensor) -> Tensor:
    """Return the features of every image of a split, in the order of :meth:`~metafew.data.store.Split.ids`."""
    features = []
    at_once = images_per_pass(backbone)
    for start in range(0, rows(split), at_once):
        turns, images = np.divmod(np.arange(start, min(start + at_once, rows(split))), len(split.images))
        pixels = as_float(torch.from_numpy(split.gather(images, turns)).to(like.device), like.dtype)
        features.append(backbone.embed(pixels.unsqueeze(0))[0][0])
    return torch.cat(features)
