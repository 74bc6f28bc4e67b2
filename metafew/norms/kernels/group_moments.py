"""Moments of groups of rows, from single images to whole batches, in few passes over memory."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import Function

from metafew.norms.kernels import native
from metafew.norms.kernels.pieces import (
    POSITIONS,
    SUMMED,
    add_affine,
    by_piece,
    concatenate,
    group_size,
    group_sums,
    on_cpu,
    pieces,
    pieces_of_groups,
    scale_shift,
    suits_native,
    to_rows,
)
from metafew.precision import precise

IN_GROUP = (1, 3, 4)


class GroupMoments(Function):
    """Mean and population variance of each channel over groups of consecutive rows.

    It also returns ``x``, so that the gradients of ``x`` and of its moments come back together and are added in one
    pass.
    """

    @staticmethod
    def forward(x: Tensor, tasks: int, groups: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``x`` ``(b, c, h, w)``, means and variances ``(tasks, groups of a task, c)``, in float32 or better."""
        mean, var = moments_of_groups(x, groups)
        shape = (tasks, groups // tasks, x.shape[1])
        return x.view_as(x), mean.view(shape), var.view(shape)

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, int, int], output: tuple[Tensor, Tensor, Tensor]) -> None:
        """Save what the backward pass needs."""
        ctx.save_for_backward(inputs[0], output[1])

    @staticmethod
    def backward(ctx, grad: Tensor, grad_mean: Tensor, grad_var: Tensor) -> tuple[Tensor, None, None]:
        """Return ``grad + (grad_mean + 2 grad_var (x - mean)) / n`` with ``n`` the number of values in a group."""
        x, mean = ctx.saved_tensors
        if torch.is_grad_enabled():
            return GroupMomentsBackward.apply(grad, grad_mean, grad_var, x, mean), None, None
        for piece, entries in pieces_of_groups(x, *slope_and_level(grad_mean, grad_var, x, mean)):
            add_affine(grad[piece], x[piece], *entries)
        return grad, None, None

    @staticmethod
    def vmap(info, dims: tuple[int, None, None], x: Tensor, tasks: int, groups: int):
        """Treat the tasks that ``vmap`` stacks as further groups."""
        x, stacked = x.movedim(dims[0], 0), info.batch_size
        results = GroupMoments.apply(x.flatten(0, 1), stacked * tasks, stacked * groups)
        return tuple(part.unflatten(0, (stacked, -1)) for part in results), (0, 0, 0)


class GroupMomentsBackward(Function):
    """The backward pass of :class:`GroupMoments`, with a hand-written derivative."""

    generate_vmap_rule = True

    @staticmethod
    def forward(grad: Tensor, grad_mean: Tensor, grad_var: Tensor, x: Tensor, mean: Tensor) -> Tensor:
        """Return ``grad + slope x + level``."""
        slope, level = (to_rows(each, x) for each in slope_and_level(grad_mean, grad_var, x, mean))
        return torch.addcmul(grad, x, slope).add_(level).to(x.dtype)

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Save what the backward pass needs."""
        ctx.save_for_backward(*inputs[2:])

    @staticmethod
    def backward(ctx, v: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of ``<v, grad + slope x + level>``, in which ``mean`` is a function of ``x``."""
        grad_var, x, mean = ctx.saved_tensors
        count = group_size(x, mean)
        dots, sums = group_sums(v, x, mean)
        slope = grad_var * (2 / count)
        of_x = scale_shift(v, slope, slope * sums / -count)
        return v, sums / count, torch.addcmul(dots, mean, sums, value=-1) * (2 / count), of_x, None


def moments_of_groups(x: Tensor, groups: int) -> tuple[Tensor, ...]:
    """Return means and variances, ``(groups, c)`` or flat, of equally large groups of consecutive rows."""
    rows = x.shape[0] // groups
    if rows == 1:
        return by_piece(image_moments, x)
    if on_cpu(x):
        return concatenate([moments_of_rows(group) for group in x.split(rows)])
    parts = precise(x).unflatten(0, (groups, rows))
    mean = parts.mean(IN_GROUP, keepdim=True)
    return mean.flatten(), (parts - mean).square().mean(IN_GROUP)


def moments_of_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return means and variances ``(1, c)`` over all rows and positions, on a CPU."""
    if not suits_native(x, 1):
        return native.moments(precise(x))
    parts = [x[piece] for piece in pieces(x, SUMMED)]
    return union([native.moments(part) for part in parts], [len(part) for part in parts])


def union(moments: list[tuple[Tensor, Tensor]], sizes: list[int]) -> tuple[Tensor, Tensor]:
    """Return the moments of the union of parts with moments ``(1, c)`` and numbers of rows ``sizes``.

    As :func:`metafew.norms.norm.pool`, for parts of different size.
    """
    mean, var = concatenate(moments)
    if len(sizes) == 1:
        return mean, var
    share = (mean.new_tensor(sizes) / sum(sizes)).unsqueeze(1)
    of_all = (share * mean).sum(0, keepdim=True)
    return of_all, (share * (var + (mean - of_all).square())).sum(0, keepdim=True)


def image_moments(part: Tensor) -> tuple[Tensor, Tensor]:
    """Return means and variances ``(b, c)`` over positions."""
    part = precise(part)
    mean = part.mean(POSITIONS, keepdim=True)
    distance = part - mean
    return mean[..., 0, 0], distance.mul_(distance).mean(POSITIONS)  # in place: no second temporary tensor


def slope_and_level(grad_mean: Tensor, grad_var: Tensor, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``slope = 2 grad_var / n`` and ``level = grad_mean / n - slope mean``."""
    count = group_size(x, mean)
    slope = grad_var * (2 / count)
    return slope, torch.addcmul(grad_mean / count, slope, mean, value=-1)
