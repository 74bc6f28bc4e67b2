"""The multi-class support vector machine of Crammer & Singer (JMLR 2001), as in MetaOptNet (Lee et al., CVPR 2019).

With the Gram matrix K = X Xᵀ of the n support rows, one-hot labels Y and bounds U = C Y, the dual problem is

    minimise over α (n, w)   ½ <α, (K + I) α> - <Y, α>   subject to   α <= U  and  α 1 = 0.

The identity is MetaOptNet's: it makes K positive definite, and changes the solution of the original SVM, which has K
only. MetaOptNet stops an interior-point solver after 15 iterations in training and 3 at test; here α is optimal. The
active-set method ends when a projected gradient step changes no entry by more than 1e-10 C; a task left to the fallback
is counted as unsolved if its KKT residual exceeds 1e-6 (:mod:`metafew.solvers.unsolved`).

An entry is free where α < U. Given the free set, the solution is linear in Y, so the solver searches for that set, and
the gradient solves the same linear system. All computation is in float64, regardless of autocast.
"""

import functools
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import one_hot

from metafew.solvers.cholesky import cholesky_inverse
from metafew.solvers.unsolved import report

_BLOCK = 2**21  # doubles of the class systems in memory at once


def gram_matrix(features: Tensor) -> Tensor:
    """Return the Gram matrix K = X Xᵀ ``(t, n, n)``, in float64, of features X ``(t, n, d)``.

    Its backward pass exploits symmetry: one matrix product, in the dtype of the features.
    """
    return _Gram.apply(features)


def crammer_singer(gram: Tensor, labels: Tensor, way: int, c: float = 0.1) -> Tensor:
    """Solve the dual SVM of every task and differentiate its solution with respect to the Gram matrix.

    The decision values of queries with features Z are Z Xᵀ α. Gradients use implicit differentiation of the optimality
    conditions, and are exact to first order where strict complementarity holds. A task with a non-finite Gram matrix
    gets NaN and does not affect other tasks. Unsolved tasks are reported (:mod:`metafew.solvers.unsolved`).

    Args:
        gram: ``(t, n, n)``, symmetric and positive semi-definite; in float64, unless its entries are small.
        labels: ``(t, n)``, the class of each support row, int64 in ``0..way-1``.
        way: number of classes ``w``; a class may have no rows.
        c: the bound C on the dual variable of a row's own class.

    Returns:
        The dual variables α ``(t, n, w)``, in the dtype of ``gram``.

    Raises:
        ValueError: if the shapes disagree, or ``c`` is not positive.
    """
    if gram.shape != (*labels.shape, labels.shape[-1]):
        raise ValueError(f"expected gram (t, n, n) for labels (t, n), got {[*gram.shape]} for {[*labels.shape]}")
    if c <= 0:
        raise ValueError(f"expected c to be positive, got {c}")
    return _CrammerSinger.apply(gram.double(), one_hot(labels, way).double(), c).to(gram.dtype)


def kkt_residual(gram: Tensor, alpha: Tensor, labels: Tensor, c: float = 0.1) -> Tensor:
    """Measure how far α is from optimal: the residual is 0 at the solution, and only there.

    With V = Y - K α and P the projection of each row onto the feasible set, the multipliers of α <= U are V - P(V)
    minus the smallest entry of each row, hence non-negative. The stationarity term is α - P(V), which is at least
    α - U.

    Args:
        gram: ``(t, n, n)``.
        alpha: ``(t, n, w)``.
        labels: ``(t, n)``.
        c: the bound C.

    Returns:
        The largest violation of stationarity, feasibility and complementarity, divided by 1 + max|K|, ``(t,)``.
    """
    gram, alpha = gram.double(), alpha.double()
    target = one_hot(labels, alpha.shape[-1]).double()
    point = target - gram @ alpha
    nearest, _ = _project(point, target, c)
    multipliers = point - nearest
    multipliers = multipliers - multipliers.amin(-1, keepdim=True)
    stationarity = (alpha - nearest).abs().amax((1, 2))
    complementarity = (multipliers * (c * target - alpha)).abs().amax((1, 2))
    row_sums = alpha.sum(-1).abs().amax(1)
    return torch.stack([stationarity, complementarity, row_sums]).amax(0) / (1 + gram.abs().amax((1, 2)))


class _Gram(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor) -> Tensor:
        ctx.save_for_backward(features)
        wide = features.double()
        return wide @ wide.mT

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (features,) = ctx.saved_tensors
        with torch.autocast(features.device.type, enabled=False):
            return (grad + grad.mT).to(features.dtype) @ features


