"""How tightly features cluster by class (Goldblum et al. 2020): measures of a backbone that are also loss terms.

Pairs are features ``(..., p, 2, 2, d)``: ``p`` pairs of classes with two images each. ``x1, x2`` are the images of one
class of a pair, ``y1, y2`` those of the other. Expectations below are for two isotropic Gaussians in high dimension,
each with total variance ``s``, whose means are ``D`` apart, with ``r = D^2 / s``. The authors' published code swaps the
names of ``R_FC`` and ``R_HV``; the names here are those of the paper.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.linalg import vector_norm

from metafew.errors import UsageError
from metafew.precision import precise


def feature_clustering(pairs: Tensor) -> Tensor:
    """Return the feature clustering ratio ``R_FC``, the mean over pairs.

    ``(|x1 - x2|^2 + |y1 - y2|^2) / (|m_x - m_y|^2 + 2e-6)`` with the class means ``m``: the general formula of
    :func:`class_clustering` for two classes of two images, with numerator and denominator multiplied by 2. It is 0 if
    every class is a point, and ``4 / (1 + r)`` in expectation. The paper has no epsilon; the authors' code adds 1e-6 to
    a denominator that is half of this one.

    Args:
        pairs: features ``(..., p, 2, 2, d)``.

    Returns:
        ``(...)``, in float32 or better.
    """
    pairs = precise(pairs)
    within = (pairs[..., 0, :] - pairs[..., 1, :]).square().sum((-1, -2))
    means = pairs.mean(-2)
    between = (means[..., 0, :] - means[..., 1, :]).square().sum(-1)
    return (within / (between + 2e-6)).mean(-1)


def hyperplane_variation(pairs: Tensor) -> Tensor:
    """Return the hyperplane variation ``(2 R_HV)^2``, the mean over pairs: the form of the authors' code.

    ``(|d1 - d2| / ((|d1| + |d2|) / 2 + 1e-4))^2``, from 0 to 4, where ``d_i = x_i - y_i`` is the normal of the plane
    that separates image ``i`` of both classes. It measures how much a one-shot classifier changes when its support set
    is redrawn. In expectation ``4 / (2 + r)``. The square and the 1e-4 are those of the authors' code.

    Args:
        pairs: features ``(..., p, 2, 2, d)``.

    Returns:
        ``(...)``, in float32 or better.
    """
    return (2 * _turns(pairs)).square().mean(-1)


def hyperplane_ratio(pairs: Tensor) -> Tensor:
    """Return ``R_HV`` as reported, ``|d1 - d2| / (|d1| + |d2|)``, from 0 to 1, the mean over pairs.

    The denominator has the epsilon of :func:`hyperplane_variation`. In expectation ``1 / sqrt(2 + r)``.

    Args:
        pairs: features ``(..., p, 2, 2, d)``.

    Returns:
        ``(...)``, in float32 or better.
    """
    return _turns(pairs).mean(-1)


PAIRWISE = (feature_clustering, hyperplane_variation, hyperplane_ratio)


def pairwise(pairs: Tensor) -> list[dict[str, float]]:
    """Return each measure of :data:`PAIRWISE`, by name, of each of ``pairs`` ``(p, 2, 2, d)``."""
    return [{measure.__name__: float(measure(pair[None])) for measure in PAIRWISE} for pair in pairs]


def variance_ratio(features: Tensor, labels: Tensor) -> Tensor:
    """Return the ratio of the mean variance within classes to the variance between them, for a complete split.

    ``(1/C) sum_i (1/N_i) sum_j |x_ij - m_i|^2 / ((1/C) sum_i |m_i - m|^2 + 1e-6)`` with the class means ``m_i`` and
    their mean ``m``. Every class has the same weight, regardless of its number of images ``N_i``, and the ratio does
    not grow with the number of classes ``C``.

    Args:
        features: ``(n, d)``.
        labels: ``(n,)``, any integers.

    Returns:
        A scalar, in float32 or better.
    """
    classes = [precise(features[labels == label]) for label in labels.unique()]
    means = torch.stack([rows.mean(0) for rows in classes])
    spreads = [(rows - mean).square().sum(1).mean() for rows, mean in zip(classes, means, strict=True)]
    between = (means - means.mean(0)).square().sum(1).mean()
    return torch.stack(spreads).mean() / (between + 1e-6)


def class_clustering(features: Tensor, labels: Tensor) -> Tensor:
    """Return ``R_FC`` as reported, of a complete split: ``(C/N) sum_ij |x_ij - m_i|^2 / sum_i |m_i - m|^2``.

    ``C`` is the number of classes, and ``N`` the number of images of each.

    This is ``C`` times :func:`variance_ratio`, with its epsilon and its weighting of classes of unequal size.

    Args:
        features: ``(n, d)``.
        labels: ``(n,)``, any integers.

    Returns:
        A scalar, in float32 or better.
    """
    return len(labels.unique()) * variance_ratio(features, labels)


def draw_pairs(features: Tensor, labels: Tensor, index: Tensor) -> Tensor:
    """Return random disjoint pairs of classes with two images each, from every task.

    The pairs of a task depend only on its number and labels, not on the other tasks, the number of processes or torch's
    random state, so that regularized runs are as reproducible as others. Classes with fewer than two rows are left out,
    and so is one class if their number is odd. All tasks are cut to the smallest number of pairs among them.

    Args:
        features: ``(t, n, d)``, support and query rows together.
        labels: ``(t, n)``.
        index: ``(t,)``, the numbers of the tasks, as in an episode.

    Returns:
        ``(t, p, 2, 2, d)``: task, pair, class, image.

    Raises:
        UsageError: if a task has fewer than two classes of two rows.
    """
    drawn = [_rows(task, number) for task, number in zip(labels.cpu().numpy(), index.tolist(), strict=True)]
    rows = np.stack([task[: min(map(len, drawn))] for task in drawn])
    if not rows.size:
        raise UsageError(
            "expected two images of each of two classes in every task, support and query together, for pairs of "
            "classes, got fewer: type train.query=1 or more"
        )
    tasks = torch.arange(len(rows), device=features.device)[:, None, None, None]
    return features[tasks, torch.from_numpy(rows).to(features.device, non_blocking=True)]


def _rows(labels: np.ndarray, number: int) -> np.ndarray:
    """Return the rows ``(p, 2, 2)`` of the pairs that task ``number`` draws."""
    rng = np.random.default_rng(number)
    classes, counts = np.unique(labels, return_counts=True)
    classes = rng.permutation(classes[counts > 1])
    rows = [rng.choice(np.flatnonzero(labels == c), 2, replace=False) for c in classes[: len(classes) // 2 * 2]]
    return np.asarray(rows, dtype=np.int64).reshape(-1, 2, 2)


def _turns(pairs: Tensor) -> Tensor:
    """Return ``|d1 - d2| / (|d1| + |d2| + 2e-4)`` ``(..., p)`` of every pair."""
    normals = precise(pairs[..., 0, :, :]) - precise(pairs[..., 1, :, :])
    change = vector_norm(normals[..., 0, :] - normals[..., 1, :], dim=-1)
    return change / (vector_norm(normals, dim=-1).sum(-1) + 2e-4)
