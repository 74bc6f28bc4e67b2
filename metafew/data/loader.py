"""Load meta-batches, in this process or in workers."""

from __future__ import annotations

import io
import logging
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Any

import numpy as np
import torch
from torch.utils import data
from torch.utils.data import DataLoader, Dataset

from metafew.data.sampler import Sampler
from metafew.episode import Episode
from metafew.errors import UsageError
from metafew.signals import ENDING

log = logging.getLogger(__name__)

LOAD_HERE = "type data.num_workers=0, which loads tasks in the main process"


class MetaBatches(Dataset):
    """The part of a sampler's meta-batches that one process loads.

    Batch ``k`` consists of the tasks ``k T .. (k+1) T - 1``; rank ``r`` of ``W`` loads ``tasks[r::W]``. A meta-batch
    has at least one task per rank.

    Args:
        sampler: draws the tasks.
        rank: rank of this process.
        world: number of processes.
        tasks: number of tasks per meta-batch; None for that of the sampler's specification.
    """

    def __init__(self, sampler: Sampler, rank: int, world: int, tasks: int | None = None):
        self.sampler, self.rank, self.world = sampler, rank, world
        self.tasks, self.total = max(tasks or sampler.spec.tasks, world), sampler.spec.total

    def __len__(self) -> int:
        return -(-self.total // self.tasks)

    def __getitem__(self, step: int) -> list[Episode]:
        tasks = range(step * self.tasks, min((step + 1) * self.tasks, self.total))
        return self.sampler.batch(tasks[self.rank :: self.world])


class InOrder(data.Sampler):
    """The indices ``start .. count - 1``; the length is ``count``, as Lightning expects in a resumed run."""

    def __init__(self, count: int, start: int):
        self.count, self.start = count, start

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.count))


class Loader(DataLoader):
    """A DataLoader whose errors say what to type; :func:`make_loader` makes one."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # nobody uses more than its iterator protocol
        """Iterate over the batches.

        A generator starts the workers when the first batch is requested, since Lightning replaces an error that is
        raised earlier with one of its own.

        Raises:
            UsageError: if the workers cannot be started.
        """
        try:
            if self.num_workers:
                check_semaphores(self.multiprocessing_context or multiprocessing, self.num_workers)
            with held_signals():
                batches = super().__iter__()
        except OSError as error:  # such as no room in /dev/shm for semaphores, or too many processes
            raise UsageError(
                f"expected to start data.num_workers={self.num_workers} processes, got an error ({error}): {LOAD_HERE}"
            ) from error
        yield from batches


def make_loader(batches: MetaBatches, workers: int, start: int = 0) -> Loader:
    """Return a loader of meta-batches, in order.

    Args:
        batches: the meta-batches.
        workers: number of processes that load batches in advance; 0 loads them in this process, as does a daemonic
            process, which must not start others.
        start: the first meta-batch.

    Raises:
        UsageError: if the batches' views cannot be copied to the workers.
    """
    if workers and multiprocessing.current_process().daemon:
        log.info("data.num_workers=%d is ignored: this process is daemonic and cannot start others", workers)
        workers = 0
    if workers:
        check_copies(batches)
    return Loader(
        batches,
        batch_size=None,
        sampler=InOrder(len(batches), start),
        num_workers=workers,
        collate_fn=Message if workers else None,
        persistent_workers=workers > 0,
        multiprocessing_context=start_method() if workers else None,
        worker_init_fn=follow_main_process,
        # A private generator, so that draws of the loader, which depend on num_workers, do not advance dropout's
        # RNG.
        generator=torch.Generator(),
        pin_memory=torch.cuda.is_available(),
    )


def check_copies(batches: MetaBatches) -> None:
    """Check that the batches' views can be copied to workers, which send them back with every batch.

    Raises:
        UsageError: if pickle refuses.
    """
    try:
        pickle.dumps(batches)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise UsageError(
            f"expected views of images that pickle can copy to a worker, got one that it cannot ({error}): define its "
            f"class in a module, or {LOAD_HERE}"
        ) from error


def check_semaphores(context: Any, workers: int) -> None:
    """Create the semaphores of torch's workers, as torch prints a traceback if it fails midway; raises OSError."""
    _ = [context.Event(), *(context.Queue() for _ in range(workers + 1))]


def start_methods() -> list[str]:
    """Return the methods with which multiprocessing itself starts processes, the system's default first.

    On Python 3.14 joblib's appear in :func:`multiprocessing.get_all_start_methods` too.
    """
    return [method for method in multiprocessing.get_all_start_methods() if method in ("fork", "forkserver", "spawn")]


def start_method() -> str | None:
    """Return how workers are started: by the system's default in a joblib process, else None, as this process was.

    In the processes of joblib, multiprocessing starts only further processes of joblib.
    """
    method, own = multiprocessing.get_start_method(allow_none=True), start_methods()
    return None if method is None or method in own else own[0]


class Message:
    """A meta-batch that a worker sends through a pipe; the process that receives it gets the meta-batch itself.

    Tensors would be sent through shared memory, of which a container has 64 MB by default. If they do not fit, torch
    drops the batch, and the main process waits for it forever. Everything is pickled when the message is made, so that
    errors are raised in the worker and reach the main process.

    Args:
        batch: the meta-batch.
    """

    def __init__(self, batch: list[Episode]):
        content = io.BytesIO()
        self.buffers: list[np.ndarray] = []
        # The values of arrays are kept apart, because they would be copied once more within the content.
        pickler = MessagePickler(
            content, 5, buffer_callback=lambda values: self.buffers.append(np.frombuffer(values.raw(), np.uint8))
        )
        pickler.dump(batch)
        self.content = content.getvalue()

    def __reduce__(self) -> tuple:
        return receive, (self.content, self.buffers)


class MessagePickler(pickle.Pickler):
    """Pickle tensors as arrays, whose values can be kept apart."""

    def reducer_override(self, obj: Any) -> Any:
        return (torch.from_numpy, (obj.numpy(),)) if isinstance(obj, torch.Tensor) else NotImplemented


def receive(content: bytes, buffers: list[np.ndarray]) -> list[Episode]:
    """Return the meta-batch of a message."""
    return pickle.loads(content, buffers=buffers)


@contextmanager
def held_signals() -> Iterator[None]:
    """Block the signals that end a run until this context exits; processes started inside it keep them blocked.

    A worker that is not forked needs seconds to import torch before it can ignore them.
    """
    if sys.platform == "win32":
        yield
        return
    resource_tracker.ensure_running()  # otherwise started with the first worker, and it unblocks signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def follow_main_process(_: int) -> None:
    """Have a worker ignore the signals that end a run, and end with the main process, which receives them too.

    Killing the main process does not stop its workers. Torch's workers end with their parent, but with a fork server
    the parent is that server, which lives as long as they do, and a forked worker waits until its last batch is read.
    """
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=end_after_main_process, daemon=True).start()


def end_after_main_process() -> None:
    """Wait for the end of the main process, and end this process."""
    if main := multiprocessing.parent_process():
        main.join()
        os._exit(1)
