"""Measures of one checkpoint over its tasks (Goldblum et al. 2020; Bronskill et al. 2020)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from metafew.analysis.features.observer import Observed
from metafew.evaluation.statistics import interval
from metafew.norms.alpha import Alpha
from metafew.objectives.clustering import PAIRWISE, class_clustering, variance_ratio
from metafew.predictions import NO_ANSWER

BY_NAME = 25
"""The largest number of classes in a confusion matrix by name; of more classes, any two rarely share a task."""
CONTEXT_SIZES = (1, 2, 5, 10, 25, 50, 100, 250, 500)
"""Context sizes for which alpha is reported."""


def finite_mean(values: Sequence[float], unit: str) -> dict[str, float | int | None]:
    """Return mean and ci95 of the finite values, None if there are none, and under ``unit`` how many there are."""
    finite = np.asarray([value for value in values if np.isfinite(value)])
    if not len(finite):
        return {"mean": None, "ci95": None, unit: 0}
    found = interval(finite)
    return {"mean": found["mean"], "ci95": found["ci95"], unit: found["tasks"]}


def clustering(tasks: Sequence[Observed], split: tuple[Tensor, Tensor] | None) -> dict[str, dict | float | int]:
    """Return measures of how features cluster by class, over pairs of classes and over all images.

    Args:
        tasks: the tasks; each contributes random disjoint pairs of its classes, with two images per class.
        split: features and classes of the entire split; None uses the rows of all tasks, where an image has separate
            features for each task that drew it.
    """
    pairs = [pair for task in tasks for pair in task.pairs]
    features, classes = split or (torch.cat([t.features for t in tasks]), torch.cat([t.classes for t in tasks]))
    return {
        **{measure.__name__: finite_mean([pair[measure.__name__] for pair in pairs], "pairs") for measure in PAIRWISE},
        "variance_ratio": float(variance_ratio(features, classes)),
        "class_clustering": float(class_clustering(features, classes)),
        "images": len(classes),
        "classes": len(classes.unique()),
        "whole_split": split is not None,
    }


def pair_conditions(tasks: Sequence[Observed]) -> dict:
    """Return ``eps`` and one-shot accuracy over pairs of classes, and both values for each pair under ``points``."""
    points = [point for task in tasks for point in task.condition]
    eps, accuracy = zip(*points, strict=True)
    return {"eps": finite_mean(eps, "pairs"), "one_shot_accuracy": finite_mean(accuracy, "pairs"), "points": points}


def layer_distances(tasks: Sequence[Observed]) -> dict[str, dict]:
    """Return how far adaptation moves the weights, as a mean over tasks, for each layer and for ``all`` layers.

    Tasks whose weights diverged are neither included nor counted.
    """
    return {layer: finite_mean([task.travel[layer] for task in tasks], "tasks") for layer in tasks[0].travel}


def task_distances(tasks: Sequence[Observed]) -> list[float]:
    """Return the distance over all layers, to four digits, for each task whose weights did not diverge."""
    return [float(f"{task.travel['all']:.4g}") for task in tasks if np.isfinite(task.travel["all"])]


def confusion(tasks: Sequence[Observed], names: Sequence[str]) -> dict:
    """Return the confusion matrix of the queries of all tasks.

    With few classes, ``counts[i][j]`` is the number of queries of class ``i`` classified as class ``j``, and ``names``
    are the class names. With many classes, any two of which rarely share a task, ``i`` and ``j`` are positions in the
    task, which reveal a head that prefers some of its outputs. ``unanswered[i]`` is the number of unanswered queries of
    ``i``, which are not in ``counts``. In either case, ``most_confused`` lists pairs of classes: their names and
    numbers, how many queries of the true class were confused (``queries``), and how many it had in tasks with both
    classes (``of``).
    """
    by_name = len(names) <= BY_NAME
    mistakes: Counter[tuple[int, int]] = Counter()
    met: Counter[tuple[int, int]] = Counter()
    size = len(names) if by_name else max(int(task.labels.max()) for task in tasks) + 1
    counts, unanswered = np.zeros((size, size), int), np.zeros(size, int)
    for task in tasks:
        queries = len(task.labels)
        class_of = dict(zip(task.labels.tolist(), task.classes[-queries:].tolist(), strict=True))
        for true in task.labels.tolist():
            met.update((class_of[true], other) for other in class_of.values())
        for true, guess in zip(task.labels.tolist(), task.guesses.tolist(), strict=True):
            if guess == NO_ANSWER:
                unanswered[class_of[true] if by_name else true] += 1
                continue
            counts[(class_of[true], class_of[guess]) if by_name else (true, guess)] += 1
            if true != guess:
                mistakes[class_of[true], class_of[guess]] += 1
    return {
        "by": "class" if by_name else "position",
        "names": list(names) if by_name else [str(position + 1) for position in range(size)],
        "counts": counts.tolist(),
        "unanswered": unanswered.tolist(),
        "most_confused": [
            {"true": names[pair[0]], "guess": names[pair[1]], "queries": n, "of": met[pair], "classes": list(pair)}
            for pair, n in mistakes.most_common(10)
        ],
    }


@torch.no_grad()
def alpha_by_context(layers: Sequence[Alpha], trained: tuple[int, int]) -> dict:
    """Return the alpha of each TaskNorm layer, averaged over channels, by context size, from first to last layer.

    Args:
        layers: the alphas of the layers.
        trained: the smallest and largest context in training.
    """
    sizes = sorted({*CONTEXT_SIZES, *trained})
    values = [{str(size): float(alpha(size).mean()) for size in sizes} for alpha in layers]
    return {"trained": list(trained), "layers": values}
