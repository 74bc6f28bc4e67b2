"""Figures of the measures of one checkpoint, and the panels that figures of several share. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from metafew.analysis.features.bounds import bound, published_bound
from metafew.analysis.style import BLUE, CLASSES, LIGHT, LINES, MARKERS, ORANGE, save

LONGEST = 28  # letters of a name that are shown
NUMBERED = 10  # a confusion matrix of at most so many rows has its numbers written in


def sufficient_condition(points: Sequence[tuple[float, float]], split: str, path: Path) -> None:
    """Draw one-shot accuracy over the variance ratio ``eps``, a point a pair of classes, beside both lower bounds."""
    figure = Figure(figsize=(6, 3.8), layout="constrained")
    axes = figure.subplots()
    eps, accuracy = np.asarray(points).T
    axes.scatter(eps, 100 * accuracy, s=14, color=BLUE, alpha=0.6, linewidths=0, label=f"pairs of {split} classes")
    lower_bounds(axes, eps)
    figure.legend(loc="outside upper center", ncols=2, fontsize=8, frameon=False)
    save(figure, path)


def lower_bounds(axes: Axes, points: np.ndarray) -> None:
    """Draw both bounds of one-shot accuracy over the variance ratio, and chance.

    Args:
        axes: where.
        points: the ratios of pairs of classes: the bounds begin at the least of them, or at 0.01.
    """
    low = np.clip(points.min(), 1e-3, 1e-2)
    eps = np.geomspace(low, 1.9999, 400)
    axes.plot(eps, 100 * bound(eps), color="black", label="bound, 1 − 16 ε / (2 − ε)")
    axes.plot(eps, 100 * published_bound(eps), color="black", ls="--", label="Theorem 1, 1 − 32 ε / (1 − ε)")
    axes.axhline(50, color="0.5", linestyle=":", label="chance")
    axes.set(xscale="log", xlim=(low, 2.2), ylim=(0, 103), ylabel="one-shot accuracy (%)")
    axes.set_xlabel("variance ratio ε = (Var X + Var Y) / Var U")


def projection(content: dict, split: str, path: Path) -> None:
    """Draw the features of a few classes in the plane of their principal components, and in that of the discriminant.

    Args:
        content: as :func:`metafew.analysis.features.projection.projection` returns it.
        split: where the classes come from.
        path: the PNG to write, an SVG beside it.
    """
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    for axes, (plane, title) in zip(figure.subplots(1, 2), PLANES.items(), strict=True):
        drawn = classes(axes, content, plane)
        axes.set_title(f"{title} of {split} features", fontsize=10)
    class_names(figure, drawn, content["names"])
    save(figure, path)


PLANES = {"principal": "principal components", "discriminant": "linear discriminant"}


def classes(axes: Axes, content: dict, plane: str) -> list[PathCollection]:
    """Draw the points of each class in one of :data:`PLANES`."""
    points, own = np.asarray(content["points"][plane]), np.asarray(content["classes"])
    unit = "component" if plane == "principal" else "direction"
    axes.set(xlabel=f"{unit} 1", ylabel=f"{unit} 2")
    axes.margins(0.08)
    return [axes.scatter(*points[own == c].T, s=22, alpha=0.75, **CLASSES[c]) for c in range(len(content["names"]))]


def class_names(figure: Figure, drawn: Sequence[PathCollection], names: Sequence[str]) -> None:
    """Write the names of classes below a figure."""
    blank = ["class"] * len(drawn)
    legend = figure.legend(drawn, blank, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set(text=short(name), parse_math=False)


def alpha_layers(
    axes: Axes, layers: Sequence[Mapping[float, float]], trained: Sequence[int], marked: bool = False
) -> None:
    """Draw alpha over the size of the context.

    Args:
        axes: where.
        layers: of each layer, from first to last, alpha by the size.
        trained: the smallest and largest context of training, which is shaded; beyond it alpha was never fitted.
        marked: whether each point is marked.
    """
    axes.axvspan(trained[0] * 0.97, trained[1] * 1.03, color="0.85", label="trained")
    for number, alpha in enumerate(layers):
        shade = colormaps["viridis"](0.85 * number / max(1, len(layers) - 1))
        line = {"color": shade, "linestyle": LINES[number % len(LINES)], "label": f"layer {number + 1}"}
        line |= {"marker": MARKERS[number % len(MARKERS)], "markersize": 4} if marked else {}
        axes.plot(list(alpha), list(alpha.values()), **line)
    axes.set(xscale="log", xlim=(0.9, 550), ylim=(-0.03, 1.03), xlabel="context size (images)", ylabel="alpha")
    axes.xaxis.set_major_formatter("{x:g}")


def confusion(found: dict, split: str, path: Path) -> None:
    """Draw which labels the queries of each class, or position in the task, got: shares of a row, in per cent."""
    counts = np.asarray(found["counts"], float)
    share = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    size = len(counts)
    by_name = found["by"] == "class"
    side = 2.6 + 0.34 * size
    figure = Figure(figsize=(side + 1.2, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(share, cmap="Greys", vmin=0, vmax=100)
    labels = [short(name) for name in found["names"]]
    axes.set_xticks(range(size), labels, fontsize=8, rotation=90 if by_name else 0, parse_math=False)
    axes.set_yticks(range(size), labels, fontsize=8, parse_math=False)
    what = "class" if by_name else "position in the task"
    axes.set(xlabel=f"predicted {what}", ylabel=f"true {what}")
    axes.set_title(f"{int(counts.sum())} queries of {split} tasks", fontsize=10)
    if size <= NUMBERED:
        for (i, j), value in np.ndenumerate(share):
            axes.text(j, i, f"{value:.0f}", ha="center", va="center", fontsize=8, color="w" if value > 50 else "k")
    figure.colorbar(image, ax=axes, label="share of the row (%)", shrink=0.8)
    save(figure, path)


def travel(distances: Sequence[float], layers: dict[str, dict], split: str, path: Path) -> None:
    """Draw how far fine-tuning goes: a histogram over tasks, and the mean of each layer with its 95 % interval.

    Args:
        distances: of each task that did not diverge, of all layers together.
        layers: of each layer, and of ``all``, mean and interval over tasks.
        split: where the tasks come from.
        path: the PNG to write, an SVG beside it.
    """
    parts = {name: value for name, value in layers.items() if name != "all" and value["mean"] is not None}
    figure = Figure(figsize=(8, max(3.4, 1.2 + 0.28 * len(parts))), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.hist(distances, bins=20, color=LIGHT, edgecolor="white", linewidth=0.6)
    left.set(ylabel=f"{split} tasks", xlabel="distance, filter-normalised", xlim=(0, None))
    left.set_title("all layers", fontsize=10)
    if distances:
        left.axvline(np.mean(distances), color="black", linestyle="--", label="mean")
        left.legend(fontsize=8)
    means = [value["mean"] for value in parts.values()]
    spread = [value["ci95"] or 0 for value in parts.values()]
    right.barh(range(len(parts)), means, xerr=spread, color=ORANGE, hatch="//", edgecolor="white", capsize=3)
    right.set_yticks(range(len(parts)), [short(name) for name in parts], fontsize=8, parse_math=False)
    right.set(xlabel="mean distance, filter-normalised", xlim=(0, None))
    right.invert_yaxis()
    right.set_title("each layer", fontsize=10)
    save(figure, path)


def short(name: str) -> str:
    """Return a name, its beginning cut off where it is long."""
    return name if len(name) <= LONGEST else f"…{name[1 - LONGEST :]}"
