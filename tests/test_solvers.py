"""The solvers against optimality conditions, independent solvers, closed forms and finite differences."""

import warnings

import cvxpy
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peak import MEASURABLE, grown

from metafew.heads.svm import SVM
from metafew.solvers import crammer_singer as svm
from metafew.solvers.crammer_singer import crammer_singer, gram_matrix, kkt_residual
from metafew.solvers.ridge import ridge
from metafew.solvers.unsolved import counted


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """On a busy machine threads that share matrices this small mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def draw(tasks, way, shot, features, scale=1.0, seed=0, dtype=torch.float64):
    """Overlapping Gaussian classes: features (t, way * shot, features) and labels."""
    generator = torch.Generator().manual_seed(seed)
    means = 0.3 * torch.randn(tasks, way, features, generator=generator, dtype=dtype)
    noise = torch.randn(tasks, way * shot, features, generator=generator, dtype=dtype)
    labels = torch.arange(way).repeat_interleave(shot).expand(tasks, -1)
    return scale * (means.repeat_interleave(shot, 1) + noise), labels


def gram_of(features):
    return features.double() @ features.double().mT


def bounds(labels, way, c):
    return c * torch.nn.functional.one_hot(labels, way).double()


def solve_checked(gram, labels, way, c=0.1):
    """Solve, and demand a feasible optimum and a finite gradient."""
    gram = gram.requires_grad_()
    with warnings.catch_warnings(action="error"):
        alpha = crammer_singer(gram, labels, way, c)
    alpha.cos().sum().backward()
    with torch.no_grad():
        assert (alpha <= bounds(labels, way, c) + 1e-12).all()
        assert alpha.sum(-1).abs().max() <= 1e-12
        assert kkt_residual(gram, alpha, labels, c).max() <= 1e-6
    assert gram.grad.isfinite().all()
    return alpha.detach()


def test_the_head_classifies_by_the_solution():
    (x, labels), (query, _) = draw(2, 3, 4, 5), draw(2, 3, 2, 5, seed=1)
    logits = SVM(c=0.7, scale=2.0).double().classify(x, labels, query, 3)
    alpha = crammer_singer(gram_of(x), labels, 3, 0.7)
    torch.testing.assert_close(logits, 2 * query @ x.mT @ alpha, rtol=1e-7, atol=1e-9)
    assert (alpha - crammer_singer(gram_of(x), labels, 3)).abs().max() > 0.01  # c matters here


# --- the SVM's solution -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shot", [1, 5, 15])
@pytest.mark.parametrize("features", [64, 1600])
def test_few_shot_tasks_are_solved(shot, features):
    x, labels = draw(8, 5, shot, features, dtype=torch.float32)
    solve_checked(gram_of(x), labels, 5)


@MEASURABLE
@pytest.mark.skipif(torch.cuda.is_available(), reason="autograd does not work in copies of a process that used a GPU")
@pytest.mark.parametrize(("features", "scale"), [(64, 1), pytest.param(4, 30, marks=pytest.mark.slow)])
def test_fifty_ways_and_five_hundred_rows_are_solved_in_little_memory(features, scale):
    x, labels = draw(1, 50, 10, features, scale)
    assert grown(lambda: solve_checked(gram_of(x), labels, 50)) < 1e6  # the dense matrix has 5e6


@pytest.mark.parametrize(("k", "expected"), [(9.0, 0.05), (1.0, 0.1)])
def test_two_orthogonal_rows_have_a_closed_form(k, expected):
    # A row (a, -a) minimises (k + 1) a^2 - a subject to a <= C.
    alpha = crammer_singer(k * torch.eye(2, dtype=torch.float64)[None], torch.tensor([[0, 1]]), 2)
    torch.testing.assert_close(alpha[0], expected * torch.tensor([[1, -1], [-1, 1]], dtype=torch.float64))


@pytest.mark.parametrize(
    ("way", "shot", "features", "scale", "c"),
    [(5, 1, 16, 1.0, 0.1), (5, 5, 64, 1.0, 0.1), (5, 5, 2, 5.0, 0.1), (3, 6, 4, 0.3, 2.0)],
)
def test_agrees_with_clarabel(way, shot, features, scale, c):
    x, labels = draw(1, way, shot, features, scale)
    target = bounds(labels[0], way, 1).numpy()
    alpha = cvxpy.Variable(target.shape)
    quadratic = cvxpy.sum_squares(x[0].numpy().T @ alpha) + cvxpy.sum_squares(alpha)
    objective = quadratic / 2 - cvxpy.sum(cvxpy.multiply(target, alpha))
    constraints = [alpha <= c * target, cvxpy.sum(alpha, axis=1) == 0]
    options = {"tol_gap_abs": 1e-12, "tol_gap_rel": 1e-12, "tol_feas": 1e-12}
    cvxpy.Problem(cvxpy.Minimize(objective), constraints).solve(solver=cvxpy.CLARABEL, **options)
    np.testing.assert_allclose(solve_checked(gram_of(x), labels, way, c)[0], alpha.value, atol=1e-6 * c)


def duplicate(x, labels):
    return torch.cat([x, x], 1), torch.cat([labels, labels], 1)


def contradict(x, labels):
    return torch.cat([x, x], 1), torch.cat([labels, (labels + 1) % 5], 1)


AWKWARD = {
    "duplicate rows": duplicate,
    "contradictory rows": contradict,
    "collinear rows": lambda x, labels: (x[:, :1] * torch.linspace(-2, 2, x.shape[1])[:, None], labels),
    "zero rows": lambda x, labels: (x * (torch.arange(x.shape[1]) % 3 > 0)[:, None], labels),
    "only zeros": lambda x, labels: (0 * x, labels),
    "missing class": lambda x, labels: (x, labels.clamp_max(3)),
    "one class": lambda x, labels: (x, 0 * labels),
    "one row": lambda x, labels: (x[:, :1], labels[:, :1]),
    "large": lambda x, labels: (1e3 * x, labels),
    "large and flat": lambda x, labels: (1e3 * x[..., :2], labels),
    "rows of every size": lambda x, labels: (x * torch.logspace(-3, 3, x.shape[1])[:, None], labels),
    "far from the origin": lambda x, labels: (x + 100, labels),
}


@pytest.mark.parametrize("case", AWKWARD)
def test_awkward_tasks_are_solved(case):
    x, labels = AWKWARD[case](*draw(3, 5, 4, 16))
    solve_checked(gram_of(x), labels, 5)


def test_one_way_has_nothing_to_separate():
    x, labels = draw(2, 1, 4, 3)
    assert not crammer_singer(gram_of(x), labels, 1).any()


@settings(max_examples=60)
@given(st.data())
def test_any_task_is_solved(data):
    tasks, way, rows, features = (data.draw(st.integers(1, top)) for top in (3, 6, 16, 24))
    labels = torch.tensor(data.draw(st.lists(st.integers(0, way - 1), min_size=tasks * rows, max_size=tasks * rows)))
    seed, scale = data.draw(st.integers(0, 999)), 10.0 ** data.draw(st.integers(-3, 3))
    x = scale * torch.randn(tasks, rows, features, generator=torch.Generator().manual_seed(seed))
    solve_checked(gram_of(x), labels.view(tasks, rows), way, data.draw(st.sampled_from([1e-3, 0.1, 1.0, 10.0])))


# --- how it is reached --------------------------------------------------------------------------------------------


def mixed_batch():
    """Two tasks whose free sets settle, at 0 and 2, and two where they cycle."""
    x, labels = draw(4, 5, 5, 64)
    x[1::2, :, 6:] = 0
    x[1] *= 10
    x[3] *= 30
    return gram_of(x), labels


def test_only_cycling_tasks_take_the_interior_point(monkeypatch):
    seen = []
    interior_point = svm._interior_point
    monkeypatch.setattr(svm, "_interior_point", lambda gram, *rest: seen.append(gram) or interior_point(gram, *rest))
    gram, labels = mixed_batch()
    solve_checked(gram, labels, 5)
    assert len(seen) == 1
    assert 1 <= len(seen[0]) < 4 and all(any(torch.equal(each, task) for task in gram[1::2]) for each in seen[0])


def test_interior_point_arrives_where_the_active_set_settles():
    x, labels = draw(3, 5, 5, 8)
    gram = gram_of(x)
    alpha = svm._interior_point(gram, bounds(labels, 5, 1), 0.1)
    torch.testing.assert_close(alpha, crammer_singer(gram, labels, 5), rtol=0, atol=1e-9)


def test_tasks_are_independent():
    gram, labels = mixed_batch()
    looped = torch.cat([crammer_singer(gram[i : i + 1], labels[i : i + 1], 5) for i in range(4)])
    torch.testing.assert_close(crammer_singer(gram, labels, 5), looped, rtol=0, atol=1e-10)


def test_classes_solved_in_chunks_give_the_same_solution_and_gradient(monkeypatch):
    x, labels = draw(2, 7, 3, 4)
    answers = []
    for block in (svm._BLOCK, 2 * 2 * 21**2):
        monkeypatch.setattr(svm, "_BLOCK", block)
        gram = gram_of(x).requires_grad_()
        alpha = crammer_singer(gram, labels, 7)
        alpha.cos().sum().backward()
        answers.append((alpha.detach(), gram.grad))
    torch.testing.assert_close(answers[0], answers[1], rtol=0, atol=1e-12)


def test_few_held_entries_take_forces_and_give_what_the_class_systems_give():
    x, _ = draw(3, 5, 5, 64)
    gram, rhs = gram_of(x), torch.randn(3, 25, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    factor = torch.linalg.cholesky(gram + torch.eye(25))
    free = torch.ones(3, 25, 5, dtype=torch.bool)
    free[0, 3, 1:] = free[1, ::2, 4] = False  # none held in the last task, four of five in a row of the first
    expected = svm._solve_weighted(gram, free.double(), rhs)
    solved = svm._solve_free(gram, factor, free, rhs)
    assert not solved[~free].any() and solved.sum(-1).abs().max() <= 1e-14
    torch.testing.assert_close(solved, expected, rtol=0, atol=1e-14)


def test_classes_and_rows_are_exchangeable():
    x, labels = draw(2, 5, 4, 16)
    alpha = crammer_singer(gram_of(x), labels, 5)
    classes, rows = torch.tensor([3, 1, 4, 0, 2]), torch.randperm(20, generator=torch.Generator().manual_seed(0))
    permuted = crammer_singer(gram_of(x[:, rows]), classes[labels[:, rows]], 5)
    torch.testing.assert_close(permuted[..., classes], alpha[:, rows], rtol=0, atol=1e-12)


def test_residual_sees_every_violation():
    x, labels = draw(1, 3, 2, 8, 0.1)
    gram = gram_of(x)
    alpha = crammer_singer(gram, labels, 3)
    scale = 1 + gram.max()
    own = bounds(labels, 3, 1)
    across = own - own.roll(1, -1)
    assert kkt_residual(gram, alpha, labels) < 1e-12
    assert kkt_residual(gram, alpha + 1e-3, labels) > 2.9e-3 / scale  # rows no longer sum to zero
    assert kkt_residual(gram, alpha + 1e-3 * across, labels) > 0.9e-3 / scale  # beyond C
    assert kkt_residual(gram, alpha - 1e-3 * across, labels) > 0.9e-3 / scale  # feasible but not stationary
    assert kkt_residual(1e6 * gram, 0.1 * across, labels) > 1e-2  # only complementarity shows it at this scale


def test_an_unsolved_task_is_reported(monkeypatch):
    monkeypatch.setattr(svm, "_interior_point", lambda gram, target, c: 0 * target)
    with pytest.warns(UserWarning, match="SVM of a task did not converge"):
        crammer_singer(*mixed_batch(), 5)
    with counted() as counts:
        crammer_singer(*mixed_batch(), 5)
    assert counts["SVM"] > 0


def test_a_matrix_with_negative_eigenvalues_still_gets_a_stationary_point():
    x, labels = draw(2, 5, 4, 8)
    solve_checked(-10 * gram_of(x), labels, 5)


@pytest.mark.parametrize("hole", [torch.nan, torch.inf])
def test_a_hole_in_one_task_stays_there(hole):
    x, labels = draw(3, 5, 2, 16)
    gram = gram_of(x)
    whole = crammer_singer(gram, labels, 5)
    gram[1, 4, 4] = hole
    alpha = crammer_singer(gram.requires_grad_(), labels, 5)
    alpha.cos().sum().backward()
    assert alpha[1].isnan().all()
    assert gram.grad[1].isnan().all()
    torch.testing.assert_close(alpha[::2], whole[::2], rtol=0, atol=1e-12)
    assert gram.grad[::2].isfinite().all()


def test_arguments_are_checked():
    x, labels = draw(2, 5, 1, 4)
    with pytest.raises(ValueError, match="expected c to be positive"):
        crammer_singer(gram_of(x), labels, 5, 0.0)
    with pytest.raises(ValueError, match="expected gram"):
        crammer_singer(gram_of(x), labels[:1], 5)


# --- its gradient -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("way", "shot", "features", "scale", "c"), [(3, 3, 5, 1, 0.1), (4, 2, 3, 3, 0.1), (2, 4, 6, 0.5, 1)]
)
def test_gradient_is_exact(way, shot, features, scale, c):
    x, labels = draw(2, way, shot, features, scale)
    gram, upper = gram_of(x), bounds(labels, way, c)
    alpha = crammer_singer(gram, labels, way, c)
    free = alpha < upper - 1e-9
    multipliers = upper / c - gram @ alpha - alpha
    multipliers = multipliers - (multipliers * free).sum(-1, keepdim=True) / free.sum(-1, keepdim=True)
    assert 0 < free.sum() < free.numel()
    assert (upper - alpha)[free].min() > 1e-4
    assert multipliers[~free].min() > 1e-4
    assert torch.autograd.gradcheck(lambda x: crammer_singer(gram_of(x), labels, way, c), x.requires_grad_())


def test_dtypes_and_autocast():
    x, labels = draw(2, 5, 3, 16, dtype=torch.float32)
    gram = (x @ x.mT).requires_grad_()
    alpha = crammer_singer(gram, labels, 5)
    (gradient,) = torch.autograd.grad(alpha.cos().sum(), gram)
    assert alpha.dtype == gradient.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        again = crammer_singer(gram, labels, 5)
        assert torch.equal(again, alpha)
        assert torch.equal(torch.autograd.grad(again.cos().sum(), gram)[0], gradient)


def test_the_gram_matrix_is_float64_and_has_an_exact_gradient_under_autocast_too():
    x, _ = draw(2, 3, 2, 7)
    assert torch.autograd.gradcheck(gram_matrix, x.requires_grad_())
    assert torch.autograd.gradgradcheck(gram_matrix, x)
    half = x.detach().float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        gram = gram_matrix(half)
        (gradient,) = torch.autograd.grad(gram.cos().sum(), half)
    torch.testing.assert_close(gram, gram_of(half), rtol=0, atol=1e-12)
    (expected,) = torch.autograd.grad(gram_of(half).cos().sum(), half)
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-5)


# --- ridge regression ---------------------------------------------------------------------------------------------


def regression(rows, features):
    generator = torch.Generator().manual_seed(rows)
    shapes = [(2, rows, features), (2, rows, 3), (2, 4, features)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


@pytest.mark.parametrize(("rows", "features"), [(5, 9), (9, 5), (6, 6)])
def test_ridge_solves_the_normal_equations(rows, features):
    support, targets, query = regression(rows, features)
    for s, y, q, predicted in zip(support, targets, query, ridge(support, targets, 0.7, query), strict=True):
        weights = np.linalg.solve(s.T.numpy() @ s.numpy() + 0.7 * np.eye(features), s.T.numpy() @ y.numpy())
        np.testing.assert_allclose(predicted, q.numpy() @ weights, rtol=1e-10, atol=1e-12)


def test_ridge_primal_equals_dual():
    support, targets, query = regression(9, 5)
    wide_support, wide_query = (torch.nn.functional.pad(x, (0, 9)) for x in (support, query))
    torch.testing.assert_close(ridge(wide_support, targets, 0.7, wide_query), ridge(support, targets, 0.7, query))


@pytest.mark.parametrize(("rows", "features"), [(2, 4), (4, 2)])
def test_ridge_gradients_are_exact_to_second_order(rows, features):
    support, targets, query = (x.requires_grad_() for x in regression(rows, features))
    penalty = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ridge, (support, targets, penalty, query))
    assert torch.autograd.gradgradcheck(ridge, (support, targets, penalty, query))


def test_ridge_limits():
    support, targets, _ = regression(5, 9)
    assert ridge(support, targets, 1e12, support).abs().max() < 1e-9
    torch.testing.assert_close(ridge(support, targets, 1e-12, support), targets)  # n <= d: every row is fitted


@pytest.mark.parametrize("penalty", [0.0, -1.0, torch.nan])
def test_ridge_needs_a_positive_penalty(penalty):
    support, targets, query = regression(5, 9)
    with pytest.raises(ValueError, match="expected penalty to be positive"):
        ridge(support, targets, penalty, query)


def test_ridge_dtypes_and_autocast():
    exact = ridge(*regression(9, 5)[:2], 0.7, regression(9, 5)[2])
    support, targets, query = (x.float().requires_grad_() for x in regression(9, 5))
    with torch.autocast("cpu", torch.bfloat16):
        predicted = ridge(support, targets, 0.7, query)
    assert predicted.dtype == torch.float32
    torch.testing.assert_close(predicted.double(), exact, rtol=1e-5, atol=1e-6)
    assert torch.autograd.grad(predicted.sum(), support)[0].dtype == torch.float32


def test_ridge_does_not_invent_what_a_lost_penalty_leaves_open():
    support, targets, _ = regression(4, 6)
    support = 1e8 * support[:, :1] * torch.arange(1, 5)[:, None]
    assert ridge(support, targets, 1e-9, support).isnan().all()


@pytest.mark.parametrize("hole", [torch.nan, torch.inf, 1e200])
def test_ridge_a_hole_in_one_task_stays_there(hole):
    support, targets, query = regression(9, 5)
    whole = ridge(support, targets, 0.7, query)
    support[1, 2, 3] = hole
    predicted = ridge(support, targets, 0.7, query)
    assert predicted[1].isnan().all()
    torch.testing.assert_close(predicted[0], whole[0])


@pytest.mark.parametrize("large", [1e10, 1e30, 1e150])
@pytest.mark.parametrize(("shot", "features"), [(1, 2), (5, 3)])
def test_features_beyond_rounding_leave_the_other_tasks_alone(shot, features, large):
    x, labels = draw(3, 5, shot, features)
    usual = crammer_singer(gram_of(x), labels, 5)
    x[1] *= large
    with counted():  # the task may be left unsolved
        alpha = crammer_singer(gram_of(x), labels, 5)
    torch.testing.assert_close(alpha[::2], usual[::2], rtol=0, atol=1e-9)
