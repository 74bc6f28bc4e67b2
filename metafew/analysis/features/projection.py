"""Features in the plane: principal components, and Fisher's discriminant. NumPy only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SHRINKAGE = 0.1
DIGITS = 4  # of a coordinate in analysis.json


def projection(features: np.ndarray, classes: np.ndarray, names: Sequence[str]) -> dict:
    """Return what a figure of the features of a few classes shows, as it stands in analysis.json.

    Args:
        features: ``(n, d)``.
        classes: ``(n,)`` the numbers of their classes.
        names: those of all classes.

    Returns:
        The ``names`` of the few, in ``classes`` the place of each of the ``n`` rows among them, and in ``points`` the
        rows' coordinates in the plane of the ``principal`` components and in that of the ``discriminant``.
    """
    shown = list(dict.fromkeys(classes.tolist()))
    planes = {"principal": principal(features), "discriminant": discriminant(features, classes)}
    return {
        "names": [names[c] for c in shown],
        "classes": [shown.index(c) for c in classes.tolist()],
        "points": {
            name: [[float(f"{value:.{DIGITS}g}") for value in row] for row in rows] for name, rows in planes.items()
        },
    }


def principal(features: np.ndarray) -> np.ndarray:
    """Return the two principal components ``(n, 2)`` of ``features`` ``(n, d)``; zeros where there is but one."""
    left, lengths, _ = np.linalg.svd(features - features.mean(0), full_matrices=False)
    return plane(left * lengths)


def discriminant(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the projection ``(n, 2)`` that spreads class means most, where classes have unit variance on average.

    Linear discriminant analysis, fitted to the features that it shows, as Goldblum et al. (2020) do. Features often
    have more dimensions than there are rows, where some projection takes any classes apart. The covariance within
    classes is therefore drawn by a tenth towards a multiple of the identity, in the span of the features.

    Args:
        features: ``(n, d)``.
        labels: ``(n,)``, of two classes or more.
    """
    left, lengths, _ = np.linalg.svd(features - features.mean(0), full_matrices=False)
    kept = lengths > 1e-9 * max(lengths[0], 1e-12)
    if not kept.any():
        return np.zeros((len(features), 2))
    rows = left[:, kept] * lengths[kept]  # the same features in their span
    classes, counts = np.unique(labels, return_counts=True)
    means = np.stack([rows[labels == c].mean(0) for c in classes])
    inner = rows - means[np.searchsorted(classes, labels)]
    within = inner.T @ inner / len(rows)
    size = len(within)
    within = (1 - SHRINKAGE) * within + SHRINKAGE * max(np.trace(within) / size, 1e-12) * np.eye(size)
    values, vectors = np.linalg.eigh(within)
    whitened = vectors / np.sqrt(values)
    _, _, axes = np.linalg.svd(np.sqrt(counts)[:, None] * (means @ whitened), full_matrices=False)
    return plane(rows @ whitened @ axes.T)


def plane(columns: np.ndarray) -> np.ndarray:
    """Return the first two of ``columns`` ``(n, k)``, zeros for what is missing; the largest value is positive."""
    shown = np.zeros((len(columns), 2))
    shown[:, : columns.shape[1]] = columns[:, :2]
    largest = shown[np.abs(shown).argmax(0), [0, 1]]
    return shown * np.where(largest < 0, -1, 1)
