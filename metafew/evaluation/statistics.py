"""Means, confidence intervals and ranks of accuracies. Imports no torch, which reports do not need."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import stdtrit

Interval = dict[str, Any]
"""A mean, the half width ``ci95`` of its 95 % confidence interval, and further values, as in results.json."""


def interval(values: Sequence[float] | np.ndarray) -> Interval:
    """Return the mean over tasks, or over the means of seeds, and the half width of its 95 % confidence interval.

    ``ci95 = t(0.975, n - 1) s / sqrt(n)`` with ``s`` the sample standard deviation (``n - 1``); None for a single
    value.

    >>> {k: round(v, 3) for k, v in interval([0.5, 0.7, 0.9]).items()}
    {'mean': 0.7, 'ci95': 0.497, 'tasks': 3}
    """
    count = len(values)
    ci95 = standard_errors(count) * float(np.std(values, ddof=1)) / math.sqrt(count) if count > 1 else None
    return {"mean": float(np.mean(values)), "ci95": ci95, "tasks": count}


def standard_errors(count: float) -> float:
    """Return the half width of a 95 % interval in standard errors, for ``count`` values, at least two.

    >>> [round(standard_errors(count), 3) for count in (2, 3, 600)]
    [12.706, 4.303, 1.964]
    """
    return float(stdtrit(count - 1, 0.975))


def score(accuracy: float, failed: int) -> float:
    """Return the score of a candidate on validation tasks, where fewer failed tasks take precedence over accuracy.

    A failed task has a wrong query, so ``accuracy - failed`` is lower for every candidate with more failed tasks.

    >>> max([(0.9, 1), (0.2, 0), (0.3, 0)], key=lambda found: score(*found))
    (0.3, 0)
    """
    return accuracy - failed


def summarize_seeds(measures: Sequence[Mapping[str, Any]]) -> Interval:
    """Return mean, ``ci95`` and ``se`` of one measure, given its mean and ``ci95`` for each seed.

    The interval is over tasks for a single seed, else over seeds. All values are None if a seed diverged.

    >>> {k: round(v, 3) for k, v in summarize_seeds([{"mean": 0.5, "ci95": 0.43, "tasks": 3}]).items()}
    {'mean': 0.5, 'ci95': 0.43, 'se': 0.1}
    >>> {k: round(v, 3) for k, v in summarize_seeds([{"mean": 0.80}, {"mean": 0.82}, {"mean": 0.84}]).items()}
    {'mean': 0.82, 'ci95': 0.05, 'se': 0.012}
    >>> summarize_seeds([{"mean": 0.5, "ci95": 0.1}, {"mean": None}])
    {'mean': None, 'ci95': None, 'se': None}
    """
    means = [measure["mean"] for measure in measures]
    if None in means:
        return {"mean": None, "ci95": None, "se": None}
    found = interval(means) if len(means) > 1 else measures[0]
    ci95, count = found.get("ci95"), found.get("tasks") or found.get("pairs") or math.inf
    return {"mean": found["mean"], "ci95": ci95, "se": None if ci95 is None else ci95 / standard_errors(count)}


def ranks(accuracies: np.ndarray) -> np.ndarray:
    """Return the rank of each method, 1 for the best.

    Two methods differ if the 95 % confidence interval of the mean of their paired differences excludes 0. The rank of a
    method is 1 + the number of better methods + half the number of methods that do not differ from it.

    Args:
        accuracies: accuracies ``(methods, tasks)``, or means ``(methods, seeds)``.

    Returns:
        ``(methods,)``.

    >>> ranks(np.array([[0.1, 0.3, 0.1, 0.3], [0.8, 0.8, 0.9, 0.9], [0.9, 0.9, 0.8, 0.8]])).tolist()
    [3.0, 1.5, 1.5]
    """
    placed = np.ones(len(accuracies))
    for i, ours in enumerate(accuracies):
        for j, theirs in enumerate(accuracies):
            if i != j:
                difference = interval(theirs - ours)
                placed[i] += 0.5 if contains_zero(difference) else float(difference["mean"] > 0)
    return placed


def differences_to_best(accuracies: Mapping[str, np.ndarray], heads: Collection[str]) -> dict[str, Interval]:
    """Return the paired difference of each method from the best of ``heads``, over the same tasks.

    Args:
        accuracies: the accuracy of each task ``(tasks,)``, by method.
        heads: the methods of which one is the best; others, such as a baseline, are only compared with it.

    Returns:
        By method, ``to``, the head with the highest mean accuracy, and the mean, ``ci95`` and number of ``tasks`` of
        the difference from it.

    >>> found = differences_to_best({"svm": np.array([0.5, 0.7]), "ridge": np.array([0.4, 0.6])}, ["svm", "ridge"])
    >>> found["ridge"]["to"], round(found["ridge"]["mean"], 3), round(found["ridge"]["ci95"], 3)
    ('svm', -0.1, 0.0)
    """
    best = max(heads, key=lambda head: float(np.mean(accuracies[head])))
    return {name: {"to": best, **interval(values - accuracies[best])} for name, values in accuracies.items()}


def contains_zero(difference: Mapping[str, Any]) -> bool:
    """Return whether the confidence interval of a difference contains 0; that of a single task, without one, does.

    >>> contains_zero({"mean": 0.2, "ci95": 0.1}), contains_zero({"mean": 0.2, "ci95": None})
    (False, True)
    """
    return difference["ci95"] is None or abs(difference["mean"]) <= difference["ci95"]


def format_percent(measure: Mapping[str, Any] | None, unit: str = "", digits: int = 2) -> str:
    """Format an accuracy in percent with its confidence interval, if any, and the number of failed tasks.

    >>> format_percent({"mean": 0.875, "ci95": 0.0123}), format_percent({"mean": 1.0, "ci95": None})
    ('87.50 ± 1.23', '100.00')
    >>> format_percent({"mean": 0.5, "ci95": 0.031, "failed": 12}, " %"), format_percent(None)
    ('50.00 ± 3.10 % (12 failed)', '–')
    """
    if measure is None:
        return "–"
    if measure["mean"] is None:
        return "diverged"
    spread = "" if measure["ci95"] is None else f" ± {100 * measure['ci95']:.{digits}f}"
    return f"{100 * measure['mean']:.{digits}f}{spread}{unit}{format_failed(measure.get('failed'))}"


def format_difference(difference: Mapping[str, Any]) -> str:
    """Format a difference of accuracies in points, with its sign and its confidence interval, if any.

    >>> format_difference({"mean": -0.0123, "ci95": 0.004}), format_difference({"mean": 0.01, "ci95": None})
    ('−1.23 ± 0.40', '+1.00')
    """
    spread = "" if difference["ci95"] is None else f" ± {100 * difference['ci95']:.2f}"
    return f"{100 * difference['mean']:+.2f}{spread}".replace("-", "−")


def format_failed(failed: float | None) -> str:
    """Format the number of failed tasks, to follow an accuracy; results of earlier versions do not contain it.

    >>> format_failed(12), format_failed(0), format_failed(None)
    (' (12 failed)', '', '')
    """
    return f" ({failed:.0f} failed)" if failed else ""


def format_options(choice: Mapping[str, Any]) -> str:
    """Format the options of a head that were selected on validation tasks.

    >>> format_options({"lr": 0.5, "test_steps": 10, "validation_accuracy": 0.8, "validation_failed": 0})
    'lr=0.5 test_steps=10'
    """
    options = {name: value for name, value in choice.items() if not name.startswith("validation_")}
    return " ".join(
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in options.items()
    )
