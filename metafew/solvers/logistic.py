"""Multinomial logistic regression with an L2 penalty: its optimum, and the implicit gradient there.

With support features X (n, d), one-hot labels Y and the class probabilities P of the rows, the weights W (d, w) and
the intercept b (w) minimise

    ½ |W|² - c Σ_i log P_i,y(i)     with logits F = X W + 1 bᵀ,

the objective of scikit-learn's `LogisticRegression(C=c)`; a constant added to b changes nothing, so Σ b = 0. At the
optimum W = Xᵀ α, with a row of α (n, w) for each support row: only the Gram matrix K = X Xᵀ is needed, and

    α = c (Y - P),   1ᵀ α = 0,   F = K α + 1 bᵀ.

All computation is in float64, regardless of autocast.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import one_hot

from metafew.solvers.cholesky import cholesky
from metafew.solvers.unsolved import report


def logistic(support: Tensor, labels: Tensor, way: int, c: float, query: Tensor) -> Tensor:
    """Return the logits of the queries under a logistic regression fitted to the support set.

    Uses Newton's method, in time O(w n³) per step and memory O(w n²) per task. Gradients use implicit differentiation
    of the optimality conditions, and are exact to first order. A task with non-finite features gets NaN and does not
    affect other tasks. Unsolved tasks are reported (:mod:`metafew.solvers.unsolved`).

    Args:
        support: X ``(t, n, d)``.
        labels: ``(t, n)``, the class of each support row, int64 in ``0..way-1``. Every class needs a row:
            the intercept of an absent class would be minus infinity.
        way: number of classes ``w``.
        c: weight of a row's loss relative to the penalty.
        query: ``(t, q, d)``.

    Returns:
        ``(t, q, w)``, in the dtype of ``support``.

    Raises:
        ValueError: if ``c`` is not positive.
    """
    if not c > 0:
        raise ValueError(f"expected c to be positive, got {c}")
    rows, queries = support.double(), query.double()
    centre = rows.mean(1, keepdim=True)  # absorbed by the intercept; avoids cancellation
    rows, queries = rows - centre, queries - centre
    alpha, intercept = _Logistic.apply(rows @ rows.mT, one_hot(labels, way).double(), c)
    return (queries @ (rows.mT @ alpha) + intercept).to(support.dtype)


class _Logistic(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gram: Tensor, target: Tensor, c: float) -> tuple[Tensor, Tensor]:
        alpha, intercept = _minimise(gram, target, c)
        ctx.c = c
        ctx.save_for_backward(gram, alpha, (gram @ alpha + intercept).softmax(-1))
        return alpha, intercept

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, grad_intercept: Tensor) -> tuple[Tensor, None, None]:
        # With H the Hessian of c times the losses, dα + H (K dα + 1 dbᵀ) = -H dK α and 1ᵀ dα = 0. With u the solution
        # for H grad and grad_intercept instead, <grad, dα> + <grad_intercept, db> = -<u, dK α>.
        gram, alpha, probabilities = ctx.saved_tensors
        pull = grad - (probabilities * grad).sum(-1, keepdim=True)
        sums = grad_intercept - grad_intercept.mean(-1, keepdim=True)
        product = _solve(gram, ctx.c * probabilities, pull, sums)[0] @ alpha.mT
        return -(product + product.mT) / 2, None, None


def _minimise(gram: Tensor, target: Tensor, c: float) -> tuple[Tensor, Tensor]:
    """Return α (t, n, w) and b (t, 1, w) by Newton's method from 0, with steps that decrease the objective."""
    # NaN where K is not finite.
    alpha = target * 0 * gram.sum((1, 2), keepdim=True)
    intercept = alpha[:, :1]
    largest = gram.abs().amax((1, 2), keepdim=True)
    for _ in range(100):  # 5 to 50 suffice
        probabilities = (gram @ alpha + intercept).softmax(-1).clamp_min(1e-300)
        wrong = probabilities * (1 - target)  # their sum is 1 - P of the true class, without cancellation
        residual = target * wrong.sum(-1, keepdim=True) - wrong - alpha / c
        size = alpha.abs().amax((1, 2), keepdim=True)
        error = c * residual.abs().amax((1, 2), keepdim=True) / size
        running = error > 1e-12 + 1e-15 * size * largest  # the rounding error of K α
        if not running.any():
            break
        step, shift = _solve(gram, c * probabilities, residual / probabilities, -alpha.sum(1, keepdim=True))
        logits = gram @ step + shift
        # The third derivative along a step is at most the second times the widest range of a row's logits, so the
        # objective decreases up to this step length (Sun and Tran-Dinh 2019, generalized self-concordance).
        widest = (logits.amax(-1) - logits.amin(-1)).amax(1)[:, None, None]
        length = running * torch.where(widest > 0, widest.log1p() / widest, 1)
        alpha, intercept = alpha + length * step, intercept + length * shift
    report("logistic regression", error[:, 0, 0])
    return alpha, intercept


def _solve(gram: Tensor, weight: Tensor, rhs: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
    """Solve (K + D_m⁻¹) v_m + 1 s_m + ν = rhs_m for all classes m, with 1ᵀ v = sums, Σ_m v_m = 0 and Σ s = 0.

    This is a Newton step, with D_m = diag(weight_m). Only ν couples the classes: with Q_m = (K + D_m⁻¹)⁻¹,
    v_m = Q_m (rhs_m - 1 s_m - ν), where s follows from the sums and ν from Σ_m v_m = 0.

    Args:
        gram: (t, n, n).
        weight: c P, (t, n, w).
        rhs: (t, n, w).
        sums: (t, 1, w), with rows that sum to 0.

    Returns:
        v, (t, n, w), and s, (t, 1, w).
    """
    # As 1ᵀ v is given, a constant added to K only shifts s; it keeps Q_m 1 as small as the rest of Q_m.
    level = gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    rhs, sums, root = rhs.mT, sums.mT, weight.mT.sqrt()
    pairs = root[..., None] * root[:, :, None]
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    factor = cholesky(torch.addcmul(identity, pairs, (gram + level)[:, None]))
    inverse = pairs * torch.cholesky_inverse(factor)  # Q_m, (t, w, n, n)
    ones = inverse.sum(-1)
    total = ones.sum(-1, keepdim=True)
    shift = ((ones * rhs).sum(-1, keepdim=True) - sums) / total
    moved = (inverse @ (rhs - shift)[..., None]).sum(1)
    schur = inverse.sum(1) - (ones / total).mT @ ones
    trace = schur.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]  # ν is defined up to a constant: take the smallest
    schur_factor = cholesky(schur + trace / schur.shape[-1])
    nu = torch.cholesky_solve(moved, schur_factor)
    shift = shift - ones @ nu / total
    solved = (inverse @ (rhs - shift - nu.mT)[..., None])[..., 0]
    shift = shift + level * sums
    return solved.mT, (shift - shift.mean(1, keepdim=True)).mT
