"""Projections of features to the plane: principal components and linear discriminant."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.linalg import eigh

SHRINKAGE = 0.1
DIGITS = 4  # significant digits of a coordinate in analysis.json


def project_features(features: np.ndarray, classes: np.ndarray, names: Sequence[str]) -> dict:
    """Return both projections of the features of a few classes, in the format of analysis.json.

    Args:
        features: ``(n, d)``.
        classes: ``(n,)``, the class numbers of the features.
        names: the names of all classes.

    Returns:
        The ``names`` of the occurring classes, ``classes`` with the index of each row into the names, and ``points``
        with the coordinates of the rows in the ``principal`` and in the ``discriminant`` plane. The latter is fitted to
        the rows that are not ``held_out``, half of each class.
    """
    shown = list(dict.fromkeys(classes.tolist()))
    held_out = every_second(classes)
    directions = discriminant(features, classes, ~held_out)
    planes = {"principal": principal(features), "discriminant": directions}
    return {
        "held_out": held_out.tolist(),
        "names": [names[c] for c in shown],
        "classes": [shown.index(c) for c in classes.tolist()],
        "points": {
            name: [[float(f"{value:.{DIGITS}g}") for value in row] for row in rows] for name, rows in planes.items()
        },
    }


def principal(features: np.ndarray) -> np.ndarray:
    """Return the first two principal components ``(n, 2)`` of ``features`` ``(n, d)``; a missing one is zero."""
    left, lengths, _ = np.linalg.svd(features - features.mean(0), full_matrices=False)
    return take_plane(left * lengths)


def every_second(classes: np.ndarray) -> np.ndarray:
    """Return whether a row is the second, fourth, ... of its class.

    >>> every_second(np.array([7, 7, 3, 7, 3, 7])).tolist()
    [False, True, False, False, True, True]
    """
    return np.array([(classes[:row] == own).sum() % 2 == 1 for row, own in enumerate(classes)])


def discriminant(features: np.ndarray, labels: np.ndarray, fitted: np.ndarray) -> np.ndarray:
    """Return coordinates ``(n, 2)`` along the two directions that maximise between-class over within-class variance.

    This is a linear discriminant analysis. Features often have more dimensions than rows, in which case some projection
    separates any classes of the rows to which it is fitted. Therefore, unlike in the figures of Goldblum et al. (2020),
    the rows that are shown are not those that it is fitted to. The within-class covariance is shrunk by a tenth towards
    a multiple of the identity, in the span of the rows. scikit-learn's estimator shrinks in the space of all ``d``
    dimensions, which weakens the shrinkage by a factor of ``rank / d``.

    Args:
        features: ``(n, d)``.
        labels: ``(n,)``.
        fitted: ``(n,)``, which rows the directions are fitted to; they must belong to at least two classes.
    """
    centred = features - features[fitted].mean(0)
    _, lengths, axes = np.linalg.svd(centred[fitted], full_matrices=False)
    kept = lengths > 1e-9 * max(lengths[0], 1e-12)
    if not kept.any():
        return np.zeros((len(features), 2))
    projected = centred @ axes[kept].T  # in the span of the rows
    rows = projected[fitted]
    _, places, counts = np.unique(labels[fitted], return_inverse=True, return_counts=True)
    means = np.eye(len(counts))[places].T @ rows / counts[:, None]
    residuals = rows - means[places]
    within = residuals.T @ residuals / len(rows)
    scale = max(np.trace(within) / len(within), 1e-12)
    within = (1 - SHRINKAGE) * within + SHRINKAGE * scale * np.eye(len(within))
    between = means.T @ (counts[:, None] * means)
    return take_plane(projected @ eigh(between, within)[1][:, ::-1])


def take_plane(columns: np.ndarray) -> np.ndarray:
    """Return two of ``columns`` ``(n, k)``, padded with zeros, with signs that make their largest entries positive."""
    shown = np.zeros((len(columns), 2))
    shown[:, : columns.shape[1]] = columns[:, :2]
    largest = shown[np.abs(shown).argmax(0), [0, 1]]
    return shown * np.where(largest < 0, -1, 1)
