"""Inductive heads on features against their papers, scikit-learn and slow references."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.base import BaseEstimator
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis, QuadraticDiscriminantAnalysis
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from metafew.backbones.identity import Identity
from metafew.config.groups import CONF, load_option
from metafew.errors import UsageError
from metafew.heads.baseline_pp import BaselinePP
from metafew.heads.feat import FEAT
from metafew.heads.lda import LDA
from metafew.heads.matching import Matching
from metafew.heads.nearest import Nearest
from metafew.heads.simpleshot import SimpleShot

W = 3
LABELS = torch.tensor([[0, 0, 1, 2, 2, 2], [2, 1, 0, 0, 1, 2]])


def features(d, n=6, seed=0):
    return torch.randn(2, n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def backbone(d):
    torch.manual_seed(0)
    return Identity(d, 1, norm=nn.Identity)


def made(head, d, **options):
    """Return a head, in float64; one with weights has others than the initial ones."""
    head = head(backbone(d), trained=True, **options).double().eval()
    with torch.no_grad():
        for value in head.parameters():
            value += 0.3 * torch.randn(value.shape, dtype=torch.double)
    return head


HEADS = {
    "nearest": lambda d: Nearest(k=2),
    "cosine": lambda d: Nearest(k=2, metric="cosine"),
    "blended": lambda d: LDA(),
    "pooled": lambda d: LDA(covariance="pooled"),
    "class": lambda d: LDA(covariance="class"),
    "baseline_pp": lambda d: BaselinePP(),
    "matching": lambda d: made(Matching, d),
    "full": lambda d: made(Matching, d, context="full"),
    "feat": lambda d: made(FEAT, d),
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


def test_rows_as_near_as_the_last_neighbour_vote_too():
    """The order of support rows therefore does not matter."""
    support, labels = torch.tensor([[[1.0], [-1.0], [3.0], [1.0]]]), torch.tensor([[0, 1, 2, 2]])
    votes = Nearest().classify(support, labels, torch.zeros(1, 1, 1), 3).exp() - 1 / 3
    torch.testing.assert_close(votes, torch.ones(1, 1, 3))


@pytest.mark.parametrize("covariance", ["blended", "pooled", "class"])
@pytest.mark.parametrize("d", [4, 9])  # fewer features than rows, and more
def test_covariances_are_those_of_the_definition(covariance, d):
    support, query = features(d), features(d, 4, 1)
    logits = LDA(covariance, beta=0.7).classify(support, LABELS, query, W)
    for t in range(2):
        rows = [support[t, LABELS[t] == m].numpy() for m in range(W)]
        own = [np.cov(r.T) if len(r) > 1 else np.zeros((d, d)) for r in rows]
        pooled = sum((len(r) - 1) * c for r, c in zip(rows, own, strict=True)) / (6 - W)
        expected = np.zeros((4, W))
        for m in range(W):
            share = len(rows[m]) / (len(rows[m]) + 1)
            blended = share * own[m] + (1 - share) * np.cov(support[t].T)
            matrix = {"blended": blended, "pooled": pooled, "class": own[m]}[covariance] + 0.7 * np.eye(d)
            differences = query[t].numpy() - rows[m].mean(0)
            expected[:, m] = -0.5 * np.einsum("qi,ij,qj->q", differences, np.linalg.inv(matrix), differences)
            expected[:, m] -= 0.5 * np.linalg.slogdet(matrix)[1] * (covariance == "class")
        if covariance == "class":  # with more features than rows, all logits lack the same constant
            expected += (logits[t].numpy() - expected).mean()
        np.testing.assert_allclose(logits[t], expected, rtol=1e-9)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("transform", ["cl2n", "l2n", "un"])
def test_simpleshot_is_the_loop_over_its_equations(transform, train):
    """In training, the mean of the support features takes the place of that of the training images."""
    head, support, query = SimpleShot(transform).train(train), features(5), features(5, 4, 1)
    head.base_mean = features(5, 1, 2)[0, 0]
    logits = head.classify(support, LABELS, query, W)
    for t in range(2):
        subtracted = support[t].mean(0) if train else head.base_mean
        rows, points = support[t].clone(), query[t].clone()
        if transform == "cl2n":
            rows, points = rows - subtracted, points - subtracted
        if transform != "un":
            rows, points = (x / x.norm(dim=-1, keepdim=True) for x in (rows, points))
        for m in range(W):
            squares = (points - rows[LABELS[t] == m].mean(0)).square().sum(-1)
            torch.testing.assert_close(logits[t, :, m], -squares)


class Unbiased(BaseEstimator):
    """The covariance that scikit-learn divides by the number of rows, divided by one less."""

    def fit(self, rows):
        self.covariance_ = np.cov(rows.T)
        return self


@pytest.mark.parametrize("d", [3, 25])
@pytest.mark.parametrize(
    ("covariance", "analysis"),
    [
        ("pooled", LinearDiscriminantAnalysis("lsqr", covariance_estimator=Unbiased())),
        ("class", QuadraticDiscriminantAnalysis(solver="eigen", covariance_estimator=Unbiased())),
    ],
)
def test_discriminant_analyses_are_those_of_scikit_learn(covariance, analysis, d):
    """Of three features, followed by zeros if there are more, as more than rows would be singular to scikit-learn."""
    support, query = features(3, 24), features(3, 5, 1)
    labels = torch.arange(W).repeat(8).expand(2, -1)
    wide = F.pad(support, (0, d - 3)), labels, F.pad(query, (0, d - 3)), W
    logits = LDA(covariance, beta=1e-8).classify(*wide).log_softmax(-1)
    for t in range(2):
        expected = analysis.fit(support[t].numpy(), labels[t].numpy()).predict_log_proba(query[t].numpy())
        np.testing.assert_allclose(logits[t], expected, rtol=1e-5, atol=1e-5)


def test_a_task_of_infinite_features_is_lost_without_the_others():
    support = features(9)
    support[0, 0, 0] = torch.inf
    logits = LDA().classify(support, LABELS, features(9, 4, 1), W)
    assert logits[0].isnan().all() and logits[1].isfinite().all()


def test_baseline_pp_descends_the_gradient_of_its_loss():
    support, query = features(5), features(5, 4, 1)
    logits = BaselinePP(steps=7, lr=0.3, scale=3.0).classify(support, LABELS, query, W)
    for t in range(2):
        rows = F.normalize(support[t], dim=-1)
        weight = F.normalize(torch.stack([rows[LABELS[t] == m].mean(0) for m in range(W)]), dim=-1)
        for _ in range(7):
            weight.requires_grad_()
            (slope,) = torch.autograd.grad(F.cross_entropy(3 * rows @ weight.T, LABELS[t]), weight)
            weight = F.normalize(weight.detach() - 0.3 * slope, dim=-1)
        torch.testing.assert_close(logits[t], 3 * F.normalize(query[t], dim=-1) @ weight.T)


def test_baseline_pp_fits_the_support_set_that_class_means_do_not():
    support = torch.tensor([[[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [1.0, 0.4]]])
    labels = torch.tensor([[0, 0, 1, 1]])
    means = BaselinePP(steps=0).classify(support, labels, support, 2).argmax(-1)
    fitted = BaselinePP(steps=500, lr=0.1).classify(support, labels, support, 2).argmax(-1)
    assert means.tolist() == [[0, 0, 1, 0]] and fitted.tolist() == [[0, 0, 1, 1]]


def test_meta_baseline_is_cosine():
    """Chen et al. (2021) average unnormalised features too, and learn the scale of the cosines from 10."""
    meta, cosine = (load_option(CONF / "head" / f"{name}.yaml") for name in ("meta_baseline", "cosine"))
    assert meta == cosine and cosine.scale == 10


def test_matching_sums_attention_over_the_rows_of_a_class():
    support, query = features(5), features(5, 4, 1)
    head = made(Matching, 5)
    logits = head.classify(support, LABELS, query, W)
    for t in range(2):
        cosines = F.cosine_similarity(query[t, :, None], support[t, None], dim=-1)
        attention = (head.scale * cosines).softmax(1)
        votes = torch.stack([attention[:, LABELS[t] == m].sum(1) for m in range(W)], 1)
        torch.testing.assert_close(logits[t].exp(), votes)


def test_matching_with_a_large_scale_is_the_nearest_neighbour():
    support, query = features(5), features(5, 20, 1)
    heads = Matching(backbone(5), trained=False, scale=1e6), Nearest(metric="cosine")
    sharp, nearest = (head.classify(support, LABELS, query, W).argmax(-1) for head in heads)
    assert torch.equal(sharp, nearest)


def lstm(weights, x, hidden, memory):
    """Return output and memory of one step, from the equations of an LSTM, for vectors."""
    i, f, g, o = (weights[0] @ x + weights[1] @ hidden + weights[2] + weights[3]).chunk(4)
    memory = f.sigmoid() * memory + i.sigmoid() * g.tanh()
    return o.sigmoid() * memory.tanh(), memory


def test_full_context_embeddings_are_those_of_the_paper():
    """Each task and each query on its own, so neither depends on others."""
    d, (support, query) = 4, (features(4), features(4, 3, 1))
    head = made(Matching, d, context="full", reads=3)
    logits, embedding = head.classify(support, LABELS, query, W), head.embedding
    named = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    forwards = [embedding.support.get_parameter(name) for name in named]
    backwards = [embedding.support.get_parameter(f"{name}_reverse") for name in named]
    reader = [embedding.query.get_parameter(name.removesuffix("_l0")) for name in named]
    for t in range(2):
        own = [row.clone() for row in support[t]]
        for weights, order in ((forwards, range(6)), (backwards, range(5, -1, -1))):
            output = memory = torch.zeros(d, dtype=torch.double)
            for i in order:
                output, memory = lstm(weights, support[t, i], output, memory)
                own[i] = own[i] + output
        g = torch.stack(own)
        for q in range(3):
            hidden, memory = query[t, q], torch.zeros(d, dtype=torch.double)
            for _ in range(3):
                read = (g @ hidden).softmax(0) @ g
                output, memory = lstm(reader, torch.cat([query[t, q], read]), hidden, memory)
                hidden = output + query[t, q]
            attention = (head.scale * F.cosine_similarity(g, hidden[None])).softmax(0)
            votes = torch.stack([attention[LABELS[t] == m].sum() for m in range(W)])
            torch.testing.assert_close(logits[t, q].exp(), votes)


def test_full_context_depends_on_the_order_of_rows_and_must_be_trained():
    support, query = features(4), features(4, 3, 1)
    full, plain = made(Matching, 4, context="full"), made(Matching, 4)
    turned = [head.classify(support.flip(1), LABELS.flip(1), query, W) for head in (full, plain)]
    assert not torch.allclose(turned[0], full.classify(support, LABELS, query, W), atol=1e-4)
    torch.testing.assert_close(turned[1], plain.classify(support, LABELS, query, W))
    assert full.requires_training and not plain.requires_training


def test_feat_is_attention_of_torch_between_class_means():
    support, query = features(6), features(6, 4, 1)
    head = made(FEAT, 6, temperature=2.0)
    layers = head.transformer
    attention = nn.MultiheadAttention(6, 1, batch_first=True).double()
    with torch.no_grad():
        attention.in_proj_weight.copy_(torch.cat([layers.query.weight, layers.key.weight, layers.value.weight]))
        attention.in_proj_bias.zero_()
        attention.out_proj.weight.copy_(layers.output.weight)
        attention.out_proj.bias.copy_(layers.output.bias)
    logits = head.classify(support, LABELS, query, W)
    for t in range(2):
        means = torch.stack([support[t, LABELS[t] == m].mean(0) for m in range(W)])
        adapted = F.layer_norm(means + attention(means, means, means)[0], (6,), layers.norm.weight, layers.norm.bias)
        torch.testing.assert_close(logits[t], -torch.cdist(query[t], adapted).square() / 2)


def test_feat_drops_attention_and_what_it_adds_in_training_only():
    support, query = features(6), features(6, 4, 1)
    rates = ((0.0, 0.0), (0.5, 0.0), (0.0, 0.5), (1.0, 1.0))
    heads = [made(FEAT, 6, temperature=2.0, dropout=one, attention_dropout=other) for one, other in rates]
    evaluated = [head.classify(support, LABELS, query, W) for head in heads]
    assert all(torch.equal(evaluated[0], other) for other in evaluated)
    for head in heads:
        head.train()
    assert torch.equal(heads[0].classify(support, LABELS, query, W), evaluated[0])
    assert [(h.transformer.dropout.p, h.transformer.attention_dropout.p) for h in heads] == [*rates]
    for head in heads[1:3]:
        first, second = (head.classify(support, LABELS, query, W) for _ in range(2))
        assert not torch.allclose(first, second)
    dropped, layers = [], heads[3].transformer
    for layer in (layers.attention_dropout, layers.dropout):
        layer.register_forward_hook(lambda _, inputs, result: dropped.append(inputs[0].shape))
    logits = heads[3].classify(support, LABELS, query, W)
    assert dropped == [(2, W, W), (2, W, 6)]
    for t in range(2):
        means = torch.stack([support[t, LABELS[t] == m].mean(0) for m in range(W)])
        kept = F.layer_norm(means, (6,), layers.norm.weight, layers.norm.bias)
        torch.testing.assert_close(logits[t], -torch.cdist(query[t], kept).square() / 2)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Nearest(k=0), r"head\.k to be an integer of at least 1, got 0"),
        (lambda: Nearest(metric="l1"), r"head\.metric to be euclidean or cosine, got l1"),
        (lambda: LDA("diagonal"), r"head\.covariance to be blended or pooled or class, got diagonal"),
        (lambda: LDA(beta=0), r"head\.beta to be positive, got 0: type head\.beta=1"),
        (lambda: BaselinePP(steps=-1), r"head\.steps to be an integer of at least 0, got -1: type head\.steps=100"),
        (lambda: BaselinePP(lr=0), r"head\.lr to be positive, got 0: type head\.lr=0\.01"),
        (lambda: BaselinePP(scale=-2.0), r"head\.scale to be positive, got -2\.0: type head\.scale=2"),
        (lambda: made(Matching, 4, context="some"), r"head\.context to be none or full, got some"),
        (lambda: made(Matching, 4, reads=0), r"head\.reads to be an integer of at least 1, got 0: type head\.reads=5"),
        (lambda: made(FEAT, 4, temperature=0), r"head\.temperature to be positive, got 0: type head\.temperature=64"),
        (lambda: made(FEAT, 4, dropout=2), r"head\.dropout to be a number from 0 to 1, got 2"),
        (lambda: made(FEAT, 4, attention_dropout=2), r"head\.attention_dropout to be a number from 0 to 1, got 2"),
    ],
)
def test_options_out_of_range_are_refused(make, said):
    with pytest.raises(UsageError, match=said):
        make()
