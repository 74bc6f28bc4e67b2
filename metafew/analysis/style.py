"""Styles of all figures, distinguishable with colour vision deficiencies and in grey, and a function to save them."""

from __future__ import annotations

from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
"""The colours of Okabe and Ito with enough contrast on white, distinguishable with colour vision deficiencies."""
BLUE, ORANGE, LIGHT = COLOURS[0], COLOURS[1], COLOURS[4]
LINES, MARKERS, HATCHES = ("-", "--", "-.", ":"), "osD^vPX", ("", "///", "...", "\\\\\\", "xx")
CLASSES: tuple[dict[str, Any], ...] = tuple(
    {"color": colour, "marker": marker}
    for colour, marker in zip(("#0072b2", "#e69f00", "#000000", "#56b4e9", "#d55e00"), "o^sxD", strict=True)
)
"""Styles of points by class, ordered by contrast in grey."""
HEIGHT = 3.6  # inches
PANELS_PER_ROW = 4


def canvas(x: str, y: str, width: float = 8.0) -> tuple[Figure, Axes]:
    """Return a figure and its axes with the labels ``x`` and ``y``."""
    figure = Figure(figsize=(width, HEIGHT), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel=x, ylabel=y)
    plain(axes)
    return figure, axes


def panel_grid(count: int, x: str, y: str) -> tuple[Figure, list[Axes]]:
    """Return a figure and ``count`` axes that share both scales, with the labels ``x`` and ``y`` at the margins."""
    columns = min(count, PANELS_PER_ROW)
    rows = -(-count // columns)
    size = (8.0, HEIGHT) if count == 1 else (3.0 + 2.4 * columns, 0.8 + 2.6 * rows)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for axes in grid[:count]:
        plain(axes)
        axes.tick_params(labelbottom=True)
    for axes in grid[count:]:
        axes.remove()
    figure.supxlabel(x, fontsize="medium")
    figure.supylabel(y, fontsize="medium")
    return figure, list(grid[:count])


def plain(axes: Axes) -> None:
    """Remove the top and right spines, and draw a grid below the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.9")
    axes.set_axisbelow(True)


def look(number: int) -> dict[str, Any]:
    """Return colour, line style and marker of line ``number``, distinguishable also in grey."""
    turn = number // len(COLOURS)
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": LINES[number % len(LINES)],
        "marker": MARKERS[(number + turn) % len(MARKERS)],
        "linewidth": 1.5,
    }


def legend(figure: Figure, title: str) -> None:
    """Add a legend of all axes to the right of them, and make the figure high enough for it."""
    named = {name: line for axes in figure.axes for line, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    handles, names = list(named.values()), list(named)
    ticks = [tick.get_text() for tick in figure.axes[0].get_xticklabels()]
    below = max(tick.count("\n") for tick in ticks)
    marked = any("†" in text for text in [*names, *ticks])
    title = "\n".join(filter(None, [title, "† transductive" if marked else ""]))
    names = [fill(name, 36, max_lines=3, placeholder=" …") for name in names]
    lines = len("\n".join([title, *names]).splitlines())
    figure.set_figheight(max(figure.get_figheight() + 0.15 * below, 0.7 + 0.165 * lines))
    looks = {"fontsize": 8, "title_fontsize": 8, "alignment": "left", "frameon": False}
    shown = figure.legend(handles, names, loc="outside right upper", title=title, **looks)
    for text in shown.get_texts():
        text.set_parse_math(False)


def as_colours(image: np.ndarray, inverted: bool | None = None) -> np.ndarray:
    """Return an image ``(c, h, w)`` as ``(h, w, 3)``, with dark ink on paper in drawings.

    Args:
        image: uint8.
        inverted: whether the image has bright ink; None for grey images only.
    """
    inverted = len(image) == 1 if inverted is None else inverted
    shown = 255 - image if inverted else image
    return np.ascontiguousarray(np.broadcast_to(shown, (3, *shown.shape[1:])).transpose(1, 2, 0))


def save(figure: Figure, path: Path) -> None:
    """Write ``figure`` to the PNG ``path`` and to an SVG with the same stem; equal figures give equal files."""
    figure.savefig(path, dpi=150)
    with rc_context({"svg.hashsalt": "metafew"}):
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
