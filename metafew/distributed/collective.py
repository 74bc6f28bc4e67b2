"""Collective operations over the ranks of a run."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_reduce


def distributed() -> bool:
    """Return whether several ranks train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def mean_over_processes(value: Tensor) -> Tensor:
    """Return the mean of ``value`` over all ranks, with gradient."""
    return all_reduce(value) / dist.get_world_size() if distributed() else value


def gather_objects(value: Any) -> list:
    """Return the ``value`` of every rank, which can be any picklable object."""
    if not distributed():
        return [value]
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
