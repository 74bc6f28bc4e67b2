"""Moments of groups of rows, and a max-pooling, a few rows at a time while they are in the processor's cache."""

from __future__ import annotations

from numbers import Integral
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import Function

from metafew.norms.kernels.group_moments import (
    GroupMomentsBackward,
    image_moments,
    moments_of_groups,
    moments_of_rows,
    slope_and_level,
    union,
)
from metafew.norms.kernels.pieces import add_affine, concatenate, has_memory, pieces, pieces_of_groups
from metafew.precision import precise

aten = torch.ops.aten
FEW = 4
"""Number of pieces up to which the whole is as fast, as larger caches hold it."""


class Pooling(NamedTuple):
    """The arguments of a max-pooling, each a number or one for each dimension."""

    kernel_size: int | tuple[int, ...]
    stride: int | tuple[int, ...]
    padding: int | tuple[int, ...]
    dilation: int | tuple[int, ...]
    ceil_mode: bool

    @classmethod
    def of(cls, pool: nn.MaxPool2d) -> Pooling:
        """Return the arguments of a layer, whose numbers may be those of NumPy."""
        kernel_size, stride, padding, dilation = (
            int(size) if isinstance(size, Integral) else size
            for size in (pool.kernel_size, pool.stride, pool.padding, pool.dilation)
        )
        return cls(kernel_size, stride, padding, dilation, pool.ceil_mode)

    @property
    def overlapping(self) -> bool:
        """Whether a value may be in several windows."""
        sizes, strides, dilations = (
            (each, each) if isinstance(each, int) else each for each in (self.kernel_size, self.stride, self.dilation)
        )
        pairs = zip(sizes, strides, dilations, strict=True)
        return any((size - 1) * dilation >= stride for size, stride, dilation in pairs)


class PooledMoments(Function):
    """:class:`~metafew.norms.kernels.group_moments.GroupMoments`, which returns the maxima of ``x`` in place of ``x``.

    The gradients through the maxima and through the moments are added in one pass. ``x`` may not be batched by
    ``torch.func``.
    """

    generate_vmap_rule = True  # required inside vmap over something else

    @staticmethod
    def forward(x: Tensor, tasks: int, groups: int, pooling: Pooling) -> tuple[Tensor, ...]:
        """Return maxima ``(b, c, h, w)``, means and variances ``(tasks, groups of a task, c)``, and indices."""
        if len(pieces(x)) <= FEW:
            maxima, where = aten.max_pool2d_with_indices(x, *pooling)
            moments = moments_of_groups(x, groups)
        else:
            maxima, where, *moments = _by_piece(x, groups, pooling)
        mean, var = (each.view(tasks, groups // tasks, -1) for each in moments)
        return maxima, mean, var, where

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: tuple[Tensor, ...]) -> None:
        """Save what the backward pass needs."""
        ctx.save_for_backward(inputs[0], output[1], output[3])
        ctx.mark_non_differentiable(output[3])
        ctx.set_materialize_grads(False)  # which would allocate one for the indices, too
        ctx.pooling = inputs[3]

    @staticmethod
    def backward(ctx, grad: Any, grad_mean: Any, grad_var: Any, _: None) -> tuple[Tensor | None, ...]:
        """Return the gradient of ``x``, as :class:`GroupMoments` does."""
        x, mean, where = ctx.saved_tensors
        grad = torch.zeros_like(where, dtype=x.dtype) if grad is None else grad
        grad_mean, grad_var = (torch.zeros_like(mean) if of is None else of for of in (grad_mean, grad_var))
        if torch.is_grad_enabled() or not has_memory(grad):
            of_x = aten.max_pool2d_with_indices_backward(grad, x.detach(), *ctx.pooling, where)
            return GroupMomentsBackward.apply(of_x, grad_mean, grad_var, x, mean), None, None, None
        of_x, overlapping = torch.empty_like(x), ctx.pooling.overlapping
        for piece, entries in pieces_of_groups(x, *slope_and_level(grad_mean, grad_var, x, mean)):
            # Overlapping windows add up several gradients of one value.
            rows, of_rows = precise(x[piece]) if overlapping else x[piece], of_x[piece]
            total = of_rows if rows.dtype == x.dtype else torch.empty_like(rows)
            arguments = grad[piece].to(rows.dtype), rows, *ctx.pooling, where[piece]
            aten.max_pool2d_with_indices_backward.grad_input(*arguments, grad_input=total)
            add_affine(total, rows, *entries)
            if total is not of_rows:
                of_rows.copy_(total)
        return of_x, None, None, None


def _by_piece(x: Tensor, groups: int, pooling: Pooling) -> tuple[Tensor, ...]:
    """Return maxima and their indices, and means and variances of the groups."""
    memory = torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    maxima, where = (
        torch.empty(len(x), *one.shape[1:], dtype=one.dtype, device=x.device, memory_format=memory)
        for one in aten.max_pool2d_with_indices(x[:1], *pooling)
    )
    of_images, found = groups == len(x), []
    parts = (each.chunk(1 if of_images else groups) for each in (x, maxima, where))
    for rows, out, indices in zip(*parts, strict=True):
        moments, sizes = [], []
        for piece in pieces(rows):
            aten.max_pool2d_with_indices.out(rows[piece], *pooling, out=out[piece], indices=indices[piece])
            moments.append((image_moments if of_images else moments_of_rows)(rows[piece]))
            sizes.append(len(rows[piece]))
        found.append(concatenate(moments) if of_images else union(moments, sizes))
    return maxima, where, *concatenate(found)
