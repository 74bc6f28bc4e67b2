"""Metrics of evaluation: one row per task, independent of the number of processes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from metafew.episode import Episode
from metafew.evaluation.statistics import Interval, interval
from metafew.predictions import NO_ANSWER, answers


class PerTask(Metric):
    """The accuracy and loss of every task, sorted by task number.

    An unanswered query (:func:`~metafew.predictions.answers`) counts as wrong, and its task as failed: ``failed`` is 1
    and the loss is NaN. ``compute`` returns float64 ``(tasks, 7)`` with the columns :attr:`columns`, gathered over all
    processes.
    """

    columns = ("index", "source", "way", "shot", "accuracy", "loss", "failed")
    full_state_update = False
    rows: list[Tensor]

    def __init__(self):
        super().__init__()
        self.add_state("rows", default=[], dist_reduce_fx="cat")
        self.reset()

    def reset(self) -> None:
        """Remove all rows."""
        super().reset()
        # A process may have no tasks, but all processes take part in gathering.
        self.rows.append(torch.empty(0, len(self.columns), dtype=torch.float64, device=self.device))

    def update(self, logits: Tensor, episode: Episode) -> None:
        """Add the tasks of an episode; ``shot`` is the mean over classes.

        Args:
            logits: ``(t, q, w)``.
            episode: the tasks. ``loss`` is the mean cross-entropy of their queries, in nats.
        """
        labels = episode.query.labels
        found = answers(logits)
        accuracy = (found == labels).double().mean(1)
        failed = (found == NO_ANSWER).any(1)
        loss = F.cross_entropy(logits.mT.double(), labels, reduction="none").mean(1).masked_fill(failed, torch.nan)
        shot = episode.support.labels.shape[1] / episode.way
        source, way, shot = (torch.full_like(loss, value) for value in (episode.source, episode.way, shot))
        index = episode.index.to(loss, non_blocking=True)
        self.rows.append(torch.stack([index, source, way, shot, accuracy, loss, failed.double()], 1))

    def compute(self) -> Tensor:
        """Return the rows, sorted by task number."""
        rows = dim_zero_cat(self.rows)  # already one tensor if the rows of several processes were gathered
        return rows[rows[:, 0].argsort()]


def summary(table: Tensor, measure: str) -> Interval:
    """Summarize ``accuracy`` or ``loss`` over a table of :class:`PerTask`: mean, interval, and number of failed tasks.

    The mean loss is NaN if a task failed.
    """
    values = {name: table[:, PerTask.columns.index(name)].cpu().numpy() for name in (measure, "failed")}
    return interval(values[measure]) | {"failed": int(values["failed"].sum())}


def of_source(table: Tensor, number: int) -> Tensor:
    """Return the rows of one dataset of a mixture."""
    return table[table[:, PerTask.columns.index("source")] == number]
