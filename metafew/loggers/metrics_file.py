"""metrics.csv: what a run logs, a row at a time."""

from __future__ import annotations

import csv
from pathlib import Path

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

    def log_hyperparams(self, *_: dict) -> None:
        """Do nothing: they stand in results.json."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Append a row; the first measure of a name adds a column."""
        row = {**metrics, "step": step}
        if not row.keys() <= set(self.columns):
            self._widen(row)
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.columns).writerow(row)

    def _widen(self, row: dict[str, float]) -> None:
        """Write the file anew with the columns of ``row`` too."""
        rows = []
        if self.path.exists() and (self.columns or self.steps):
            lines = self.path.read_text().rpartition("\n")[0].splitlines()  # a row that was cut off is left out
            rows = [old for old in csv.DictReader(lines) if self.columns or int(old["step"]) < self.steps]
        self.columns = sorted({*row, *(rows[0] if rows else self.columns)})
        with atomic_write(self.path, newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(rows)
