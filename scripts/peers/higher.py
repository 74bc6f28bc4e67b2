"""MAML by higher's inner-loop context."""

from __future__ import annotations

import higher
import torch
import torch.nn.functional as F
from torch import Tensor

from .plain import adam, network
from .problem import Problem, Step, Steps


def steps(problem: Problem) -> Steps:
    """Return what higher offers: MAML with second derivatives."""
    net, tasks, setting = network(problem), problem.tasks(), problem.setting
    optimizer, inner = adam(net), torch.optim.SGD(net.parameters(), lr=setting.rate)

    def take() -> Tensor:
        optimizer.zero_grad()
        total = torch.zeros((), device=problem.device)
        for support, labels, query, answers in tasks:
            with higher.innerloop_ctx(net, inner, copy_initial_weights=False) as (fast, rule):
                for _ in range(setting.inner):
                    rule.step(F.cross_entropy(fast(support), labels))
                loss = F.cross_entropy(fast(query), answers) / setting.tasks
                loss.backward()
            total += loss.detach()
        optimizer.step()
        return total

    return {"maml": Step(take, net)}
