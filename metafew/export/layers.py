"""The layers of exported networks."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from metafew.backbones.backbone import Backbone
from metafew.episode import Labelled
from metafew.heads.adapting import AdaptingHead
from metafew.heads.fast_weights import PrecomputedFeatures, SupportSet
from metafew.heads.inner import Weights, entry
from metafew.norms.norm import Moments, Norm, as_maps, image_moments
from metafew.norms.scope import rows
from metafew.precision import precise

CONTEXT = ("context_mean", "context_var")
"""Buffers with the moments of the context of a task."""


def keep_moments(norm: Norm, own: Moments) -> None:
    """Make a normalization layer treat all images as targets of one task, of whose context it keeps the moments.

    The layer itself stays, with its hooks: some apply an activation, or move the channels.

    Args:
        norm: the layer.
        own: mean and variance ``(1, s, c)`` of the context images.
    """
    for name, moment in zip(CONTEXT, own, strict=True):
        norm.register_buffer(name, moment)
    norm.forward = partial(normalize_targets, norm)  # type: ignore[method-assign]


def normalize_targets(norm: Norm, x: Tensor) -> Tensor:
    """Normalize images ``(n, c, *)``, all of which are targets."""
    kept = [norm.get_buffer(name) for name in CONTEXT]
    context = kept[0].shape[1]
    wide = as_maps(precise(x))
    own = [torch.cat([moment, new], 1) for moment, new in zip(kept, image_moments(wide.unsqueeze(0)), strict=True)]
    mean, var = (
        moment.expand(1, context + x.shape[0], -1)[0, context:] for moment in norm.moments((own[0], own[1]), context)
    )
    return norm.normalize(wide, mean, var).reshape(x.shape).to(x.dtype)


class Modulated(nn.Module):
    """A FiLM layer with the scale and shift of one task.

    Args:
        gamma: the scale ``(1, c)``.
        beta: the shift ``(1, c)``.
    """

    gamma: Tensor
    beta: Tensor

    def __init__(self, gamma: Tensor, beta: Tensor):
        super().__init__()
        self.register_buffer("gamma", gamma)
        self.register_buffer("beta", beta)

    def forward(self, x: Tensor) -> Tensor:
        """Modulate images ``(n, c, h, w)``."""
        return self.gamma[..., None, None] * x + self.beta[..., None, None]


class Features(nn.Module):
    """Features ``(n, d)`` of images ``(n, c, h, w)`` in [0, 1].

    Args:
        backbone: a network whose norms take no context from the scope.
    """

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        """Return the features of each image."""
        with rows(1, images.shape[0], record=False):
            return precise(self.backbone(images))


class Divided(nn.Module):
    """Logits divided by a temperature, as :meth:`metafew.inference.Task.predict` divides them."""

    def __init__(self, temperature: float):
        super().__init__()
        self.temperature = temperature

    def forward(self, logits: Tensor) -> Tensor:
        """Divide logits ``(n, w)``."""
        return logits if self.temperature == 1 else logits / self.temperature


class AdaptedHead(nn.Module):
    """A head with the support set of one task, that computes logits from the features of queries.

    Args:
        head: the head.
        support: features ``(1, s, d)`` and labels ``(1, s)`` of the support set.
        way: number of classes.
    """

    features: Tensor
    labels: Tensor

    def __init__(self, head: nn.Module, support: Labelled, way: int):
        super().__init__()
        self.head, self.way = head, way
        self.register_buffer("features", support.images)
        self.register_buffer("labels", support.labels)

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits ``(n, w)`` of features ``(n, d)``."""
        query = features.unsqueeze(0)
        given = SimpleNamespace(embed=lambda *images, **_: images)  # its images are features already
        return self.head(given, Labelled(self.features, self.labels), query, self.way)[0]


class Fitted(nn.Module):
    """A head that adapts by gradient steps, with the weights of one task.

    Args:
        head: the head.
        weights: the adapted weights, without a dimension of tasks.
    """

    def __init__(self, head: AdaptingHead, weights: Weights):
        super().__init__()
        self.head, self.names = head, {name: entry(name) for name in weights}
        for name, value in weights.items():
            self.register_buffer(self.names[name], value)

    def forward(self, given: Any, support: Labelled, query: Tensor, way: int) -> Tensor:
        """Return the logits ``(1, n, w)`` of features ``(1, n, d)``, from features ``(1, s, d)`` of the support set."""
        weights = {name: self.get_buffer(buffer).unsqueeze(0) for name, buffer in self.names.items()}
        task = SupportSet(support.images, support.labels, way)
        return self.head.label(PrecomputedFeatures(), task, query, weights)
