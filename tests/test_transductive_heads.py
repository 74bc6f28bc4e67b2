"""The transductive heads against slow references; what they share is in test_heads.py."""

import copy
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from contracts import node
from contracts.heads import make_episode, network
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from scipy.optimize import minimize
from sklearn.cluster import KMeans
from sklearn.neighbors import kneighbors_graph
from torch import nn
from torch.func import functional_call

from metafew.backbones.task_weights import accept_task_weights
from metafew.config.groups import CONF
from metafew.errors import UsageError
from metafew.heads.bd_cspn import BDCSPN, rectified
from metafew.heads.head import negative_distances
from metafew.heads.laplacian_shot import LaplacianShot, affinity, updated
from metafew.heads.protonet import ProtoNet
from metafew.heads.pt_map import PTMAP, balanced
from metafew.heads.soft_kmeans import SoftKMeans
from metafew.heads.tim import TIM, assigned_labels
from metafew.heads.transductive_finetuning import TransductiveFinetuning
from metafew.norms.fast import accelerate
from metafew.norms.scope import rows
from metafew.training.instantiate import make

W = 3
LABELS = torch.tensor([[0, 0, 1, 2, 2, 2], [2, 1, 0, 0, 1, 2]])
HEADS = {
    "soft_kmeans": SoftKMeans,
    "bd_cspn": BDCSPN,
    "pt_map": partial(PTMAP, steps=3),
    "tim": partial(TIM, steps=5),
    "laplacian_shot": LaplacianShot,
    "tim_gd": partial(TIM, solver="gradient", steps=5),
}


def features(d=5, n=6, seed=0):
    return torch.randn(2, n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def tasks(d=5, queries=7):
    """Yield the arrays of each of two tasks: support features, labels, query features."""
    for arrays in zip(features(d), LABELS, features(d, queries, 1), strict=True):
        yield tuple(array.numpy() for array in arrays)


def logits_of(head, d=5, queries=7, dtype=torch.double):
    """Return the logits of a head on both tasks."""
    return head.to(dtype).classify(features(d).to(dtype), LABELS, features(d, queries, 1).to(dtype), W).detach()


def softmax(x, axis=-1):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def distances(rows, points):
    """Return squared distances, by a loop."""
    return np.array([[((row - point) ** 2).sum() for point in points] for row in rows])


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def means(support, labels):
    return np.stack([support[labels == m].mean(0) for m in range(W)])


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_degenerate_features_give_finite_logits_and_gradients(head, dtype):
    """Features that are all alike, all 0 or huge; one query; more classes than queries."""
    for scale, shift in ((0, 0), (0, 1), (1, 0), (1e4, 0), (1e-12, 0)):
        for queries in (1, 2, 9):
            support, query = (scale * rows.to(dtype) + shift for rows in (features(4), features(4, queries, 1)))
            support.requires_grad_(), query.requires_grad_()
            logits = head().to(dtype).classify(support, LABELS, query, W)
            assert logits.shape == (2, queries, W) and logits.isfinite().all()
            logits.sin().sum().backward()
            assert support.grad.isfinite().all() and query.grad.isfinite().all()


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_soft_kmeans_is_the_loop_over_its_equations(steps):
    logits = logits_of(SoftKMeans(steps))
    for t, (support, labels, query) in enumerate(tasks()):
        prototypes = means(support, labels)
        for _ in range(steps):
            z = softmax(-distances(query, prototypes))
            for m in range(W):
                total = support[labels == m].sum(0) + sum(z[j, m] * query[j] for j in range(len(query)))
                prototypes[m] = total / ((labels == m).sum() + z[:, m].sum())
        np.testing.assert_allclose(logits[t], -distances(query, prototypes), rtol=1e-10)


def test_soft_kmeans_of_distant_clusters_is_kmeans():
    """Assignments are hard there, and support rows stay in their class in scikit-learn's k-means, too."""
    centres, answers = 30 * torch.eye(W, 5, dtype=torch.double), torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2])
    support, query = centres[LABELS] + features(), centres[answers] + features(n=9, seed=1)
    logits = SoftKMeans(3).classify(support, LABELS, query, W)
    for t in range(2):
        rows, start = np.concatenate([support[t], query[t]]), means(support[t].numpy(), LABELS[t].numpy())
        found = KMeans(W, init=start, n_init=1, tol=0).fit(rows).cluster_centers_
        np.testing.assert_allclose(logits[t], -distances(query[t].numpy(), found), rtol=1e-9)


