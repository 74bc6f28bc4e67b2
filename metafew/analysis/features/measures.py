"""The measures of one checkpoint, from what was seen of its tasks (Goldblum et al. 2020; Bronskill et al. 2020)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from metafew.analysis.features.observer import PAIRWISE, Observed
from metafew.evaluation.statistics import interval
from metafew.norms.alpha import Alpha
from metafew.objectives.clustering import class_clustering, variance_ratio

BY_NAME = 25
"""At most so many classes stand in a confusion matrix by their names: more would meet too seldom, and not be read."""
SIZES = (1, 2, 5, 10, 25, 50, 100, 250, 500)
"""Contexts that alpha is told for."""


def over(values: Sequence[float], what: str) -> dict[str, float | int | None]:
    """Return mean, ci95 and, under ``what``, the number of those values that are finite; no mean of none."""
    finite = np.asarray([value for value in values if np.isfinite(value)])
    if not len(finite):
        return {"mean": None, "ci95": None, what: 0}
    found = interval(finite)
    return {"mean": found["mean"], "ci95": found["ci95"], what: found["tasks"]}


def clustering(tasks: Sequence[Observed], whole: tuple[Tensor, Tensor] | None) -> dict[str, dict | float | int]:
    """Return how features cluster by class: over pairs of classes, and over all images.

    Args:
        tasks: the tasks; each gives random disjoint pairs of its classes, two images each.
        whole: features and classes of the whole split; None takes those of all tasks, where an image that several tasks
            have drawn has as many features.
    """
    pairs = [pair for task in tasks for pair in task.pairs]
    features, classes = whole or (torch.cat([t.features for t in tasks]), torch.cat([t.classes for t in tasks]))
    return {
        **{measure.__name__: over([pair[measure.__name__] for pair in pairs], "pairs") for measure in PAIRWISE},
        "variance_ratio": float(variance_ratio(features, classes)),
        "class_clustering": float(class_clustering(features, classes)),
        "images": len(classes),
        "classes": len(classes.unique()),
        "whole_split": whole is not None,
    }


def condition(tasks: Sequence[Observed]) -> dict:
    """Return ``eps`` and one-shot accuracy over pairs of classes, and both of each pair in ``points``."""
    points = [point for task in tasks for point in task.condition]
    eps, accuracy = zip(*points, strict=True)
    return {"eps": over(eps, "pairs"), "one_shot_accuracy": over(accuracy, "pairs"), "points": points}


def travelled(tasks: Sequence[Observed]) -> dict[str, dict]:
    """Return the distance that fine-tuning makes weights go, over tasks: of each layer, and ``all`` of them together.

    Tasks whose weights diverged are left out, and not counted.
    """
    layers = tasks[0].travel
    return {layer: over([task.travel[layer] for task in tasks], "tasks") for layer in layers}


def distances(tasks: Sequence[Observed]) -> list[float]:
    """Return the distance of all layers together in each task whose weights did not diverge, to four digits."""
    return [float(f"{task.travel['all']:.4g}") for task in tasks if np.isfinite(task.travel["all"])]


def confusion(tasks: Sequence[Observed], names: Sequence[str]) -> dict:
    """Return how often queries of one class got the label of another, over all tasks.

    Of few classes, ``counts[i][j]`` counts the queries of class ``i`` that got class ``j``, under ``names``. Of many,
    two classes seldom meet in a task: there ``i`` and ``j`` are positions in the task, which should not matter, and do
    for a head that prefers some of its outputs. ``most_confused`` names the classes in any case.
    """
    by_name = len(names) <= BY_NAME
    mistakes: Counter[tuple[str, str]] = Counter()
    size = len(names) if by_name else max(int(task.labels.max()) for task in tasks) + 1
    counts = np.zeros((size, size), int)
    for task in tasks:
        queries = len(task.labels)
        # Every class of a task has queries.
        of = dict(zip(task.labels.tolist(), task.classes[-queries:].tolist(), strict=True))
        for true, guess in zip(task.labels.tolist(), task.guesses.tolist(), strict=True):
            counts[(of[true], of[guess]) if by_name else (true, guess)] += 1
            if true != guess:
                mistakes[names[of[true]], names[of[guess]]] += 1
    listed = [{"true": true, "guess": guess, "queries": n} for (true, guess), n in mistakes.most_common(10)]
    labels = list(names) if by_name else [str(position + 1) for position in range(size)]
    return {
        "by": "class" if by_name else "position",
        "names": labels,
        "counts": counts.tolist(),
        "most_confused": listed,
    }


@torch.no_grad()
def alphas(layers: Sequence[Alpha], trained: tuple[int, int]) -> dict:
    """Return the alpha of each TaskNorm layer, from first to last, over the size of the context.

    Args:
        layers: where alpha is one number a channel, its mean is taken.
        trained: the smallest and largest context of training.
    """
    sizes = sorted({*SIZES, *trained})
    values = [{str(size): float(alpha(size).mean()) for size in sizes} for alpha in layers]
    return {"trained": list(trained), "layers": values}
