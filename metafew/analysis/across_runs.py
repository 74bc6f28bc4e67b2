"""Figures of several runs beside each other. Imports no torch."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from textwrap import fill, wrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metafew.analysis.comparison import Cell, Comparison
from metafew.analysis.layout import Column, key
from metafew.analysis.runs import Run
from metafew.analysis.settings import differing, typed

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
"""Those of Okabe and Ito that stand out on white: told apart by all common kinds of colour vision."""
LINES, MARKERS, HATCHES = ("-", "--", "-.", ":"), "osD^vPX", ("", "///", "...")
HEIGHT = 3.6  # inches
MEAN, BAND = "mean ± 95 % interval", "mean over seeds, band from the\nlowest to the highest"
MODES = {"together": "all queries together", "single": "one query at a time", "class": "queries of one class"}


def figures(table: Comparison) -> dict[str, Figure]:
    """Return the figures that the runs of a table allow, by the names of their files."""
    drawn = {draw.__name__: draw(table) for draw in (learning_curves, accuracy_over_shots, queries_at_once)}
    return {name: figure for name, figure in drawn.items() if figure}


def learning_curves(table: Comparison) -> Figure | None:
    """Draw validation accuracy over steps: the mean over seeds, in a band from the lowest to the highest.

    A line is what was decided for training. Nothing is drawn for fewer than two runs.
    """
    trainings: dict[str, tuple[Run, dict]] = {}
    curves: dict[str, dict[int | None, dict[int, float]]] = {}
    for run in (run for row in table.rows for run in row.runs):
        if points := validations(run):
            decided = {name: value for name, value in run.settings.items() if not name.startswith("test.")}
            trainings.setdefault(key(decided), (run, decided))
            curves.setdefault(key(decided), {}).setdefault(run.seed, points)
    if sum(map(len, curves.values())) < 2:
        return None
    figure, axes = canvas("step", "validation accuracy (%)")
    for number, (label, seeds) in enumerate(zip(labels(trainings.values()), curves.values(), strict=True)):
        steps = sorted(set.intersection(*map(set, seeds.values())))
        values = 100 * np.array([[points[step] for step in steps] for points in seeds.values()])
        axes.plot(steps, values.mean(0), label=label, markersize=4, **style(number))
        if len(seeds) > 1:
            axes.fill_between(steps, values.min(0), values.max(0), color=COLOURS[number % len(COLOURS)], alpha=0.2)
    legend(figure, BAND if max(map(len, curves.values())) > 1 else "")
    return figure


def validations(run: Run) -> dict[int, float]:
    """Return the validation accuracy of the trained head after each step with a validation; empty where unknown."""
    file, name = run.folder / "metrics.csv", f"val/{run.heads[0]}/accuracy"
    if not file.is_file():
        return {}
    with file.open(newline="", encoding="utf-8") as lines:
        return {int(row["step"]) + 1: float(row[name]) for row in csv.DictReader(lines) if row.get(name)}


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
        axes.errorbar(shots, mean, spread, label=label, capsize=2, elinewidth=1, markersize=5, **style(number))
    axes.set_xticks(sorted({shot for points in found.values() for shot in points}))
    legend(figure, MEAN)
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
    figure, axes = canvas("", "test accuracy (%)", width=3.0 + 1.3 * len(found))
    for number, mode in enumerate(modes):
        bars = {place: of_same_start(cells, mode) for place, cells in enumerate(found.values()) if mode in cells}
        mean, spread = heights(bars.values())
        where = np.array(list(bars)) + (number - (len(modes) - 1) / 2) * 0.8 / len(modes)
        look = {"color": COLOURS[(4, 5, 3)[number]], "edgecolor": "black", "hatch": HATCHES[number]}
        axes.bar(where, mean, 0.8 / len(modes), yerr=spread, capsize=3, label=MODES[mode], **look)
    under = [
        "\n".join(line for word in label.split(" ")[:5] for line in wrap(word, 20))
        for label in labels(map(groups.get, found))
    ]
    axes.set_xticks(range(len(found)), under, fontsize=8, parse_math=False)
    axes.set_ylim(0, 100)
    axes.grid(axis="x", visible=False)
    legend(figure, MEAN)
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
    marks = ["\N{NO-BREAK SPACE}†" if run.report.get("transductive") else "" for run, _ in lines]
    return [label + mark for label, mark in zip(named, marks, strict=True)]


def heights(cells: Iterable[Cell]) -> tuple[list[float], list[float]]:
    """Return means and half widths of 95 % intervals in percent; a single task has no interval."""
    cells = list(cells)
    return [100 * cell.mean for cell in cells], [100 * (cell.ci95 or 0.0) for cell in cells]


def canvas(x: str, y: str, width: float = 8.0) -> tuple[Figure, Axes]:
    """Return a figure and its axes."""
    figure = Figure(figsize=(width, HEIGHT), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel=x, ylabel=y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    return figure, axes


def style(number: int) -> Mapping[str, str]:
    """Return colour, line and marker, which tell a line apart in grey too."""
    turn = number // len(COLOURS)
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": LINES[number % len(LINES)],
        "marker": MARKERS[(number + turn) % len(MARKERS)],
        "linewidth": 1.5,
    }


def legend(figure: Figure, title: str) -> None:
    """Name what was drawn to the right of it, and let the figure be high enough for that."""
    handles, names = figure.axes[0].get_legend_handles_labels()
    ticks = [tick.get_text() for tick in figure.axes[0].get_xticklabels()]
    below = max(tick.count("\n") for tick in ticks)
    marked = any("†" in text for text in [*names, *ticks])
    title = "\n".join(filter(None, [title, "† transductive" if marked else ""]))
    names = [fill(name, 36, max_lines=3, placeholder=" …") for name in names]
    beside = len("\n".join([title, *names]).splitlines())
    figure.set_figheight(max(HEIGHT + 0.15 * below, 0.7 + 0.165 * beside))
    look = {"fontsize": 8, "title_fontsize": 8, "alignment": "left", "frameon": False}
    shown = figure.legend(handles, names, loc="outside right upper", title=title, **look)
    for text in shown.get_texts():
        text.set_parse_math(False)


def save(drawn: Mapping[str, Figure], folder: Path) -> dict[str, Path]:
    """Write each figure as PNG and SVG into ``folder``, and return the PNG files."""
    for name, figure in drawn.items():
        figure.savefig(folder / f"{name}.png", dpi=150)
        figure.savefig(folder / f"{name}.svg")
    return {name: folder / f"{name}.png" for name in drawn}
