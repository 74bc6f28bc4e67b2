"""Inductive heads on features against their papers, scikit-learn and slow references."""

import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from metafew.errors import UsageError
from metafew.heads.nearest import Nearest

W = 3
LABELS = torch.tensor([[0, 0, 1, 2, 2, 2], [2, 1, 0, 0, 1, 2]])


def features(d, n=6, seed=0):
    return torch.randn(2, n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


HEADS = {
    "nearest": lambda d: Nearest(k=2),
    "cosine": lambda d: Nearest(k=2, metric="cosine"),
}


@pytest.mark.parametrize("value", [0.0, 3.0])
@pytest.mark.parametrize("name", HEADS)
def test_constant_features_give_finite_logits_and_gradients(name, value):
    support = torch.full((2, 6, 5), value, dtype=torch.double, requires_grad=True)
    logits = HEADS[name](5).classify(support, LABELS, support[:, :1], W)
    logits.softmax(-1).square().sum().backward()
    assert logits.shape == (2, 1, W) and logits.isfinite().all() and support.grad.isfinite().all()


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("k", [1, 3, 9])
def test_nearest_counts_the_votes_of_scikit_learn(k, metric):
    support, query = features(4), features(4, 20, 1)
    logits, voters = Nearest(k, metric).classify(support, LABELS, query, W), min(k, 6)
    lengths = [rows.norm(dim=-1, keepdim=True) if metric == "cosine" else 1 for rows in (query, support)]
    squares = torch.cdist(query / lengths[0], support / lengths[1]).square()
    for t in range(2):
        neighbours = KNeighborsClassifier(voters, metric=metric).fit(support[t], LABELS[t])
        votes = torch.from_numpy(neighbours.predict_proba(query[t])) * voters
        closest = torch.stack([squares[t][:, LABELS[t] == m].amin(1) for m in range(W)], 1)
        torch.testing.assert_close(logits[t].exp(), votes + (-closest).softmax(-1))
        assert k > 1 or torch.equal(logits[t].argmax(-1), LABELS[t][squares[t].argmin(1)])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Nearest(k=0), r"head\.k to be an integer of at least 1, got 0"),
        (lambda: Nearest(metric="l1"), r"head\.metric to be euclidean or cosine, got l1"),
    ],
)
def test_options_out_of_range_are_refused(make, said):
    with pytest.raises(UsageError, match=said):
        make()
