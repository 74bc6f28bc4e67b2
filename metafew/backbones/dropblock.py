"""DropBlock (Ghiasi et al. 2018), dropout of squares of a feature map, with MetaOptNet's schedule."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metafew.errors import UsageError

RAMP = 20 * 2000
"""Calls until the drop rate is reached: 20 epochs of 2,000 in Lee et al. (2019)."""


class DropBlock(nn.Module):
    """Set random squares of every channel to zero in training; the identity in evaluation.

    In a map of width ``F``, a square starts at each position where it fits with probability ``gamma = (1 - keep) /
    size^2 * F^2 / (F - size + 1)^2``, so that about ``keep`` of the positions remain (more where squares overlap).
    Remaining values are multiplied by positions / remaining positions, counted over the batch. The fraction decreases
    slowly, ``keep = max(1 - drop * calls / 40000, 1 - drop)``. In maps smaller than the square, entire channels are
    dropped.

    A call is one pass in training mode, with any number of tasks and images; the current one is included. Lee et al.
    make two per step, for support sets and queries. Here it depends on the run, and the fraction decreases faster or
    more slowly: a norm with separate moments for context and targets takes two passes, others one; on a CPU, a
    meta-batch of large images is computed in parts; and a head that adapts the backbone takes one pass per inner step
    and one for the queries, for all tasks that it adapts together.

    Args:
        drop: fraction of positions dropped after :data:`RAMP` calls.
        size: width of the squares.
    """

    exemptions: ClassVar = {"cuda_graph": "the fraction that DropBlock drops changes in every step"}

    def __init__(self, drop: float, size: int):
        super().__init__()
        if not 0 <= drop < 1:
            raise UsageError(f"expected backbone.drop to be from 0 to below 1, got {drop}: type backbone.drop=0.1")
        if not isinstance(size, int) or size < 1:
            raise UsageError(f"expected backbone.block_size to be at least 1, got {size}: type backbone.block_size=5")
        self.drop, self.size = drop, size
        # Not a buffer, as transforms such as torch.func.grad do not allow in-place changes of buffers.
        self.calls = 0

    @property
    def keep(self) -> float:
        """The current fraction of kept positions."""
        return max(1 - self.drop * self.calls / RAMP, 1 - self.drop)

    def forward(self, x: Tensor) -> Tensor:
        """Drop squares of maps ``(b, c, h, w)``."""
        if not self.training:
            return x
        self.calls += 1
        height, width = x.shape[-2:]
        size = min(self.size, height, width)
        starts = (height - size + 1, width - size + 1)
        gamma = (1 - self.keep) / size**2 * (height * width) / (starts[0] * starts[1])
        corners = torch.rand(*x.shape[:2], *starts, device=x.device) < gamma
        kept = 1 - F.max_pool2d(F.pad(corners.float(), [size - 1] * 4), size, stride=1)
        return x * (kept * (kept.numel() / kept.sum().clamp(min=1))).to(x.dtype)

    def get_extra_state(self) -> Tensor:
        """Return the number of calls, for checkpoints."""
        return torch.tensor(self.calls)

    def set_extra_state(self, state: Tensor) -> None:
        """Restore the number of calls from a checkpoint."""
        self.calls = int(state)
