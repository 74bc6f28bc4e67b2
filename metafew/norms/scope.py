"""The scope that ``Backbone.embed`` opens around every pass: which rows of a flat batch are context."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple


class Rows(NamedTuple):
    """The division of the rows of a flat batch into tasks.

    Attributes:
        tasks: number of tasks; task ``i`` owns the ``i``-th contiguous block of rows.
        context: number of context rows, which are the first rows of each task; the others are targets.
        record: whether norms record this pass for their running moments (not in inner steps of an adapting head); or,
            for passes inside ``vmap`` or in a ``task_scope``, a dictionary from norm to moments in which they do.
        share: the fraction of each task's rows in this pass, if context and targets are passed separately.
    """

    tasks: int
    context: int
    record: bool | dict
    share: float


_rows: ContextVar[Rows] = ContextVar("rows")


@contextmanager
def rows(tasks: int, context: int, record: bool | dict = True, share: float = 1.0) -> Iterator[None]:
    """Open a scope for one pass over ``tasks`` tasks, the first ``context`` rows of each being its context."""
    token = _rows.set(Rows(tasks, context, record, share))
    try:
        yield
    finally:
        _rows.reset(token)


def current() -> Rows:
    """Return the open scope.

    Raises:
        RuntimeError: no scope is open.
    """
    try:
        return _rows.get()
    except LookupError:
        raise RuntimeError(
            "a normalization layer was called outside a scope: use backbone.embed(context, targets), "
            "or open metafew.norms.scope.rows(tasks, context) around the pass; checkpointing of activations, which "
            "repeats a pass later, is not supported"
        ) from None
