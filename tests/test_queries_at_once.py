"""The test queries that share a pass: a test measures what heads give for these queries alone."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from contracts.heads import Q, W, make_episode, network
from contracts.steps import evaluate, prepare_tables, without_loops

from metafew.backbones.conv4 import Conv4
from metafew.episode import Labelled
from metafew.evaluation.evaluator import Evaluator
from metafew.evaluation.metrics import PerTask
from metafew.heads.maml import MAML
from metafew.heads.protonet import ProtoNet
from metafew.heads.soft_kmeans import SoftKMeans
from metafew.norms.transductive import Transductive

MODES = ("together", "single", "class")


def joined():
    """Return a network whose norms let the queries change the features of the support set too."""
    torch.manual_seed(0)
    return Conv4(1, 16, partial(Transductive, over="joined"), width=8).double()


CASES = {
    "a transductive head": (partial(network, "layer"), lambda _: SoftKMeans()),
    "a transductive norm": (partial(network, "transductive"), lambda _: ProtoNet()),
    "both": (partial(network, "transductive"), lambda _: SoftKMeans()),
    "a norm over all rows": (joined, lambda _: ProtoNet()),
    "an adapting head": (partial(network, "transductive"), lambda backbone: MAML(backbone, False, W, test_steps=1)),
    "no transductive part": (partial(network, "layer"), lambda _: ProtoNet()),
}


@pytest.fixture
def episode():
    """Tasks whose queries of one class are not one after the other."""
    made, order = make_episode(), torch.randperm(W * Q, generator=torch.Generator().manual_seed(5))
    return made._replace(query=Labelled(*(part[:, order] for part in made.query)))


def measured(queries, backbone, head, episode):
    """Return the loss of each task that a test measures."""
    evaluator = without_loops(Evaluator(backbone, {"own": head}, queries))
    prepare_tables(evaluator)
    return evaluate(evaluator, episode)["own"].compute()[:, PerTask.columns.index("loss")]


@torch.no_grad()
def alone(queries, backbone, head, episode):
    """Return the loss of each task under a head that is called for each part of the queries."""
    found = []
    for task in episode.split(1):
        images, labels = task.query.images, task.query.labels[0]
        rows = torch.arange(len(labels))
        parts = {"together": [rows], "single": rows.split(1), "class": [rows[labels == m] for m in range(W)]}[queries]
        logits = torch.cat([head(backbone, task.support, images[:, part], W)[0] for part in parts])
        found.append(F.cross_entropy(logits, labels[torch.cat([*parts])]))
    return torch.stack(found)


@pytest.mark.parametrize("case", CASES)
def test_the_queries_of_a_pass_are_all_that_a_head_sees(case, episode):
    make_backbone, make_head = CASES[case]
    backbone = make_backbone().eval()
    head = make_head(backbone).double().eval()
    losses = [measured(queries, backbone, head, episode) for queries in MODES]
    for queries, found in zip(MODES, losses, strict=True):
        torch.testing.assert_close(found, alone(queries, backbone, head, episode), rtol=1e-9, atol=1e-9)
    for one, other in ((0, 1), (1, 2), (0, 2)):
        gap = (losses[one] - losses[other]).abs().min()
        assert gap < 1e-9 if case == "no transductive part" else gap > 1e-6, (MODES[one], MODES[other])
