"""Which of several processes tells of an error, so that it is told once. Imports no torch."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from metafew.distributed.launch import is_rank_zero

if TYPE_CHECKING:
    from torch.distributed import Store

PATIENCE = timedelta(seconds=5)  # the first process is late if it has other work, or meets no error at all


@contextmanager
def first_to_report() -> Iterator[bool]:
    """Give whether this process tells of an error: the first does, or the first that waits for that in vain.

    What is wrong with the words typed meets all processes alike; too little memory may meet a single one.
    """
    shared = store()
    if shared is None:
        yield is_rank_zero()
    elif not is_rank_zero() and heard(shared, "told", PATIENCE):
        yield False
    else:
        yield shared.add("telling", 1) == 1
        shared.set("told", "")  # by now it is written


def already_reported() -> bool:
    """Tell whether some process has told of an error, so that those it leaves behind need not."""
    shared = store()
    return shared is not None and heard(shared, "telling", timedelta(milliseconds=1))


def process_number() -> int:
    """Return the number of this process among those of the run that have met."""
    return sys.modules["torch"].distributed.get_rank() if store() else 0


def store() -> Store | None:
    """Return what the processes of a run share, once they have met."""
    distributed = getattr(sys.modules.get("torch"), "distributed", None)
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return None
    return distributed.distributed_c10d._get_default_store()


def heard(shared: Store, word: str, patience: timedelta) -> bool:
    """Tell whether a process gives this word before ``patience`` ends, or the one that keeps the store has gone."""
    try:
        shared.wait([word], patience)
    except sys.modules["torch"].distributed.DistStoreError:
        return False
    except RuntimeError:
        return True
    return True