def test_soft_kmeans_without_steps_is_protonet():
    torch.testing.assert_close(logits_of(SoftKMeans(0)), logits_of(ProtoNet()))


def rectify(support, labels, query, sharpness):
    """Return rectified prototypes and shifted queries, class by class and row by row."""
    support, query = unit(support), unit(query)
    query = query + support.mean(0) - query.mean(0)
    basic = unit(means(support, labels))
    nearest = (unit(query) @ basic.T).argmax(1)
    prototypes = []
    for m in range(W):
        rows = [*support[labels == m], *query[nearest == m]]
        weights = np.array([np.exp(sharpness * unit(row) @ basic[m]) for row in rows])
        prototypes.append(sum(w * row for w, row in zip(weights / weights.sum(), rows, strict=True)))
    return np.stack(prototypes), query


@pytest.mark.parametrize("sharpness", [0.0, 1.0, 10.0])
def test_bd_cspn_is_the_loop_over_its_equations(sharpness):
    logits = logits_of(BDCSPN(scale=3.0, sharpness=sharpness))
    for t, task in enumerate(tasks()):
        prototypes, query = rectify(*task, sharpness)
        np.testing.assert_allclose(logits[t], 3 * unit(query) @ unit(prototypes).T, rtol=1e-10)


def test_shifted_queries_have_the_mean_of_the_support_set():
    _, shifted = rectified(features(), LABELS, features(n=9, seed=1), W, 10.0)
    mean = F.normalize(features(), dim=-1).mean(1)
    torch.testing.assert_close(shifted.mean(1), mean)


def sinkhorn(scores):
    """Return the balanced plan by Sinkhorn's algorithm as in the paper, without logarithms, until it settles."""
    plan, before = np.exp(scores), 0
    while np.abs(plan - before).max() > 1e-13:
        before = plan
        plan = plan * (len(plan) / W / plan.sum(0))
        plan = plan / plan.sum(1, keepdims=True)
    return plan


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_pt_map_is_the_loop_over_its_equations(power):
    logits = logits_of(PTMAP(power, sharpness=3.0, rate=0.4, steps=4, iterations=150))
    for t, (support, labels, query) in enumerate(tasks()):
        support, query = (unit(np.sign(x) * (np.abs(x) + 1e-6) ** power) for x in (support, query))
        support, query = unit(support - support.mean(0)), unit(query - query.mean(0))
        centres = means(support, labels)
        for _ in range(4):
            plan = sinkhorn(-3 * distances(query, centres))
            for m in range(W):
                total = support[labels == m].sum(0) + plan[:, m] @ query
                centres[m] += 0.4 * (total / ((labels == m).sum() + plan[:, m].sum()) - centres[m])
        np.testing.assert_allclose(logits[t].softmax(-1), sinkhorn(-3 * distances(query, centres)), atol=1e-9)


def test_sinkhorn_iterations_of_pt_map_continue_from_the_previous_step():
    options = {"power": 1.0, "sharpness": 3.0, "rate": 0.4}
    found = logits_of(PTMAP(**options, steps=4, iterations=1)).softmax(-1)
    for t, (support, labels, query) in enumerate(tasks()):
        support, query = (unit(unit(x) - unit(x).mean(0)) for x in (support, query))
        centres, factors = means(support, labels), np.ones(W)
        for step in range(5):
            plan = np.exp(-3 * distances(query, centres)) * factors
            plan /= plan.sum(1, keepdims=True)
            columns = plan.sum(0)
            factors = factors / columns
            plan = plan / columns / (plan / columns).sum(1, keepdims=True)
            if step < 4:
                total = np.stack([support[labels == m].sum(0) for m in range(W)]) + plan.T @ query
                average = total / (np.bincount(labels, minlength=W) + plan.sum(0))[:, None]
                centres = centres + 0.4 * (average - centres)
        np.testing.assert_allclose(found[t], plan, rtol=1e-4)


