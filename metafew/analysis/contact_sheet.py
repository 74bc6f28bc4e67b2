"""The contact sheet of a dataset: training and test tasks with class names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metafew.analysis.features.plots import shorten
from metafew.analysis.style import as_colours
from metafew.data.store import Split
from metafew.errors import UsageError

WAY, SHOT, QUERY = 5, 3, 5
CELL, NAMES, TITLE, MARGIN = 0.55, 2.2, 0.5, 0.1  # inches: an image, class names, and the title above a task
GROUND, LINE = 255, 205  # levels of grey


class Sample(NamedTuple):
    """One task to draw.

    Attributes:
        title: the text above the task.
        names: the class names.
        images: the images of each class, support before queries: uint8 ``(n, c, h, w)`` with ``n`` up to 8.
    """

    title: str
    names: list[str]
    images: list[np.ndarray]


def draw_sample(split: Split, title: str, seed: int) -> Sample:
    """Draw a random task of up to five classes with up to eight images each."""
    rng = np.random.default_rng(seed)
    classes = rng.permutation(len(split.names))[:WAY]
    rows = [rng.permutation(split.rows[c])[: SHOT + QUERY] for c in classes]
    images = [split.gather(r, np.full(len(r), split.turns[c])) for c, r in zip(classes, rows, strict=True)]
    return Sample(title, [split.names[c] for c in classes], images)


def contact_sheet(train: Sequence[Sample], test: Sequence[Sample], path: Path) -> None:
    """Draw training tasks on the left and test tasks on the right, one row per class, support before queries.

    Args:
        train: training tasks.
        test: the same number of test tasks.
        path: the PNG to write.

    Raises:
        UsageError: if ``path`` cannot be written.
    """
    width, height = CELL * (SHOT + QUERY + 0.5), CELL * WAY
    size = 2 * (NAMES + width + MARGIN), len(train) * (TITLE + height) + MARGIN
    figure = Figure(figsize=size)
    for column, tasks in enumerate((train, test)):
        for row, task in enumerate(tasks):
            left = column * size[0] / 2 + NAMES
            bottom = size[1] - (row + 1) * (TITLE + height)
            draw_task(figure.add_axes((left / size[0], bottom / size[1], width / size[0], height / size[1])), task)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise UsageError(f"expected out to be an image file, got {path} ({error}): type out=FILE.png") from error


def draw_task(axes: Axes, task: Sample) -> None:
    """Draw one task on ``axes``."""
    axes.set_title(task.title, fontsize=9, loc="left", pad=13, parse_math=False)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    if not task.names:
        return
    size = task.images[0].shape[-1]
    line = max(1, size // 28)
    step, gap = size + line, size // 2  # between support and queries
    starts = [column * step + (gap if column >= SHOT else 0) for column in range(SHOT + QUERY)]
    rows = [dict(zip(starts, map(as_colours, images), strict=False)) for images in task.images]
    axes.imshow(tiles(rows, step, line, (WAY * step + line, starts[-1] + step + line)))
    for start, word in ((0, "support"), (SHOT, "queries")):
        axes.text(starts[start], -0.08 * size, word, fontsize=7, color="0.35")
    ticks = [(row + 0.5) * step for row in range(len(task.names))]
    axes.set_yticks(ticks, [shorten(name) for name in task.names], fontsize=7, parse_math=False)
    axes.tick_params(length=0)


def tiles(rows: Sequence[Mapping[int, np.ndarray]], step: int, line: int, shape: tuple[int, int]) -> np.ndarray:
    """Return a canvas ``(h, w, 3)`` with framed images.

    Args:
        rows: the images ``(h, w, 3)`` of each row by their left edges.
        step: the distance between rows.
        line: the width of frames.
        shape: height and width of the canvas.
    """
    canvas = np.full((*shape, 3), GROUND, np.uint8)
    for number, images in enumerate(rows):
        for left, image in images.items():
            height, width = (length + 2 * line for length in image.shape[:2])
            frame = canvas[number * step : number * step + height, left : left + width]
            frame[:] = LINE
            frame[line:-line, line:-line] = image
    return canvas
