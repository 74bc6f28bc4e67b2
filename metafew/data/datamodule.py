"""The LightningDataModule: builds stores, loads tasks of every split, and prepares batches on the device."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import CombinedLoader

from metafew.data.augment import Augmentation, as_float
from metafew.data.loader import Loader, MetaBatches, make_loader
from metafew.data.minibatches import Minibatches, MinibatchSampler
from metafew.data.sampler import MixtureSampler, Sampler
from metafew.data.shared_images import shared_images
from metafew.data.sources import Source
from metafew.data.store import Split, build, summary_of
from metafew.data.summary import as_typed_for
from metafew.data.task_spec import TaskSpec
from metafew.episode import Episode
from metafew.errors import UsageError


class TaskModule(Protocol):
    """The interface that :class:`FewShot` requires of the LightningModule."""

    @property
    def dtype(self) -> torch.dtype: ...

    def tasks_of_a_step(self, sampler: Sampler) -> int:
        """Return the number of tasks of ``sampler`` per evaluation step."""
        ...


class FewShot(pl.LightningDataModule):
    """Provide the tasks for training, validation and testing.

    Args:
        source: the dataset.
        train: training tasks, or minibatches.
        val: validation tasks.
        test: the tasks of each test; all tests have the same classes and, if they are balanced, queries.
        augmentation: views of the images, in addition to those that are part of the dataset.
        cache: the folder of the stores.
        num_workers: number of processes that prefetch tasks; 0 loads them in the main process.
        analyzed: the tasks for the analysis of a checkpoint, or None.
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
        self._loaders: list[Loader] = []

    def prepare_data(self) -> None:
        """Build the stores. Lightning calls this in one process per machine."""
        for source in self.source.all_components():
            self.folder(source)

    def folder(self, source: Source) -> Path:
        """Return the folder of a component's store, and build the store if necessary."""
        if source not in self._folders:  # computing a fingerprint lists all files
            self._folders[source] = build(source, self.cache)
        return self._folders[source]

    def summaries(self) -> dict[str, dict]:
        """Return the fingerprint and the summary of each component, by title, and build the stores if necessary.

        ``shared`` is added to test datasets that contain images of another dataset; see
        :func:`~metafew.data.shared_images.shared_images`.
        """
        sources = self.source.all_components()
        shared = shared_images(self.source, {source: self.folder(source) for source in sources})
        return {
            source.title: summary_of(source, self.folder(source))
            | ({"shared": shared[source.title]} if source.title in shared else {})
            for source in sources
        }

    def train_dataloader(self) -> Loader:
        start = self._attached_trainer.global_step * self._attached_trainer.accumulate_grad_batches
        return self._loader(self.sampler(self.train), start=start)

    def val_dataloader(self) -> Loader:
        return self._evaluation_loader(self.val)

    def test_dataloader(self) -> list[Loader]:
        return [self._evaluation_loader(spec) for spec in self.test]

    def predict_dataloader(self) -> Loader:
        """Return the meta-batches for the analysis of a checkpoint."""
        assert self.analyzed is not None  # only an analysis calls predict
        return self._loader(self.sampler(self.analyzed))

    def test_episode(self, number: int, dtype: torch.dtype) -> Episode:
        """Return a task of the first test as input for a model in ``dtype``, on the CPU."""
        return to_model_input(self.sampler(self.test[0]).task(number), dtype)

    def test_images(self) -> list[dict[str, int]]:
        """Return the numbers of classes and distinct images that the tests draw from, for each dataset."""
        splits = [self._split(source, "test") for source in self.source.components("test")]
        return [{"classes": len(split.names), "images": len(split.images)} for split in splits]

    def sampler(self, spec: TaskSpec | Minibatches) -> Sampler:
        """Return a sampler of the tasks of ``spec``; the stores must have been built."""
        views = "test" if spec is self.analyzed else spec.split  # an analysis measures images as a test would see them
        parts = [
            (self._split_for(source, spec), self.augmentation.chain(views, source.jitter))
            for source in self.source.components(spec.split)
        ]
        if isinstance(spec, Minibatches):
            ((split, views),) = parts  # a mixture has no minibatches
            return MinibatchSampler(split, spec, views)
        samplers = [Sampler(split, spec, views) for split, views in parts]
        return samplers[0] if len(samplers) == 1 else MixtureSampler(samplers, spec)

    def minibatches(self, most: int) -> list[MinibatchSampler]:
        """Return, for each training dataset, minibatches of its images as a test would see them.

        They contain each image once, or ``most`` random images, except that the last minibatch may repeat some. Each
        has as many images as the largest context of training, and at least two.
        """
        samplers = []
        for source in self.source.components("train"):
            split, size = self._split(source, "train"), max(2, self.train.contexts[1])
            total = -(-min(most, sum(map(len, split.rows))) // size)
            spec = Minibatches("train", size, tasks=1, total=total, seed=self.val.seed, pairs=False)
            samplers.append(MinibatchSampler(split, spec, self.augmentation.chain("test", source.jitter)))
        return samplers

    def _split(self, source: Source, split: str) -> Split:
        return Split(self.folder(source), split, self.source.channels)

    def _split_for(self, source: Source, spec: TaskSpec | Minibatches) -> Split:
        """Return the split that ``spec`` draws from; raises UsageError if too few images remain without copies."""
        split = self._split(source, spec.split)
        # Only the store lists the remaining images.
        lacks = spec.shortages(split.categories, source.title) if source.duplicates == "drop" else []
        if lacks:
            options = [f"{option}={value}" for shortage in lacks for option, value in shortage.options.items()]
            advice = f"type {' '.join(options)}, or " if all(shortage.options for shortage in lacks) else "type "
            message = f"{'; '.join(shortage.problem for shortage in lacks)}: {advice}dataset.duplicates=warn"
            raise UsageError(as_typed_for(source, message))
        return split

    @property
    def _attached_trainer(self) -> pl.Trainer:
        assert self.trainer is not None  # set by Lightning before it requests loaders
        return self.trainer

    @property
    def _module(self) -> TaskModule:
        return cast(TaskModule, self._attached_trainer.lightning_module)

    def _evaluation_loader(self, spec: TaskSpec) -> Loader:
        """Return a loader of the tasks of ``spec``, with the number per step that the LightningModule requests."""
        sampler = self.sampler(spec)
        return self._loader(sampler, self._module.tasks_of_a_step(sampler))

    def _loader(self, sampler: Sampler, tasks: int | None = None, start: int = 0) -> Loader:
        trainer = self._attached_trainer
        batches = MetaBatches(sampler, trainer.global_rank, trainer.world_size, tasks)
        self._loaders.append(make_loader(batches, self.num_workers, start))
        return self._loaders[-1]

    def close(self) -> None:
        """End the workers of all loaders.

        Lightning leaves the training workers running if validation raises an error during training. They ignore
        signals, so this process would wait for them forever when it exits.
        """
        CombinedLoader(self._loaders, "sequential").reset()
        self._loaders.clear()

    def transfer_batch_to_device(
        self, batch: list[Episode], device: torch.device, dataloader_idx: int
    ) -> list[Episode]:
        """Move everything but the numbers of the tasks, which only the host reads."""
        return [episode.to(device) for episode in batch]

    def on_after_batch_transfer(self, batch: list[Episode], dataloader_idx: int) -> list[Episode]:
        """Convert images to floating point and apply their views, on the device."""
        return [to_model_input(episode, self._module.dtype) for episode in batch]


def to_model_input(episode: Episode, dtype: torch.dtype) -> Episode:
    """Return ``episode`` with images in ``dtype`` in [0, 1] and its views applied."""
    support, query = (p._replace(images=as_float(p.images, dtype)) for p in (episode.support, episode.query))
    if episode.views is not None:
        chain, of_support, of_query = episode.views
        support = support._replace(images=chain.apply(support.images, of_support))
        query = query._replace(images=chain.apply(query.images, of_query))
    return episode._replace(support=support, query=query, views=None)
