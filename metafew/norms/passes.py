"""The two passes over the activations that every scheme is made of, with derivatives of their own.

A norm layer costs little arithmetic and much memory traffic. Written with ordinary operations it would write several
temporary tensors of the size of its input, forward and backward. Here each pass goes over a few images at a time, so
that temporaries stay in the processor's cache; on a GPU, which has no use for that, over all at once. The backward
passes can be differentiated in turn, in few passes too, and all of them are exact under ``vmap``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.autograd import Function

from metafew.precision import precise

CACHED = 2**19  # values in a piece: 2 MiB of float32
POSITIONS = (2, 3)
IN_GROUP = (1, 3, 4)
two_passes = torch.ops.aten.batch_norm_update_stats
"""torch's mean and population variance of each channel, on a CPU faster than any other way to them."""


def pieces(x: Tensor) -> Iterator[slice]:
    """Yield slices of rows of ``x`` that fit in a processor's cache."""
    rows = x.shape[0]
    size = max(1, CACHED * rows // max(1, x.numel())) if x.device.type == "cpu" else max(1, rows)
    return (slice(start, start + size) for start in range(0, rows, size))


def of_rows(value: Tensor, piece: slice) -> Tensor:
    """Return what belongs to a piece of rows; one row belongs to all."""
    return value if len(value) == 1 else value[piece]


def by_piece(function: Callable[..., tuple[Tensor, ...]], *rows: Tensor) -> tuple[Tensor, ...]:
    """Apply ``function`` to pieces of rows and join each of its results."""
    results = [function(*(r[piece] for r in rows)) for piece in pieces(rows[0])]
    return tuple(part[0] if len(part) == 1 else torch.cat(part) for part in zip(*results, strict=True))


class GroupMoments(Function):
    """Mean and population variance of each channel over groups of consecutive rows, from single images to all.

    It also hands ``x`` on, so that the gradient of whatever is computed from ``x`` and from its moments comes back
    together and is written once.
    """

    @staticmethod
    def forward(x: Tensor, groups: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``x`` ``(b, c, h, w)`` and its means and variances ``(groups, c)``, in float32 or better."""
        rows = len(x) // groups
        if rows == 1:
            moments = by_piece(moments_of_images, x)
        elif x.device.type == "cpu":
            each = (two_passes(precise(group), None, None, 0.0) for group in x.split(rows))
            moments = (torch.stack(part) for part in zip(*each, strict=True))
        else:
            parts = precise(x).unflatten(0, (groups, rows))
            mean = parts.mean(IN_GROUP, keepdim=True)
            moments = mean.flatten(1), (parts - mean).square().mean(IN_GROUP)
        return x.view_as(x), *moments

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, int], output: tuple[Tensor, Tensor, Tensor]) -> None:
        """Keep what the backward pass needs."""
        ctx.save_for_backward(inputs[0], output[1])

    @staticmethod
    def backward(ctx, grad: Tensor, grad_mean: Tensor, grad_var: Tensor) -> tuple[Tensor, None]:
        """Return ``grad + (grad_mean + 2 grad_var (x - mean)) / n``, ``n`` being the values of a group."""
        x, mean = ctx.saved_tensors
        if torch.is_grad_enabled():
            return Bent.apply(grad, grad_mean, grad_var, x, mean), None
        slope, level = bend(grad_mean, grad_var, x, mean)
        for piece in pieces(x):
            k, offset = (of_rows(value, piece)[..., None, None] for value in (slope, level))
            grad[piece].addcmul_(x[piece], k).add_(offset)
        return grad, None

    @staticmethod
    def vmap(info, dims: tuple[int, None], x: Tensor, groups: int) -> tuple[tuple[Tensor, ...], tuple[int, int, int]]:
        """Take tasks that ``vmap`` stacks for what they are: more groups."""
        x = x.movedim(dims[0], 0)
        results = GroupMoments.apply(x.flatten(0, 1), info.batch_size * groups)
        return tuple(part.unflatten(0, (info.batch_size, -1)) for part in results), (0, 0, 0)


class Bent(Function):
    """The backward pass of :class:`GroupMoments`, whose own derivative takes few passes."""

    generate_vmap_rule = True

    @staticmethod
    def forward(grad: Tensor, grad_mean: Tensor, grad_var: Tensor, x: Tensor, mean: Tensor) -> Tensor:
        """Return ``grad + slope x + level``."""
        slope, level = (value[..., None, None] for value in bend(grad_mean, grad_var, x, mean))
        return torch.addcmul(grad, x, slope).add_(level).to(x.dtype)

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Keep what the backward pass needs."""
        ctx.save_for_backward(*inputs[2:])

    @staticmethod
    def backward(ctx, v: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of ``<v, grad + slope x + level>``; ``mean`` counts as what it is, a mean of ``x``."""
        grad_var, x, mean = ctx.saved_tensors
        count = values(x, mean)
        slope = 2 * grad_var / count
        dots, sums = in_groups(v, x, len(mean))
        of_x = scaled(v, spread(slope, x), spread(-slope * sums / count, x))
        return v, sums / count, 2 * (dots - mean * sums) / count, of_x, None


def moments_of_images(part: Tensor) -> tuple[Tensor, Tensor]:
    """Return means and variances ``(b, c)`` over positions, by two passes over values in cache."""
    part = precise(part)
    mean = part.mean(POSITIONS, keepdim=True)
    distance = part - mean
    return mean[..., 0, 0], distance.mul_(distance).mean(POSITIONS)  # in place: no second temporary


def bend(grad_mean: Tensor, grad_var: Tensor, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``slope = 2 grad_var / n`` and ``level = grad_mean / n - slope mean`` for each row ``(b, c)`` of ``x``."""
    count = values(x, mean)
    slope = 2 * grad_var / count
    return spread(slope, x), spread(grad_mean / count - slope * mean, x)


def values(x: Tensor, mean: Tensor) -> int:
    """Return how many values of ``x`` each of ``mean`` is the mean of."""
    return x.numel() // mean.numel()


def spread(value: Tensor, x: Tensor) -> Tensor:
    """Return what belongs to groups ``(groups, c)`` for each row of ``x``: ``(b, c)``, or ``(1, c)`` for one group."""
    groups = len(value)
    return value if groups in (1, len(x)) else value.repeat_interleave(len(x) // groups, 0)


def in_groups(v: Tensor, x: Tensor, groups: int) -> tuple[Tensor, ...]:
    """Return the sums of ``v x`` and of ``v`` over positions and groups of consecutive rows, ``(groups, c)``."""
    sums = by_piece(products, v, x)
    return sums if groups == len(x) else tuple(each.unflatten(0, (groups, -1)).sum(1) for each in sums)


def products(v: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums of ``v x`` and of ``v`` over positions, ``(b, c)``, in float32 or better."""
    v, x = precise(v), precise(x)
    return (v * x).sum(POSITIONS), v.sum(POSITIONS)


class Affine(Function):
    """``y = scale * x + shift`` with a scale and a shift for each channel and group of consecutive rows."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """Return ``y`` in the precision of ``x``, computed in that of ``scale`` ``(groups, c)``."""
        return scaled(x, spread(scale, x), spread(shift, x))

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        """Keep what the backward pass needs."""
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``scale * grad`` and, summed over groups, ``grad * x`` and ``grad``."""
        x, scale = ctx.saved_tensors
        return scaled(grad, spread(scale, x), None), *in_groups(grad, x, len(scale))


def scaled(x: Tensor, scale: Tensor, shift: Tensor | None) -> Tensor:
    """Return ``scale * x + shift`` in the precision of ``x``; ``scale`` and ``shift`` are ``(b, c)``."""
    scale = scale[..., None, None]
    if shift is None:
        return (x * scale).to(x.dtype)
    return torch.addcmul(shift[..., None, None], x, scale).to(x.dtype)
