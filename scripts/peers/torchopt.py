"""MAML by TorchOpt's MetaSGD, as in its example: the module is adapted in place and then restored."""

from __future__ import annotations

import torch
import torch.nn.functional as F
import torchopt
from torch import Tensor

from .plain import adam, network
from .problem import Problem, Step, Steps


def steps(problem: Problem) -> Steps:
    """Return what TorchOpt offers: MAML with second derivatives."""
    net, tasks, setting = network(problem), problem.tasks(), problem.setting
    optimizer, inner = adam(net), torchopt.MetaSGD(net, lr=setting.rate)

    def take() -> Tensor:
        optimizer.zero_grad()
        total = torch.zeros((), device=problem.device)
        weights = torchopt.extract_state_dict(net, by="reference", detach_buffers=True)
        state = torchopt.extract_state_dict(inner, by="reference")
        for support, labels, query, answers in tasks:
            for _ in range(setting.inner):
                inner.step(F.cross_entropy(net(support), labels))
            loss = F.cross_entropy(net(query), answers) / setting.tasks
            loss.backward()
            total += loss.detach()
            torchopt.recover_state_dict(net, weights)
            torchopt.recover_state_dict(inner, state)
        optimizer.step()
        return total

    return {"maml": Step(take, net)}
