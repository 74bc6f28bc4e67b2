"""What the processes of one run tell each other."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_reduce


def distributed() -> bool:
    """Tell whether several processes train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def mean_over_processes(value: Tensor) -> Tensor:
    """Return the mean of ``value`` over all processes, with gradient."""
    return all_reduce(value) / dist.get_world_size() if distributed() else value


def gather_objects(value: Any) -> list:
    """Return what every process holds as ``value``, any plain object."""
    if not distributed():
        return [value]
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
