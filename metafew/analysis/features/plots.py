"""Figures of the measures of one checkpoint, and panels for figures of several runs. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from metafew.analysis.features.sufficient_condition import bound, published_bound
from metafew.analysis.style import BLUE, CLASSES, LIGHT, LINES, MARKERS, ORANGE, as_colours, save

PLANES = {"principal": "principal components", "discriminant": "linear discriminant"}
CHANCE = 0.5  # accuracy of guessing between two classes
LONGEST = 28  # characters of a class or layer name
NUMBERED = 10  # the largest confusion matrix with numbers in its cells


def draw_sufficient_condition(points: Sequence[tuple[float, float]], split: str, path: Path) -> None:
    """Draw one-shot accuracy against the variance ratio ``eps``, a point for each pair of classes, and its bounds."""
    figure = Figure(figsize=(6, 3.8), layout="constrained")
    axes = figure.subplots()
    eps, accuracy = np.asarray(points).T
    axes.scatter(eps, 100 * accuracy, s=14, color=BLUE, alpha=0.6, linewidths=0, label=f"pairs of {split} classes")
    draw_bounds(axes, eps)
    figure.legend(loc="outside upper center", ncols=2, fontsize=8, frameon=False)
    save(figure, path)


def draw_bounds(axes: Axes, points: np.ndarray) -> None:
    """Draw both lower bounds of one-shot accuracy against the variance ratio, and chance.

    The title is the number of pairs for which the tighter bound exceeds chance, or says that both bounds are vacuous if
    there are none.

    Args:
        axes: the axes to draw on.
        points: the ratios of pairs of classes; the bounds start at the smallest one, but at least at 0.001 and at
            most at 0.01.
    """
    low = np.clip(points.min(), 1e-3, 1e-2)
    eps = np.geomspace(low, 1.9999, 400)
    axes.plot(eps, 100 * bound(eps), color="black", label="bound, 1 − 16 ε / (2 − ε)")
    axes.plot(eps, 100 * published_bound(eps), color="black", ls="--", label="reported Theorem 1, 1 − 32 ε / (1 − ε)")
    axes.axhline(100 * CHANCE, color="0.5", linestyle=":", label="chance")
    axes.set(xscale="log", xlim=(low, 2.2), ylim=(0, 103), ylabel="one-shot accuracy (%)")
    axes.set_xlabel("variance ratio ε = (Var X + Var Y) / Var U")
    above, pairs = int((bound(points) > CHANCE).sum()), len(points)
    vacuous = f"both bounds are vacuous here: neither exceeds chance for any of {pairs} pairs"
    axes.set_title(f"the bound exceeds chance for {above} of {pairs} pairs" if above else vacuous, fontsize=9)


def draw_projection(content: dict, split: str, path: Path) -> None:
    """Draw the features of a few classes in their principal plane and in their discriminant plane.

    Args:
        content: the result of :func:`metafew.analysis.features.projection.project_features`.
        split: the split of the classes.
        path: the PNG to write; an SVG is written next to it.
    """
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    for axes, plane in zip(figure.subplots(1, 2), PLANES, strict=True):
        drawn = scatter_classes(axes, content, plane)
        axes.set_title(f"{split} features: {plane_title(content, plane)}", fontsize=10)
    class_legend(figure, drawn, content["names"])
    save(figure, path)


def plane_title(content: dict, plane: str) -> str:
    """Return the name of one of :data:`PLANES`, and whether the points in it are held out."""
    held_out = plane == "discriminant" and "held_out" in content
    return PLANES[plane] + ", held out" * held_out


def scatter_classes(axes: Axes, content: dict, plane: str) -> list[PathCollection]:
    """Draw the features of each class in one of :data:`PLANES`; in the discriminant plane, those it was not fitted to.

    Earlier versions fitted the discriminant to all features.
    """
    points, own = np.asarray(content["points"][plane]), np.asarray(content["classes"])
    if plane == "discriminant" and "held_out" in content:
        points, own = points[content["held_out"]], own[content["held_out"]]
    unit = "component" if plane == "principal" else "direction"
    axes.set(xlabel=f"{unit} 1", ylabel=f"{unit} 2")
    axes.margins(0.08)
    drawn = []
    for c, style in enumerate(CLASSES[: len(content["names"])]):
        x, y = points[own == c].T
        drawn.append(axes.scatter(x, y, s=22, alpha=0.75, **style))
    return drawn


def class_legend(figure: Figure, drawn: Sequence[PathCollection], names: Sequence[str]) -> None:
    """Add a legend of class names below a figure."""
    blank = ["class"] * len(drawn)
    legend = figure.legend(drawn, blank, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set(text=shorten(name), parse_math=False)


def draw_alphas(
    axes: Axes, layers: Sequence[Mapping[float, float]], trained: Sequence[int], marked: bool = False
) -> None:
    """Draw alpha against the size of the context.

    Args:
        axes: the axes to draw on.
        layers: alpha by context size, of each layer from first to last.
        trained: the smallest and largest context of training. This range is shaded, as alpha is not fitted outside it.
        marked: whether to mark each point.
    """
    axes.axvspan(trained[0] * 0.97, trained[1] * 1.03, color="0.85", label="trained")
    for number, alpha in enumerate(layers):
        shade = colormaps["viridis"](0.85 * number / max(1, len(layers) - 1))
        line: dict[str, Any] = {"color": shade, "linestyle": LINES[number % len(LINES)], "label": f"layer {number + 1}"}
        line |= {"marker": MARKERS[number % len(MARKERS)], "markersize": 4} if marked else {}
        axes.plot(list(alpha), list(alpha.values()), **line)
    axes.set(xscale="log", xlim=(0.9, 550), ylim=(-0.03, 1.03), xlabel="context size (images)", ylabel="alpha")
    axes.xaxis.set_major_formatter("{x:g}")


def draw_confused_pairs(pairs: Sequence[tuple[dict, np.ndarray, np.ndarray]], split: str, path: Path) -> None:
    """Draw images of the pairs of classes that are confused most often, a row for each.

    Args:
        pairs: for each pair, its entry of ``most_confused``, and images ``(n, c, h, w)`` of both classes, uint8.
        split: the split of the tasks.
        path: the PNG to write; an SVG is written next to it.
    """
    figure = Figure(figsize=(8, 0.5 + 0.95 * len(pairs)), layout=ConstrainedLayoutEngine(wspace=0.08))
    panels = figure.subplots(len(pairs), 2, squeeze=False)
    for row, (entry, *images) in zip(panels, pairs, strict=True):
        share = f"{entry['queries']} of {entry['of']} queries taken for {shorten(entry['guess'])}"
        for axes, shown, title in zip(row, images, (shorten(entry["true"]), share), strict=True):
            axes.imshow(np.concatenate([as_colours(image) for image in shown], 1))
            axes.set_axis_off()
            axes.set_title(title, fontsize=8, loc="left", parse_math=False)
    figure.suptitle(f"classes that are confused most often in {split} tasks", fontsize=10)
    save(figure, path)


def draw_confusion(found: dict, split: str, path: Path) -> None:
    """Draw the confusion matrix of queries, by class or by position in the task, in percent of a row's queries."""
    counts, unanswered = np.asarray(found["counts"], float), np.asarray(found["unanswered"])
    share = 100 * counts / np.maximum(counts.sum(1, keepdims=True) + unanswered[:, None], 1)
    size = len(counts)
    by_name = found["by"] == "class"
    side = 2.6 + 0.34 * size
    figure = Figure(figsize=(side + 1.2, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(share, cmap="Greys", vmin=0, vmax=100)
    labels = [shorten(name) for name in found["names"]]
    axes.set_xticks(range(size), labels, fontsize=8, rotation=90 if by_name else 0, parse_math=False)
    axes.set_yticks(range(size), labels, fontsize=8, parse_math=False)
    what = "class" if by_name else "position in the task"
    axes.set(xlabel=f"predicted {what}", ylabel=f"true {what}")
    without = f", {unanswered.sum()} without an answer" if unanswered.any() else ""
    axes.set_title(f"{int(counts.sum() + unanswered.sum())} queries of {split} tasks{without}", fontsize=10)
    if size <= NUMBERED:
        for (i, j), value in np.ndenumerate(share):
            axes.text(j, i, f"{value:.0f}", ha="center", va="center", fontsize=8, color="w" if value > 50 else "k")
    figure.colorbar(image, ax=axes, label="share of the row (%)", shrink=0.8)
    save(figure, path)


def draw_weight_distances(distances: Sequence[float], layers: dict[str, dict], split: str, path: Path) -> None:
    """Draw how far adaptation moves the weights: a histogram over tasks, and the mean of each layer with its interval.

    Args:
        distances: of each task that did not diverge, over all layers.
        layers: mean and 95 % interval over tasks, of each layer and of ``all``.
        split: the split of the tasks.
        path: the PNG to write; an SVG is written next to it.
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
    ci95 = [value["ci95"] or 0 for value in parts.values()]
    right.barh(range(len(parts)), means, xerr=ci95, color=ORANGE, hatch="//", edgecolor="white", capsize=3)
    right.set_yticks(range(len(parts)), [shorten(name) for name in parts], fontsize=8, parse_math=False)
    right.set(xlabel="mean distance, filter-normalised", xlim=(0, None))
    right.invert_yaxis()
    right.set_title("each layer", fontsize=10)
    save(figure, path)


def shorten(name: str, longest: int = LONGEST) -> str:
    """Cut off the beginning of a long name.

    >>> shorten("character06", 11), shorten("character06", 6)
    ('character06', '…ter06')
    """
    return name if len(name) <= longest else f"…{name[1 - longest :]}"
