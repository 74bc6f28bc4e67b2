"""MAML and first-order MAML by iteryne's learners."""

from __future__ import annotations

import iteryne
import torch
import torch.nn.functional as F
from torch import Tensor

from .plain import adam, network
from .problem import Problem, Step, Steps


def maml(problem: Problem, first_order: bool) -> Step:
    """Return a step of MAML."""
    net, tasks, setting = network(problem), problem.tasks(), problem.setting
    algorithm = iteryne.MAML(net, inner_lr=setting.rate, inner_steps=setting.inner, first_order=first_order)
    optimizer = adam(algorithm)

    def take() -> Tensor:
        optimizer.zero_grad()
        total = torch.zeros((), device=problem.device)
        for support, labels, query, answers in tasks:
            learner = algorithm.clone()
            for _ in range(setting.inner):
                learner.adapt(F.cross_entropy(learner(support), labels))
            loss = F.cross_entropy(learner(query), answers) / setting.tasks
            loss.backward()
            total += loss.detach()
        optimizer.step()
        return total

    return Step(take, net)


def steps(problem: Problem) -> Steps:
    """Return what iteryne offers."""
    return {"maml": maml(problem, first_order=False), "fomaml": maml(problem, first_order=True)}
