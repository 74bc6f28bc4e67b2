"""The two passes over the activations that every scheme is made of, with backward passes of their own.

A norm layer costs little arithmetic and much memory traffic. Written with ordinary operations it would write several
temporary tensors of the size of its input, forward and backward. Here each pass goes over a few images at a time, so
that temporaries stay in the processor's cache; on a GPU, which has no use for that, over all at once. The backward
passes are ordinary differentiable operations, so that gradients of gradients and ``vmap`` are exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.autograd import Function

from metafew.precision import precise

CACHED = 2**19  # values in a piece: 2 MiB of float32
POSITIONS = (2, 3)


def pieces(x: Tensor) -> Iterator[slice]:
    """Yield slices of rows of ``x`` that fit in a processor's cache."""
    rows = x.shape[0]
    size = max(1, CACHED * rows // max(1, x.numel())) if x.device.type == "cpu" else max(1, rows)
    return (slice(start, start + size) for start in range(0, rows, size))


def by_piece(function: Callable[..., tuple[Tensor, ...]], *rows: Tensor) -> tuple[Tensor, ...]:
    """Apply ``function`` to pieces of rows and join each of its results."""
    results = [function(*(r[piece] for r in rows)) for piece in pieces(rows[0])]
    return tuple(part[0] if len(part) == 1 else torch.cat(part) for part in zip(*results, strict=True))


class Instance(Function):
    """Mean and population variance of each row and channel, by two passes over values in cache.

    It also hands ``x`` on, so that the gradient of whatever is computed from ``x`` and from its moments comes back
    together and is written once.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``x`` ``(b, c, h, w)`` and its means and variances ``(b, c)``."""

        def moments(part: Tensor) -> tuple[Tensor, Tensor]:
            part = precise(part)
            mean = part.mean(POSITIONS, keepdim=True)
            distance = part - mean
            return mean[..., 0, 0], distance.mul_(distance).mean(POSITIONS)  # in place: no second temporary

        return x.view_as(x), *by_piece(moments, x)

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor], output: tuple[Tensor, Tensor, Tensor]) -> None:
        """Keep what the backward pass needs."""
        ctx.save_for_backward(inputs[0], output[1])

    @staticmethod
    def backward(ctx, grad: Tensor, grad_mean: Tensor, grad_var: Tensor) -> Tensor:
        """Return ``grad + (grad_mean + 2 grad_var (x - mean)) / hw``."""
        x, mean = ctx.saved_tensors
        slope = 2 * grad_var / (x.shape[2] * x.shape[3])
        level = grad_mean / (x.shape[2] * x.shape[3]) - slope * mean
        if torch.is_grad_enabled():
            return grad + scaled(x, slope, level)
        for piece in pieces(x):
            grad[piece] += scaled(x[piece], slope[piece], level[piece])
        return grad


class Affine(Function):
    """``y = scale * x + shift`` with a scale and a shift for each row and channel."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """Return ``y`` in the precision of ``x``, computed in the precision of ``scale``."""
        return scaled(x, scale, shift)

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        """Keep what the backward pass needs."""
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``scale * grad`` and, summed over positions, ``grad * x`` and ``grad``."""
        x, scale = ctx.saved_tensors

        def sums(part: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
            part, values = precise(part), precise(values)
            return (part * values).sum(POSITIONS), part.sum(POSITIONS)

        return scaled(grad, scale, None), *by_piece(sums, grad, x)


def scaled(x: Tensor, scale: Tensor, shift: Tensor | None) -> Tensor:
    """Return ``scale * x + shift`` in the precision of ``x``; ``scale`` and ``shift`` are ``(b, c)``."""
    scale = scale[..., None, None]
    if shift is None:
        return (x * scale).to(x.dtype)
    return torch.addcmul(shift[..., None, None], x, scale).to(x.dtype)
