"""Evaluation on features that are computed once: the same numbers as embedding every task, in less time."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from metafew.backbones.backbone import Backbone
from metafew.data.augment import as_float
from metafew.data.sampler import MixtureSampler, Sampler
from metafew.data.store import Split
from metafew.episode import Episode

AT_ONCE = 256  # images in a pass
LIMIT = 2**31  # bytes of features that are kept
TOGETHER = 2**23  # bytes of tasks that are looked up together: more would leave the cache while heads work on them


class FeatureCache:
    """The features of every image of a split, or of the splits of a mixture.

    Args:
        backbone: embeds each image regardless of others.
        sampler: draws the tasks.
        like: a tensor of the model, for its device and precision.
    """

    def __init__(self, backbone: Backbone, sampler: Sampler, like: Tensor):
        self.tables = [table(backbone, part.split, like) for part in parts(sampler)]

    def __call__(self, episode: Episode) -> tuple[Tensor, Tensor]:
        """Return features ``(t, s, d)`` and ``(t, q, d)`` of the support and the queries."""
        support, query = episode.ids
        return self.tables[episode.source][support], self.tables[episode.source][query]


def pays(backbone: Backbone, sampler: Sampler) -> bool:
    """Tell whether all images of a split can, and had better, be embedded before its tasks are drawn.

    They can where no image changes the features of another and no task sees it in its own way; they should where the
    tasks have more images in all, and the features fit in memory.
    """
    if not backbone.per_image or any(part.views for part in parts(sampler)):
        return False
    images = sum(rows(part.split) for part in parts(sampler))
    drawn = sampler.spec.total * sampler.spec.images[0]
    return images <= drawn and 4 * images * backbone.features <= LIMIT


def together(backbone: Backbone, sampler: Sampler) -> int:
    """Return how many tasks are looked up together: as many as :data:`TOGETHER` holds, no less than planned.

    A task is taken to have the pixels and features of its images and, as heads and the nearest neighbour make them, a
    value for each support image, image and class.
    """
    plan, values = sampler.spec, backbone.channels * backbone.image_size**2 + backbone.features
    task = plan.images[1] * (values + plan.contexts[1] * plan.bounds("way")[1])
    return max(plan.tasks, TOGETHER // (4 * task))


def parts(sampler: Sampler) -> list[Sampler]:
    """Return the samplers of a mixture, or the only one."""
    return sampler.samplers if isinstance(sampler, MixtureSampler) else [sampler]


def rows(split: Split) -> int:
    """Return the number of rows of a table: one for each image, in each of the turns that occur."""
    return len(split.images) * (1 + int(split.turns.max(initial=0)))


def table(backbone: Backbone, split: Split, like: Tensor) -> Tensor:
    """Return the features of every image of a split, in the order of :meth:`~metafew.data.store.Split.ids`."""
    features = []
    for start in range(0, rows(split), AT_ONCE):
        turns, images = np.divmod(np.arange(start, min(start + AT_ONCE, rows(split))), len(split.images))
        pixels = as_float(torch.from_numpy(split.gather(images, turns)).to(like.device), like.dtype)
        features.append(backbone.embed(pixels.unsqueeze(0))[0][0])
    return torch.cat(features)
