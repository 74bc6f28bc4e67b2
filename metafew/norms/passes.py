"""The two passes over the activations that every scheme is made of, with derivatives of their own.

A norm layer costs little arithmetic and much memory traffic. Written with ordinary operations it would write several
temporary tensors of the size of its input, forward and backward. Here each pass goes over a few images at a time, so
that temporaries stay in the processor's cache; on a GPU, which has no use for that, over all at once. The backward
passes can be differentiated in turn, in few passes too, and all of them are exact under ``vmap``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from metafew.precision import precise

CACHED = 2**19  # values in a piece: 2 MiB of float32
POSITIONS = (2, 3)
IN_GROUP = (1, 3, 4)
two_passes = torch.ops.aten.batch_norm_update_stats
"""torch's mean and population variance of each channel, on a CPU faster than any other way to them."""


class Arguments(NamedTuple):
    """All arguments of a call; none is left out."""

    args: tuple
    kwargs: dict

    def apply_defaults(self) -> None:
        """Leave them as they are."""


class InOrder(inspect.Signature):
    """The signature of a function that is only ever called with all of its arguments in order."""

    def bind(self, *args) -> Arguments:
        """Return the arguments as they came."""
        return Arguments(args, {})


class Pass(Function):
    """A Function that is called thousands of times a step, with all of its arguments in order."""

    def __init_subclass__(cls) -> None:
        """Spare torch from working out in every call which argument is which, which takes as long as a small pass."""
        cls.forward.__signature__ = InOrder([*inspect.signature(cls.forward).parameters.values()])


