"""Figures of a single run: the learning curve, the alphas of TaskNorm layers, and a test task."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill, wrap

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from metafew.analysis.features.plots import draw_alphas, shorten
from metafew.analysis.style import BLUE, ORANGE, save
from metafew.episode import Episode
from metafew.norms.alpha import Alpha
from metafew.predictions import NO_ANSWER, answers

NAMES = 1.2
"""Width of the names of classes beside a task, in inches."""


def learning_curve(metrics: Path, head: str, path: Path) -> None:
    """Draw training loss and validation accuracy of ``head`` over steps, from metrics.csv if it exists.

    The axis of the loss starts at zero; that of the accuracy covers the measured values. Validations with failed tasks
    are crossed out.
    """
    if not metrics.exists():
        return
    with metrics.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))

    def series(name: str) -> tuple[list[int], list[float]]:
        points = [(int(row["step"]) + 1, float(row[name])) for row in rows if row.get(name)]
        return [step for step, _ in points], [value for _, value in points]

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    left = figure.subplots()
    right = left.twinx()
    left.plot(*series("train/loss"), color=BLUE, linewidth=1)
    left.update_datalim([(1, 0)])  # margins are part of this range: a constant loss does not lie on the frame
    left.autoscale_view()
    left.set(xlabel="step", ylim=(0, None))
    left.set_ylabel("training loss (nats)", color=BLUE)
    steps, accuracy = series(f"val/{head}/accuracy")
    right.plot(steps, [100 * value for value in accuracy], color=ORANGE, marker="o", markersize=4)
    broken = {step for step, failed in zip(*series(f"val/{head}/failed"), strict=True) if failed}
    if crossed := [(step, 100 * value) for step, value in zip(steps, accuracy, strict=True) if step in broken]:
        right.plot(*zip(*crossed, strict=True), "kx", label="with failed tasks")
        right.legend(fontsize=8)
    right.set_ylabel("validation accuracy (%)", color=ORANGE)
    save(figure, path)


def alpha_curve(alphas: Sequence[Alpha], trained: tuple[int, int], path: Path) -> None:
    """Draw the weight of the context moments in each TaskNorm layer over the context size.

    Args:
        alphas: the alphas of the layers, from first to last.
        trained: the smallest and largest context in training. This range is shaded; alpha is not fitted outside it.
        path: the PNG to write; an SVG is written next to it.
    """
    sizes = [10 ** (k / 20) for k in range(0, 55)]
    with torch.no_grad():
        layers = [{size: float(alpha(size).mean()) for size in sizes} for alpha in alphas]
    figure = Figure(figsize=(6.5, 3.5), layout="constrained")
    draw_alphas(figure.subplots(), layers, trained)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    save(figure, path)


def episode_sheet(
    episode: Episode,
    probabilities: Tensor,
    names: Sequence[str],
    path: Path,
    calibrated: bool = True,
) -> None:
    """Draw the first task of ``episode``, one row for each of up to ten classes: support, then up to twelve queries.

    Args:
        episode: tasks with images in [0, 1], on the CPU.
        probabilities: ``(t, q, w)``, NaN for an unanswered query.
        names: the names of the classes of the task, by label.
        path: the PNG to write; an SVG is written next to it.
        calibrated: whether a temperature was fitted to the probabilities; the title says so if not.
    """
    way = min(episode.way, 10)
    support = [episode.support.images[0][episode.support.labels[0] == c][:5] for c in range(way)]
    queried = [torch.nonzero(episode.query.labels[0] == c).flatten()[:12] for c in range(way)]
    shots, columns, size, gap = max(map(len, support)), max(2, *map(len, queried)), 0.85, 0.6
    some = "" if way == episode.way else f" (10 of {episode.way} classes)"
    kind = "" if calibrated else "uncalibrated "
    heading = f"queries, with the {kind}probability of the predicted class, which is named if it is wrong{some}"
    lines = wrap(heading, 12 * columns)  # that many letters fit above a column
    above = 0.3 + 0.15 * len(lines)
    width, height = size * (shots + columns + gap) + NAMES, size * 1.5 * way + 0.15 + above
    figure = Figure(figsize=(width, height))
    frame = {"left": NAMES / width, "right": 0.99, "top": 1 - above / height, "bottom": 0.35 / height}
    grid = figure.subplots(
        way,
        shots + 1 + columns,
        squeeze=False,
        width_ratios=[*[1] * shots, gap, *[1] * columns],
        gridspec_kw={**frame, "wspace": 0.08, "hspace": 0.55},
    )
    grid[0, 0].set_title("support", fontsize=9, loc="left")
    grid[0, shots + 1].set_title("\n".join(lines), fontsize=9, loc="left")
    for label, row in enumerate(grid):
        for axes, image in zip(row, support[label], strict=False):
            draw_image(axes, image)
        left = {"rotation": 0, "ha": "right", "va": "center", "fontsize": 8, "parse_math": False}
        row[0].set_ylabel(in_lines(names[label]), **left)
        for axes, query in zip(row[shots + 1 :], queried[label], strict=False):
            draw_image(axes, episode.query.images[0, query])
            found = int(answers(probabilities[0, query]))
            right = found == label
            chance = "no answer" if found == NO_ANSWER else f"{100 * probabilities[0, query, found]:.0f} %"
            named = "" if right or found == NO_ANSWER else f"\n{in_lines(names[found])}"
            text = f"{'✓' if right else '✗'} {chance}{named}"
            style = {"color": "black"} if right else {"color": ORANGE}
            axes.set_xlabel(text, fontsize=6.5, labelpad=2, parse_math=False, **style)
    for axes in figure.axes:
        if not axes.images:
            axes.set_axis_off()  # its title stays, also if the first class has no query
    save(figure, path)


def draw_image(axes: Axes, image: Tensor) -> None:
    """Draw an image ``(c, h, w)`` with values in [0, 1]; grey images are drawn as dark ink on paper."""
    axes.imshow(image.permute(1, 2, 0).squeeze(-1).float().clamp(0, 1).numpy(), cmap="gray_r", vmin=0, vmax=1)
    axes.set(xticks=[], yticks=[])


def in_lines(name: str) -> str:
    """Break the name of a class into lines, preferably after slashes."""
    return fill(shorten(name).replace("/", "/ "), 15).replace("/ ", "/")
