"""Metrics of evaluation: one row for each task, independent of the number of processes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from metafew.episode import Episode
from metafew.evaluation.statistics import Interval, interval


class PerTask(Metric):
    """The accuracy and loss of every task, sorted by task number.

    ``compute`` returns float64 ``(tasks, 6)`` with the columns of :attr:`columns`, gathered over all processes.
    """

    columns = ("index", "source", "way", "shot", "accuracy", "loss")
    full_state_update = False
    rows: list[Tensor]

    def __init__(self):
        super().__init__()
        self.add_state("rows", default=[], dist_reduce_fx="cat")
        self.reset()

    def reset(self) -> None:
        """Remove all rows."""
        super().reset()
        # A process may have no task, but all take part in gathering.
        self.rows.append(torch.empty(0, len(self.columns), dtype=torch.float64, device=self.device))

    def update(self, logits: Tensor, episode: Episode) -> None:
        """Add the tasks of an episode, with ``shot`` as the mean over classes.

        Args:
            logits: ``(t, q, w)``.
            episode: the tasks; ``loss`` is the mean cross-entropy of their queries, in nats.
        """
        labels = episode.query.labels
        accuracy = (logits.argmax(-1) == labels).double().mean(1)
        loss = F.cross_entropy(logits.mT.double(), labels, reduction="none").mean(1)
        shot = episode.support.labels.shape[1] / episode.way
        source, way, shot = (torch.full_like(loss, value) for value in (episode.source, episode.way, shot))
        self.rows.append(torch.stack([episode.index.double(), source, way, shot, accuracy, loss], 1))

    def compute(self) -> Tensor:
        """Return the rows, sorted by task number."""
        rows = dim_zero_cat(self.rows)  # one tensor already, where those of several processes were gathered
        return rows[rows[:, 0].argsort()]


def summary(table: Tensor, measure: str) -> Interval:
    """Return the mean and interval of ``accuracy`` or ``loss`` over a table of :class:`PerTask`."""
    return interval(table[:, PerTask.columns.index(measure)].numpy(force=True))


def of_source(table: Tensor, number: int) -> Tensor:
    """Return the rows of one dataset of a mixture."""
    return table[table[:, PerTask.columns.index("source")] == number]
