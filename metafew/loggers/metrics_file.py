"""A Lightning logger that writes metrics.csv."""

from __future__ import annotations

import csv
from argparse import Namespace
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from metafew.io import atomic_write


class MetricsFile(Logger):
    """Append each row at once; Lightning's CSVLogger buffers rows, and overwrites the file when a training resumes.

    Args:
        path: the file.
        steps: if the file exists, number of steps whose rows are kept; later steps will be repeated.
    """

    def __init__(self, path: Path, steps: int):
        super().__init__()
        self.path, self.steps = path, steps
        self.columns: list[str] = []

    name = version = ""

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *_: Any, **__: Any) -> None:
        """Do nothing: results.json contains them."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append a row, and add a column for each new metric."""
        row = {**metrics, "step": step}
        if not row.keys() <= set(self.columns):
            self._widen(row)
        with self.path.open("a", encoding="utf-8", newline="") as file:
            csv.DictWriter(file, self.columns).writerow(row)

    def _widen(self, row: dict[str, Any]) -> None:
        """Rewrite the file with the columns of ``row`` added."""
        rows = []
        if self.path.exists() and (self.columns or self.steps):
            complete = self.path.read_text(encoding="utf-8").rpartition("\n")[0]  # the last row may have been truncated
            lines = complete.splitlines()
            rows = [old for old in csv.DictReader(lines) if self.columns or int(old["step"]) < self.steps]
        self.columns = sorted({*row, *(rows[0] if rows else self.columns)})
        with atomic_write(self.path, newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(rows)
