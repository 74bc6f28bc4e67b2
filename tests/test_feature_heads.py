"""The heads on features against their formulas; what they share is in test_heads.py."""

import pytest
import torch
import torch.nn.functional as F

from metafew.errors import UsageError
from metafew.heads.cosine import Cosine
from metafew.heads.logistic import Logistic
from metafew.heads.r2d2 import R2D2
from metafew.heads.ridge import Ridge
from metafew.solvers.logistic import logistic

W = 3
LABELS = torch.tensor([[0, 0, 1, 2, 2, 2], [2, 1, 0, 0, 1, 2]])


def features(d, n=6, seed=0):
    return torch.randn(2, n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def test_cosine_is_the_angle_to_class_means():
    support, query = features(8), features(8, 4, 1)
    logits = Cosine(scale=2.0).double().classify(support, LABELS, query, W)
    for t in range(2):
        for m in range(W):
            mean = support[t, LABELS[t] == m].mean(0)
            torch.testing.assert_close(logits[t, :, m], 2 * F.cosine_similarity(query[t], mean[None]))


def test_cosine_ignores_length_of_queries_and_prototypes():
    support, query = features(8), features(8, 4, 1)
    head = Cosine().double()
    torch.testing.assert_close(
        head.classify(1e3 * support, LABELS, 1e-3 * query, W), head.classify(support, LABELS, query, W)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cosine_of_zero_features_is_zero_without_a_gradient(dtype):
    support, query = features(8).to(dtype), features(8, 4, 1).to(dtype)
    support[:, :3], query[:, 0] = 0, 0
    support.requires_grad_(), query.requires_grad_()
    logits = Cosine().to(dtype).classify(support, LABELS, query, W)
    assert not logits[:, 0].any() and not logits[0, :, :2].any()
    logits.sin().sum().backward()
    assert support.grad.isfinite().all() and query.grad.isfinite().all()
    assert not query.grad[:, 0].any() and query.grad[:, 1:].any()


@pytest.mark.parametrize("d", [4, 9])
@pytest.mark.parametrize("learn_penalty", [False, True])
def test_r2d2_is_the_normal_equations_with_a_column_of_ones(d, learn_penalty):
    support, query = features(d), features(d, 4, 1)
    head = R2D2(penalty=0.7, learn_penalty=learn_penalty, scale=3.0).double()
    logits = head.classify(support, LABELS, query, W)
    for t in range(2):
        x = torch.cat([support[t], torch.ones(6, 1)], 1) / 6**0.5
        y = F.one_hot(LABELS[t], W).double() / 6**0.5
        solution = torch.linalg.inv(x.T @ x + 0.7 * torch.eye(d + 1)) @ x.T @ y
        weights, intercept = solution[:-1], solution[-1]
        torch.testing.assert_close(logits[t], 3 * (query[t] @ weights + intercept), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("head", [Ridge, R2D2])
def test_a_learned_penalty_starts_where_typed_and_has_the_gradient_of_its_logarithm(head):
    support, query = features(5), features(5, 4, 1)

    def loss(penalty, **changes):
        made = head(penalty=penalty, **changes).double()
        return made, made.classify(support, LABELS, query, W).cos().sum()

    learned, value = loss(2.0, learn_penalty=True)
    torch.testing.assert_close(value, loss(2.0)[1], rtol=1e-6, atol=1e-6)
    value.backward()
    step = torch.tensor(1e-5, dtype=torch.double)
    slope = (loss(float(2 * step.exp()))[1] - loss(float(2 * (-step).exp()))[1]) / (2 * step)
    assert slope.abs() > 1e-4
    torch.testing.assert_close(learned.log_penalty.grad, slope.detach(), rtol=1e-5, atol=1e-7)
    with torch.no_grad():
        learned.log_penalty.fill_(-20)
    assert learned.classify(support, LABELS, query, W).isfinite().all()


def test_only_what_is_learned_is_a_parameter():
    assert {name for name, _ in Ridge().named_parameters()} == {"scale"}
    assert {name for name, _ in Ridge(learn_penalty=True).named_parameters()} == {"scale", "log_penalty"}
    assert {name for name, _ in R2D2().named_parameters()} == {"scale"}


def test_logistic_scales_the_regression():
    support, query = features(5), features(5, 4, 1)
    logits = Logistic(c=0.3, scale=2.0).double().classify(support, LABELS, query, W)
    torch.testing.assert_close(logits, 2 * logistic(support, LABELS, W, 0.3, query))


@pytest.mark.parametrize("make", [lambda: Logistic(c=0.0), lambda: Ridge(penalty=-1.0), lambda: R2D2(penalty=0.0)])
def test_bad_values_are_said(make):
    with pytest.raises(UsageError, match="to be positive, got"):
        make()
