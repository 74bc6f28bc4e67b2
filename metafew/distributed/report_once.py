"""Report errors and other messages once, even if several ranks have them. Imports no torch."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import ModuleType
from typing import TYPE_CHECKING

from metafew.distributed.launcher import SharedOutputFolder, is_rank_zero, launched_world_size

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


def print_on_rank_zero() -> None:
    """Print messages less severe than errors on rank zero only; those of the other ranks are in their log files."""
    if not is_rank_zero():
        for handler in logging.root.handlers:
            if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
                handler.setLevel(logging.ERROR)


def already_reported() -> bool:
    """Return whether some rank has already reported an error."""
    store = default_store()
    return store is not None and is_set(store, "reporting", timedelta(milliseconds=1))


def end_other_ranks() -> None:
    """Let the other ranks end after an error that this rank prints itself."""
    if (store := default_store()) is not None:
        store.add("reporting", 1)
        store.set("reported", "")


def wait_for_other_ranks() -> None:
    """Wait until each process that torchrun or srun launched calls this; exit with 2 if one of them ends with an error.

    Lightning would wait half an hour for a rank that has ended, on another machine for example.
    """
    store = SharedOutputFolder.store
    if store is None:
        return
    store.add("ready", 1)
    while store.add("ready", 0) < launched_world_size():
        if already_reported():
            is_set(store, "reported", TIMEOUT)  # rank zero, which hosts the store, ends last
            sys.exit(2)
        time.sleep(0.1)


def global_rank() -> int:
    """Return the rank of this process."""
    if process_group():
        return sys.modules["torch"].distributed.get_rank()
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", 0)))


def default_store() -> Store | None:
    """Return the key-value store of the process group; before there is one, that of torchrun's or srun's processes."""
    return (
        distributed.distributed_c10d._get_default_store()
        if (distributed := process_group())
        else SharedOutputFolder.store
    )


def process_group() -> ModuleType | None:
    """Return torch.distributed if the process group exists."""
    distributed = getattr(sys.modules.get("torch"), "distributed", None)
    return (
        distributed if distributed is not None and distributed.is_available() and distributed.is_initialized() else None
    )


def is_set(store: Store, key: str, timeout: timedelta) -> bool:
    """Return whether a rank sets ``key`` within ``timeout``, or the rank that hosts the store has exited."""
    try:
        store.wait([key], timeout)
    except sys.modules["torch"].distributed.DistStoreError:
        return False
    except RuntimeError:
        return True
    return True
