"""Report errors and other messages once, although several ranks may have them. Imports no torch."""

from __future__ import annotations

import logging
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
    """Yield whether this rank reports an error: rank zero, or else the first rank whose wait for it times out.

    A wrong option is an error on all ranks, running out of memory perhaps on one.
    """
    store = default_store()
    if store is None:
        yield is_rank_zero()
    elif not is_rank_zero() and is_set(store, "reported", TIMEOUT):
        yield False
    else:
        yield store.add("reporting", 1) == 1
        store.set("reported", "")  # by now the report is written


def print_on_rank_zero() -> None:
    """Print messages below errors on rank zero only; those of the other ranks are in their log files."""
    if not is_rank_zero():
        for handler in logging.root.handlers:
            if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
                handler.setLevel(logging.ERROR)


def already_reported() -> bool:
    """Return whether a rank has reported an error, so that the others need not."""
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
    """Return whether a rank sets ``key`` before ``timeout``, or the rank that hosts the store has exited."""
    try:
        store.wait([key], timeout)
    except sys.modules["torch"].distributed.DistStoreError:
        return False
    except RuntimeError:
        return True
    return True
