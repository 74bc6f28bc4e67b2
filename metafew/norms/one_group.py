"""Normalization of rows by the moments of them all, and the max-pooling after it, as one function.

It is what batch norm does with the rows of one task, hundreds of times in a step of MAML, on tensors so small that the
number of calls decides. torch's own batch norm has few, but its second derivative many, on values before pooling;
:mod:`metafew.norms.passes`, where moments may be any, has more. Here sums are torch's and both derivatives ours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from metafew.norms.passes import POSITIONS, Pass, bent, pieces, scaled, spread, two_passes, values
from metafew.norms.pooling import Pooling, read, unpooled
from metafew.precision import precise

aten = torch.ops.aten
ALL_ROWS = (0, *POSITIONS)


class OneGroup(Pass):
    """``y = pool(weight * h + bias)``, ``h = (x - mean) / sqrt(var + eps)``, with the moments of each channel of ``x``.

    No weight may be negative: pooling, which commutes with functions that do not fall, comes first.
    """

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float, pooling: Pooling) -> tuple[Tensor | None, ...]:
        """Return ``y``; the mean and population variance ``(c,)``; ``x`` after pooling, and where its values were.

        All but ``y`` are without gradient. ``x`` is ``(b, c, h, w)``.
        """
        mean, var = two_passes(precise(x), None, None, 0.0)
        pooled, where = aten.max_pool2d_with_indices(x, *pooling) if pooling else (x.view_as(x), None)
        y, *_ = aten.native_batch_norm(pooled, weight, bias, mean, var, False, 0.0, eps)
        return y, mean, var, pooled, where

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: tuple[Tensor | None, ...]) -> None:
        """Keep what the backward pass needs."""
        x, weight, _, eps, pooling = inputs
        _, mean, var, pooled, where = output
        ctx.mark_non_differentiable(*(part for part in output[1:] if part is not None))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight, mean, var, pooled, where)
        ctx.rest = eps, pooling

    @staticmethod
    def backward(ctx, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        """Return the gradients of ``x``, ``weight`` and ``bias``."""
        if grad is None:
            return (None,) * 5
        if torch.is_grad_enabled():
            return *OneGroupBack.apply(grad, *ctx.saved_tensors, *ctx.rest), None, None
        return *backwards(grad, *ctx.saved_tensors, *ctx.rest), None, None


class OneGroupBack(Pass):
    """The backward pass of :class:`OneGroup`, whose own derivative takes few calls."""

    @staticmethod
    def forward(*inputs: Tensor | float | Pooling) -> tuple[Tensor, ...]:
        """Return what :func:`backwards` does."""
        return backwards(*inputs)

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: tuple[Tensor, ...]) -> None:
        """Keep what the backward pass needs."""
        ctx.save_for_backward(*inputs[:7], *output[1:])
        ctx.rest = inputs[7:]

    @staticmethod
    def backward(ctx, v: Tensor, of_weight: Tensor, of_bias: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the sum of products of the gradients and what came back for each.

        With means over the ``n`` values of a group, ``scale = weight / sqrt(var + eps)`` and ``u`` the sum over pooled
        values of ``v grad``, where ``v`` is read at the maxima, the sum of products is
        ``scale (u - mean(v) bias' - mean(v h) weight') + of_weight weight' + of_bias bias'``, where ``weight'`` and
        ``bias'``, the sums of ``grad h`` and of ``grad``, are the gradients of weight and bias.
        """
        grad, x, weight, mean, var, pooled, where, weight_grad, bias_grad = ctx.saved_tensors
        eps, pooling = ctx.rest
        if torch.is_grad_enabled():
            return *of_any_order(grad, x, weight, where, eps, (v, of_weight, of_bias)), *[None] * 6
        count = values(x, mean)
        inverse = torch.rsqrt(var + eps)
        scale = weight * inverse
        _, v_h, v_mean = batch_norm_backward(v, x, weight, mean, var, eps, [False, True, True])
        v_h, v_mean = v_h / count, v_mean / count
        at_maxima = read(v, where)
        inner = (at_maxima * grad).sum(ALL_ROWS) - bias_grad * v_mean - weight_grad * v_h
        along = (of_weight - scale * v_h) * inverse  # of grad (x - mean)
        level = of_bias - scale * v_mean - mean * along  # of grad
        of_grad = torch.addcmul(spread(level, x), pooled, spread(along, x)).addcmul_(at_maxima, spread(scale, x))
        of_v = scale * weight_grad * inverse / -count
        of_inverse = weight * inner + (of_weight - 2 * scale * v_h) * weight_grad / inverse
        slope = of_inverse * inverse**3 / -count
        level = of_v * -v_mean - along * bias_grad / count - slope * mean
        of_x = unpooled(scaled(grad, spread(along, x), None), x, where, pooling)
        of_v, slope, level = spread(of_v, x), spread(slope, x), spread(level, x)
        for piece in pieces(x):
            of_x[piece].addcmul_(v[piece], of_v).addcmul_(x[piece], slope).add_(level)
        return of_grad.to(grad.dtype), of_x, inverse * inner, *[None] * 6


def backwards(
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
    """Return the gradients of ``x``, ``weight`` and ``bias``, given that of what :class:`OneGroup` returns.

    That of ``x`` is ``scale grad`` at the maxima and everywhere ``-scale / n (bias' + h weight')``, where ``weight'``
    and ``bias'`` are the other two and ``n`` is the number of values in the group.
    """
    of_pooled, of_weight, of_bias = batch_norm_backward(grad, pooled, weight, mean, var, eps, [True, True, True])
    inverse = torch.rsqrt(var + eps)
    share = weight * inverse / -values(x, mean)
    slope = share * inverse * of_weight
    level = torch.addcmul(share * of_bias, slope, mean, value=-1)
    of_x = bent(unpooled(of_pooled, x, where, pooling), x, spread(slope, x), spread(level, x))
    return of_x, of_weight, of_bias


def batch_norm_backward(
    grad: Tensor, x: Tensor, weight: Tensor, mean: Tensor, var: Tensor, eps: float, wanted: list[bool]
) -> tuple[Tensor | None, ...]:
    """Return those gradients of ``x``, ``weight`` and ``bias`` that are wanted, at fixed moments."""
    return aten.native_batch_norm_backward(grad, x, weight, mean, var, None, None, False, eps, wanted)


def of_any_order(
    grad: Tensor, x: Tensor, weight: Tensor, where: Tensor | None, eps: float, back: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """Return what the backward pass of :class:`OneGroupBack` does, by operations with derivatives of all orders."""
    # Views, since one may have been computed from another, and is differentiated as if it had not.
    inputs = [p.view_as(p) if p.requires_grad else p.detach().requires_grad_() for p in (grad, x, weight)]
    grad, x, weight = inputs
    bias = torch.zeros_like(weight, requires_grad=True)
    h = x - x.mean(ALL_ROWS, keepdim=True)
    h = h * torch.rsqrt(h.square().mean(ALL_ROWS, keepdim=True) + eps)
    y = spread(weight, x) * read(h, where) + spread(bias, x)
    grads = torch.autograd.grad(y, (x, weight, bias), grad, create_graph=True)
    return torch.autograd.grad(grads, inputs, back, create_graph=True, materialize_grads=True)
