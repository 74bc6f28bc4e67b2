"""The support vector machine of MetaOptNet (Lee et al. 2019) by qpth's batched interior-point solver.

As by its authors: the dual problem in all n * w variables at once, in float32, with at most 15 iterations.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from qpth.qp import QPFunction
from torch import Tensor, nn

from .plain import adam, backbone
from .problem import Problem, Step, Steps

BOUND = 0.1


def solve(features: Tensor, labels: Tensor, way: int) -> Tensor:
    """Return the dual solution ``(t, n, w)`` from features ``(t, n, d)`` and labels ``(t, n)``."""
    tasks, rows, _ = features.shape
    like = {"dtype": features.dtype, "device": features.device}
    target = F.one_hot(labels, way).to(**like).flatten(1)
    quadratic = torch.kron(features @ features.mT, torch.eye(way, **like)) + torch.eye(rows * way, **like)
    bounds = torch.eye(rows * way, **like).expand(tasks, -1, -1)
    sums = torch.kron(torch.eye(rows, **like), torch.ones(1, way, **like)).expand(tasks, -1, -1)
    zeros = torch.zeros(tasks, rows, **like)
    solver = QPFunction(verbose=False, maxIter=15)
    return solver(quadratic, -target, bounds, BOUND * target, sums, zeros).view(tasks, rows, way)


def solver_step(problem: Problem, shot: int) -> Step:
    """Return a step that only solves, forward and backward."""
    features, labels, slope = problem.solved(shot)

    def take() -> Tensor:
        rows = features.detach().requires_grad_()
        alpha = solve(rows, labels, problem.setting.way)
        alpha.backward(slope)
        return alpha.detach()

    return Step(take)


def svm(problem: Problem) -> Step:
    """Return a step of MetaOptNet; the features are computed one task at a time, as by the other steps."""
    net, tasks, setting = backbone(problem), problem.tasks(), problem.setting
    net.scale = nn.Parameter(torch.ones((), device=problem.device))
    optimizer = adam(net)

    def take() -> Tensor:
        optimizer.zero_grad()
        support = torch.stack([net(images) for images in tasks.support])
        query = torch.stack([net(images) for images in tasks.query])
        scores = query @ support.mT @ solve(support, tasks.labels, setting.way)
        loss = F.cross_entropy((net.scale * scores).flatten(0, 1), tasks.answers.flatten())
        loss.backward()
        optimizer.step()
        return loss.detach()

    return Step(take, net)


def steps(problem: Problem) -> Steps:
    """Return the steps that use qpth: the SVM, and its solver for each number of shots."""
    solvers = {f"crammer_singer {shot}-shot": solver_step(problem, shot) for shot in problem.setting.solver_shots}
    return {"svm": svm(problem), **solvers}
