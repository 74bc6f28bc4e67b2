"""A prototypical network by meta-learning-toolkit, whose MAML takes one inner step only."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from meta_learning.algos.protonet import ProtoHead
from torch import Tensor

from .plain import adam, backbone
from .problem import Problem, Step, Steps


def steps(problem: Problem) -> Steps:
    """Return what the toolkit offers in this setting: ProtoNet."""
    net, tasks, setting = backbone(problem), problem.tasks(), problem.setting
    optimizer, head = adam(net), ProtoHead().to(problem.device)

    def take() -> Tensor:
        optimizer.zero_grad()
        total = torch.zeros((), device=problem.device)
        for support, labels, query, answers in tasks:
            loss = F.cross_entropy(head(net(support), labels, net(query)), answers) / setting.tasks
            loss.backward()
            total += loss.detach()
        optimizer.step()
        return total

    return {"protonet": Step(take, net)}