class _CrammerSinger(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gram: Tensor, target: Tensor, c: float) -> Tensor:
        alpha, *system = _solve(gram, target, c)
        ctx.save_for_backward(gram, alpha, *system)
        return alpha

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        # On the free set, (K + I) dα + dν = -dK α. With u the solution of the same symmetric system for grad,
        # <grad, dα> = -<u, dK α>.
        gram, alpha, free, factor = ctx.saved_tensors
        product = _solve_free(gram, factor, free, grad) @ alpha.mT
        return (product + product.mT) / -2, None, None


def _solve(gram: Tensor, target: Tensor, c: float) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return α and its free set by a primal-dual active-set method, with an interior-point method as fallback.

    The last result is the Cholesky factor of K + I, which all steps and the gradient share, or None if factorization
    fails for some task.
    """
    target = target + 0 * gram.sum((1, 2), keepdim=True)  # NaN where K is not finite
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    factor, failed = torch.linalg.cholesky_ex(gram + identity)
    factor = None if failed.any() else factor
    free = torch.ones_like(target, dtype=torch.bool)
    beta = _solve_free(gram, factor, free, target)
    if factor is not None and (beta < c * target).all():  # bounds are rarely active in high dimensions
        return beta, free, factor
    for _ in range(60):  # 0 to 20 suffice, except where the free sets cycle: few features of large norm
        alpha, free = _descend(gram, target, c, beta)
        unsettled = (beta - alpha).abs().amax((1, 2)) > 1e-10 * c
        if not unsettled.any():
            return alpha, free, factor
        step = _solve_free(gram, factor, free, target - alpha - gram @ alpha)
        beta = torch.where(unsettled[:, None, None], alpha + step, beta)
    gram, target = gram[unsettled], target[unsettled]
    solved, solved_free = _descend(gram, target, c, _interior_point(gram, target, c))
    report("SVM", kkt_residual(gram, solved, target.argmax(-1), c))
    alpha[unsettled], free[unsettled] = solved, solved_free
    return alpha, free, factor


def _interior_point(gram: Tensor, target: Tensor, c: float) -> Tensor:
    """Return α by following the central path, slack * multiplier = μ, down to rounding error at any scale of K."""
    slack = torch.full_like(target, c / target.shape[-1])
    multiplier = c * (1 + gram.abs().amax((1, 2), keepdim=True)) * torch.ones_like(target)
    for _ in range(200):  # 15 to 80 suffice
        alpha = c * target - slack
        gap = (slack * multiplier).mean((1, 2), keepdim=True)
        running = gap > 1e-14 * c**2
        if not running.any():
            break
        ratio = multiplier / slack
        push = 0.1 * gap / slack
        step = _solve_weighted(gram, (1 + ratio).rsqrt(), target - alpha - gram @ alpha - push)
        change = push - multiplier + ratio * step
        steepest = torch.maximum(step / slack, -change / multiplier).amax((1, 2), keepdim=True)
        length = running * 0.99 / steepest.clamp_min(0.99)  # stays in the interior, and stops when converged
        slack = slack - length * step
        multiplier = multiplier + length * change
    return alpha


def _descend(gram: Tensor, target: Tensor, c: float, beta: Tensor) -> tuple[Tensor, Tensor]:
    """Take a projected gradient step from β. The only fixed point of these steps is the solution."""
    # Steps well below 1 / curvature need the fewest linear solves and rarely cycle.
    rate = 0.3 / (1 + gram.diagonal(dim1=1, dim2=2)[..., None].abs())
    slope = torch.baddbmm(beta - target, gram, beta)
    return _project(torch.addcmul(beta, rate, slope, value=-1), target, c)


def _project(point: Tensor, target: Tensor, c: float) -> tuple[Tensor, Tensor]:
    """Project each row onto {a: a <= U, a 1 = 0}, min(point - θ, U); also return which entries are below U."""
    upper = c * target
    depth = point - upper
    # Water-filling: choose θ so that Σ (θ - depth)₊ = C. θ is the minimum of the levels for the k deepest entries.
    count = torch.arange(1, depth.shape[-1] + 1, dtype=depth.dtype, device=depth.device)
    level = ((depth.sort(-1).values.cumsum(-1) + c) / count).amin(-1, keepdim=True)
    slack = (level - depth).clamp_min(0)
    return upper - slack, slack > 0


def _solve_free(gram: Tensor, factor: Tensor | None, free: Tensor, rhs: Tensor) -> Tensor:
    """Solve (K + I) v_m + ν = rhs_m on the free entries, with Σ_m v_m = 0 and v = 0 on the others.

    Usually few entries are held at 0. Each has a multiplier λ, so that v = v' - Q Σ_i λ_i p_i, where v' is the
    unconstrained solution, Q = (K + I)⁻¹ and p_i is the one-hot entry i, centred over the classes of its row. The
    multipliers solve S λ = v' with S_ij = <p_i, Q p_j>. With more than n of them, the system is solved class by class.

    Args:
        gram: (t, n, n).
        factor: the Cholesky factor of K + I, (t, n, n), or None.
        free: (t, n, w).
        rhs: (t, n, w).

    Returns:
        v, (t, n, w).
    """
    rows, way = rhs.shape[1:]
    held = int((~free).sum((1, 2)).max())
    if factor is None or held > rows:
        return _solve_weighted(gram, free.double(), rhs)
    solution = torch.cholesky_solve(rhs - rhs.mean(-1, keepdim=True), factor)
    if not held:
        return solution
    real, entry = (~free).flatten(1).double().topk(held)  # 0 pads tasks with fewer held entries
    row = entry // way
    push = real[..., None] * (one_hot(entry % way, way).double() - 1 / way)
    columns = torch.cholesky_solve(one_hot(row, rows).double().mT, factor)
    schur = columns.gather(1, row[..., None].expand(-1, -1, held)) * (push @ push.mT) + torch.diag_embed(1 - real)
    excess = real * solution.flatten(1).gather(1, entry)
    force = torch.cholesky_solve(excess[..., None], torch.linalg.cholesky_ex(schur)[0])
    return free * (solution - columns @ (force * push))


def _solve_weighted(gram: Tensor, weight: Tensor, rhs: Tensor) -> Tensor:
    """Solve (K + D_m) v_m + ν = rhs_m for all classes m, with Σ_m v_m = 0 and D_m = diag(1 / weight_m²).

    A weight of 1 marks a free entry, a weight of 0 fixes v at 0. Only ν couples the classes: with
    Q_m = (K + D_m)⁻¹, (Σ_m Q_m) ν = Σ_m Q_m rhs_m, then v_m = Q_m (rhs_m - ν). Rows of weight 0 are dropped.

    Args:
        gram: (t, n, n).
        weight: (t, n, w), in 0 .. 1.
        rhs: (t, n, w).

    Returns:
        v, (t, n, w).
    """
    tasks, rows, way = rhs.shape
    size = max(1, int((weight > 0).sum(1).max()))
    weight, index = (x[..., :size] for x in weight.mT.sort(dim=-1, descending=True, stable=True))
    rhs = rhs.mT.gather(2, index)
    identity = torch.eye(size, dtype=gram.dtype, device=gram.device)
    chunk = max(1, _BLOCK // (tasks * size**2))

    @functools.lru_cache(maxsize=1)  # if there is a single chunk, it is factored once for both passes
    def system(first: int) -> tuple[slice, Tensor, Tensor, Tensor]:
        some = slice(first, first + chunk)
        pairs = weight[:, some, :, None] * weight[:, some, None, :]
        cells = (rows * index[:, some, :, None] + index[:, some, None, :]).flatten(1)
        kernel = gram.flatten(1).gather(1, cells).view_as(pairs)
        return some, cells, pairs, torch.linalg.cholesky_ex(torch.addcmul(identity, pairs, kernel))[0]

    total, schur = rhs.new_zeros(tasks, rows), rhs.new_zeros(tasks, rows**2)
    for first in range(0, way, chunk):
        some, cells, pairs, factor = system(first)
        inverse = pairs * cholesky_inverse(factor)
        total.scatter_add_(1, index[:, some].flatten(1), (inverse @ rhs[:, some, :, None]).flatten(1))
        schur.scatter_add_(1, cells, inverse.flatten(1))
    schur_factor = torch.linalg.cholesky_ex(schur.view_as(gram))[0]
    shift = torch.cholesky_solve(total[..., None], schur_factor).mT.expand(-1, way, -1)
    rhs = weight * (rhs - shift.gather(2, index))
    for first in reversed(range(0, way, chunk)):
        some, *_, factor = system(first)
        rhs[:, some] = torch.cholesky_solve(rhs[:, some, :, None], factor)[..., 0]
    return gram.new_zeros(tasks, way, rows).scatter_(2, index, weight * rhs).mT
