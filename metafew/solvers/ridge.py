"""Ridge regression in closed form, the base learner of R2-D2 (Bertinetto et al., ICLR 2019)."""

import torch
from torch import Tensor

from metafew.solvers.cholesky import cholesky


def ridge(support: Tensor, targets: Tensor, penalty: float | Tensor, query: Tensor) -> Tensor:
    """Predict the targets of the queries with the weights that minimise |S W - Y|² + λ |W|² on the support.

    W = (Sᵀ S + λ I)⁻¹ Sᵀ Y = Sᵀ (S Sᵀ + λ I)⁻¹ Y; the smaller of the two systems is solved, in float64 regardless of
    autocast. Differentiable to any order. A task whose system cannot be factored, because features are infinite or too
    large for λ, gets NaN and does not affect other tasks. The predictions of MetaOptNet-RR (Lee et al. 2019) are twice
    as large, as is the linear term of its quadratic program.

    Args:
        support: S ``(t, n, d)``.
        targets: Y ``(t, n, w)``.
        penalty: λ, a positive number or scalar tensor; the values of a tensor are not checked.
        query: ``(t, q, d)``.

    Returns:
        ``(t, q, w)``, in the dtype of ``support``.

    Raises:
        ValueError: if the penalty is not positive.
    """
    if not isinstance(penalty, Tensor) and not penalty > 0:  # reading a tensor would wait for its device
        raise ValueError(f"expected penalty to be positive, got {float(penalty)}")
    rows, targets = support.double(), targets.double()
    if rows.shape[1] <= rows.shape[2]:
        weights = rows.mT @ _solve(rows @ rows.mT, penalty, targets)
    else:
        weights = _solve(rows.mT @ rows, penalty, rows.mT @ targets)
    return (query.double() @ weights).to(support.dtype)


def _solve(gram: Tensor, penalty: float | Tensor, rhs: Tensor) -> Tensor:
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    return torch.cholesky_solve(rhs, cholesky(gram + penalty * identity))
