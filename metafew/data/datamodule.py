"""The LightningDataModule: stores, tasks of every split, and the way of a batch onto the device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch.utils import data
from torch.utils.data import DataLoader, Dataset

from metafew.data.augment import as_float
from metafew.data.minibatches import Minibatches, MinibatchSampler
from metafew.data.sampler import Plan, Sampler
from metafew.data.sources import Source
from metafew.data.store import Split, build, locate
from metafew.episode import Episode
from metafew.errors import UsageError


class MetaBatches(Dataset):
    """The meta-batches of a plan: batch ``k`` holds the tasks ``k T .. (k+1) T - 1``, of which rank ``r`` of ``W``
    takes every ``W``-th from the ``r``-th on.

    Args:
        sampler: draws the tasks.
        rank: number of this process.
        world: number of processes.
    """  # noqa: D205

    def __init__(self, sampler: Sampler, rank: int, world: int):
        self.sampler, self.rank, self.world = sampler, rank, world

    def __len__(self) -> int:
        return -(-self.sampler.plan.total // self.sampler.plan.tasks)

    def __getitem__(self, step: int) -> list[Episode]:
        plan = self.sampler.plan
        tasks = range(step * plan.tasks, min((step + 1) * plan.tasks, plan.total))
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
        cache: folder of the stores.
        num_workers: processes that draw tasks ahead.
    """

    def __init__(
        self,
        source: Source,
        train: Plan | Minibatches,
        val: Plan,
        test: Sequence[Plan],
        cache: Path,
        num_workers: int,
    ):
        super().__init__()
        self.source, self.cache, self.num_workers = source, cache, num_workers
        self.train, self.val, self.test = train, val, list(test)

    def prepare_data(self) -> None:
        """Build the store, in one process of each machine."""
        try:
            build(self.source, self.cache)
        except OSError as error:
            raise UsageError(
                f"the images could not be stored in {self.cache} ({error}): type cache_dir=PATH"
            ) from error

    def train_dataloader(self) -> DataLoader:
        """Return the meta-batches of training."""
        return self._loader(self.train, start=self.trainer.global_step * self.trainer.accumulate_grad_batches)

    def val_dataloader(self) -> DataLoader:
        """Return the meta-batches of validation."""
        return self._loader(self.val)

    def test_dataloader(self) -> list[DataLoader]:
        """Return the meta-batches of each test."""
        return [self._loader(plan) for plan in self.test]

    def first_test_episode(self, dtype: torch.dtype) -> Episode:
        """Return the first test task, ready for a model in ``dtype``, on the CPU."""
        (episode,) = self._sampler(self.test[0]).batch([0])
        return present(episode, self.source.jitter, dtype)

    @cached_property
    def _store(self) -> Path:
        """The folder of the store; finding it reads the source's files."""
        return locate(self.source, self.cache)

    def _sampler(self, plan: Plan | Minibatches) -> Sampler:
        sampler = MinibatchSampler if isinstance(plan, Minibatches) else Sampler
        return sampler(Split(self._store, plan.split), plan, self.source.jitter)

    def _loader(self, plan: Plan, start: int = 0) -> DataLoader:
        batches = MetaBatches(self._sampler(plan), self.trainer.global_rank, self.trainer.world_size)
        return DataLoader(
            batches,
            batch_size=None,
            sampler=InOrder(len(batches), start),
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def on_after_batch_transfer(self, batch: list[Episode], dataloader_idx: int) -> list[Episode]:
        """Turn images into floating point numbers and apply their views, on the device."""
        dtype = self.trainer.lightning_module.dtype
        return [present(episode, self.source.jitter, dtype) for episode in batch]


def present(episode: Episode, jitter, dtype: torch.dtype) -> Episode:
    """Return ``episode`` with images in ``dtype`` in [0, 1], seen through the views that its tasks drew."""
    parts = [part._replace(images=as_float(part.images, dtype)) for part in (episode.support, episode.query)]
    if episode.views is not None:
        parts = [
            part._replace(images=jitter.apply(part.images, maps))
            for part, maps in zip(parts, episode.views, strict=True)
        ]
    return episode._replace(support=parts[0], query=parts[1], views=None)
