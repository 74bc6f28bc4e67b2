"""Tasks on which a solver did not converge: counted over a run, and logged once per solver."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor

log = logging.getLogger(__name__)

TOLERANCE = 1e-6
_counts: ContextVar[Counter[str] | None] = ContextVar("unsolved", default=None)


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Count unsolved tasks by solver, and log the first of each solver."""
    counts: Counter[str] = Counter()
    token = _counts.set(counts)
    try:
        yield counts
    finally:
        _counts.reset(token)


def so_far() -> Counter[str]:
    """Return the open count, or an empty one."""
    return Counter() if (counts := _counts.get()) is None else counts


def report(solver: str, residual: Tensor) -> None:
    """Add unsolved tasks to the open count, or warn of them if there is none.

    Args:
        solver: its name in messages.
        residual: distance of each task from its solution, ``(t,)``; NaN, from non-finite features, is not counted.
    """
    residual = residual.nan_to_num(0)
    tasks = int((residual > TOLERANCE).sum())
    if not tasks:
        return
    message = f"The {solver} of a task did not converge (residual {residual.max().item():.1e})."
    counts = _counts.get()
    if counts is None:
        warnings.warn(message, stacklevel=3)
        return
    if solver not in counts:
        log.warning("%s Others are counted in results.json.", message)
    counts[solver] += tasks
