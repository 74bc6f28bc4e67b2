"""MAML, first-order MAML and a prototypical network by parallel-metalearn, with its own batch norm.

With vmap over tasks, its default, and with one task after the other.
"""

from __future__ import annotations

from itertools import repeat

import torch
from metalearn.algorithms.MAML import MAML
from metalearn.algorithms.PrototypicalNet import PrototypicalNetwork
from metalearn.inner_optimizers.optimizers import InnerSGD
from metalearn.loss.categorical_accuracy import CategoricalAccuracy
from metalearn.loss.CEloss import CrossEntropy
from metalearn.model_wrappers.MAMLWrapper import MAML_Model
from metalearn.model_wrappers.PrototypicalWrapper import ProtoNet_Model
from metalearn.nn_models.basic_layers.BatchNormalization import BatchNorm
from torch import Tensor, nn

from .plain import adam, network
from .problem import Problem, Step, Steps


class Silent(nn.Module):
    """A module that ignores keyword arguments."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, x: Tensor, **_) -> Tensor:
        """Apply the module to ``x``."""
        return self.module(x)


def own(problem: Problem) -> tuple[Silent, Silent, int]:
    """Return backbone and output layer with the library's batch norm, and the dimension between them."""
    net = network(problem)
    for block in net.backbone.modules():
        for name, child in block.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(block, name, BatchNorm(child.num_features, track_running_stats=False).to(problem.device))
    return Silent(net.backbone), Silent(net.head), net.head.in_features


def maml(problem: Problem, first_order: bool, backend: str) -> Step:
    """Return a step of MAML."""
    setting, (body, head, _) = problem.setting, own(problem)
    model = MAML_Model(body, head)
    rule = InnerSGD(model.get_fast_weights(), first_order, setting.rate, max_inner_steps=setting.inner, learn_lr=False)
    loss = CrossEntropy(CategoricalAccuracy())
    algorithm = MAML(
        model=model, optimizer=adam(model), inner_optimizer=rule, support_loss_fn=loss, inner_steps=setting.inner,
        device=problem.device, backend=backend,
    )  # fmt: skip
    return step(problem, algorithm)


def protonet(problem: Problem, backend: str) -> Step:
    """Return a step of a prototypical network."""
    body, _, features = own(problem)
    model = ProtoNet_Model(body, problem.setting.way, features)
    loss = CrossEntropy(CategoricalAccuracy())
    algorithm = PrototypicalNetwork(
        model=model, optimizer=adam(model), loss_fn=loss, device=problem.device, backend=backend
    )
    return step(problem, algorithm)


def step(problem: Problem, algorithm: nn.Module) -> Step:
    """Return a step of an algorithm of the library."""
    tasks = problem.tasks()
    batches = repeat((tasks.support, {"labels": tasks.labels}, tasks.query, {"labels": tasks.answers}))
    # One task after the other, it reports the loss divided by the number of tasks twice; gradients are right.
    factor = problem.setting.tasks if algorithm.backend == "sequential" else 1
    return Step(lambda: torch.tensor(factor * algorithm.step(batches)[0]), algorithm.model)


def steps(problem: Problem) -> Steps:
    """Return the steps of parallel-metalearn, each over tasks by vmap and one after the other."""
    found = {}
    for suffix, backend in (("", "vmap"), (" sequential", "sequential")):
        found[f"maml{suffix}"] = maml(problem, False, backend)
        found[f"fomaml{suffix}"] = maml(problem, True, backend)
        found[f"protonet{suffix}"] = protonet(problem, backend)
    return found
