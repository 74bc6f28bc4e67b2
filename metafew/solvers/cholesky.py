"""Cholesky factors of batches of matrices, some of which may be singular."""

from __future__ import annotations

import torch
from torch import Tensor


def cholesky(matrices: Tensor) -> Tensor:
    """Return the lower Cholesky factors ``(..., n, n)`` of symmetric matrices, NaN if factorization fails.

    ``torch.linalg.cholesky`` would raise, and one task with features that overflow would end the run.
    """
    factors, failed = torch.linalg.cholesky_ex(matrices)
    return factors.masked_fill(failed[..., None, None] > 0, torch.nan)


def cholesky_inverse(factors: Tensor) -> Tensor:
    """Return the inverses of the matrices with these factors; NaN for a singular factor, for which torch raises."""
    singular = (factors.diagonal(dim1=-2, dim2=-1) == 0).any(-1)
    return torch.cholesky_inverse(factors.masked_fill(singular[..., None, None], torch.nan))
