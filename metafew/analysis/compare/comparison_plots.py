"""The figures that a table of runs allows. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import wrap

import numpy as np
from matplotlib.figure import Figure

from metafew.analysis.compare import feature_plots
from metafew.analysis.compare.comparison import Cell, Comparison
from metafew.analysis.compare.rows_and_columns import Column, key, rows_of
from metafew.analysis.compare.runs import Omitted, Run
from metafew.analysis.compare.settings import differing, typed
from metafew.analysis.compare.training_curves import INTERVAL, curves, rates
from metafew.analysis.style import COLOURS, HATCHES, canvas, legend, look, save
from metafew.errors import UsageError

MODES = {"together": "all queries together", "single": "one query at a time", "class": "queries of one class"}
MARK = "\N{NO-BREAK SPACE}†"  # of what is transductive
ANALYSES = {
    feature_plots.projections: "projection",
    feature_plots.travel: "distances",
    feature_plots.alphas: "alpha",
    feature_plots.conditions: "sufficient_condition",
}
"""What a figure of analyzed runs shows of their analysis.json."""


def draw(table: Comparison, runs: Sequence[Run], folder: Path) -> tuple[dict[str, Path], list[Omitted]]:
    """Draw what the runs allow as PNG and SVG into ``folder``.

    Args:
        table: of those that were tested.
        runs: all, which may have been analyzed too, or instead.
        folder: where to.

    Returns:
        The PNG files by their names, and the figures that runs do not allow together, with the reason.
    """
    files, omitted = {}, []
    for figure in (accuracy_over_shots, queries_at_once):
        if drawn := figure(table):
            files[figure.__name__] = folder / f"{figure.__name__}.png"
            save(drawn, files[figure.__name__])
    wanted = {curves: ("learning_curves", trainings(table)), rates: ("rates", rates_of(table))}
    wanted |= {figure: (figure.__name__, analyzed(runs, key)) for figure, key in ANALYSES.items()}
    for figure, (name, folders) in wanted.items():
        if folders:
            try:
                figure(folders, folder / f"{name}.png")
                files[name] = folder / f"{name}.png"
            except UsageError as error:
                omitted.append(Omitted(folder / f"{name}.png", str(error)))
    return files, omitted


def trainings(table: Comparison) -> dict[str, list[Path]]:
    """Return the folders of trainings with validations, one a seed, by what was decided for them; none of one alone."""
    found: dict[str, tuple[Run, dict]] = {}
    seeds: dict[str, dict[int | None, Path]] = {}
    for run in (run for row in table.rows for run in row.runs):
        if run.validations:
            decided = {name: value for name, value in run.settings.items() if not name.startswith("test.")}
            found.setdefault(key(decided), (run, decided))
            seeds.setdefault(key(decided), {}).setdefault(run.seed, run.folder)
    if sum(map(len, seeds.values())) < 2:
        return {}
    return dict(zip(labels(found.values()), map(list, map(dict.values, seeds.values())), strict=True))


def rates_of(table: Comparison) -> dict[str, list[Path]]:
    """Return the folders of runs that differ in the outer learning rate, and seed, alone: two rates or more."""
    groups: dict[str, list[Run]] = {}
    for run in (run for row in table.rows for run in row.runs):
        groups.setdefault(key(without("optimizer.lr", run.settings)), []).append(run)
    several = [runs for runs in groups.values() if len({run.facts.get("optimizer.lr") for run in runs}) > 1]
    named = labels((runs[0], without("optimizer.lr", runs[0].settings)) for runs in several)
    return dict(zip(named, ([run.folder for run in runs] for runs in several), strict=True))


def analyzed(runs: Sequence[Run], key: str) -> dict[str, list[Path]]:
    """Return the folders of runs with ``key`` in their analysis.json, by their rows; none of one row alone."""
    rows = rows_of([run for run in runs if run.analysis.get(key)])
    named = [row.label + MARK * row.transductive for row in rows]
    return dict(zip(named, ([run.folder for run in row.runs] for row in rows), strict=True)) if len(rows) > 1 else {}


def accuracy_over_shots(table: Comparison) -> Figure | None:
    """Draw test accuracy over the shot: a line for all that was tested with two shots or more."""
    lines: dict[str, tuple[Run, dict]] = {}
    found: dict[str, dict[int, Cell]] = {}
    for (i, column), cell in drawable(table):
        run = cell.runs[0]
        if isinstance(shot := run.shots[column.number], int):
            decided = without("test.shot", run.settings) | {"measured": column.head}
            line = key([i, decided])
            lines.setdefault(line, (run, decided))
            found.setdefault(line, {})[shot] = cell
    found = {line: dict(sorted(points.items())) for line, points in found.items() if len(points) > 1}
    if not found:
        return None
    figure, axes = canvas("shot (support images of a class)", "test accuracy (%)")
    beside = min(0.1, 0.6 / len(found))  # so that no interval hides another
    for number, (label, points) in enumerate(zip(labels(map(lines.get, found)), found.values(), strict=True)):
        mean, spread = heights(points.values())
        shots = np.array(list(points)) + beside * (number - (len(found) - 1) / 2)
        axes.errorbar(shots, mean, spread, label=label, capsize=2, elinewidth=1, markersize=5, **look(number))
    axes.set_xticks(sorted({shot for points in found.values() for shot in points}))
    legend(figure, INTERVAL)
    return figure


def queries_at_once(table: Comparison) -> Figure | None:
    """Draw test accuracy as bars, where rows differ in how many queries were asked at once: one for each way to ask."""
    groups: dict[str, tuple[Run, dict]] = {}
    found: dict[str, dict[str, list[Cell]]] = {}
    for (_, column), cell in drawable(table):
        run = cell.runs[0]
        decided = without("test.queries", without("test.shot", run.settings))
        decided |= {"measured": column.head, "shot": run.shots[column.number]}
        groups.setdefault(key(decided), (run, decided))
        mode = run.facts.get("test.queries", "together")
        found.setdefault(key(decided), {}).setdefault(mode, []).append(cell)
    found = {group: cells for group, cells in found.items() if len(cells) > 1}
    if not found:
        return None
    modes = [mode for mode in MODES if any(mode in cells for cells in found.values())]
    figure, axes = canvas("", "test accuracy (%)", width=3.4 + 1.7 * len(found))
    for number, mode in enumerate(modes):
        bars = {place: of_same_start(cells, mode) for place, cells in enumerate(found.values()) if mode in cells}
        mean, spread = heights(bars.values())
        where = np.array(list(bars)) + (number - (len(modes) - 1) / 2) * 0.8 / len(modes)
        bar = {"color": COLOURS[(4, 5, 3)[number]], "edgecolor": "black", "hatch": HATCHES[number]}
        axes.bar(where, mean, 0.8 / len(modes), yerr=spread, capsize=3, label=MODES[mode], **bar)
    under = [
        "\n".join(line for word in label.split(" ")[:5] for line in wrap(word, 24))
        for label in labels(map(groups.get, found))
    ]
    axes.set_xticks(range(len(found)), under, fontsize=8, parse_math=False)
    axes.set_ylim(0, 100)
    axes.grid(axis="x", visible=False)
    legend(figure, INTERVAL)
    return figure


def of_same_start(cells: Mapping[str, list[Cell]], mode: str) -> Cell:
    """Return the cell of a mode; of several, which start from other checkpoints, the one that most modes have too."""

    def starts(cell: Cell) -> set:
        return {run.facts.get("ckpt") for run in cell.runs}

    return max(
        cells[mode], key=lambda cell: sum(starts(cell) == starts(other) for each in cells.values() for other in each)
    )


def drawable(table: Comparison) -> Iterator[tuple[tuple[int, Column], Cell]]:
    """Yield the cells of heads that did not diverge, of all test tasks, with their row and column."""
    for (row, column), cell in table.cells.items():
        if not column.baseline and column.source is None and cell.mean is not None:
            yield (row, column), cell


def without(name: str, settings: Mapping) -> dict:
    """Return settings but for one."""
    return {own: value for own, value in settings.items() if own != name}


def labels(lines: Iterable[tuple[Run, dict]]) -> list[str]:
    """Return what tells lines apart, each a run with what was decided for it; transductive ones are marked."""
    lines = list(lines)
    words = differing(decided for _, decided in lines)
    named = [typed(run.facts | decided, words) or typed(run.facts, ("head", "norm")) for run, decided in lines]
    marks = [MARK if run.report.get("transductive") else "" for run, _ in lines]
    return [label + mark for label, mark in zip(named, marks, strict=True)]


def heights(cells: Iterable[Cell]) -> tuple[list[float], list[float]]:
    """Return means and half widths of 95 % intervals in percent; a single task has no interval."""
    cells = list(cells)
    return [100 * cell.mean for cell in cells], [100 * (cell.ci95 or 0.0) for cell in cells]
