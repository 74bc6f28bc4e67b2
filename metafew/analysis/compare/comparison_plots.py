"""Figures of a comparison of runs. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from metafew.analysis.compare.comparison import Comparison, Measurement
from metafew.analysis.compare.feature_plots import alpha_curves, projections, sufficient_conditions, weight_distances
from metafew.analysis.compare.rows_and_columns import (
    Column,
    Row,
    canonical,
    group_rows,
    named_by_folder,
    task_settings,
)
from metafew.analysis.compare.runs import STARTS, Omitted, Run
from metafew.analysis.compare.settings import format_overrides, varying_keys
from metafew.analysis.compare.training_curves import (
    INTERVAL,
    Folders,
    draw_errorbars,
    learning_curves,
    learning_rates,
)
from metafew.analysis.style import COLOURS, HATCHES, canvas, legend, panel_grid, save
from metafew.errors import UsageError
from metafew.evaluation.statistics import format_failed

MODES = {"together": "all queries together", "single": "one query at a time", "class": "queries of one class"}
ROW, HEAD = "row", "measured head"  # settings that separate lines and are omitted from labels
LINE = "measured"  # the head as a setting in labels
MARK = "\N{NO-BREAK SPACE}†"  # of transductive rows


def draw_comparison(comparison: Comparison, runs: Sequence[Run], folder: Path) -> tuple[dict[str, Path], list[Omitted]]:
    """Draw all figures for which the runs have data, as PNG and SVG, in place of those of an earlier report.

    Args:
        comparison: the tested runs.
        runs: all runs, tested or analyzed.
        folder: the folder to write to.

    Returns:
        The PNG files by name, and the omitted figures with the reasons.
    """
    files, omitted = {}, []
    for draw in (accuracy_over_shots, queries_at_once):
        file = remove(folder / f"{draw.__name__}.png")
        if figure := draw(comparison):
            files[draw.__name__] = file
            save(figure, file)
    analyzed = [run for run in runs if run.analysis]
    figures: dict[str, tuple[Callable[[Folders, Path], None], Folders]] = {
        "learning_curves": (learning_curves, training_folders(comparison)),
        "rates": (learning_rates, learning_rate_folders(comparison)),
        "projections": (projections, analysis_folders(of_first_tasks(analyzed), "projection")),
        "travel": (weight_distances, analysis_folders(runs, "distances")),
        "alphas": (alpha_curves, analysis_folders(runs, "alpha")),
        "conditions": (sufficient_conditions, analysis_folders(runs, "sufficient_condition")),
    }
    for name, (draw, folders) in figures.items():
        file = remove(folder / f"{name}.png")
        try:
            if folders:
                draw(folders, file)
                files[name] = file
        except UsageError as error:
            omitted.append(Omitted(file, str(error)))
    return files, omitted


def remove(file: Path) -> Path:
    """Remove a figure of an earlier report, as PNG and SVG, and return its path."""
    for suffix in (".png", ".svg"):
        file.with_suffix(suffix).unlink(missing_ok=True)
    return file


def training_folders(comparison: Comparison) -> dict[str, list[Path]]:
    """Return the folders of validated trainings, one per seed, by label; empty for a single training."""
    trained = [(run, settings) for run, settings in compared_runs(comparison) if run.validations]
    lines = group_lines(
        (run, without(settings, *(key for key in settings if key.startswith("test."))), run.seed, run.folder)
        for run, settings in trained
    )
    several = sum(len(seeds) for _, seeds in lines) > 1
    return {label: [folders[0] for folders in seeds.values()] for label, seeds in lines} if several else {}


def learning_rate_folders(comparison: Comparison) -> dict[str, list[Path]]:
    """Return, by label, the folders of runs that only differ in seed and outer learning rate, for two or more rates."""
    key = "optimizer.lr"
    points = (
        (run, without(settings, key), run.values.get(key), run.folder) for run, settings in compared_runs(comparison)
    )
    return {label: list(chain(*rates.values())) for label, rates in group_lines(points, least=2)}


def of_first_tasks(runs: Sequence[Run]) -> list[Run]:
    """Return the runs with the test tasks of the first one, as a figure of projections shows the same classes."""
    return [run for run in runs if task_settings(run) == task_settings(runs[0])]


def analysis_folders(runs: Sequence[Run], key: str) -> dict[str, list[Path]]:
    """Return the folders of runs with ``key`` in analysis.json, by row and test tasks; empty for a single label."""
    analyzed = [run for run in runs if run.analysis.get(key)]
    tasks = named_by_folder(analyzed, varying_keys(map(task_settings, analyzed)))
    folders: dict[str, list[Path]] = {}
    for row in group_rows(analyzed):
        for run in row.runs:
            of_tasks = format_overrides(run.values | {"dataset": run.dataset}, tasks)
            label = " ".join(filter(None, [row.label if row.settings or not tasks else "", of_tasks]))
            folders.setdefault(label + MARK * row.transductive, []).append(run.analyzed)
    return folders if len(folders) > 1 else {}


def accuracy_over_shots(comparison: Comparison) -> Figure | None:
    """Draw test accuracy over the number of shots, one panel per head, one line per row that has several."""
    points = []
    for i, column, cell in plottable_cells(comparison):
        run = cell.runs[0]
        if isinstance(shot := run.shots[column.number], int):
            settings = without(line_settings(comparison.rows[i], run), "test.shot") | {HEAD: column.head, ROW: i}
            points.append((run, settings, shot, (column.head, cell)))
    lines = group_lines(points, least=2)
    if not lines:
        return None
    panels = list(dict.fromkeys(head for _, cells in lines for each in cells.values() for head, _ in each))
    labels = list(dict.fromkeys(label for label, _ in lines))
    shots = sorted({shot for _, cells in lines for shot in cells})
    offset = min(0.1, 0.6 / len(labels))  # keeps intervals from overlapping
    figure, drawn = panel_grid(len(panels), "shot (support images of a class)", "test accuracy (%)")
    for label, cells in lines:
        ((head, _), *_), *_ = cells.values()
        number, own = labels.index(label), sorted(cells)
        measured = [cells[shot][-1][1] for shot in own]
        x = np.array(own) + offset * (number - (len(labels) - 1) / 2)
        label += format_failed(sum(cell.failed for cell in measured))
        draw_errorbars(drawn[panels.index(head)], x, *in_percent(measured), label, number)
    for axes, head in zip(drawn, panels, strict=True):
        axes.set_xticks(shots)
        axes.set_title(head if len(panels) > 1 else "", fontsize=9, parse_math=False)
    legend(figure, INTERVAL)
    return figure


def queries_at_once(comparison: Comparison) -> Figure | None:
    """Draw test accuracy as bars, one per value of ``test.queries``, for rows tested with at least two values."""
    points = []
    for _, column, cell in plottable_cells(comparison):
        run = cell.runs[0]
        settings = without(run.settings, "test.queries", "test.shot")
        settings |= {LINE: column.head, "shot": run.shots[column.number]}
        points.append((run, settings, run.values.get("test.queries", "together"), cell))
    lines = group_lines(points, least=2)
    if not lines:
        return None
    modes = [mode for mode in MODES if any(mode in cells for _, cells in lines)]
    figure, axes = canvas("", "test accuracy (%)", width=3.4 + 1.7 * len(lines))
    for number, mode in enumerate(modes):
        bars = {place: most_shared(cells, mode) for place, (_, cells) in enumerate(lines) if mode in cells}
        mean, ci95 = in_percent(bars.values())
        x = np.array(list(bars)) + (number - (len(modes) - 1) / 2) * 0.8 / len(modes)
        style: dict[str, Any] = {"color": COLOURS[(4, 5, 3)[number]], "edgecolor": "black", "hatch": HATCHES[number]}
        axes.bar(x, mean, 0.8 / len(modes), yerr=ci95, capsize=3, label=MODES[mode], **style)
    parts = [[part for override in label.split(" ")[:5] for part in wrap(override, 24)] for label, _ in lines]
    for part, (_, cells) in zip(parts, lines, strict=True):
        part += [failed.strip()] if (failed := format_failed(sum(most_shared(cells, m).failed for m in cells))) else []
    axes.set_xticks(range(len(lines)), ["\n".join(each) for each in parts], fontsize=8, parse_math=False)
    axes.set_ylim(0, 100)
    axes.grid(axis="x", visible=False)
    legend(figure, INTERVAL)
    return figure


def most_shared(cells: Mapping[str, list[Measurement]], mode: str) -> Measurement:
    """Return the measurement of a mode; of several, the one whose checkpoints are shared by most other modes."""

    def checkpoints(cell: Measurement) -> set:
        return {run.values.get("ckpt") for run in cell.runs}

    every = [checkpoints(cell) for each in cells.values() for cell in each]
    return max(cells[mode], key=lambda cell: every.count(checkpoints(cell)))


def compared_runs(comparison: Comparison) -> list[tuple[Run, dict]]:
    """Return the runs of all rows, each with the settings of its line."""
    return [(run, line_settings(row, run)) for row in comparison.rows for run in row.runs]


def line_settings(row: Row, run: Run) -> dict:
    """Return the settings of a run, and the checkpoint or weights, if these separate its row from others."""
    return run.settings | {key: row.settings[key] for key in STARTS if key in row.settings}


def plottable_cells(comparison: Comparison) -> Iterator[tuple[int, Column, Measurement]]:
    """Yield row, column and measurement, over all test tasks, for heads that did not diverge."""
    for (i, column), cell in comparison.cells.items():
        if not column.baseline and column.source is None and cell.mean is not None:
            yield i, column, cell


def without(settings: Mapping, *keys: str) -> dict:
    """Return settings without some keys."""
    return {key: value for key, value in settings.items() if key not in keys}


def group_lines(points: Iterable[tuple[Run, dict, Any, Any]], least: int = 1) -> list[tuple[str, dict[Any, list]]]:
    """Group points with equal settings into lines.

    Args:
        points: for each point, its run, the settings of its line, its abscissa and its value.
        least: lines with fewer distinct abscissas are dropped.

    Returns:
        The values by abscissa for each line, by label; labels contain the settings in which lines differ, and a mark
        for transductive lines.
    """
    lines: dict[str, tuple[Run, dict, dict]] = {}
    for run, settings, x, value in points:
        lines.setdefault(canonical(settings), (run, settings, {}))[2].setdefault(x, []).append(value)
    kept = [line for line in lines.values() if len(line[2]) >= least]
    varying = varying_keys(settings for _, settings, _ in kept)
    keys = named_by_folder([run for run, _, _ in kept], (key for key in varying if key not in (ROW, HEAD)))
    labelled = []
    for run, settings, values in kept:
        label = format_overrides(run.values | settings | {"dataset": run.dataset}, keys) or format_overrides(
            run.values, ("head", "norm")
        )
        labelled.append((label + MARK * run.is_transductive(settings.get(HEAD, settings.get(LINE))), values))
    return labelled


def in_percent(cells: Iterable[Measurement]) -> tuple[np.ndarray, np.ndarray]:
    """Return means and half widths of 95 % intervals in percent, with 0 for a single task."""
    cells = list(cells)
    return 100 * np.array([cell.mean for cell in cells]), 100 * np.array([cell.ci95 or 0.0 for cell in cells])
