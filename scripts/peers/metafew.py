"""The steps of metafew with batch norm, with the memory allocator of train.py."""

from __future__ import annotations

import torch

from metafew.allocator import use_huge_pages

from . import plain
from .problem import Problem, Step, Steps

TITLE = "metafew"
ALGORITHMS = ("maml", "fomaml", "protonet", "svm")
"""The heads of a setting without ``heads``."""


def own(problem: Problem, algorithm: str) -> Step:
    """Return a step of metafew that starts from the same weights as the other peers."""
    from benchmarks import steps  # importing it creates tensors, which use_huge_pages must precede

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
    """Return the steps that are compared with those of other libraries."""
    use_huge_pages()
    return {name: own(problem, name) for name in problem.setting.heads or ALGORITHMS}
