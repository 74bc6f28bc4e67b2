"""Means, confidence intervals and ranks of accuracies. Imports no torch: reports are written without it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import stdtrit

Interval = dict[str, Any]
"""A mean, the half width ``ci95`` of its 95 % confidence interval, and further values, as in results.json."""
NORMAL = 1.96
"""Half width of a 95 % confidence interval in standard errors, for many tasks."""


def interval(values: np.ndarray) -> Interval:
    """Return the mean over tasks and the half width of its 95 % confidence interval.

    ``ci95 = 1.96 s / sqrt(n)`` with ``s`` the sample standard deviation (``n - 1``); None for a single task.

    >>> {k: round(v, 3) for k, v in interval(np.array([0.5, 0.7, 0.9])).items()}
    {'mean': 0.7, 'ci95': 0.226, 'tasks': 3}
    """
    count = len(values)
    ci95 = NORMAL * float(np.std(values, ddof=1)) / math.sqrt(count) if count > 1 else None
    return {"mean": float(np.mean(values)), "ci95": ci95, "tasks": count}


def seed_interval(means: Sequence[float]) -> Interval:
    """Return the mean over seeds, its standard error and the half width of its 95 % t-interval.

    ``ci95 = t(0.975, n - 1) s / sqrt(n)`` over the ``n`` means of two or more seeds.

    >>> {k: round(v, 3) for k, v in seed_interval([0.80, 0.82, 0.84]).items()}
    {'mean': 0.82, 'ci95': 0.05, 'se': 0.012}
    """
    error = float(np.std(means, ddof=1)) / math.sqrt(len(means))
    return {"mean": float(np.mean(means)), "ci95": float(stdtrit(len(means) - 1, 0.975)) * error, "se": error}


def summarize_seeds(measures: Sequence[Mapping[str, Any]]) -> Interval:
    """Return mean, ``ci95`` and ``se`` of one measure, given its mean and ``ci95`` for each seed.

    A single seed keeps its interval over tasks; several have the interval over seeds. All are None if a seed diverged.

    >>> summarize_seeds([{"mean": 0.5, "ci95": 0.196}]), summarize_seeds([{"mean": 0.5, "ci95": 0.1}, {"mean": None}])
    ({'mean': 0.5, 'ci95': 0.196, 'se': 0.1}, {'mean': None, 'ci95': None, 'se': None})
    """
    means = [measure["mean"] for measure in measures]
    if None in means:
        return {"mean": None, "ci95": None, "se": None}
    if len(means) > 1:
        return seed_interval(means)
    ci95 = measures[0].get("ci95")
    return {"mean": means[0], "ci95": ci95, "se": None if ci95 is None else ci95 / NORMAL}


def ranks(accuracies: np.ndarray, difference_of: Callable[[np.ndarray], Interval] = interval) -> np.ndarray:
    """Return the rank of each method, 1 for the best; indistinguishable methods share the mean of their ranks.

    Two methods differ if the 95 % confidence interval of the mean of their paired differences excludes 0. The rank of a
    method is 1 + the number of better methods + half the number of methods that do not differ from it.

    Args:
        accuracies: ``(methods, tasks)``, or ``(methods, seeds)`` of means.
        difference_of: mean and interval of paired differences: :func:`interval`, or :func:`seed_interval` for seeds.

    Returns:
        ``(methods,)``.

    >>> ranks(np.array([[0.1, 0.3, 0.1, 0.3], [0.8, 0.8, 0.9, 0.9], [0.9, 0.9, 0.8, 0.8]])).tolist()
    [3.0, 1.5, 1.5]
    """
    placed = np.ones(len(accuracies))
    for i, ours in enumerate(accuracies):
        for j, theirs in enumerate(accuracies):
            if i != j:
                difference = difference_of(theirs - ours)
                placed[i] += 0.5 if contains_zero(difference) else float(difference["mean"] > 0)
    return placed


def contains_zero(difference: Mapping[str, Any]) -> bool:
    """Return whether the confidence interval of a difference contains 0."""
    return abs(difference["mean"]) <= (difference["ci95"] or 0.0)


def format_percent(measure: Mapping[str, Any] | None) -> str:
    """Format an accuracy in percent with its confidence interval, if it has one.

    >>> format_percent({"mean": 0.875, "ci95": 0.0123}), format_percent({"mean": 1.0, "ci95": None})
    ('87.50 ± 1.23', '100.00')
    >>> format_percent(None)
    '–'
    """
    if measure is None:
        return "–"
    if measure["mean"] is None:
        return "diverged"
    spread = "" if measure["ci95"] is None else f" ± {100 * measure['ci95']:.2f}"
    return f"{100 * measure['mean']:.2f}{spread}"


def format_options(choice: Mapping[str, Any]) -> str:
    """Format the options of a head that were chosen on validation tasks.

    >>> format_options({"lr": 0.5, "test_steps": 10, "validation_accuracy": 0.8})
    'lr=0.5 test_steps=10'
    """
    options = {name: value for name, value in choice.items() if name != "validation_accuracy"}
    return " ".join(
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in options.items()
    )
