"""The LightningDataModule: stores, tasks of every split, and the way of a batch onto the device."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch.utils import data
from torch.utils.data import DataLoader, Dataset

from metafew.data.augment import Augmentation, as_float
from metafew.data.minibatches import Minibatches, MinibatchSampler
from metafew.data.sampler import Mixed, Sampler
from metafew.data.sources import Source
from metafew.data.store import Split, build, locate
from metafew.data.task_spec import TaskSpec
from metafew.episode import Episode


class MetaBatches(Dataset):
    """The meta-batches of a plan: batch ``k`` holds the tasks ``k T .. (k+1) T - 1``, of which rank ``r`` of ``W``
    takes every ``W``-th from the ``r``-th on. In evaluation there is at least one for each rank.

    Args:
        sampler: draws the tasks.
        rank: number of this process.
        world: number of processes.
        tasks: tasks of a meta-batch, if not as many as the plan says.
    """  # noqa: D205

    def __init__(self, sampler: Sampler, rank: int, world: int, tasks: int | None = None):
        self.sampler, self.rank, self.world = sampler, rank, world
        self.tasks, self.total = max(tasks or sampler.plan.tasks, world), sampler.plan.total

    def __len__(self) -> int:
        return -(-self.total // self.tasks)

    def __getitem__(self, step: int) -> list[Episode]:
        tasks = range(step * self.tasks, min((step + 1) * self.tasks, self.total))
        return self.sampler.batch(tasks[self.rank :: self.world])


class InOrder(data.Sampler):
    """The numbers ``start .. count - 1``. It counts the ones before, as Lightning does when it resumes a run."""

    def __init__(self, count: int, start: int):
        self.count, self.start = count, start

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.count))


class FewShot(pl.LightningDataModule):
    """Tasks for fitting, validation and testing.

    Args:
        source: where the images come from.
        train: the plan of training tasks, or of minibatches.
        val: the plan of validation tasks.
        test: one plan for each test measured, on the same classes and queries.
        augmentation: views of the images, beyond those that belong to the data.
        cache: folder of the stores.
        num_workers: processes that draw tasks ahead.
        analyzed: the plan of the tasks that a checkpoint is analyzed on, if it is.
    """

    def __init__(
        self,
        source: Source,
        train: TaskSpec | Minibatches,
        val: TaskSpec,
        test: Sequence[TaskSpec],
        augmentation: Augmentation,
        cache: Path,
        num_workers: int,
        analyzed: TaskSpec | None = None,
    ):
        super().__init__()
        self.source, self.augmentation, self.cache, self.num_workers = source, augmentation, cache, num_workers
        self.train, self.val, self.test, self.analyzed = train, val, list(test), analyzed
        self._folders: dict[Source, Path] = {}

    def prepare_data(self) -> None:
        """Build the stores, in one process of each machine."""
        for source in self.source.everything():
            build(source, self.cache)

    def train_dataloader(self) -> DataLoader:
        """Return the meta-batches of training."""
        start = self.trainer.global_step * self.trainer.accumulate_grad_batches
        return self._loader(self.sampler(self.train), start=start)

    def val_dataloader(self) -> DataLoader:
        """Return the meta-batches of validation."""
        return self._evaluated(self.val)

    def test_dataloader(self) -> list[DataLoader]:
        """Return the meta-batches of each test."""
        return [self._evaluated(plan) for plan in self.test]

    def predict_dataloader(self) -> DataLoader:
        """Return the meta-batches that a checkpoint is analyzed on."""
        return self._loader(self.sampler(self.analyzed))

    def test_episode(self, number: int, dtype: torch.dtype) -> Episode:
        """Return a task of the first test, ready for a model in ``dtype``, on the CPU."""
        (episode,) = self.sampler(self.test[0]).batch([number])
        return present(episode, dtype)

    def sampler(self, plan: TaskSpec | Minibatches) -> Sampler:
        """Return what draws the tasks of ``plan`` from stores that have been built."""
        make = MinibatchSampler if isinstance(plan, Minibatches) else Sampler
        samplers = []
        for source in self.source.components(plan.split):
            split = Split(self._locate(source), plan.split, self.source.channels)
            samplers.append(make(split, plan, self.augmentation.chain(plan.split, source.jitter)))
        return samplers[0] if len(samplers) == 1 else Mixed(samplers, plan)

    def _locate(self, source: Source) -> Path:
        """The folder of a store; finding it reads the names of the source's files, once."""
        if source not in self._folders:
            self._folders[source] = locate(source, self.cache)
        return self._folders[source]

    def _evaluated(self, plan: TaskSpec) -> DataLoader:
        """Return the tasks of ``plan``, as many in a step as the learner wants."""
        sampler = self.sampler(plan)
        return self._loader(sampler, self.trainer.lightning_module.tasks_of_a_step(sampler))

    def _loader(self, sampler: Sampler, tasks: int | None = None, start: int = 0) -> DataLoader:
        batches = MetaBatches(sampler, self.trainer.global_rank, self.trainer.world_size, tasks)
        return DataLoader(
            batches,
            batch_size=None,
            sampler=InOrder(len(batches), start),
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            worker_init_fn=outlive_signals,
            # A loader would else draw from the stream that dropout draws from, more often the fewer workers it has.
            generator=torch.Generator(),
            pin_memory=torch.cuda.is_available(),
        )

    def on_after_batch_transfer(self, batch: list[Episode], dataloader_idx: int) -> list[Episode]:
        """Turn images into floating point numbers and apply their views, on the device."""
        dtype = self.trainer.lightning_module.dtype
        return [present(episode, dtype) for episode in batch]


def outlive_signals(_: int) -> None:
    """Let a worker leave it to the process that trains to end it, where a signal reaches all processes of a job."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def present(episode: Episode, dtype: torch.dtype) -> Episode:
    """Return ``episode`` with images in ``dtype`` in [0, 1], seen through the views that its tasks drew."""
    support, query = (p._replace(images=as_float(p.images, dtype)) for p in (episode.support, episode.query))
    if episode.views is not None:
        chain, given, asked = episode.views
        support = support._replace(images=chain.apply(support.images, given))
        query = query._replace(images=chain.apply(query.images, asked))
    return episode._replace(support=support, query=query, views=None)
