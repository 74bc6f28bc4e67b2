"""Contracts that every head under conf/head keeps, and heads against their formulas."""

import pytest
import torch
from contracts import files
from contracts.heads import Flat, HeadContract, Q, T, W, make_episode

from metafew.heads.protonet import ProtoNet
from metafew.heads.ridge import Ridge
from metafew.objectives.episodic import Episodic
from metafew.objectives.regularizers import NoRegularizer
from metafew.solvers.ridge import ridge


@pytest.fixture
def episode():
    return make_episode()


@pytest.mark.parametrize("file", files("head"))
class TestContract(HeadContract):
    pass


def test_protonet_is_the_distance_to_class_means(episode):
    support, query = episode.support.images.flatten(2), episode.query.images.flatten(2)
    means = torch.stack([support[:, 2 * c : 2 * c + 2].mean(1) for c in range(W)], 1)
    reference = -(query.unsqueeze(2) - means.unsqueeze(1)).square().sum(-1)
    torch.testing.assert_close(ProtoNet().classify(support, episode.support.labels, query, W), reference)
    divided = ProtoNet(divide=True).classify(support, episode.support.labels, query, W)
    torch.testing.assert_close(divided, reference / 256)


def test_protonet_keeps_digits_far_from_the_origin():
    near = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[0, 1]])
    reference = ProtoNet().classify(near[:, :2].double(), labels, near[:, 2:].double(), 2)
    far = ProtoNet().classify(near[:, :2] + 1000, labels, near[:, 2:] + 1000, 2)
    torch.testing.assert_close(far.double(), reference, rtol=1e-3, atol=1e-2)


def test_metaoptnet_ridge_is_twice_the_ridge(episode):
    """MetaOptNet minimises 1/2 a'(K + 50 I)a - 2 Y'a; its solution is twice the regression's."""
    support, query = episode.support.images.flatten(2), episode.query.images.flatten(2)
    onehot = torch.nn.functional.one_hot(episode.support.labels, W).double()
    alpha = 2 * torch.linalg.solve(support @ support.mT + 50 * torch.eye(2 * W), onehot)
    torch.testing.assert_close(query @ support.mT @ alpha, 2 * ridge(support, onehot, 50.0, query))
    ours = Ridge().classify(support, episode.support.labels, query, W)
    torch.testing.assert_close(2 * ours, query @ support.mT @ alpha)


def test_label_smoothing_spares_the_true_class(episode):
    """Lee et al. (2019): 1 - eps on the true class, eps / (way - 1) on each other."""
    backbone, trained = Flat(256), ProtoNet()
    logits = trained(backbone, episode.support, episode.query.images, W)
    weights = torch.full((T, W * Q, W), 0.1 / (W - 1), dtype=torch.double)
    weights.scatter_(2, episode.query.labels.unsqueeze(-1), 0.9)
    reference = -(weights * logits.log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(
        Episodic(NoRegularizer(), label_smoothing=0.1)(backbone, trained, [episode]).loss, reference
    )
