"""Figures of the measures of one checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from metafew.analysis.condition import bound, published_bound
from metafew.analysis.projection import discriminant, principal
from metafew.analysis.style import BLUE, COLOURS, MARKERS, ORANGE, save

LONGEST = 28  # letters of a name that are shown
NUMBERED = 10  # a confusion matrix of at most so many rows has its numbers written in


def sufficient_condition(points: Sequence[tuple[float, float]], split: str, path: Path) -> None:
    """Draw one-shot accuracy over the variance ratio ``eps``, a point a pair of classes, beside both lower bounds."""
    figure = Figure(figsize=(6, 3.8), layout="constrained")
    axes = figure.subplots()
    eps, accuracy = np.asarray(points).T
    axes.scatter(eps, 100 * accuracy, s=14, color=BLUE, alpha=0.6, linewidths=0, label=f"pairs of {split} classes")
    grid = torch.logspace(-3, np.log10(1.9999), 400, dtype=torch.double)
    axes.plot(grid, 100 * bound(grid), color=ORANGE, label=r"bound $1-16\,\epsilon/(2-\epsilon)$")
    axes.plot(
        grid, 100 * published_bound(grid), color="black", ls="--", label=r"Theorem 1, $1-32\,\epsilon/(1-\epsilon)$"
    )
    axes.axhline(50, color="0.5", linestyle=":", label="chance")
    axes.set(xscale="log", xlim=(1e-3, 2.2), ylim=(0, 103), ylabel="one-shot accuracy (%)")
    axes.set_xlabel(r"variance ratio $\epsilon$ = (Var X + Var Y) / Var U")
    figure.legend(loc="outside upper center", ncols=2, fontsize=8, frameon=False)
    save(figure, path)


def projection(features: np.ndarray, classes: np.ndarray, names: Sequence[str], split: str, path: Path) -> None:
    """Draw the features of a few classes in the plane of their principal components, and in that of the discriminant.

    Args:
        features: ``(n, d)``.
        classes: ``(n,)`` the numbers of their classes.
        names: those of all classes.
        split: where they come from.
        path: the PNG to write, an SVG beside it.
    """
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    panels = figure.subplots(1, 2)
    shown = list(dict.fromkeys(classes.tolist()))
    for axes, title, unit, plane in (
        (panels[0], "principal components", "component", principal(features)),
        (panels[1], "linear discriminant", "direction", discriminant(features, classes)),
    ):
        drawn = [
            axes.scatter(*plane[classes == c].T, s=22, color=COLOURS[i], marker=MARKERS[i], alpha=0.75)
            for i, c in enumerate(shown)
        ]
        axes.set_title(f"{title} of {split} features", fontsize=10)
        axes.set(xlabel=f"{unit} 1", ylabel=f"{unit} 2")
        axes.margins(0.08)
    legend = figure.legend(
        drawn, ["class"] * len(shown), loc="outside lower center", ncols=3, fontsize=8, frameon=False
    )
    for text, c in zip(legend.get_texts(), shown, strict=True):
        text.set(text=short(names[c]), parse_math=False)
    save(figure, path)


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
        distances: of each task, of all layers together.
        layers: of each layer, and of ``all``, mean and interval over tasks.
        split: where the tasks come from.
        path: the PNG to write, an SVG beside it.
    """
    parts = {name: value for name, value in layers.items() if name != "all" and value["mean"] is not None}
    figure = Figure(figsize=(8, max(3.4, 1.2 + 0.28 * len(parts))), layout="constrained")
    left, right = figure.subplots(1, 2)
    finite = [value for value in distances if np.isfinite(value)]
    left.hist(finite, bins=20, color=COLOURS[3], edgecolor="white", linewidth=0.6)
    left.set(ylabel=f"{split} tasks", xlabel="distance, filter-normalised", xlim=(0, None))
    left.set_title("all layers", fontsize=10)
    if finite:
        left.axvline(np.mean(finite), color="black", linestyle="--", label="mean")
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
