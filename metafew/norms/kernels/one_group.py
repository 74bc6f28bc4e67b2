"""Batch normalization of one group of rows, and the max-pooling after it, as one function.

MAML calls it hundreds of times a step on tensors so small that the number of kernel calls dominates its time. PyTorch's
batch norm needs few calls, but many for its second derivative, on values before pooling;
:mod:`metafew.norms.kernels.normalize`, which accepts arbitrary moments, needs more.

The functions save their tensors in ``forward``, which costs less than ``setup_context`` and excludes the transforms of
``torch.func``; :mod:`metafew.norms.fast` never calls them there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from metafew.norms.kernels.pieces import POSITIONS, add_affine, group_size, pieces, scale_shift, to_rows
from metafew.norms.kernels.pooling import Pooling, at_maxima, pooling_backward

aten = torch.ops.aten
ALL_ROWS = (0, *POSITIONS)


class OneGroup(Function):
    """``y = pool(weight * h + bias)`` with ``h = (x - mean) / sqrt(var + eps)``.

    ``mean`` and ``var`` must be the mean and the population variance ``(c,)`` of ``x`` itself; derivatives treat them
    as functions of ``x``. No weight may be negative where there is a pooling, which comes first: it commutes with
    non-decreasing functions.
    """

    @staticmethod
    def forward(
        ctx, x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, eps: float, pooling: Pooling
    ) -> Tensor:
        """Return ``y`` of ``x`` ``(b, c, h, w)``."""
        pooled, where = aten.max_pool2d_with_indices(x, *pooling) if pooling else (x, None)
        ctx.save_for_backward(x, weight, mean, var, pooled, where)
        ctx.rest = eps, pooling
        return aten.native_batch_norm(pooled, weight, bias, mean, var, False, 0.0, eps)[0]

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of ``x``, ``weight`` and ``bias``."""
        backward = OneGroupBackward.apply if torch.is_grad_enabled() else _gradients
        of_x, of_weight, of_bias = backward(grad, *ctx.saved_tensors, *ctx.rest)
        return of_x, None, None, of_weight, of_bias, None, None


class OneGroupBackward(Function):
    """The backward pass of :class:`OneGroup`, with a hand-written derivative; higher ones by ordinary operations."""

    @staticmethod
    def forward(ctx, *inputs: Any) -> tuple[Tensor, ...]:
        """Return the gradients of ``x``, ``weight`` and ``bias``."""
        of_x, of_weight, of_bias = _gradients(*inputs)
        ctx.save_for_backward(*inputs[:7], of_weight, of_bias)
        ctx.rest = inputs[7:]
        return of_x, of_weight, of_bias

    @staticmethod
    def backward(ctx, v: Tensor, of_weight: Tensor, of_bias: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the sum of the products of each output and its incoming gradient.

        With means over the ``n`` values of the group, ``scale = weight / sqrt(var + eps)`` and ``u`` the sum over
        pooled values of ``v grad``, where ``v`` is read at the maxima, the sum of products is
        ``scale (u - mean(v) bias' - mean(v h) weight') + of_weight weight' + of_bias bias'``, where ``weight'`` and
        ``bias'``, the sums of ``grad h`` and of ``grad``, are the gradients of weight and bias.
        """
        grad, x, weight, mean, var, pooled, where, weight_grad, bias_grad = ctx.saved_tensors
        eps, pooling = ctx.rest
        if torch.is_grad_enabled():
            return *_differentiable(grad, x, weight, where, eps, (v, of_weight, of_bias)), *[None] * 6
        count = group_size(x, mean)
        inverse = torch.rsqrt(var + eps)
        scale = weight * inverse
        _, v_h, v_mean = _batch_norm_backward(v, x, weight, mean, var, eps, [False, True, True])
        v_h, v_mean = v_h / count, v_mean / count
        v_at_maxima = at_maxima(v, where)
        inner = (v_at_maxima * grad).sum(ALL_ROWS) - bias_grad * v_mean - weight_grad * v_h
        along = (of_weight - scale * v_h) * inverse  # of grad (x - mean)
        level = of_bias - scale * v_mean - mean * along  # of grad
        of_grad = torch.addcmul(to_rows(level, x), pooled, to_rows(along, x))
        of_grad = of_grad.addcmul_(v_at_maxima, to_rows(scale, x))
        of_v = scale * weight_grad * inverse / -count
        of_inverse = weight * inner + (of_weight - 2 * scale * v_h) * weight_grad / inverse
        slope = of_inverse * inverse**3 / -count
        level = of_v * -v_mean - along * bias_grad / count - slope * mean
        of_x = pooling_backward(scale_shift(grad, to_rows(along, x)), x, where, pooling)
        of_v, slope, level = to_rows(of_v, x), to_rows(slope, x), to_rows(level, x)
        for piece in pieces(x):
            of_x[piece].addcmul_(v[piece], of_v).addcmul_(x[piece], slope).add_(level)
        return of_grad.to(grad.dtype), of_x, inverse * inner, *[None] * 6


def _gradients(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    mean: Tensor,
    var: Tensor,
    pooled: Tensor,
    where: Tensor | None,
    eps: float,
    pooling: Pooling,
) -> tuple[Tensor, ...]:
    """Return the gradients of ``x``, ``weight`` and ``bias``, given that of ``y``.

    That of ``x`` is ``scale grad`` at the maxima and everywhere ``-scale / n (bias' + h weight')``, where ``weight'``
    and ``bias'`` are the other two and ``n`` is the number of values in the group.
    """
    of_pooled, of_weight, of_bias = _batch_norm_backward(grad, pooled, weight, mean, var, eps, [True, True, True])
    inverse = torch.rsqrt(var + eps)
    share = weight * inverse / -group_size(x, mean)
    slope = share * inverse * of_weight
    level = torch.addcmul(share * of_bias, slope, mean, value=-1)
    of_x = add_affine(pooling_backward(of_pooled, x, where, pooling), x, to_rows(slope, x), to_rows(level, x))
    return of_x, of_weight, of_bias


def _batch_norm_backward(
    grad: Tensor, x: Tensor, weight: Tensor, mean: Tensor, var: Tensor, eps: float, mask: list[bool]
) -> tuple[Any, Any, Any]:
    """Return the gradients of ``x``, ``weight`` and ``bias`` at fixed moments; None where ``mask`` is False."""
    return aten.native_batch_norm_backward(grad, x, weight, mean, var, None, None, False, eps, mask)


def _differentiable(
    grad: Tensor, x: Tensor, weight: Tensor, where: Tensor | None, eps: float, back: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """Return what the backward pass of :class:`OneGroupBackward` does, by operations with derivatives of all orders."""
    # Views, since one input may have been computed from another, and is differentiated as if it had not.
    inputs = [p.view_as(p) if p.requires_grad else p.detach().requires_grad_() for p in (grad, x, weight)]
    grad, x, weight = inputs
    bias = torch.zeros_like(weight, requires_grad=True)
    h = x - x.mean(ALL_ROWS, keepdim=True)
    h = h * torch.rsqrt(h.square().mean(ALL_ROWS, keepdim=True) + eps)
    y = to_rows(weight, x) * at_maxima(h, where) + to_rows(bias, x)
    grads = torch.autograd.grad(y, (x, weight, bias), grad, create_graph=True)
    return torch.autograd.grad(grads, inputs, back, create_graph=True, materialize_grads=True)
