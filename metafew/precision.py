"""The lowest precision of moments, solvers and metrics."""

from __future__ import annotations

import torch
from torch import Tensor


def precise(x: Tensor) -> Tensor:
    """Return ``x`` in float32 or better."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
