"""Scale and shift by given moments, one pass over memory forward and few in each derivative."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import Function

from metafew.norms.kernels.pieces import group_sums, scale_shift, to_rows


class Normalize(Function):
    """``y = weight * (x - mean) / sqrt(var + eps) + bias``, with moments of each channel and group of consecutive rows.

    ``mean`` and ``var`` have one shape: ``(c,)``, or ``(t, n, c)`` for ``n`` groups of each of ``t`` tasks, where the
    last may be 1, one moment for all channels. ``weight`` and ``bias`` are ``(c,)``, or ``(t, 1, c)`` where they differ
    by task. With
    ``scale = weight / sqrt(var + eps)`` it is ``scale * x + bias - mean * scale``, one pass over ``x``.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        """Return ``y`` in the precision of ``x``, computed in that of the moments."""
        scale = weight * torch.rsqrt(var + eps)
        return scale_shift(x, scale, torch.addcmul(bias, mean, scale, value=-1))

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        """Save what the backward pass needs."""
        ctx.save_for_backward(*inputs[:4])
        ctx.eps = inputs[5]

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of everything but ``eps``."""
        x, mean, var, weight = ctx.saved_tensors
        backward = NormalizeBackward.apply if torch.is_grad_enabled() else _gradients
        return *backward(grad, x, mean, var, weight, ctx.eps)[:5], None


class NormalizeBackward(Function):
    """The backward pass of :class:`Normalize`, with a hand-written derivative.

    It needs two sums over the values of a group: ``dots``, of ``grad * (x - mean)``, is the gradient of the scale at
    fixed mean and bias, and ``sums``, of ``grad``, that of the bias. Both are outputs too, so that the second
    derivative need not compute them again.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(grad: Tensor, x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, ...]:
        """Return the gradients of ``x``, ``mean``, ``var``, ``weight`` and ``bias``, and ``dots`` and ``sums``."""
        *grads, dots, sums = _gradients(grad, x, mean, var, weight, eps)
        return *grads, torch.stack([dots, sums])

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: tuple[Tensor, ...]) -> None:
        """Save what the backward pass needs."""
        ctx.save_for_backward(*inputs[:5], output[5])
        ctx.eps = inputs[5]

    @staticmethod
    def backward(ctx, v: Tensor, of_mean: Tensor, of_var: Tensor, of_weight: Tensor, of_bias: Tensor, of_sums: Tensor):
        """Return the gradients of the sum of the products of each output and its incoming gradient."""
        grad, x, mean, var, weight, (dots, sums) = ctx.saved_tensors
        inverse = torch.rsqrt(var + ctx.eps)
        scale, half = weight * inverse, of_var * inverse.square() * -0.5
        along = torch.addcmul(of_weight * inverse + of_sums[0], half, scale)  # of dots
        level = of_bias + of_sums[1] - of_mean * scale - mean * along  # of sums
        of_grad = torch.addcmul(torch.addcmul(to_rows(level, x), x, to_rows(along, x)), v, to_rows(scale, x))
        of_scale = torch.addcmul(group_sums(v, grad, scale)[0] - of_mean * sums, half, dots)
        of_inverse = of_scale * weight + dots * (of_weight + 2 * half * weight)
        return (
            of_grad.to(grad.dtype),
            scale_shift(grad, along),
            (sums * along).neg_().sum_to_size(mean.shape),
            (of_inverse * inverse**3).mul_(-0.5).sum_to_size(var.shape),
            (of_scale * inverse).sum_to_size(weight.shape),
            None,
        )


def _gradients(grad: Tensor, x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, ...]:
    """Return the gradients of ``x``, ``mean``, ``var``, ``weight`` and ``bias``, and ``dots`` and ``sums``."""
    inverse = torch.rsqrt(var + eps)
    scale = weight * inverse
    dots, sums = group_sums(grad, x, scale)
    dots = torch.addcmul(dots, mean, sums, value=-1)
    return (
        scale_shift(grad, scale),
        (sums * scale).neg_().sum_to_size(mean.shape),
        (dots * scale * inverse.square()).mul_(-0.5).sum_to_size(var.shape),
        (dots * inverse).sum_to_size(weight.shape),
        sums.sum_to_size(weight.shape),
        dots,
        sums,
    )
