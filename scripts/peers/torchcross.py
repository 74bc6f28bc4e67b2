"""MAML and a prototypical network by TorchCross's episodic models."""

from __future__ import annotations

import torch
import torch.nn.functional as F
import torchopt
from torch import Tensor, nn
from torchcross.data.task import Task, TaskDescription, TaskTarget
from torchcross.models.maml import MAML
from torchcross.models.protonet import ProtoNet

from .plain import adam, network
from .problem import Problem, Step, Steps


def steps(problem: Problem) -> Steps:
    """Return what TorchCross offers: MAML with second derivatives, and ProtoNet."""
    setting = problem.setting
    classes = {label: str(label) for label in range(setting.way)}
    description = TaskDescription(TaskTarget.MULTICLASS_CLASSIFICATION, classes)
    tasks = [Task((task[0], task[1]), (task[2], task[3]), description) for task in problem.tasks()]

    def step(model: nn.Module) -> Step:
        model.to(problem.device).train()
        optimizer = adam(model)

        def take() -> Tensor:
            optimizer.zero_grad()
            losses = [F.cross_entropy(logits, task.query[1]) for logits, task in zip(model(tasks), tasks, strict=True)]
            loss = torch.stack(losses).mean()
            loss.backward()
            optimizer.step()
            return loss.detach()

        return Step(take, model)

    def inner(net: nn.Module) -> torchopt.MetaOptimizer:
        return torchopt.MetaSGD(net, lr=setting.rate)

    def at_test(parameters) -> torchopt.Optimizer:
        return torchopt.SGD(parameters, lr=setting.rate)

    net = network(problem)
    features = net.head.in_features
    maml = MAML(net.backbone, features, description, inner, at_test, setting.inner)
    maml.head.load_state_dict(net.head.state_dict())
    return {"maml": step(maml), "protonet": step(ProtoNet(network(problem).backbone, features))}
