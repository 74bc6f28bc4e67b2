"""Draw tasks for a custom training loop."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from metafew.config.compose import compose_overrides
from metafew.config.groups import common_options, options_of
from metafew.config.mistakes import no_option
from metafew.config.option_values import as_int, check_integer
from metafew.config.overrides import key
from metafew.config.quoting import overrides
from metafew.data.array_split import ArraySplit
from metafew.data.datamodule import FewShot, to_model_input
from metafew.data.formats.labels import class_labels
from metafew.data.sampler import Sampler
from metafew.data.sources import SPLITS, Category
from metafew.data.sources.features import categories
from metafew.data.store import store_root
from metafew.data.task_spec import TaskSpec, task_options
from metafew.episode import Episode
from metafew.errors import UsageError
from metafew.training.factory import make_source
from metafew.training.instantiate import make

OF_DATA = ("dataset", "augment", "data_dir", "cache_dir")
"""Options of a dataset."""


class Shape(NamedTuple):
    """The shape of tasks; None stands for the value of a command-line run.

    Attributes:
        way: number of classes.
        shot: number of support images per class.
        query: number of query images per class.
    """

    way: int | str | None
    shot: int | str | None
    query: int | None

    def given(self) -> dict[str, int | str]:
        """Return the values that are not None."""
        return {name: value for name, value in self._asdict().items() if value is not None}


class Drawn(NamedTuple):
    """Which tasks are drawn.

    Attributes:
        split: the split.
        tasks: number of tasks per step.
        steps: number of steps; None for any number.
        seed: seed of the tasks.
    """

    split: str
    tasks: int
    steps: int | None
    seed: int

    def spec(self, shape: Mapping[str, Any]) -> TaskSpec:
        """Return the specification of the tasks of a shape."""
        total = self.tasks if self.steps is None else self.tasks * self.steps
        return TaskSpec(self.split, tasks=self.tasks, total=total, seed=self.seed, **shape)


def episodes_of(
    data: str | np.ndarray | Tensor,
    labels: Any,
    shape: Shape,
    drawn: Drawn,
    device: str | torch.device,
    options: Mapping[str, Any],
) -> Iterator[Episode]:
    """Return the episodes that :func:`metafew.episodes` describes.

    Args:
        data: the name of a dataset, or images or vectors.
        labels: the classes of images or vectors.
        shape: the shape of the tasks.
        drawn: their split, number and seed.
        device: the device of the episodes.
        options: options of the command line for a dataset.
    """
    shape, drawn = Shape(*map(as_int, shape)), Drawn(*map(as_int, drawn))
    if drawn.split not in SPLITS:
        raise UsageError(f"expected split to be {' or '.join(SPLITS)}, got {drawn.split}: pass split='{SPLITS[0]}'")
    if drawn.steps is not None:
        check_integer("steps", drawn.steps, 1)
    if isinstance(data, str):
        if labels is not None:
            raise UsageError(
                f"expected labels with an array, got them with the name of a dataset, {data}: leave them out, and pass "
                f"split='{drawn.split}' by name"
            )
        sampler = dataset_sampler(data, shape, drawn, options)
    elif options:
        raise UsageError(
            f"expected options such as {', '.join(options)} with the name of a dataset, got an array: leave them out"
        )
    else:
        sampler = array_sampler(data, labels, shape, drawn)
    return draw(sampler, drawn.steps, torch.device(device))


def draw(sampler: Sampler, steps: int | None, device: torch.device) -> Iterator[Episode]:
    """Yield the meta-batches of a sampler as models receive them, each as its episodes, one after the other."""
    tasks = sampler.spec.tasks
    for step in itertools.count() if steps is None else range(steps):
        for episode in sampler.batch(range(step * tasks, (step + 1) * tasks)):
            yield to_model_input(episode.to(device), torch.float32)


def dataset_sampler(name: str, shape: Shape, drawn: Drawn, options: Mapping[str, Any]) -> Sampler:
    """Return a sampler of the tasks of a dataset, the same as in a command-line run."""
    if name not in options_of("dataset"):
        raise UsageError(no_option("dataset", name))
    split = drawn.split
    words = [f"dataset={name}", *overrides({split: shape.given()}), *overrides(options)]
    cfg = compose_overrides(words, sweeps=False)
    own = task_options(cfg[split])
    shapes = [f"{split}.{name}" for name in own]
    for option in map(key, overrides(options)):
        if option.partition(".")[0] not in OF_DATA and option not in shapes:
            raise UsageError(
                f"expected options of a dataset and of the tasks of the {split} split, {', '.join(OF_DATA)} and "
                f"{', '.join(shapes)}, got {option}: leave it out"
            )
    spec = drawn.spec(own)
    source, augmentation = make_source(cfg), make(cfg.augment)
    for component in source.components(split):
        check_tasks(spec, component.splits()[split], component.title)
        augmentation.check_applicable(split, component.image_size, component.splits()[split])
    data = FewShot(source, spec, spec, [spec], augmentation, store_root(cfg.cache_dir), num_workers=0)
    data.prepare_data()
    return data.sampler(spec)


def array_sampler(data: np.ndarray | Tensor, labels: Any, shape: Shape, drawn: Drawn) -> Sampler:
    """Return a sampler of tasks from images or vectors in memory."""
    images = as_images(data)
    classes = class_labels(as_array(labels), "labels")
    if len(classes) != len(images):
        raise UsageError(
            f"expected one label for each image, got {len(classes)} for {len(images)} images: give as many labels"
        )
    split = ArraySplit(images, categories(classes))
    defaults = {name: common_options()[f"{drawn.split}.{name}"] for name in Shape._fields}
    spec = drawn.spec(defaults | shape.given())
    check_tasks(spec, split.categories, "arrays")
    return Sampler(split, spec, views=None)


def as_array(values: Any) -> np.ndarray:
    """Return values, such as a tensor or a list, as an array on the CPU."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return (values.float() if values.dtype == torch.bfloat16 else values).numpy()  # NumPy has no bfloat16
    try:
        return np.asarray(values)
    except ValueError as error:
        raise UsageError(f"expected rows of equal length, got others ({error}): pad them, or leave some out") from error


def as_images(data: np.ndarray | Tensor) -> np.ndarray:
    """Return images ``(n, c, h, w)`` or ``(n, h, w)``, or vectors ``(n, d)``, as images ``(n, c, h, w)``."""
    images = as_array(data)
    if images.ndim not in (2, 3, 4) or (images.dtype != np.uint8 and images.dtype.kind != "f"):
        raise UsageError(
            "expected images (n, c, h, w) or (n, h, w), or vectors (n, d), in uint8 or floating point, got "
            f"{images.dtype} {images.shape}: convert them, or give the name of a dataset"
        )
    return images[..., None, None] if images.ndim == 2 else images[:, None] if images.ndim == 3 else images


def check_tasks(spec: TaskSpec, found: list[Category], dataset: str) -> None:
    """Check that the classes of a split suffice for the tasks of ``spec``.

    Raises:
        UsageError: if there are too few classes or images.
    """
    for shortage in spec.shortages(found, dataset):
        words = {option.rpartition(".")[2]: value for option, value in shortage.options.items()}
        advice = ", ".join(f"{word}={value!r}" for word, value in words.items())
        lacking = "images" if shortage.images else "classes"
        raise UsageError(f"{shortage.problem}: {f'pass {advice}' if advice else f'add {lacking}'}")