def test_a_balanced_plan_is_the_optimum():
    """Of ``sum P scores + H(P)`` among plans with these sums, by SciPy; hard where scores are large, and finite."""
    scores = features(W, 6)
    plan = balanced(scores, torch.zeros(1, 1, W), 200)[0].softmax(-1)
    torch.testing.assert_close(plan.sum(1), torch.full((2, W), 2.0, dtype=torch.double))
    rows = {"type": "eq", "fun": lambda p: p.reshape(6, W).sum(1) - 1}
    columns = {"type": "eq", "fun": lambda p: p.reshape(6, W).sum(0)[1:] - 2}
    for t in range(2):
        score = scores[t].numpy().ravel()
        found = minimize(
            lambda p, score=score: p @ (np.log(p) - score), np.full(6 * W, 1 / W), bounds=[(1e-9, 1)] * 6 * W,
            constraints=[rows, columns], options={"ftol": 1e-12, "maxiter": 300},
        )  # fmt: skip
        np.testing.assert_allclose(plan[t], found.x.reshape(6, W), atol=1e-4)
    large = balanced(1e6 * scores.float(), torch.zeros(1, 1, W), 50)[0]
    assert large.isfinite().all()


def test_pt_map_gives_every_class_as_many_queries():
    """The plan of unbalanced queries is balanced all the same: this is the head's assumption."""
    plan = logits_of(PTMAP(iterations=100), queries=7).softmax(-1)
    torch.testing.assert_close(plan.sum(1), torch.full((2, W), 7 / W, dtype=torch.double), rtol=1e-3, atol=0)
    assert torch.allclose(logits_of(PTMAP(), queries=1).softmax(-1), torch.full((), 1 / W, dtype=torch.double))


DEFAULTS = {"support_weight": 0.1, "conditional_weight": 0.1, "temperature": 15.0}
OTHER = {"support_weight": 0.7, "conditional_weight": 1.6, "temperature": 4.0}
"""Options of TIM that are not the defaults."""


def tim_objective(
    weights, support, members, query, labels=None, support_weight=0.1, conditional_weight=0.1, temperature=15.0
):
    """Return TIM's objective, or with ``labels`` of the queries that of TIM-ADM, each a sum over the two tasks."""
    given, found = (
        (-temperature / 2 * (rows.unsqueeze(2) - weights.unsqueeze(1)).square().sum(-1)).log_softmax(-1)
        for rows in (support, query)
    )
    labels = found.exp() if labels is None else labels
    marginal, n = labels.mean(1), query.shape[1]
    # H(Y|X) of labels p is the cross-entropy of p with itself; with other labels TIM-ADM adds their KL divergence.
    conditional = -conditional_weight * (labels * found).sum() / n + (labels * (labels.log() - found)).sum() / n
    supervised = -support_weight * (members * given).sum() / support.shape[1]
    return supervised + (marginal * marginal.log()).sum() + conditional


def tim_parts():
    support, query = (F.normalize(x, dim=-1) for x in (features(), features(n=9, seed=1)))
    return support, F.one_hot(LABELS, W).double(), query


@pytest.mark.parametrize("options", [{}, OTHER], ids=["defaults", "other"])
def test_the_gradient_of_tim_is_that_of_autograd(options):
    weights = features(n=W, seed=2).requires_grad_()
    (expected,) = torch.autograd.grad(tim_objective(weights, *tim_parts(), **options), weights)
    torch.testing.assert_close(TIM(**options).gradient(weights.detach(), *tim_parts()), expected)


@pytest.mark.parametrize("solver", ["adm", "gradient"])
def test_the_change_of_tims_weights_is_a_constant_in_training(solver):
    support, query = features().requires_grad_(), features(n=9, seed=1).requires_grad_()
    head = TIM(solver, steps=5, lr=0.1)
    ours = torch.autograd.grad(head.classify(support, LABELS, query, W).sin().sum(), (support, query))
    rows, points = (F.normalize(x, dim=-1) for x in (support, query))
    start = torch.stack([torch.stack([r[y == m].mean(0) for m in range(W)]) for r, y in zip(rows, LABELS, strict=True)])
    solve = head.alternated if solver == "adm" else head.descended
    change = (solve(start, rows, F.one_hot(LABELS, W).double(), points) - start).detach()
    theirs = torch.autograd.grad(head.logits(points, start + change).sin().sum(), (support, query))
    torch.testing.assert_close(ours, theirs)


