"""Logistic regression against scikit-learn, its optimality conditions and finite differences."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn.functional import one_hot

from metafew.solvers import logistic as solver
from metafew.solvers.logistic import logistic
from metafew.solvers.unsolved import counted


def draw(tasks, way, shot, features, scale=1.0, seed=0):
    """Overlapping Gaussian classes: support (t, way * shot, features), labels, and queries (t, 4, features)."""
    generator = torch.Generator().manual_seed(seed)
    means = 0.3 * torch.randn(tasks, way, features, generator=generator, dtype=torch.double)
    noise = torch.randn(tasks, way * shot + 4, features, generator=generator, dtype=torch.double)
    labels = torch.arange(way).repeat_interleave(shot).expand(tasks, -1)
    return scale * (means.repeat_interleave(shot, 1) + noise[:, 4:]), labels, scale * noise[:, :4]


def solve_checked(support, labels, way, c):
    """Solve, and demand the optimum, read from the logits alone, and a finite gradient."""
    support = support.clone().requires_grad_()
    origin = torch.zeros_like(support[:, :1])
    with warnings.catch_warnings(action="error"):
        logits = logistic(support, labels, way, c, torch.cat([support, origin], 1))
    logits.cos().sum().backward()
    assert support.grad.isfinite().all()
    rows, logits = support.detach(), logits.detach()
    pull = c * (one_hot(labels, way) - logits[:, :-1].softmax(-1))
    tolerance = 1e-8 + 1e-12 * c * rows.square().sum((1, 2)).max().item()  # rounding grows with c K
    torch.testing.assert_close(pull.sum(1), torch.zeros_like(pull[:, 0]), rtol=0, atol=tolerance)  # intercept
    weighted = rows @ (rows.mT @ pull)  # W = X' pull at the optimum
    torch.testing.assert_close(logits[:, :-1] - logits[:, -1:], weighted, rtol=1e-8, atol=tolerance)
    return logits


@pytest.mark.parametrize("c", [0.01, 1.0, 100.0])
@pytest.mark.parametrize(("way", "shot", "features"), [(3, 1, 8), (5, 5, 64), (4, 10, 3)])
def test_agrees_with_scikit_learn(way, shot, features, c):
    support, labels, query = draw(1, way, shot, features)
    model = LogisticRegression(C=c, tol=1e-10, max_iter=10_000, solver="newton-cg").fit(support[0], labels[0])
    ours = logistic(support, labels, way, c, query)[0]
    np.testing.assert_allclose(ours.softmax(-1), model.predict_proba(query[0]), rtol=0, atol=1e-6)
    theirs = torch.from_numpy(model.decision_function(query[0]))
    torch.testing.assert_close(ours - ours.mean(-1, True), theirs - theirs.mean(-1, True), rtol=0, atol=1e-5)


def test_two_classes_are_the_binary_regression_of_twice_the_weight():
    """With W = (-w/2, w/2) the penalty is |w|^2 / 4, half of the binary one."""
    support, labels, query = draw(1, 2, 6, 5)
    model = LogisticRegression(C=2.0, tol=1e-10, max_iter=10_000, solver="newton-cg").fit(support[0], labels[0])
    ours = logistic(support, labels, 2, 1.0, query)[0]
    np.testing.assert_allclose(ours[:, 1] - ours[:, 0], model.decision_function(query[0]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("c", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize(("way", "shot", "features"), [(5, 1, 1600), (20, 5, 64), (5, 20, 8)])
def test_few_shot_tasks_are_solved(way, shot, features, c):
    support, labels, _ = draw(2, way, shot, features)
    solve_checked(support, labels, way, c)


AWKWARD = {
    "duplicate rows": lambda x, y: (torch.cat([x, x], 1), torch.cat([y, y], 1)),
    "contradictory rows": lambda x, y: (torch.cat([x, x], 1), torch.cat([y, (y + 1) % 5], 1)),
    "collinear rows": lambda x, y: (x[:, :1] * torch.linspace(-2, 2, x.shape[1])[:, None], y),
    "only zeros": lambda x, y: (0 * x, y),
    "unbalanced": lambda x, y: (x, torch.tensor([0] * 16 + [1, 2, 3, 4]).expand_as(y)),
    "one class": lambda x, y: (x, 0 * y),
    "large": lambda x, y: (100 * x, y),
    "tiny": lambda x, y: (1e-6 * x, y),
    "few features": lambda x, y: (x[..., :2], y),
    "far from the origin": lambda x, y: (x + 100, y),
}


@pytest.mark.parametrize("c", [0.1, 10.0])
@pytest.mark.parametrize("case", AWKWARD)
def test_awkward_tasks_are_solved(case, c):
    support, labels, _ = draw(3, 5, 4, 16)
    way = 1 if case == "one class" else 5
    solve_checked(*AWKWARD[case](support, labels), way, c)


def test_without_features_the_intercept_gives_the_class_frequencies():
    labels = torch.tensor([[0, 0, 0, 1, 2, 2]])
    logits = solve_checked(torch.zeros(1, 6, 4, dtype=torch.double), labels, 3, 1.0)
    torch.testing.assert_close(logits.softmax(-1)[0, 0], torch.tensor([3, 1, 2], dtype=torch.double) / 6)
    torch.testing.assert_close(logits.sum(-1), torch.zeros(1, 7, dtype=torch.double))


@pytest.mark.parametrize(("way", "shot", "features", "c"), [(3, 2, 5, 1.0), (3, 4, 2, 0.3), (2, 2, 4, 20.0)])
def test_gradients_are_exact(way, shot, features, c):
    support, labels, query = draw(2, way, shot, features)
    assert torch.autograd.gradcheck(
        lambda s, q: logistic(s, labels, way, c, q), (support.requires_grad_(), query.requires_grad_())
    )


def test_tasks_are_independent():
    support, labels, query = draw(3, 4, 3, 6)
    support = support * torch.tensor([0.1, 1, 30]).view(3, 1, 1)
    each = [logistic(support[i : i + 1], labels[i : i + 1], 4, 1.0, query[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(logistic(support, labels, 4, 1.0, query), torch.cat(each), rtol=1e-10, atol=1e-10)


def test_the_origin_does_not_matter():
    support, labels, query = draw(2, 4, 3, 6)
    moved = logistic(support + 7, labels, 4, 1.0, query + 7)
    torch.testing.assert_close(moved, logistic(support, labels, 4, 1.0, query), rtol=0, atol=1e-10)


@pytest.mark.parametrize("hole", [torch.nan, torch.inf])
def test_a_hole_in_one_task_stays_there(hole):
    support, labels, query = draw(3, 3, 2, 5)
    whole = logistic(support, labels, 3, 1.0, query)
    support[1, 2, 3] = hole
    logits = logistic(support, labels, 3, 1.0, query)
    assert logits[1].isnan().all()
    torch.testing.assert_close(logits[::2], whole[::2], rtol=0, atol=1e-12)


def test_dtypes_and_autocast():
    support, labels, query = draw(2, 5, 3, 16)
    single = support.float().requires_grad_()
    exact = logistic(single.double(), labels, 5, 1.0, query.float().double())
    with torch.autocast("cpu", torch.bfloat16):
        logits = logistic(single, labels, 5, 1.0, query.float())
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits.double(), exact, rtol=1e-5, atol=1e-5)
    assert torch.autograd.grad(logits.cos().sum(), single)[0].dtype == torch.float32


def test_an_unsolved_task_is_reported(monkeypatch):
    support, labels, query = draw(2, 3, 2, 5)
    solve = solver._solve
    monkeypatch.setattr(solver, "_solve", lambda *a: [part / 1e3 for part in solve(*a)])
    with pytest.warns(UserWarning, match="did not converge"):
        logistic(support, labels, 3, 1.0, query)


def test_c_must_be_positive():
    support, labels, query = draw(1, 3, 2, 5)
    with pytest.raises(ValueError, match="expected c to be positive"):
        logistic(support, labels, 3, 0.0, query)


@pytest.mark.parametrize("large", [1e10, 1e30, 1e100])
def test_features_beyond_rounding_leave_the_other_tasks_alone(large):
    support, labels, query = draw(3, 3, 2, 5)
    usual = logistic(support, labels, 3, 1.0, query)
    support[1] *= large
    with counted():  # the task may be left unsolved
        logits = logistic(support, labels, 3, 1.0, query)
    torch.testing.assert_close(logits[::2], usual[::2], rtol=0, atol=1e-12)
