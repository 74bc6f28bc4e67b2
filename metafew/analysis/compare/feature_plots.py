"""Figures of the features of several runs, from analysis.json. Imports no torch.

Each function takes the folders of runs by label, one folder per seed, and the PNG to write; an SVG is written next to
it. Runs without the required data are left out; UsageError is raised if none has them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from metafew.analysis.compare.runs import Run
from metafew.analysis.features.plots import PLANES, class_legend, draw_alphas, draw_bounds, plane_title, scatter_classes
from metafew.analysis.style import COLOURS, HATCHES, LINES, MARKERS, PANELS_PER_ROW, canvas, legend, save
from metafew.errors import UsageError

Folders = Mapping[str, Sequence[Path]]

BINS = 20


def projections(folders: Folders, file: Path) -> None:
    """Draw the same classes in the discriminant plane and in the principal plane, one column per label.

    A column shows the first of its runs. The discriminant planes share one scale, as classes have unit variance there;
    the scale of principal components depends on the network.

    Raises:
        UsageError: if no run has a projection in analysis.json, or runs projected different classes.
    """
    shown = {label: contents[0] for label, contents in read_analyses(folders, "projection").items()}
    names = {label: content["projection"]["names"] for label, content in shown.items()}
    first, *others = names
    if other := next((label for label in others if names[label] != names[first]), None):
        raise UsageError(
            f"expected projections of the same classes, got {', '.join(names[first])} of {first} and "
            f"{', '.join(names[other])} of {other}: type stages=[analyze] with the same analyze.split, test.way, "
            "test.shot and test.seed"
        )
    figure = Figure(figsize=(1 + 2.9 * len(shown), 6.6), layout="constrained")
    for row, plane in zip(figure.subplots(2, len(shown), squeeze=False), reversed(PLANES), strict=True):
        for axes, (label, content) in zip(row, shown.items(), strict=True):
            if plane == "discriminant" and axes is not row[0]:
                axes.sharex(row[0])
                axes.sharey(row[0])
            drawn = scatter_classes(axes, content["projection"], plane)
            set_title(axes, f"{label}\n{plane_title(content['projection'], plane)}")
    class_legend(figure, drawn, names[first])
    save(figure, file)


def weight_distances(folders: Folders, file: Path) -> None:
    """Draw histograms over tasks of the distance between weights before and after adaptation, with medians."""
    found = read_analyses(folders, "distances")
    distances = {label: np.concatenate([each["distances"] for each in contents]) for label, contents in found.items()}
    edges = np.histogram_bin_edges(np.concatenate(list(distances.values())), BINS)
    figure, axes = canvas("distance of all layers, filter-normalised", "tasks (%)")
    for number, (label, values) in enumerate(distances.items()):
        line: dict[str, Any] = {"color": COLOURS[number % len(COLOURS)], "linestyle": LINES[number % len(LINES)]}
        outline: dict[str, Any] = {"edgecolor": line["color"], "linestyle": line["linestyle"], "linewidth": 1.3}
        fill_style: dict[str, Any] = {
            "facecolor": to_rgba(line["color"], 0.25),
            "hatch": HATCHES[number % len(HATCHES)],
        }
        label, share = f"median {np.median(values):.3g}, {label}", np.full(len(values), 100 / len(values))
        axes.hist(values, edges.tolist(), weights=share, histtype="stepfilled", label=label, **outline, **fill_style)
        axes.axvline(np.median(values), linewidth=2.5, **line)
    legend(figure, f"{task_splits(found)},\nlines at the medians")
    save(figure, file)


def alpha_curves(folders: Folders, file: Path) -> None:
    """Draw alpha over the context size, one panel per label and one line per TaskNorm layer and seed.

    Seeds are not averaged: the mean of a rising and a falling alpha would not resemble the curve of any layer.
    """
    found = read_analyses(folders, "alpha")
    columns = min(len(found), PANELS_PER_ROW)
    rows = -(-len(found) // columns)
    figure = Figure(figsize=(1 + 3 * columns, 0.8 + 2.7 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for number, (axes, (label, contents)) in enumerate(zip(panels, found.items(), strict=False)):
        for content in contents:
            layers: list[dict[float, float]] = [
                {int(size): value for size, value in layer.items()} for layer in content["alpha"]["layers"]
            ]
            draw_alphas(axes, layers, content["alpha"]["trained"], marked=True)
        set_title(axes, label)
        axes.set_ylabel("" if number % columns else "alpha")
    for axes in panels[len(found) :]:
        axes.remove()
    named = {name: drawn for axes in figure.axes for drawn, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    style = {"fontsize": 8, "frameon": False, "ncols": min(5, 1 + 2 * columns)}
    figure.legend(named.values(), named, loc="outside lower center", **style)
    save(figure, file)


def sufficient_conditions(folders: Folders, file: Path) -> None:
    """Draw one-shot accuracy of pairs of classes over their variance ratio, for all seeds, with both lower bounds."""
    found = read_analyses(folders, "sufficient_condition")
    points = {
        label: np.concatenate([each["sufficient_condition"]["points"] for each in contents])
        for label, contents in found.items()
    }
    figure, axes = canvas("", "")
    for number, (label, pairs) in enumerate(points.items()):
        mark: dict[str, Any] = {"marker": MARKERS[number % len(MARKERS)], "edgecolors": COLOURS[number % len(COLOURS)]}
        axes.scatter(pairs[:, 0], 100 * pairs[:, 1], s=12, facecolors="none", linewidths=0.9, label=label, **mark)
    draw_bounds(axes, np.concatenate(list(points.values()))[:, 0])
    legend(figure, f"pairs of classes of\n{task_splits(found)}")
    save(figure, file)


def read_analyses(folders: Folders, key: str) -> dict[str, list[dict]]:
    """Return the content of each analysis.json with ``key``, by label."""
    read = {label: [Run.in_folder(folder).analysis for folder in each] for label, each in folders.items()}
    found = {label: [content for content in each if content.get(key)] for label, each in read.items()}
    return require_any(found, folders, f"{key} in analysis.json", "stages=[analyze] ckpt=PATH")


def require_any(found: dict, folders: Folders, what: str, instead: str) -> dict:
    """Return the labels that have data.

    Raises:
        UsageError: if none has data; the message names the missing data, the folders, and overrides that produce the
            data.
    """
    kept = {label: each for label, each in found.items() if each}
    if not kept:
        places = ", ".join(str(folder) for each in folders.values() for folder in each)
        raise UsageError(f"expected runs with {what}, got none in {places or '0 runs'}: type {instead}")
    return kept


def task_splits(found: Mapping[str, Iterable[dict]]) -> str:
    """Name the splits of the analyzed tasks."""
    return f"{' or '.join(sorted({content['split'] for each in found.values() for content in each}))} tasks"


def set_title(axes: Axes, text: str) -> None:
    """Set a literal title, wrapped to the width of a panel."""
    axes.set_title("\n".join(fill(line, 34, max_lines=3, placeholder=" …") for line in text.split("\n")), fontsize=9)
    axes.title.set_parse_math(False)
