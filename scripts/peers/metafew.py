"""Our own steps with batch norm, in a process and with memory as train.py has them."""

from __future__ import annotations

import torch

from metafew.allocator import use_huge_pages

from . import plain
from .problem import Problem, Step, Steps

TITLE = "metafew"
ALGORITHMS = ("maml", "fomaml", "protonet", "svm")


def own(problem: Problem, algorithm: str) -> Step:
    """Return our step, from the weights of all others."""
    from benchmarks import steps  # whose imports make tensors

    step = steps.step(problem, algorithm, "batch")
    network = plain.network(problem)
    adapts = algorithm in steps.GRADIENT
    theirs = list((network if adapts else network.backbone).parameters())
    head = step.network.heads[algorithm]
    ours = [*step.network.backbone.parameters(), *([head.output.weight, head.output.bias] if adapts else [])]
    with torch.no_grad():
        for mine, its in zip(ours, theirs, strict=True):
            mine.copy_(its)
    return step


def steps(problem: Problem) -> Steps:
    """Return what is compared with others."""
    use_huge_pages()
    return {name: own(problem, name) for name in ALGORITHMS if name in (problem.setting.heads or ALGORITHMS)}
