"""Means, intervals and ranks of what was measured on tasks. Imports no torch: tables are made without it."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence

import numpy as np

NORMAL = 1.96
"""Half width of a 95 % interval in standard errors, where there are many tasks."""
STEPS = 2**53  # as many as a float tells apart between 0 and 1


def interval(values: np.ndarray) -> dict[str, float | None]:
    """Return the mean over tasks and the half width of its 95 % confidence interval.

    ``ci95 = 1.96 s / sqrt(n)`` with ``s`` the sample standard deviation (``n - 1``); None for a single task.

    >>> {k: round(v, 3) for k, v in interval(np.array([0.5, 0.7, 0.9])).items()}
    {'mean': 0.7, 'ci95': 0.226, 'tasks': 3}
    """
    count = len(values)
    ci95 = NORMAL * float(np.std(values, ddof=1)) / math.sqrt(count) if count > 1 else None
    return {"mean": float(np.mean(values)), "ci95": ci95, "tasks": count}


def over_seeds(means: Sequence[float]) -> dict[str, float]:
    """Return the mean of the means of several seeds, its standard error, and the half width of its 95 % t-interval.

    >>> {k: round(v, 3) for k, v in over_seeds([0.80, 0.82, 0.84]).items()}
    {'mean': 0.82, 'ci95': 0.05, 'se': 0.012}
    """
    error = float(np.std(means, ddof=1)) / math.sqrt(len(means))
    return {"mean": float(np.mean(means)), "ci95": t_quantile(len(means) - 1) * error, "se": error}


def summarized(values: Sequence[dict]) -> dict[str, float | None]:
    """Return mean, ``ci95`` and ``se`` of one measure, from its mean and ``ci95`` for each seed.

    One seed keeps its interval over tasks; several have that over seeds. All are None where a seed diverged.

    >>> summarized([{"mean": 0.5, "ci95": 0.196}]), summarized([{"mean": 0.5, "ci95": 0.1}, {"mean": None}])
    ({'mean': 0.5, 'ci95': 0.196, 'se': 0.1}, {'mean': None, 'ci95': None, 'se': None})
    """
    means = [value["mean"] for value in values]
    if None in means:
        return {"mean": None, "ci95": None, "se": None}
    if len(means) > 1:
        return over_seeds(means)
    ci95 = values[0].get("ci95")
    return {"mean": means[0], "ci95": ci95, "se": None if ci95 is None else ci95 / NORMAL}


def t_quantile(degrees: int, level: float = 0.95) -> float:
    """Return the ``t`` that Student's distribution lies within ``-t`` and ``t`` of with probability ``level``.

    With ``t = sqrt(degrees) tan(angle)`` that probability is a finite sum of powers of the cosine, and rises with the
    angle: the angle is found by bisection.

    >>> round(t_quantile(1), 3), round(t_quantile(2), 3), round(t_quantile(100), 3)
    (12.706, 4.303, 1.984)
    """
    unit = math.pi / 2 / STEPS
    angle = unit * bisect_left(range(STEPS), level, key=lambda step: within(unit * step, degrees))
    return math.sqrt(degrees) * math.tan(angle)


def within(angle: float, degrees: int) -> float:
    """Return the probability that Student's ``t`` is at most ``sqrt(degrees) tan(angle)`` in size."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    term = sine * cosine if odd else sine
    total = 0.0 if degrees == 1 else term
    for power in range(3 if odd else 2, degrees, 2):
        term *= cosine**2 * (power - 1) / power
        total += term
    return (angle + total) * 2 / math.pi if odd else total


def ranks(accuracies: np.ndarray, spread: Callable[[np.ndarray], dict] = interval) -> np.ndarray:
    """Return the rank of each method, 1 for the best: those that cannot be told apart share the mean of their ranks.

    Two methods differ when the 95 % confidence interval of the mean of their paired differences leaves out 0. The rank
    of a method is 1 + the number of methods that are better + half the number of those that do not differ from it,
    which is the mean of the ranks that a group of equals takes up.

    Args:
        accuracies: ``(methods, tasks)``, or ``(methods, seeds)`` of means.
        spread: the mean of differences and its interval: :func:`interval`, or for seeds :func:`over_seeds`.

    Returns:
        ``(methods,)``.

    >>> ranks(np.array([[0.1, 0.3, 0.1, 0.3], [0.8, 0.8, 0.9, 0.9], [0.9, 0.9, 0.8, 0.8]])).tolist()
    [3.0, 1.5, 1.5]
    """
    placed = np.ones(len(accuracies))
    for i, ours in enumerate(accuracies):
        for j, theirs in enumerate(accuracies):
            difference = spread(theirs - ours)
            if i != j and equal(difference):
                placed[i] += 0.5
            elif difference["mean"] > 0 and i != j:
                placed[i] += 1
    return placed


def equal(difference: dict) -> bool:
    """Tell whether the interval of a difference holds 0."""
    return abs(difference["mean"]) <= (difference["ci95"] or 0.0)


def format_percent(measure: dict | None) -> str:
    """Return an accuracy in percent with its confidence interval, which a single task lacks.

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
