"""The parts that all normalization schemes share: moments of images and of groups, and the scale and shift."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from metafew.errors import UsageError
from metafew.norms.scope import current
from metafew.precision import precise

Moments = tuple[Tensor, Tensor]
"""Mean and population variance."""


def image_moments(images: Tensor) -> Moments:
    """Return mean and variance ``(t, n, c)`` of every image and channel of ``(t, n, c, h, w)``."""
    return images.mean((3, 4)), images.var((3, 4), correction=0)


def pool(mean: Tensor, var: Tensor, dim: int = 1) -> Moments:
    """Return the moments of the union of equally large groups, by the law of total variance.

    ``mean = E[mean_i]`` and ``var = E[var_i] + E[(mean_i - mean)^2]``: a sum of non-negative terms, free of the
    cancellation in ``E[x^2] - E[x]^2``.

    Args:
        mean: means of the groups along ``dim``.
        var: their population variances.
        dim: the dimension to pool, kept with size 1.
    """
    if mean.shape[dim] == 1:
        return mean, var
    pooled = mean.mean(dim, keepdim=True)
    return pooled, (var + (mean - pooled).square()).mean(dim, keepdim=True)


def as_maps(x: Tensor) -> Tensor:
    """Return rows ``(b, c)``, sequences ``(b, c, l)`` or volumes as maps ``(b, c, h, w)``, and maps as they are."""
    return x if x.ndim == 4 else x.reshape(*x.shape[:2], -1, 1)


def context_moments(own: Moments, context: int) -> Moments:
    """Return the moments ``(t, 1, c)`` of all context images of each task."""
    if context == own[0].shape[1]:
        return pool(*own)
    mean, var = own
    return pool(mean[:, :context], var[:, :context])


class Norm(nn.Module):
    """Normalize each image and channel by the moments of a scheme, then scale and shift.

    ``y = weight * (x - mean) / sqrt(var + eps) + bias``, with one weight and bias per channel. A subclass
    only defines :meth:`moments`. Moments are in float32 or better.

    Args:
        channels: number of channels ``c``.
        eps: added to the variance.
    """

    transductive = False
    """Whether, in eval mode, one target row may change the result of another."""
    per_image = False
    """Whether no image, context or target, changes the result of another."""
    couples_tasks = False
    """Whether, in training, the tasks of a meta-batch change one another's results."""
    needs_positions = False
    """Whether a single position cannot be normalized, as a single value minus its own mean is 0."""
    exemptions: ClassVar[dict[str, str]] = {}
    """Contracts of tests/contracts/norms.py that the scheme does not keep, each with the reason."""

    def __init__(self, channels: int, eps: float = 1e-5):
        super().__init__()
        self.eps = float(eps)
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    @property
    def fixed_moments(self) -> bool:
        """Whether the moments do not depend on the activations."""
        return False

    @property
    def context_depends_on_targets(self) -> bool:
        """Whether target rows change the results of context rows, in the current mode."""
        return False

    @property
    def context_and_targets_separate(self) -> bool:
        """Whether context rows only use moments of the context, and target rows only moments of the targets."""
        return False

    def pooled_moments(self, context: int, rows: int) -> bool:
        """Return whether :meth:`moments` only needs the pooled moments of all rows of a task.

        If so, :meth:`moments` may be called with pooled moments ``(t, 1, c)`` and a context of 1.

        Args:
            context: number of context rows per task.
            rows: number of rows per task.
        """
        return False

    def requires_running_moments(self, fit: bool) -> bool:
        """Return whether an earlier training must provide running moments; ``fit``: whether this run trains."""
        return False

    def moments(self, own: Moments, context: int) -> Moments:
        """Return the mean and variance that normalize each row.

        Args:
            own: mean and variance ``(t, n, c)`` of every image and channel, over positions, in float32 or better;
                None for a scheme with :attr:`fixed_moments`. :func:`pool` combines them into the moments of a group.
            context: number of context rows; rows ``[:, :context]`` are context, the others target.

        Returns:
            Two tensors that broadcast to ``(t, n, c)``.
        """
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Normalize a flat batch ``(t * n, c, *)``, divided into tasks by the open scope; ``*`` are positions, if any.

        This is the definition of every scheme; :mod:`metafew.norms.fast` computes the same result faster.
        """
        tasks, context, *_ = current()
        images = precise(self.as_maps(x)).unflatten(0, (tasks, -1))
        own: Any = None if self.fixed_moments else image_moments(images)
        return self.normalize(images, *self.moments(own, context)).reshape(x.shape).to(x.dtype)

    def normalize(self, images: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        """Normalize ``(..., c, h, w)`` by moments that broadcast to ``(..., c)``, then scale and shift."""
        scale = self.weight * torch.rsqrt(var + self.eps)
        shift = self.bias - mean * scale
        return images * scale[..., None, None] + shift[..., None, None]

    def as_maps(self, x: Tensor) -> Tensor:
        """Return rows ``(b, c)``, sequences ``(b, c, l)`` or volumes as maps ``(b, c, h, w)``, and maps as they are.

        Raises:
            UsageError: if the rows of ``x`` are not those of the tasks of the scope, or have fewer than two positions
                and the moments need several.
        """
        tasks, context, *_ = current()
        if x.shape[0] % tasks or x.shape[0] < tasks * context:
            raise UsageError(
                f"expected a batch of {tasks} tasks with {context} context rows or more each, got {x.shape[0]} rows: "
                "open task_scope(n_tasks, n_context) with the numbers of the batch"
            )
        if self.needs_positions and x.shape[2:].numel() == 1:
            raise UsageError(
                f"expected maps (b, c, h, w) of several positions, got {'rows' if x.ndim == 2 else 'maps'} "
                f"{tuple(x.shape)}, which normalization per image and channel would set to 0: type norm=layer, or name "
                "the layers to replace in backbone.norms"
            )
        return as_maps(x)
