"""Report an error once, even if several ranks raise it. Imports no torch."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from metafew.distributed.launcher import is_rank_zero

if TYPE_CHECKING:
    from torch.distributed import Store

TIMEOUT = timedelta(seconds=5)
"""How long other ranks wait for rank zero, which may be busy or may not have failed."""


@contextmanager
def first_to_report() -> Iterator[bool]:
    """Yield whether this rank reports an error: rank zero, or the first rank whose wait for rank zero times out.

    A wrong option is an error on all ranks, while running out of memory may affect only one.
    """
    store = default_store()
    if store is None:
        yield is_rank_zero()
    elif not is_rank_zero() and is_set(store, "reported", TIMEOUT):
        yield False
    else:
        yield store.add("reporting", 1) == 1
        store.set("reported", "")  # the report has been written


def already_reported() -> bool:
    """Return whether some rank has already reported an error."""
    store = default_store()
    return store is not None and is_set(store, "reporting", timedelta(milliseconds=1))


def global_rank() -> int:
    """Return the rank of this process; 0 before the process group exists."""
    return sys.modules["torch"].distributed.get_rank() if default_store() else 0


def default_store() -> Store | None:
    """Return the key-value store of the process group, if there is one."""
    distributed = getattr(sys.modules.get("torch"), "distributed", None)
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return None
    return distributed.distributed_c10d._get_default_store()


def is_set(store: Store, key: str, timeout: timedelta) -> bool:
    """Return whether a rank sets ``key`` within ``timeout``, or the rank that hosts the store has exited."""
    try:
        store.wait([key], timeout)
    except sys.modules["torch"].distributed.DistStoreError:
        return False
    except RuntimeError:
        return True
    return True
