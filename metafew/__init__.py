"""Few-shot meta-learning experiments: any head, any normalization, any backbone, one command line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from os import PathLike
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from metafew.api.results import Classification, Evaluation
    from metafew.episode import Episode
    from metafew.heads.head import Head
    from metafew.inference import Model
    from metafew.norms.convert import convert as convert
    from metafew.norms.running import task_scope as task_scope
    from metafew.training.start import Run

ROOMS = ("backbones", "errors", "export", "heads", "norms")
"""Submodules that are imported on first access, so that ``metafew.heads.SVM`` works after ``import metafew``."""
NAMES = {"convert": "metafew.norms.convert", "task_scope": "metafew.norms.running"}
"""Public names that are imported on first access, and the modules that define them."""


def load(path: str | PathLike, trust: str | Sequence[str] = (), chosen: str | None = None) -> Model:
    """Load a trained model from a checkpoint, to adapt it to new tasks.

    The model consists of the trained backbone and head, with weights in float32, in eval mode and on the CPU;
    ``.to(device)`` moves it. The training dataset is not needed::

        model = metafew.load("outputs/DATE/TIME/checkpoints/best.ckpt")
        task = model.adapt(images, ["cat", "dog", "cat"])
        task.label(others)  # ["dog", "cat", ...]
        task.predict(others)  # probabilities (q, 2)

    A checkpoint cannot run arbitrary code: only tensors and plain values are read from it, and only metafew's own
    classes and those in ``trust`` are called.

    Args:
        path: a checkpoint from the folder ``checkpoints`` of a run.
        trust: dotted paths of further classes that may be called, such as the network of ``backbone=module``, or one
            such path.
        chosen: the setting to use if the head has several, such as ``lr0.5_steps10``; None uses the first.

    Raises:
        metafew.errors.UsageError: if there is no such checkpoint, if it does not describe its model, if it names a
            class that is not trusted, or if the head has no option ``chosen``.
    """
    from metafew import inference

    return inference.load(path, trust, chosen)


def train(*words: str, **options: Any) -> Run:
    """Do what ``python train.py WORDS`` does, in this process, and return the run.

    All stages run: by default training, validation and test. It prints its progress and a table of results, and writes
    the same files as the command::

        run = metafew.train("head=svm", "norm=tasknorm", **{"trainer.max_steps": 200})
        run.metrics["test/svm/accuracy"]  # {"mean": 0.89, "ci95": 0.01, "tasks": 600, "failed": 0}
        model = metafew.load(run.checkpoint)

    The run uses a single process. For sweeps (``-m``), experiments and multiple devices, use the command line.

    Args:
        words: command-line overrides, such as ``"head=svm"`` or ``"train.way=20"``.
        options: further overrides, with Python values: ``head="svm"``, ``evaluate=["ridge"]``, ``train={"way": 20}``,
            or ``**{"train.way": 20}``.

    Returns:
        The folder of the run and the content of its results.json.

    Raises:
        metafew.errors.UsageError: if these overrides cannot be run. The message says what to type instead.
    """
    from metafew.training import start

    return start.train(words, options)


def evaluate(
    features: np.ndarray | Tensor,
    labels: Sequence | np.ndarray | Tensor,
    heads: Sequence[str | Head] | Mapping[str, str | Head] = ("protonet", "ridge", "svm"),
    way: int | str = 5,
    shot: int | str = 1,
    query: int = 15,
    tasks: int = 600,
    seed: int = 0,
    base: np.ndarray | Tensor | None = None,
) -> Evaluation:
    """Evaluate heads on few-shot tasks drawn from features, all of them on the same tasks.

    The numbers are those of ``python train.py dataset=features dataset.root=FILE evaluate=[...]`` for a file with these
    features as ``x_test`` and these labels as ``y_test``::

        table = metafew.evaluate(features, labels, heads=["protonet", "svm"], way=5, shot=1)
        print(table)
        table.mean["svm"], table.ci95["svm"]
        table.difference("svm", "protonet")  # paired, on the same tasks

    The accuracy of 1-nearest-neighbour on the features is measured too, under the name ``vectors_1nn``.

    Args:
        features: ``(n, d)``, such as the output of a pretrained network. They are used as they are; some heads work
            better on centred features of unit length.
        labels: ``n`` integers or strings.
        heads: names of heads on the command line, or instances, such as ``metafew.heads.SVM(c=1.0)``; or a dictionary
            from names in the table to these; or ``"all"`` for all heads on features that need no training. Heads given
            by name are untrained: their parameters have their initial values.
        way: number of classes per task, or ``"5..20"`` for a number drawn per task.
        shot: number of support examples per class, a range, or ``"natural"`` for a number per class as in Meta-Dataset.
        query: number of queries per class.
        tasks: number of tasks.
        seed: seed of the tasks; ``test.seed`` of the command.
        base: features ``(n, d)`` of training classes, or their mean ``(d,)``, for heads such as ``simpleshot`` that
            subtract this mean.

    Returns:
        A table with ``mean``, ``ci95``, ``rows``, ``to_dict()`` and ``difference(head, other)``.

    Raises:
        metafew.errors.UsageError: if there are too few classes or examples, values are not finite, there is no head of
            a given name, or a head needs ``base``.
    """
    from metafew.api import arrays

    return arrays.evaluate_features(features, labels, heads, way, shot, query, tasks, seed, base)


def classify(
    head: str | Head,
    support: np.ndarray | Tensor,
    labels: Sequence | np.ndarray | Tensor,
    query: np.ndarray | Tensor,
    base: np.ndarray | Tensor | None = None,
) -> Classification:
    """Classify query features, given a labelled support set.

    For images and a trained network, see :func:`load`::

        found = metafew.classify("svm", support, ["cat", "dog", "cat"], query)
        found.labels  # ["dog", "cat", ...]
        found.probabilities  # (q, 2), columns as in found.classes

    Args:
        head: the name of a head on the command line, or an instance, such as ``metafew.heads.SVM(c=1.0)``. A name
            creates a new head in each call.
        support: features ``(n, d)`` in floating point.
        labels: ``n`` strings, numbers or other hashable values; classes may have different numbers of examples.
        query: features ``(q, d)``.
        base: features ``(n, d)`` of training classes, or their mean ``(d,)``, for a head that subtracts this mean.

    Returns:
        ``labels``, ``probabilities`` and ``classes``.

    Raises:
        metafew.errors.UsageError: if shapes and labels do not match, there is no head of that name, or the head needs
            ``base``.
    """
    from metafew.api import arrays

    return arrays.classify_features(head, support, labels, query, base)


def episodes(
    data: str | np.ndarray | Tensor,
    labels: Sequence | np.ndarray | Tensor | None = None,
    *,
    split: str = "train",
    way: int | str | None = None,
    shot: int | str | None = None,
    query: int | None = None,
    tasks: int = 4,
    steps: int | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    **options: Any,
) -> Iterator[Episode]:
    """Draw tasks for your own training loop.

    For example, with ``Conv4``, ``SVM`` and ``TaskNorm`` of :mod:`metafew.backbones`, ``heads`` and ``norms``::

        backbone, head = Conv4(1, 28, TaskNorm), SVM()
        optimizer = torch.optim.Adam([*backbone.parameters(), *head.parameters()])
        for episode in metafew.episodes("glyphs", way=5, shot=1, steps=200):
            logits = head(backbone, episode.support, episode.query.images, episode.way)
            loss = F.cross_entropy(logits.mT, episode.query.labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    The tasks are the same as in a command-line run with the same options: task ``i`` depends only on the seed, the
    split, the data and ``i``. Images are in float32, with uint8 scaled to [0, 1] and the views of ``augment`` applied.

    Args:
        data: the name of a dataset, such as ``"omniglot"``; or an array of images ``(n, c, h, w)`` or ``(n, h, w)`` in
            uint8 or floating point, or of vectors ``(n, d)``.
        labels: the classes of an array: ``n`` integers or strings. Only with an array.
        split: ``train``, ``val`` or ``test``. For an array, every split uses all classes; the split only changes which
            tasks are drawn.
        way: number of classes per task, or ``"5..20"`` for a number drawn per task. For ``way``, ``shot`` and
            ``query``, None uses the value of a run with this dataset; for an array, 5, 1 and 15.
        shot: number of support images per class, a range, or ``"natural"`` for a number per class as in Meta-Dataset.
        query: number of query images per class.
        tasks: number of tasks per step.
        steps: number of steps; None draws tasks without end.
        seed: seed of the tasks.
        device: the device of the images.
        options: options of a dataset and its tasks, with the keys of the command line: ``augment="standard"``,
            ``dataset={"split": "vinyals"}``, ``test={"balance": "dirichlet"}``.

    Returns:
        An iterator over episodes, each a stack of tasks of equal shape from one dataset: one per step if ``way`` and
        ``shot`` are numbers, unless the dataset is a mixture. Otherwise the tasks of a step may be split into several
        episodes, yielded one after the other.

    Raises:
        metafew.errors.UsageError: if there is no such dataset, or it has too few classes or images.
    """
    from metafew.api import loops

    shape, drawn = loops.Shape(way, shot, query), loops.Drawn(split, tasks, steps, seed)
    return loops.episodes_of(data, labels, shape, drawn, device, options)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _installed_version()
    if name in NAMES:
        return getattr(import_module(NAMES[name]), name)
    if name in ROOMS:
        return import_module(f"metafew.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *NAMES, *ROOMS, "__version__"})


def _installed_version() -> str:
    """Return the version of the installed package; ``unknown`` in a checkout that is not installed."""
    from importlib.metadata import PackageNotFoundError, version  # takes longer than everything else here

    try:
        return version("metafew")
    except PackageNotFoundError:
        return "unknown"
