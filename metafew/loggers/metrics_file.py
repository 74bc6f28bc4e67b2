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
        resumes: whether the rows that it has at the start are kept.
    """

    def __init__(self, path: Path, resumes: bool):
        super().__init__()
        self.path, self.resumes = path, resumes
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
        rows = read_rows(self.path) if self.path.exists() and (self.columns or self.resumes) else []
        self.columns = sorted({*row, *(rows[0] if rows else self.columns)})
        write_rows(self.path, self.columns, rows)


def copy_rows(old: Path, new: Path, steps: int) -> None:
    """Copy the rows of the first ``steps`` steps, as later steps will be repeated; ``new`` may be ``old``."""
    rows = [row for row in read_rows(old) if int(row["step"]) < steps]
    write_rows(new, [*rows[0]] if rows else ["step"], rows)


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a file, except a last one that was truncated."""
    return [*csv.DictReader(path.read_text(encoding="utf-8").rpartition("\n")[0].splitlines())]


def write_rows(path: Path, columns: list[str], rows: list[dict[str, str]]) -> None:
    """Write a file of these rows."""
    with atomic_write(path, newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
