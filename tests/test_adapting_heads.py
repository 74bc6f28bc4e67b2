"""Heads that adapt weights in other ways than MAML, against slow references."""

import copy

import pytest
import torch
from smooth import Smooth, W, three_tasks
from torch.nn.functional import cross_entropy, linear

from metafew.heads.maml import MAML


def learner(word="tasknorm", **options):
    torch.manual_seed(0)
    backbone = Smooth(word).double().eval()
    return backbone, MAML(backbone, **{"trained": True, "way": W, "test_steps": 2, "lr": 0.3} | options).double().eval()


def one_task():
    task = three_tasks().split(1)[0]
    return task.support, task.query.images, W


@pytest.mark.parametrize("trained", [True, False])
def test_boil_fits_a_network_under_an_output_layer_that_stays(trained):
    backbone, head = learner("none", adapt="body", trained=trained, lr=50)
    support, query, _ = one_task()
    body, labels = copy.deepcopy(backbone), support.labels[0]
    start, logits = body.embed(support.images)[0][0].detach(), head(backbone, support, query, W)
    if trained:
        weight, bias = head.output.weight.detach(), head.output.bias.detach()
    else:  # nearest class mean
        means = torch.stack([start[labels == label].mean(0) for label in range(W)])
        weight, bias = 2 * means, -means.square().sum(1)
    optimizer = torch.optim.SGD(body.parameters(), lr=50)
    for _ in range(2):
        optimizer.zero_grad()
        cross_entropy(linear(body.embed(support.images)[0][0], weight, bias), labels).backward()
        optimizer.step()
    features = body.embed(query)[0][0]
    torch.testing.assert_close(logits[0], linear(features, weight, bias), rtol=1e-10, atol=1e-12)
    assert (body.embed(support.images)[0][0] - start).abs().max() > 1e-3


def test_boil_has_a_learned_layer_only_where_it_fits():
    kinds = [learner(adapt="body", trained=trained, way=way)[1].output.kind
             for trained, way in ((True, W), (False, W), (True, "2..5"))]  # fmt: skip
    assert kinds == ["linear", "prototype", "prototype"]
