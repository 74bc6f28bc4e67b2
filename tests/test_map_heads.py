"""Heads that compare positions against their formulas; what they share with others is in test_heads.py."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from metafew.backbones.identity import Identity
from metafew.errors import UsageError
from metafew.heads.dn4 import DN4
from metafew.heads.relation import Relation

W, SHAPE = 3, (4, 3, 5)
LABELS = torch.tensor([[0, 0, 1, 2, 2, 2], [2, 1, 0, 0, 1, 2]])
BACKBONE = SimpleNamespace(map_shape=SHAPE)


def features(n=6, seed=0):
    return torch.randn(2, n, 60, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


@pytest.mark.parametrize("neighbours", [1, 3, 20, 100])
def test_dn4_sums_the_cosines_of_the_nearest_positions(neighbours):
    support, query = features(), features(4, 1)
    logits = DN4(BACKBONE, False, neighbours=neighbours).classify(support, LABELS, query, W)
    for t in range(2):
        maps = support[t].view(6, 4, 15)
        for m in range(W):
            descriptors = [maps[i, :, p] for i in range(6) if LABELS[t, i] == m for p in range(15)]
            for q in range(4):
                total = 0.0
                for p in range(15):
                    x = query[t, q].view(4, 15)[:, p]
                    cosines = sorted(float(x @ y / (x.norm() * y.norm())) for y in descriptors)[-neighbours:]
                    total += neighbours * sum(cosines) / len(cosines)
                assert logits[t, q, m].item() == pytest.approx(total, rel=1e-9)


def test_dn4_of_one_position_and_one_neighbour_is_the_nearest_image_by_cosine():
    support, query = features(), features(4, 1)
    logits = DN4(SimpleNamespace(map_shape=(60, 1, 1)), False, neighbours=1).classify(support, LABELS, query, W)
    cosines = F.cosine_similarity(query[:, :, None], support[:, None], dim=-1)
    nearest = LABELS.gather(1, cosines.argmax(-1))
    assert torch.equal(logits.argmax(-1), nearest)
    torch.testing.assert_close(logits.amax(-1), cosines.amax(-1))


def test_dn4_of_constant_features_is_finite_with_gradients():
    support, query = torch.zeros_like(features()).requires_grad_(), features(4, 1).requires_grad_()
    logits = DN4(BACKBONE, False).classify(support, LABELS, query, W)
    logits.sum().backward()
    assert not logits.any() and support.grad.isfinite().all() and query.grad.isfinite().all()


def test_a_support_image_that_is_not_finite_fails_the_task():
    support, query = features(), features(4, 1)
    support[0, 0] = torch.nan
    logits = DN4(SimpleNamespace(map_shape=(60, 1, 1)), False).classify(support, LABELS, query, W)
    assert logits[0].isnan().any() and logits[1:].isfinite().all()


@pytest.mark.parametrize("shape", [(4, 3, 5), (15, 2, 2), (60, 1, 1)])
def test_relation_scores_concatenated_maps(shape):
    torch.manual_seed(0)
    head = Relation(SimpleNamespace(map_shape=shape), True, width=6).double()
    support, query = features(), features(4, 1)
    logits = head.classify(support, LABELS, query, W)
    first = torch.cat([head.of_class.weight, head.of_query.weight], 1)
    (second,) = [layer.weight for layer in head.blocks if isinstance(layer, torch.nn.Conv2d)]
    for t in range(2):
        for m in range(W):
            mean = support[t, LABELS[t] == m].mean(0).view(shape)
            for q in range(4):
                x = torch.cat([mean, query[t, q].view(shape)])[None]
                for kernel in (first, second):
                    x = F.conv2d(x, kernel, padding=1)
                    x = F.relu((x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt())
                    x = F.max_pool2d(x, 2) if min(x.shape[2:]) > 1 else x
                hidden = F.relu(head.score[0](x.flatten()))
                torch.testing.assert_close(logits[t, q, m], hidden @ head.score[2].weight[0])


@pytest.mark.parametrize(("make", "word"), [(DN4, "dn4"), (Relation, "relation")])
def test_features_without_positions_are_refused(make, word):
    with pytest.raises(UsageError, match=f"for head={word}, got Identity without: type backbone.readout=map, or"):
        make(Identity(8, 1, None), True)


@pytest.mark.parametrize(
    ("make", "options"), [(DN4, {"neighbours": 0}), (Relation, {"width": 0}), (Relation, {"hidden": 0})]
)
def test_bad_values_are_said(make, options):
    (key,) = options
    with pytest.raises(UsageError, match=f"expected head.{key} to be .*, got 0: type head.{key}="):
        make(BACKBONE, True, **options)
