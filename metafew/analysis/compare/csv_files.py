"""The CSV files of a report: the cells of its tables, and each measure of each run. Imports no torch."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from metafew.analysis.compare.comparison import Comparison
from metafew.analysis.compare.runs import Run
from metafew.analysis.compare.settings import in_group_order, varying_keys

CELL = ("mean", "ci95", "standard_error", "seeds", "tasks", "failed", "transductive", "best", "top")
CHOICES = ("head", "norm", "backbone", "dataset", "objective")
MEASURE = ("seed", "measured", "way", "shot", "source", "measure", "mean", "ci95", "tasks", "failed", "transductive")


def write_cells(path: Path, comparison: Comparison) -> None:
    """Write one line per row and column of a comparison, with full precision."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        gaps = ["difference", "difference_ci95", "paired"]
        writer.writerow(["runs", "measure", *CELL, *gaps, "average_rank", "folders"])
        for (i, column), cell in comparison.cells.items():
            row, gap = comparison.rows[i], comparison.differences.get((i, column))
            figures = [cell.mean, cell.ci95, cell.error, len(cell.runs), cell.tasks, cell.failed]
            ranked = ["", ""]
            if not column.baseline:
                ranked = [comparison.best.get(column) == i, i in comparison.top.get(column, ())]
            rank = "" if comparison.average_ranks is None else comparison.average_ranks[i]
            folders = " ".join(str(folder) for run in cell.runs for folder in run.folders)
            name = comparison.columns[column]
            writer.writerow(
                [row.label, name, *figures, cell.transductive, *ranked, *(gap or ("", "", "")), rank, folders]
            )


def write_runs(path: Path, runs: Sequence[Run]) -> None:
    """Write one line per run and measure: the choices and the other settings that differ, and what was measured.

    ``measured`` is a head, or ``HEAD/stepN`` after some steps of adaptation, or a baseline.
    """
    further = [key for key in varying_keys(run.settings for run in runs) if key not in (*CHOICES, *OF_TESTS)]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*CHOICES, *in_group_order(further), *MEASURE, "folders"], extrasaction="ignore")
        writer.writeheader()
        for run in runs:
            shared = run.values | {"dataset": run.dataset, "seed": run.seed, "way": run.values.get("test.way")}
            shared |= {"folders": " ".join(map(str, run.folders))}
            writer.writerows(shared | measured for measured in measurements(run))


OF_TESTS = ("test.way", "test.shot", "dataset.root")
"""Settings that other columns hold."""


def measurements(run: Run) -> Iterator[dict]:
    """Yield the value of each metric and baseline of a run, with its shot and dataset."""
    found = {name.removeprefix("test/"): value for name, value in run.report.get("metrics", {}).items()}
    found |= {f"{name}/accuracy": value for name, value in run.report.get("baselines", {}).items()}
    for name, value in found.items():
        head, *parts, measure = name.split("/")
        shots = [part for part in parts if part in {f"shot{shot}" for shot in run.shots}]
        sources = [part for part in parts if part in run.sources]
        further = [part for part in parts if part not in (*shots, *sources)]
        place = {"measured": "/".join([head, *further]), "measure": measure, "source": "".join(sources)}
        place["transductive"] = head in run.heads and run.is_transductive(head)
        yield value | place | {"shot": shots[0].removeprefix("shot") if shots else run.shots[0]}
