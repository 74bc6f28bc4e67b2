"""Calibrate probabilities: a temperature fitted on validation tasks, and the calibration error on test tasks."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchmetrics import Metric

from metafew.distributed.collective import gather_objects
from metafew.predictions import answers

BINS = 15
HIGHEST = 1000.0
"""The highest temperature; the lowest is its inverse."""
PRECISION = 1e-6


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

    def temperature(self) -> float | None:
        """Return the temperature with the lowest cross-entropy over the queries of all ranks, or None without any.

        The cross-entropy of ``softmax(logits / T)`` is convex in ``1 / T``, so that bisection finds the root of its
        derivative. The result is between 0.001 and 1000: the lower end if every answer is right. All ranks call this.
        Source: Guo et al. 2017, *On Calibration of Modern Neural Networks*, Section 4.2.
        """
        tables = [torch.cat(rows) for rows in self._margins.values()]
        tables = [table[table.isfinite().all(-1)] for table in tables]
        if not sum(gather_objects(sum(map(len, tables)))):
            return None
        low, high = 1 / HIGHEST, HIGHEST  # of 1 / T
        while high / low > 1 + PRECISION:
            middle = math.sqrt(low * high)
            own = sum(((middle * table).softmax(-1) * table).sum().item() for table in tables)
            low, high = (low, middle) if math.fsum(gather_objects(own)) > 0 else (middle, high)
        return 1 / math.sqrt(low * high)


class CalibrationError(Metric):
    """The expected calibration error of test queries, before and after the logits are divided by a temperature.

    ``ECE = sum_b |right_b - confidence_b| / n`` over 15 equal bins of the highest probability of a query, with sums
    over the queries of a bin. Unanswered queries are left out. Source: Guo et al. 2017, Equation 3.

    Args:
        temperature: the temperature; None if there is none, and then no error after.
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
