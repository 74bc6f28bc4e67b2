"""Ranks of methods that were measured on the same tasks."""

from __future__ import annotations

import torch
from torch import Tensor

from metafew.metrics import interval


def ranks(accuracies: Tensor) -> Tensor:
    """Return the rank of each method, 1 for the best: those that cannot be told apart share the mean of their ranks.

    Two methods differ when the 95 % confidence interval of the mean of their paired differences leaves out 0. The rank
    of a method is 1 + the number of methods that are better + half the number of those that do not differ from it,
    which is the mean of the ranks that a group of equals takes up.

    Args:
        accuracies: ``(methods, tasks)``.

    Returns:
        ``(methods,)``.

    >>> ranks(torch.tensor([[0.1, 0.3, 0.1, 0.3], [0.8, 0.8, 0.9, 0.9], [0.9, 0.9, 0.8, 0.8]]))
    tensor([3.0000, 1.5000, 1.5000])
    """
    placed = torch.ones(len(accuracies))
    for i, ours in enumerate(accuracies):
        for j, theirs in enumerate(accuracies):
            difference = interval(theirs - ours)
            spread = difference["ci95"] or 0.0
            if i != j and abs(difference["mean"]) <= spread:
                placed[i] += 0.5
            elif difference["mean"] > spread:
                placed[i] += 1
    return placed
