"""Figures that every run leaves: its learning curve and a test episode."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from torch import Tensor

from metafew.analysis.features.plots import alpha_layers
from metafew.analysis.style import BLUE, ORANGE, save
from metafew.episode import Episode
from metafew.norms.alpha import Alpha


def learning_curve(metrics: Path, head: str, path: Path) -> None:
    """Draw training loss and validation accuracy of ``head`` over steps, from metrics.csv."""
    if not metrics.exists():
        return
    with metrics.open() as file:
        rows = list(csv.DictReader(file))

    def series(name: str) -> tuple[list[int], list[float]]:
        points = [(int(row["step"]) + 1, float(row[name])) for row in rows if row.get(name)]
        return tuple(zip(*points, strict=True)) if points else ((), ())

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    left = figure.subplots()
    right = left.twinx()
    left.plot(*series("train/loss"), color=BLUE, linewidth=1)
    left.set(xlabel="step", ylim=(0, None))
    left.set_ylabel("training loss (nats)", color=BLUE)
    steps, accuracy = series(f"val/{head}/accuracy")
    right.plot(steps, [100 * value for value in accuracy], color=ORANGE, marker="o", markersize=4)
    right.set_ylabel("validation accuracy (%)", color=ORANGE)
    right.set_ylim(None, 100)
    save(figure, path)


def alpha_curve(alphas: Sequence[Alpha], trained: tuple[int, int], path: Path) -> None:
    """Draw the weight that each TaskNorm layer gives to the context's moments, over the size of the context.

    Args:
        alphas: those of the layers, from first to last.
        trained: the smallest and largest context of training, which is shaded; beyond it alpha was never fitted.
        path: the PNG to write, an SVG beside it.
    """
    sizes = [10 ** (k / 20) for k in range(0, 55)]
    with torch.no_grad():
        layers = [{size: float(alpha(size).mean()) for size in sizes} for alpha in alphas]
    figure = Figure(figsize=(6.5, 3.5), layout="constrained")
    alpha_layers(figure.subplots(), layers, trained)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    save(figure, path)


def episode_sheet(episode: Episode, probabilities: Tensor, path: Path, queries: int = 12) -> None:
    """Draw the first task of ``episode``: a row a class, its support, then its queries with what was predicted.

    Of a task of many classes the first ten are drawn.

    Args:
        episode: tasks with images in [0, 1], on the CPU.
        probabilities: ``(t, q, w)``.
        path: the PNG to write, an SVG beside it.
        queries: at most so many queries of a class are drawn.
    """
    way = min(episode.way, 10)
    support = [episode.support.images[0][episode.support.labels[0] == c][:5] for c in range(way)]
    asked = [torch.nonzero(episode.query.labels[0] == c).flatten()[:queries] for c in range(way)]
    columns = max(map(len, support)), max(map(len, asked))
    size = 0.75
    figure = Figure(figsize=(size * (sum(columns) + 1.2), size * 1.25 * way + 0.6))
    gap = 0.6
    grid = GridSpec(
        way,
        sum(columns) + 1,
        figure,
        width_ratios=[*[1] * columns[0], gap, *[1] * columns[1]],
        left=0.6 / figure.get_figwidth(),
        right=0.99,
        top=1 - 0.45 / figure.get_figheight(),
        bottom=0.04,
        wspace=0.08,
        hspace=0.35,
    )

    def draw(row: int, column: int, image: Tensor):
        axes = figure.add_subplot(grid[row, column])
        pixels = image.permute(1, 2, 0).squeeze(-1).float().clamp(0, 1).numpy()
        axes.imshow(pixels, cmap="gray_r", vmin=0, vmax=1)
        axes.set(xticks=[], yticks=[])
        return axes

    for label in range(way):
        for column, image in enumerate(support[label]):
            axes = draw(label, column, image)
            if column == 0:
                axes.set_ylabel(f"class {label + 1}", fontsize=8)
            if label == 0 and column == 0:
                axes.set_title("support", fontsize=9, loc="left")
        for column, query in enumerate(asked[label]):
            confidence, prediction = probabilities[0, query].max(-1)
            right = prediction == label
            axes = draw(label, columns[0] + 1 + column, episode.query.images[0, query])
            axes.set_xlabel(
                f"{'✓' if right else '✗'} {int(prediction) + 1} ({100 * confidence:.0f} %)",
                fontsize=6.5,
                labelpad=2,
                color="black" if right else ORANGE,
                weight="normal" if right else "bold",
            )
            if label == 0 and column == 0:
                some = "" if way == episode.way else f" (10 of {episode.way} classes)"
                axes.set_title(f"queries, with the class predicted and its probability{some}", fontsize=9, loc="left")
    save(figure, path)