def pieces(x: Tensor, times: float = 1) -> list[slice]:
    """Return slices of rows of ``x`` whose values, each ``times`` over, fit in a processor's cache."""
    rows = x.shape[0]
    size = max(1, int(CACHED * rows / times) // max(1, x.numel())) if x.device.type == "cpu" else max(1, rows)
    return [slice(start, start + size) for start in range(0, rows, size)]


def of_rows(value: Tensor, piece: slice) -> Tensor:
    """Return what belongs to a piece of rows; one row belongs to all."""
    return value if value.shape[0] == 1 else value[piece]


def joined(results: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Join each of the results that parts of the rows gave; those of a single part are whole already."""
    return results[0] if len(results) == 1 else tuple(torch.cat(parts) for parts in zip(*results, strict=True))


def by_piece(function: Callable[..., tuple[Tensor, ...]], *rows: Tensor) -> tuple[Tensor, ...]:
    """Apply ``function`` to pieces of rows and join each of its results."""
    return joined([function(*(r[piece] for r in rows)) for piece in pieces(rows[0])])


class GroupMoments(Pass):
    """Mean and population variance of each channel over groups of consecutive rows, from single images to all.

    It also hands ``x`` on, so that the gradient of whatever is computed from ``x`` and from its moments comes back
    together and is written once.
    """

    @staticmethod
    def forward(x: Tensor, tasks: int, groups: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``x`` ``(b, c, h, w)``, means and variances ``(tasks, groups of a task, c)``, in float32 or better."""
        rows = x.shape[0] // groups
        if rows == 1:
            mean, var = by_piece(moments_of_images, x)
        elif x.device.type == "cpu":
            mean, var = joined([two_passes(precise(group), None, None, 0.0) for group in x.split(rows)])
        else:
            parts = precise(x).unflatten(0, (groups, rows))
            mean = parts.mean(IN_GROUP, keepdim=True)
            var = (parts - mean).square().mean(IN_GROUP)
        shape = (tasks, groups // tasks, x.shape[1])
        return x.view_as(x), mean.reshape(shape), var.view(shape)

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, int, int], output: tuple[Tensor, Tensor, Tensor]) -> None:
        """Keep what the backward pass needs."""
        ctx.save_for_backward(inputs[0], output[1])

    @staticmethod
    def backward(ctx, grad: Tensor, grad_mean: Tensor, grad_var: Tensor) -> tuple[Tensor, None, None]:
        """Return ``grad + (grad_mean + 2 grad_var (x - mean)) / n``, ``n`` being the values of a group."""
        x, mean = ctx.saved_tensors
        if torch.is_grad_enabled():
            return GroupMomentsBack.apply(grad, grad_mean, grad_var, x, mean), None, None
        return bent(grad, x, *bend(grad_mean, grad_var, x, mean)), None, None

    @staticmethod
    def vmap(info, dims: tuple[int, None, None], x: Tensor, tasks: int, groups: int):
        """Take tasks that ``vmap`` stacks for what they are: more groups."""
        x, stacked = x.movedim(dims[0], 0), info.batch_size
        results = GroupMoments.apply(x.flatten(0, 1), stacked * tasks, stacked * groups)
        return tuple(part.unflatten(0, (stacked, -1)) for part in results), (0, 0, 0)


class GroupMomentsBack(Pass):
    """The backward pass of :class:`GroupMoments`, whose own derivative takes few passes."""

    generate_vmap_rule = True

    @staticmethod
    def forward(grad: Tensor, grad_mean: Tensor, grad_var: Tensor, x: Tensor, mean: Tensor) -> Tensor:
        """Return ``grad + slope x + level``."""
        slope, level = bend(grad_mean, grad_var, x, mean)
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
        dots, sums = in_groups(v, x, mean)
        slope = grad_var * (2 / count)
        of_x = scaled(v, spread(slope, x), spread(slope * sums / -count, x))
        return v, sums / count, torch.addcmul(dots, mean, sums, value=-1) * (2 / count), of_x, None


def moments_of_images(part: Tensor) -> tuple[Tensor, Tensor]:
    """Return means and variances ``(b, c)`` over positions, by two passes over values in cache."""
    part = precise(part)
    mean = part.mean(POSITIONS, keepdim=True)
    distance = part - mean
    return mean[..., 0, 0], distance.mul_(distance).mean(POSITIONS)  # in place: no second temporary


def bend(grad_mean: Tensor, grad_var: Tensor, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``slope = 2 grad_var / n`` and ``level = grad_mean / n - slope mean`` for the rows of ``x``."""
    count = values(x, mean)
    slope = grad_var * (2 / count)
    return spread(slope, x), spread(torch.addcmul(grad_mean / count, slope, mean, value=-1), x)


def bent(grad: Tensor, x: Tensor, slope: Tensor, level: Tensor) -> Tensor:
    """Return ``grad + slope x + level``, written into ``grad`` while its pieces are in cache."""
    for piece in pieces(x):
        grad[piece].addcmul_(x[piece], of_rows(slope, piece)).add_(of_rows(level, piece))
    return grad


def values(x: Tensor, mean: Tensor) -> int:
    """Return how many values of ``x`` each of ``mean`` is the mean of."""
    return x.numel() // mean.numel()


def spread(value: Tensor, x: Tensor) -> Tensor:
    """Return ``value``, ``(c,)`` or ``(t, n, c)``, for the rows of ``x``: ``(b, c, 1, 1)``, ``b = 1`` for all alike."""
    groups, rows = value.numel() // x.shape[1], x.shape[0]
    value = value.reshape(groups, -1, 1, 1)
    return value if groups in (1, rows) else value.repeat_interleave(rows // groups, 0)


def in_groups(v: Tensor, x: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums of ``v x`` and of ``v`` over positions and groups of rows, in the shape of ``like``."""
    groups = like.numel() // x.shape[1]
    if groups == 1 and len(pieces(x)) == 1:
        sums = products(v, x, (0, *POSITIONS))
    else:
        sums = by_piece(products, v, x)
        if groups < x.shape[0]:
            sums = tuple(each.view(groups, -1, x.shape[1]).sum(1) for each in sums)
    return tuple(each.view_as(like) for each in sums)


def products(v: Tensor, x: Tensor, over: tuple[int, ...] = POSITIONS) -> tuple[Tensor, Tensor]:
    """Return the sums of ``v x`` and of ``v`` over positions or other dimensions, in float32 or better."""
    v, x = precise(v), precise(x)
    return (v * x).sum(over), v.sum(over)


class Normalize(Pass):
    """``y = weight * (x - mean) / sqrt(var + eps) + bias``, with moments of each channel and group of consecutive rows.

    ``mean`` and ``var`` have one shape: ``(c,)``, or ``(t, n, c)`` for ``n`` groups of each of ``t`` tasks, where the
    last may be 1, one moment for all channels. ``weight`` and ``bias`` are ``(c,)``. With
    ``scale = weight / sqrt(var + eps)`` it is ``scale * x + bias - mean * scale``, one pass over ``x``.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        """Return ``y`` in the precision of ``x``, computed in that of the moments."""
        scale = weight * torch.rsqrt(var + eps)
        return scaled(x, spread(scale, x), spread(torch.addcmul(bias, mean, scale, value=-1), x))

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        """Keep what the backward pass needs."""
        ctx.save_for_backward(*inputs[:4])
        ctx.eps = inputs[5]

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of everything but ``eps``."""
        if torch.is_grad_enabled():
            return *NormalizeBack.apply(grad, *ctx.saved_tensors, ctx.eps)[:5], None
        return *backwards(grad, *ctx.saved_tensors, ctx.eps)[:5], None


class NormalizeBack(Pass):
    """The backward pass of :class:`Normalize`, whose own derivative takes few passes.

    Two sums over the values of a group say all: ``dots``, of ``grad * (x - mean)``, is the gradient of the scale at
    fixed mean and bias, and ``sums``, of ``grad``, that of the bias. Both are handed on, so that the second derivative
    need not sum again.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(grad: Tensor, x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, ...]:
        """Return the gradients of ``x``, ``mean``, ``var``, ``weight`` and ``bias``, and ``dots`` and ``sums``."""
        *grads, dots, sums = backwards(grad, x, mean, var, weight, eps)
        return *grads, torch.stack([dots, sums])

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: tuple[Tensor, ...]) -> None:
        """Keep what the backward pass needs."""
        ctx.save_for_backward(*inputs[:5], output[5])
        ctx.eps = inputs[5]

    @staticmethod
    def backward(ctx, v: Tensor, of_mean: Tensor, of_var: Tensor, of_weight: Tensor, of_bias: Tensor, of_sums: Tensor):
        """Return the gradients of the sum of products of the gradients and what came back for each."""
        grad, x, mean, var, weight, (dots, sums) = ctx.saved_tensors
        inverse = torch.rsqrt(var + ctx.eps)
        scale, half = weight * inverse, of_var * inverse.square() * -0.5
        along = torch.addcmul(of_weight * inverse + of_sums[0], half, scale)  # of dots
        level = of_bias + of_sums[1] - of_mean * scale - mean * along  # of sums
        of_grad = torch.addcmul(torch.addcmul(spread(level, x), x, spread(along, x)), v, spread(scale, x))
        of_scale = torch.addcmul(in_groups(v, grad, scale)[0] - of_mean * sums, half, dots)
        of_inverse = of_scale * weight + dots * (of_weight + 2 * half * weight)
        return (
            of_grad.to(grad.dtype),
            scaled(grad, spread(along, x), None),
            (sums * along).neg_().sum_to_size(mean.shape),
            (of_inverse * inverse**3).mul_(-0.5).sum_to_size(var.shape),
            (of_scale * inverse).sum_to_size(weight.shape),
            None,
        )


def backwards(grad: Tensor, x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, ...]:
    """Return the gradients of all tensors that :class:`Normalize` takes, in their order, and ``dots`` and ``sums``."""
    inverse = torch.rsqrt(var + eps)
    scale = weight * inverse
    dots, sums = in_groups(grad, x, scale)
    dots = torch.addcmul(dots, mean, sums, value=-1)
    return (
        scaled(grad, spread(scale, x), None),
        (sums * scale).neg_().sum_to_size(mean.shape),
        (dots * scale * inverse.square()).mul_(-0.5).sum_to_size(var.shape),
        (dots * inverse).sum_to_size(weight.shape),
        sums.sum_to_size(weight.shape),
        dots,
        sums,
    )


def scaled(x: Tensor, scale: Tensor, shift: Tensor | None) -> Tensor:
    """Return ``scale * x + shift`` in the precision of ``x``."""
    y = x * scale if shift is None else torch.addcmul(shift, x, scale)
    return y.to(x.dtype)
