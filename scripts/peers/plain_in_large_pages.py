"""The plain loop with the memory that train.py asks for; users of plain.py start without."""

from __future__ import annotations

from metafew.allocator import use_huge_pages

from . import plain
from .problem import Problem, Steps

TITLE = f"{plain.TITLE} in large pages"


def steps(problem: Problem) -> Steps:
    """Return the plain steps."""
    use_huge_pages()
    return plain.steps(problem)