def test_the_gradient_of_tim_is_finite_where_probabilities_are_zero():
    weights, (support, members, query) = features(n=W, seed=2).float(), [part.float() for part in tim_parts()]
    head = TIM(temperature=1e4)
    assert not head.logits(query[:, :1], weights).softmax(-1).amin((1, 2)).any()
    assert head.gradient(weights, support, members, query[:, :1]).isfinite().all()


def test_tim_takes_the_published_number_of_steps():
    options = node(CONF / "head" / "tim.yaml")
    assert options.steps is None
    for solver, steps in (("adm", 150), ("gradient", 1000)):
        head = make(OmegaConf.merge(options, {"solver": solver}))
        assert head.steps == steps and TIM(solver, steps=3).steps == 3
        calls = []
        head.logits = lambda rows, weights, calls=calls: calls.append(0) or negative_distances(rows, weights)
        head.classify(features(), LABELS, features(n=7, seed=1), W)
        assert len(calls) == steps + 1  # and those of the result


@pytest.mark.parametrize("options", [{}, OTHER], ids=["defaults", "other"])
def test_tim_descends_as_torchs_adam(options):
    support, members, query = tim_parts()
    start = (members / members.sum(1, keepdim=True)).mT @ support
    weights = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([weights], lr=1e-3)
    for _ in range(20):
        optimizer.zero_grad()
        tim_objective(weights, *tim_parts(), **options).backward()
        optimizer.step()
    head = TIM("gradient", steps=20, lr=1e-3, **options)
    torch.testing.assert_close(head.descended(start, support, members, query), weights.detach(), rtol=1e-6, atol=1e-8)
    logits = -head.temperature / 2 * (query.unsqueeze(2) - weights.unsqueeze(1)).square().sum(-1)
    torch.testing.assert_close(
        head.classify(features(), LABELS, features(n=9, seed=1), W), logits, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("options", [{}, OTHER], ids=["defaults", "other"])
def test_tim_adm_is_the_loop_over_its_equations(options):
    """Of Proposition 1, with sums over rows in place of means, as the authors write them."""
    logits = logits_of(TIM(steps=3, **options))
    weight, alpha, temperature = (DEFAULTS | options).values()
    power, half = 1 + alpha, temperature / 2
    for t, (support, labels, query) in enumerate(tasks()):
        support, query = unit(support), unit(query)
        w = means(support, labels)
        for _ in range(3):
            ps, pq = softmax(-half * distances(support, w)), softmax(-half * distances(query, w))
            q = pq**power / np.sqrt((pq**power).sum(0))
            q /= q.sum(1, keepdims=True)
            after, ratio = np.empty_like(w), len(query) / len(support) * weight / power
            for m in range(W):
                y = labels == m
                top = ratio * sum(y[i] * z + ps[i, m] * (w[m] - z) for i, z in enumerate(support))
                top = top + sum(q[i, m] * z + pq[i, m] * (w[m] - z) for i, z in enumerate(query))
                after[m] = top / (ratio * y.sum() + q[:, m].sum())
            w = after
        np.testing.assert_allclose(logits[t], -half * distances(query, w), rtol=1e-9)


def test_both_updates_of_tim_adm_decrease_its_objective():
    support, members, query = tim_parts()
    weights = (members / members.sum(1, keepdim=True)).mT @ support
    values = []
    for _ in range(30):
        labels = assigned_labels(TIM().logits(query, weights).log_softmax(-1), 0.1)
        values.append(tim_objective(weights, support, members, query, labels))
        weights = TIM(steps=1).alternated(weights, support, members, query)
        values.append(tim_objective(weights, support, members, query, labels))
    falls = -torch.stack(values).diff()
    assert (falls > -1e-12).all() and falls[:4].min() > 1e-5


def test_both_solvers_of_tim_raise_the_mutual_information():
    support, members, query = tim_parts()
    start = (members / members.sum(1, keepdim=True)).mT @ support
    first = TIM(steps=60).alternated(start, support, members, query)
    second = TIM("gradient", steps=60, lr=0.05).descended(start, support, members, query)
    before, *after = (tim_objective(weights, support, members, query) for weights in (start, first, second))
    assert max(after) < before - 0.2 and abs(after[0] - after[1]) < 0.1


@pytest.mark.parametrize("rectify_first", [False, True])
@pytest.mark.parametrize("neighbours", [1, 2, 4])
def test_laplacian_shot_is_the_loop_over_its_equations(rectify_first, neighbours):
    logits = logits_of(LaplacianShot(weight=0.8, neighbours=neighbours, steps=4, rectify=rectify_first))
    for t, (support, labels, query) in enumerate(tasks()):
        prototypes, rows = means(unit(support), labels), unit(query)
        if rectify_first:
            prototypes, rows = rectify(support, labels, query, 1.0)
        graph = kneighbors_graph(rows, neighbours).toarray()
        unary = distances(rows, prototypes)
        y = softmax(-unary)
        for _ in range(4):
            last = np.array([-unary[q] + 0.8 * sum(graph[q, p] * y[p] for p in range(len(y))) for q in range(len(y))])
            y = softmax(last)
        np.testing.assert_allclose(logits[t], last, rtol=1e-9)


def test_laplacian_shot_centres_by_the_mean_of_training_features():
    mean = features(5, 1, 3)[0, 0]
    head = LaplacianShot(transform="cl2n").eval()
    head.base_mean = mean
    support, query = features() + mean, features(n=7, seed=1) + mean
    torch.testing.assert_close(head.classify(support, LABELS, query, W), logits_of(LaplacianShot()))


def laplacian_energy(log_y, log_z, unary, weights):
    """Return the objective of labels ``y``; with labels ``z`` of the neighbours, what an update minimises in ``y``."""
    y, z = log_y.exp(), log_z.exp()
    single = sum((p * (log_p - unary)).sum((1, 2)) for p, log_p in ((y, log_y), (z, log_z)))
    return (single - (y * (weights @ z)).sum((1, 2))) / 2


@given(st.integers(0, 10**6), st.floats(0.1, 5))
@settings(max_examples=10)
def test_updates_decrease_the_laplacian_objective(seed, weight):
    """For a positive semidefinite affinity the objective itself, for any symmetric one that of two labels in turn."""
    rows = features(4, 8, seed)
    unary, signed = features(W, 8, seed + 1), rows @ rows.mT
    symmetric = affinity(rows, 2) + affinity(rows, 2).mT
    for weights in (weight * signed, weight * symmetric):
        path = [updated(unary, weights, steps).log_softmax(-1) for steps in range(8)]
        turns = [laplacian_energy(y, z, unary, weights) for z, y in pairwise(path)]
        assert (torch.stack(turns).diff(dim=0) < 1e-10).all()
    path = [updated(unary, weight * signed, steps).log_softmax(-1) for steps in range(8)]
    assert (torch.stack([laplacian_energy(y, y, unary, weight * signed) for y in path]).diff(dim=0) < 1e-10).all()


def test_laplacian_shot_without_neighbours_is_the_nearest_prototype():
    logits = logits_of(LaplacianShot(weight=0.0, rectify=False))
    support, query = (F.normalize(x, dim=-1) for x in (features(), features(n=7, seed=1)))
    torch.testing.assert_close(logits, ProtoNet().classify(support, LABELS, query, W))
    assert not affinity(query[:, :1], 2).any()


@pytest.mark.parametrize(
    ("inner", "adapt", "train"),
    [
        ("batch", "all", False),
        ("vmap", "all", False),
        ("batch", "no_norm", False),
        ("batch", "output", False),
        ("batch", "all", True),
    ],
)
def test_transductive_finetuning_is_torchs_adam_on_each_task(inner, adapt, train):
    """In turns on the cross-entropy of the support set and the entropy of the queries, task by task."""
    episode, backbone = make_episode(), network("layer").train(train)
    steps = {"steps": 3, "test_steps": 1} if train else {"steps": 1, "test_steps": 3}
    head = TransductiveFinetuning(backbone, train, lr=1e-3, adapt=adapt, inner=inner, **steps).train(train)
    adapted = accept_task_weights(accelerate(copy.deepcopy(backbone)))
    logits = head(adapted, episode.support, episode.query.images, W)
    for t, piece in enumerate(episode.split(1)):
        net, labels = copy.deepcopy(backbone), piece.support.labels[0]

        def unit_features(images, net=net):
            return F.normalize(net.embed(images)[0][0].relu(), dim=-1)

        raw = net.embed(piece.support.images)[0][0].relu()
        layer = nn.Linear(raw.shape[1], W).double()
        layer.weight.data = F.normalize(torch.stack([raw[labels == m].mean(0) for m in range(W)]), dim=-1).detach()
        layer.bias.data.zero_()
        of_norms = {id(p) for norm in net.norms for p in norm.parameters()}
        adapting = [p for p in net.parameters() if adapt == "all" or (adapt == "no_norm" and id(p) not in of_norms)]
        assert (len(adapting), len(of_norms)) == ({"all": 12, "no_norm": 4, "output": 0}[adapt], 8)
        optimizer = torch.optim.Adam([*adapting, *layer.parameters()], lr=1e-3)
        for step in range(3):
            if step % 2 == 0:
                loss = F.cross_entropy(layer(unit_features(piece.support.images)), labels)
            else:
                p = layer(unit_features(piece.query.images)).softmax(-1)
                loss = -(p * p.log()).sum(-1).mean()
            for p in (*net.parameters(), *layer.parameters()):
                p.grad = None
            loss.backward()
            optimizer.step()
        expected = layer(unit_features(piece.query.images))
        torch.testing.assert_close(logits[t], expected, rtol=1e-5, atol=1e-6)
        assert (expected - logits[1 - t]).abs().max() > 1e-3


def test_the_outer_gradient_of_transductive_finetuning_is_first_order():
    """The changes of all weights are constants; the gradient passes through the first layer, of class means."""
    (episode, *_), backbone = make_episode().split(1), network("layer")
    head = TransductiveFinetuning(backbone, True, steps=2, lr=1e-3, inner="loop")
    path, descend = [], head.rates.descend
    head.rates.descend = lambda *args: path.append(descend(*args)) or path[-1]
    answers = episode.query.labels[0]
    ours = F.cross_entropy(head(backbone, episode.support, episode.query.images, W)[0], answers)
    names, values = zip(*backbone.named_parameters(), strict=True)

    def first_layer(embed):
        raw, labels = embed(episode.support.images).relu(), episode.support.labels[0]
        return F.normalize(torch.stack([raw[labels == m].mean(0) for m in range(W)]), dim=-1)

    start = first_layer(lambda images: backbone.embed(images)[0][0])
    moved = [p + (path[-1][f"backbone.{name}"][0] - p).detach() for name, p in zip(names, values, strict=True)]
    net = partial(functional_call, backbone, dict(zip(names, moved, strict=True)))
    weight = start + (path[-1]["weight"][0] - start).detach()
    with rows(1, len(answers), record=False):
        features = F.normalize(net((episode.query.images[0],)).relu(), dim=-1)
    theirs = F.cross_entropy(F.linear(features, weight, path[-1]["bias"][0].detach()), answers)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)
    gradients = (torch.autograd.grad(loss, values) for loss in (ours, theirs))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SoftKMeans(-1), "head.steps"),
        (lambda: BDCSPN(sharpness=-1.0), "head.sharpness"),
        (lambda: PTMAP(power=0.0), "head.power"),
        (lambda: PTMAP(rate=2.0), "head.rate"),
        (lambda: PTMAP(iterations=0), "head.iterations"),
        (lambda: LaplacianShot(neighbours=0), "head.neighbours"),
        (lambda: LaplacianShot(weight=-1.0), "head.weight"),
        (lambda: LaplacianShot(transform="un"), "head.transform"),
        (lambda: TransductiveFinetuning(network(), False, adapt="body"), "head.adapt"),
        (lambda: TransductiveFinetuning(network(), False, lr=-1.0), "head.lr"),
        (lambda: TIM(solver="newton"), "head.solver"),
        (lambda: TIM(support_weight=0.0), "head.support_weight"),
        (lambda: TIM(temperature=0.0), "head.temperature"),
    ],
)
def test_bad_values_are_refused(make, message):
    with pytest.raises(UsageError, match=f"expected {message}"):
        make()
