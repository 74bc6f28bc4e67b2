"""Figures of what several runs have measured of their features, from analysis.json. Imports no torch.

Each function takes the folders of runs by the label to draw them under, one folder for each seed, and the PNG to write,
an SVG beside it. Runs that lack what is drawn are left out; where none has it, a sentence says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from textwrap import fill

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from metafew.analysis.compare.runs import Run
from metafew.analysis.features.plots import PLANES, alpha_layers, class_names, classes, lower_bounds
from metafew.analysis.style import COLOURS, HATCHES, LINES, MARKERS, canvas, legend, save
from metafew.errors import UsageError

Folders = Mapping[str, Sequence[Path]]

ACROSS = 4  # panels in a row
BINS = 20


def projections(folders: Folders, file: Path) -> None:
    """Draw the same classes in the plane of the discriminant and in that of the principal components, a column a label.

    A column shows the first of its runs. Directions of the discriminant have one scale in all columns, as classes have
    unit variance in them; that of principal components is the network's own.

    Raises:
        UsageError: no run has its projection in analysis.json, or they are of other classes.
    """
    shown = {label: contents[0] for label, contents in analyses(folders, "projection").items()}
    names = {label: content["projection"]["names"] for label, content in shown.items()}
    first, *others = names
    if other := next((label for label in others if names[label] != names[first]), None):
        raise UsageError(
            f"a projection beside another wants the same classes, not {', '.join(names[first])} of {first} and "
            f"{', '.join(names[other])} of {other}: type stages=[analyze] with the same analyze.split, test.way, "
            "test.shot and test.seed"
        )
    figure = Figure(figsize=(1 + 2.9 * len(shown), 6.6), layout="constrained")
    for row, plane in zip(figure.subplots(2, len(shown), squeeze=False), reversed(PLANES), strict=True):
        for axes, (label, content) in zip(row, shown.items(), strict=True):
            drawn = classes(axes, content["projection"], plane)
            titled(axes, f"{label}\n{PLANES[plane]}")
        if plane == "discriminant":
            for side in "xy":
                low, high = zip(*(getattr(axes, f"get_{side}lim")() for axes in row), strict=True)
                for axes in row:
                    getattr(axes, f"set_{side}lim")(min(low), max(high))
    class_names(figure, drawn, names[first])
    save(figure, file)


def travel(folders: Folders, file: Path) -> None:
    """Draw how far fine-tuning goes: a histogram over the tasks of all seeds for each label, its median marked."""
    found = analyses(folders, "distances")
    distances = {label: np.concatenate([each["distances"] for each in contents]) for label, contents in found.items()}
    edges = np.histogram_bin_edges(np.concatenate(list(distances.values())), BINS)
    figure, axes = canvas("distance of all layers, filter-normalised", "tasks (%)")
    for number, (label, values) in enumerate(distances.items()):
        colour, dashes = COLOURS[number % len(COLOURS)], LINES[number % len(LINES)]
        axes.hist(
            values,
            edges,
            weights=np.full(len(values), 100 / len(values)),
            histtype="stepfilled",
            facecolor=to_rgba(colour, 0.25),
            edgecolor=colour,
            linestyle=dashes,
            linewidth=1.3,
            hatch=HATCHES[number % len(HATCHES)],
            label=f"median {np.median(values):.3g}, {label}",
        )
        axes.axvline(np.median(values), color=colour, linestyle=dashes, linewidth=2.5)
    legend(figure, f"{tasks_of(found)},\nlines at the medians")
    save(figure, file)


def alphas(folders: Folders, file: Path) -> None:
    """Draw alpha over the size of the context, a panel a label: a line for each TaskNorm layer and seed.

    Seeds have no mean here: an alpha that rises and one that falls would make a curve that no layer has.
    """
    found = analyses(folders, "alpha")
    across = min(len(found), ACROSS)
    down = -(-len(found) // across)
    figure = Figure(figsize=(1 + 3 * across, 0.8 + 2.7 * down), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False, sharey=True).ravel()
    for number, (axes, (label, contents)) in enumerate(zip(panels, found.items(), strict=False)):
        for content in contents:
            layers = [{int(size): value for size, value in layer.items()} for layer in content["alpha"]["layers"]]
            alpha_layers(axes, layers, content["alpha"]["trained"], marked=True)
        titled(axes, label)
        axes.set_ylabel("" if number % across else "alpha")
    for axes in panels[len(found) :]:
        axes.remove()
    named = {name: drawn for axes in figure.axes for drawn, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    style = {"fontsize": 8, "frameon": False, "ncols": min(5, 1 + 2 * across)}
    figure.legend(named.values(), named, loc="outside lower center", **style)
    save(figure, file)


def conditions(folders: Folders, file: Path) -> None:
    """Draw one-shot accuracy of pairs of classes over their variance ratio, of all seeds, beside both bounds."""
    found = analyses(folders, "sufficient_condition")
    points = {
        label: np.concatenate([each["sufficient_condition"]["points"] for each in contents])
        for label, contents in found.items()
    }
    figure, axes = canvas("", "")
    for number, (label, pairs) in enumerate(points.items()):
        mark = {"marker": MARKERS[number % len(MARKERS)], "edgecolors": COLOURS[number % len(COLOURS)]}
        axes.scatter(pairs[:, 0], 100 * pairs[:, 1], s=12, facecolors="none", linewidths=0.9, label=label, **mark)
    lower_bounds(axes, np.concatenate(list(points.values()))[:, 0])
    legend(figure, f"pairs of classes of\n{tasks_of(found)}")
    save(figure, file)


def analyses(folders: Folders, key: str) -> dict[str, list[dict]]:
    """Return what stands in the analysis.json of each run that has ``key`` there."""
    read = {label: [Run.of(folder).analysis for folder in each] for label, each in folders.items()}
    found = {label: [content for content in each if content.get(key)] for label, each in read.items()}
    return only(found, folders, f"{key} in analysis.json", "stages=[analyze] ckpt=PATH")


def only(found: dict, folders: Folders, what: str, instead: str) -> dict:
    """Return the labels that something was found for; raise a sentence where there are none."""
    kept = {label: each for label, each in found.items() if each}
    if not kept:
        places = ", ".join(str(folder) for each in folders.values() for folder in each)
        raise UsageError(
            f"this figure wants runs with {what}, and there is none in {places or '0 runs'}: type {instead}"
        )
    return kept


def tasks_of(found: Mapping[str, Iterable[dict]]) -> str:
    """Return where the tasks of analyses come from."""
    return f"{' or '.join(sorted({content['split'] for each in found.values() for content in each}))} tasks"


def titled(axes: Axes, text: str) -> None:
    """Write a title as it is, in lines that a panel is wide enough for."""
    axes.set_title("\n".join(fill(line, 34, max_lines=3, placeholder=" …") for line in text.split("\n")), fontsize=9)
    axes.title.set_parse_math(False)
