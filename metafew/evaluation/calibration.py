"""Calibrate probabilities: a temperature fitted on validation tasks, and the calibration error on test tasks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from metafew.distributed.collective import gather_objects
from metafew.heads.head import Head
from metafew.predictions import answers

BINS = 15
HIGHEST = 1000.0
"""The highest temperature; the lowest is its inverse."""
HALVINGS = 14
"""Halvings of the interval of ``log T``, which fix T to 0.05 %."""


class ValidationLogits:
    """The logits of validation queries under one head, on this rank."""

    def __init__(self):
        self._margins: dict[int, list[Tensor]] = {}

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add the queries of an episode, except unanswered ones.

        Args:
            logits: ``(t, q, w)``.
            labels: ``(t, q)``.
        """
        rows = logits.detach().flatten(0, 1).double()
        margins = rows - rows.gather(1, labels.flatten().unsqueeze(1))
        self._margins.setdefault(logits.shape[-1], []).append(margins)

    def tables(self) -> list[Tensor]:
        """Return, for each way ``w``, the logits of answered queries minus that of their class, ``(n, w)``."""
        tables = [torch.cat(rows) for rows in self._margins.values()]
        return [table[table.isfinite().all(-1)] for table in tables]


def fit_temperatures(logits: Mapping[str, ValidationLogits]) -> dict[str, float]:
    """Return, for each head with answered queries on any rank, the temperature with the lowest cross-entropy over them.

    The cross-entropy of ``softmax(logits / T)`` is convex in ``1 / T``, so that bisection finds the root of its
    derivative. The result is between 0.001 and 1000: the lower end if every answer is right. All ranks call this, with
    the same heads. Source: Guo et al. 2017, *On Calibration of Modern Neural Networks*, Section 4.2.

    Args:
        logits: those of the queries of this rank, by head.
    """
    tables = {name: each.tables() for name, each in logits.items()}
    counts = gather_objects({name: sum(map(len, own)) for name, own in tables.items()})
    names = [name for name in tables if sum(count[name] for count in counts)]
    low, high = dict.fromkeys(names, 1 / HIGHEST), dict.fromkeys(names, HIGHEST)  # of 1 / T
    for _ in range(HALVINGS):
        middle = {name: math.sqrt(low[name] * high[name]) for name in names}
        slopes = gather_objects({name: slope(tables[name], middle[name]) for name in names})
        for name in names:
            rises = math.fsum(own[name] for own in slopes) > 0
            (high if rises else low)[name] = middle[name]
    return {name: 1 / math.sqrt(low[name] * high[name]) for name in names}


def slope(tables: Sequence[Tensor], inverse: float) -> float:
    """Return the derivative of the summed cross-entropy with respect to ``1 / T`` at ``inverse``."""
    return sum(((inverse * table).softmax(-1) * table).sum().item() for table in tables)


class CalibrationError(Metric):
    """The expected calibration error of test queries, before and after the logits are divided by a temperature.

    ``ECE = sum_b |right_b - confidence_b| / n`` over 15 equal bins of the highest probability of a query, with sums
    over the queries of a bin. Unanswered queries are left out. Source: Guo et al. 2017, Equation 3.

    Args:
        temperature: the temperature; None if there is none, in which case there is no error after.
    """

    full_state_update = False
    gaps: Tensor
    count: Tensor

    def __init__(self, temperature: float | None):
        super().__init__()
        self.temperature = temperature
        self.add_state("gaps", torch.zeros(2, BINS, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add the queries of an episode: logits ``(t, q, w)`` and labels ``(t, q)``."""
        bins = torch.arange(BINS, device=logits.device).unsqueeze(1)
        answered = logits.isfinite().all(-1)
        right = (answers(logits) == labels).double()
        for number, temperature in enumerate((1.0, self.temperature or 1.0)):
            confidence = (logits.double() / temperature).softmax(-1).amax(-1).where(answered, 0.0)
            inside = (confidence * BINS).long().clamp(max=BINS - 1).flatten() == bins
            self.gaps[number] += inside.double() @ ((right - confidence) * answered).flatten()
        self.count += answered.sum()

    def compute(self) -> Tensor:
        """Return the errors before and after, NaN without queries."""
        return self.gaps.abs().sum(-1) / self.count

    def summary(self) -> dict[str, float | None]:
        """Return the temperature and the errors before and after, None where there is none."""
        before, after = (error if math.isfinite(error) else None for error in self.compute().tolist())
        ece_after = None if self.temperature is None else after
        return {"temperature": self.temperature, "ece_before": before, "ece_after": ece_after}


def applicable_temperature(head: Head, fitted: float) -> float:
    """Return the temperature fitted in training, where heads use their first candidate; 1 for any other candidate."""
    return fitted if head.chosen in (None, *[*head.candidates][:1]) else 1.0
