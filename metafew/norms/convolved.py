"""Moments and max-pooling of a convolution's output that is never whole in memory: the first layer's, of grey images.

There each value of an image becomes many of the output, and writing and reading those takes longer than computing them.
Their moments are those of the image's patches, seen through the filters; the convolution, its pooling and their
derivatives take a few images at a time, whose output stays in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metafew.norms.passes import Pass, joined, pieces
from metafew.norms.pooling import Pooling, bare, read, unpooled
from metafew.precision import precise

aten = torch.ops.aten
Filtering = tuple[tuple[int, int], tuple[int, int]]
"""Stride and padding of a convolution."""


def has_less_to_do(images: Tensor, conv: nn.Module | None, pool: Callable | None) -> bool:
    """Tell whether this module can take the place of both layers, and has less to do.

    Moments of patches of ``k`` values take ``k^2`` products at each position, those of the output a few sums for each
    of ``c`` channels; near ``k^2 = 2 c`` both ways take as long. Nothing is gained where the whole output stays in
    cache.
    """
    return (
        bare(conv, nn.Conv2d)
        and bare(pool, nn.MaxPool2d)
        and conv.weight[0].numel() ** 2 <= 2 * conv.out_channels
        and len(few(images, conv.weight)) > 1
        and not images.requires_grad
        and images.dtype == conv.weight.dtype
        and precise(images) is images
        and not torch.is_autocast_enabled(images.device.type)
        and (conv.bias, conv.groups, conv.dilation, conv.padding_mode) == (None, 1, (1, 1), "zeros")
        and isinstance(conv.padding, tuple)
    )


def filtering(conv: nn.Conv2d) -> Filtering:
    """Return what must be known of a convolution besides its weight."""
    return conv.stride, conv.padding


def output_moments(images: Tensor, conv: nn.Conv2d, tasks: int, groups: int) -> tuple[Tensor, Tensor]:
    """Return mean and population variance of each output channel over positions and groups of consecutive images.

    Where the patches of a group have mean ``m`` and covariance ``C``, what a filter ``w`` makes of them has mean
    ``w m`` and variance ``w C w``. All is computed in float64, since of smooth images a filter that sees edges leaves a
    small difference of large numbers, and returned in the precision of the images.

    Args:
        images: ``(b, c, h, w)``, without gradient.
        conv: the convolution.
        tasks: number of tasks.
        groups: number of groups in all tasks.

    Returns:
        Two tensors ``(tasks, groups of a task, output channels)``, differentiable by the weight.
    """
    with torch.no_grad():
        of_images = joined([patch_moments(images[piece], conv) for piece in few(images, conv.weight)])
        mean, square = (value.unflatten(0, (groups, -1)).mean(1) for value in of_images)
        covariance = square - mean[:, :, None] * mean[:, None]
    filters = conv.weight.flatten(1).double()
    var = ((filters @ covariance) * filters).sum(2).clamp_min(0)  # that of constant images may round to less
    return tuple(value.to(images.dtype).view(tasks, groups // tasks, -1) for value in (mean @ filters.T, var))


def patch_moments(images: Tensor, conv: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Return means ``(b, k)`` and mean products ``(b, k, k)`` of the ``k`` values under a filter, over positions."""
    (down, right), (above, left) = filtering(conv)
    height, width = conv.kernel_size
    padded = F.pad(images.double(), (left, left, above, above))
    windows = padded.unfold(2, height, down).unfold(3, width, right)  # (b, channels, rows, columns, height, width)
    patches = windows.permute(0, 1, 4, 5, 2, 3).flatten(4).flatten(1, 3)
    return patches.mean(2), patches @ patches.mT / patches.shape[2]


class PooledConvolution(Pass):
    """A convolution without bias, of images without gradient, and the max-pooling after it."""

    @staticmethod
    def forward(images: Tensor, weight: Tensor, filtering: Filtering, pooling: Pooling) -> tuple[Tensor, Tensor]:
        """Return the maxima ``(b, c, h, w)``, and where in the convolution's output they were."""
        shapes = aten.max_pool2d_with_indices(shape_of_output(images, weight, filtering), *pooling)
        maxima, where = (empty(each.shape, each.dtype) for each in shapes)
        for piece in few(images, weight):
            y = filtered(images[piece], weight, filtering)
            aten.max_pool2d_with_indices.out(y, *pooling, out=maxima[piece], indices=where[piece])
        return maxima, where

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        """Keep what the backward pass needs."""
        images, weight, *ctx.rest = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(images, weight, output[1])

    @staticmethod
    def backward(ctx, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        """Return the gradient of the weight."""
        of_weight = None if grad is None else PooledConvolutionBack.apply(grad, *ctx.saved_tensors, *ctx.rest)
        return None, of_weight, None, None


class PooledConvolutionBack(Pass):
    """The backward pass of :class:`PooledConvolution`: linear in what comes back, and no function of the weight."""

    @staticmethod
    def forward(
        grad: Tensor, images: Tensor, weight: Tensor, where: Tensor, filtering: Filtering, pooling: Pooling
    ) -> Tensor:
        """Return the gradient of the weight."""
        shape, of_weight = shape_of_output(images, weight, filtering).shape, torch.zeros_like(weight)
        for piece in few(images, weight):
            part = grad[piece]
            y = unpooled(part, empty((len(part), *shape[1:]), part.dtype), where[piece], pooling)
            fixed = (None, *filtering, (1, 1), False, (0, 0), 1, [False, True, False])
            of_weight += aten.convolution_backward(y, images[piece], weight, *fixed)[1]
        return of_weight

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        """Keep what the backward pass needs."""
        _, images, _, where, ctx.filtering, _ = inputs
        ctx.save_for_backward(images, where)

    @staticmethod
    def backward(ctx, v: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of ``<v, weight'>``: what filters ``v`` see where the maxima were."""
        images, where = ctx.saved_tensors
        seen = [read(filtered(images[piece], v, ctx.filtering), where[piece]) for piece in few(images, v)]
        return torch.cat(seen), *[None] * 5


def few(images: Tensor, weight: Tensor) -> list[slice]:
    """Return slices of images whose outputs fit in a processor's cache."""
    return pieces(images, weight.shape[0] / weight.shape[1])


def filtered(images: Tensor, weight: Tensor, filtering: Filtering) -> Tensor:
    """Return the convolution's output."""
    return F.conv2d(images, weight, None, *filtering)


def shape_of_output(images: Tensor, weight: Tensor, filtering: Filtering) -> Tensor:
    """Return the convolution's output without values."""
    return filtered(images.to("meta"), weight.to("meta"), filtering)


def empty(shape: torch.Size | tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return images without values, their channels next to each other in memory."""
    return torch.empty(shape, dtype=dtype, memory_format=torch.channels_last)
