"""metrics.csv: what a run logs, a row at a time."""

from __future__ import annotations

import csv
from argparse import Namespace
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from metafew.io import atomic_write


class MetricsFile(Logger):
    """Appends each row at once, where Lightning's CSVLogger keeps them and begins anew when training goes on.

    Args:
        path: the file.
        steps: the rows of so many steps stay where the file exists; others are those of steps that will be done again.
    """

    def __init__(self, path: Path, steps: int):
        super().__init__()
        self.path, self.steps = path, steps
        self.columns: list[str] = []

    name = version = ""

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *_: Any, **__: Any) -> None:
        """Do nothing: results.json has them."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append a row; the first measure of a name adds a column."""
        row = {**metrics, "step": step}
        if not row.keys() <= set(self.columns):
            self._widen(row)
        with self.path.open("a", encoding="utf-8", newline="") as file:
            csv.DictWriter(file, self.columns).writerow(row)

    def _widen(self, row: dict[str, Any]) -> None:
        """Write the file anew with the columns of ``row`` too."""
        rows = []
        if self.path.exists() and (self.columns or self.steps):
            complete = self.path.read_text(encoding="utf-8").rpartition("\n")[0]  # the last row may have been cut off
            lines = complete.splitlines()
            rows = [old for old in csv.DictReader(lines) if self.columns or int(old["step"]) < self.steps]
        self.columns = sorted({*row, *(rows[0] if rows else self.columns)})
        with atomic_write(self.path, newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(rows)
