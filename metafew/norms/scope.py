"""Which rows of a flat batch are context: the scope that ``Backbone.embed`` opens around every pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple


class Rows(NamedTuple):
    """How the rows of a flat batch divide into tasks.

    Attributes:
        tasks: number of tasks; task ``i`` owns the ``i``-th contiguous block of rows.
        context: the first so many rows of each task are its context, the rest its targets.
        record: whether running moments take part in this pass (inner steps of an adapting head do not); or a dictionary
            in which each norm leaves what it would have recorded, for passes inside ``vmap``.
        share: the part of each task's rows that this pass holds; the others pass apart.
    """

    tasks: int
    context: int
    record: bool | dict
    share: float


_rows: ContextVar[Rows] = ContextVar("rows")


@contextmanager
def rows(tasks: int, context: int, record: bool | dict = True, share: float = 1.0) -> Iterator[None]:
    """Tell every norm of the pass inside which rows are context."""
    token = _rows.set(Rows(tasks, context, record, share))
    try:
        yield
    finally:
        _rows.reset(token)


def current() -> Rows:
    """Return the division of the pass under way; without one no norm could tell context from target."""
    try:
        return _rows.get()
    except LookupError:
        raise RuntimeError(
            "a normalization layer was called outside a scope: use backbone.embed(context, targets), "
            "or open metafew.norms.scope.rows(tasks, context) around the pass"
        ) from None
