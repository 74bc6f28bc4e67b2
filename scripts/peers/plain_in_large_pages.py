"""The plain loop with the memory that train.py asks for; users of plain.py start without."""

from __future__ import annotations

from metafew.pages import keep_large

from . import plain
from .problem import Problem, Steps

TITLE = f"{plain.TITLE} in large pages"


def steps(problem: Problem) -> Steps:
    """Return the plain steps."""
    keep_large()
    return plain.steps(problem)
