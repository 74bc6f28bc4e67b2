"""Sums and affine maps of float16 and bfloat16 by torch's kernels of batch normalization, in one pass over memory each.

One operation at a time would need several passes, as a CPU converts the arguments to float32 first. For arguments that
are not :func:`dense`, the kernels would add up in half precision; they add up the values of a channel one by one, so
that sums over many values should be made of sums over pieces.
"""

from __future__ import annotations

import torch
from torch import Tensor

aten = torch.ops.aten


def dense(x: Tensor) -> bool:
    """Return whether the values of ``x`` fill a block of memory, in either order."""
    return x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return means and population variances ``(1, c)`` over rows and positions, of any precision.

    The result has the precision of the running moments, float32 or better.
    """
    mean, var = aten.batch_norm_update_stats(x, *_standard(x), 0.0)
    return mean.unsqueeze(0), var.unsqueeze(0)


def sums(v: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums ``(1, c)`` of ``v x`` and of ``v`` over rows and positions, in float32.

    These are the gradients of weight and bias at running moments of 0 and 1.
    """
    mean, var = _standard(x)
    wanted = [False, True, True]
    _, dots, sums = aten.native_batch_norm_backward(v, x, var, mean, var, None, None, False, 0.0, wanted)
    return dots.unsqueeze(0), sums.unsqueeze(0)


def affine(x: Tensor, scale: Tensor, shift: Tensor | None = None) -> Tensor:
    """Return ``scale * x + shift`` in the precision of ``x``, for a scale and a shift of each channel."""
    mean, var = _standard(x)
    shift = mean if shift is None else shift.flatten()
    return aten.native_batch_norm(x, scale.flatten(), shift, mean, var, False, 0.0, 0.0)[0]


def _standard(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return means of 0 and variances of 1 for each channel."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    return x.new_zeros(x.shape[1], dtype=dtype), x.new_ones(x.shape[1], dtype=dtype)
