"""What all figures share: looks that are told apart in any colour vision and in grey, and how they are saved."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from textwrap import fill

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
"""Those of Okabe and Ito that stand out on white: told apart by all common kinds of colour vision."""
BLUE, ORANGE, LIGHT = COLOURS[0], COLOURS[1], COLOURS[4]
LINES, MARKERS, HATCHES = ("-", "--", "-.", ":"), "osD^vPX", ("", "///", "...", "\\\\\\", "xx")
CLASSES = tuple(
    {"color": colour, "marker": marker}
    for colour, marker in zip(("#0072b2", "#e69f00", "#000000", "#56b4e9", "#d55e00"), "o^sxD", strict=True)
)
"""Looks of points, as far apart in grey as these colours are."""
HEIGHT = 3.6  # inches


def canvas(x: str, y: str, width: float = 8.0) -> tuple[Figure, Axes]:
    """Return a figure and its axes."""
    figure = Figure(figsize=(width, HEIGHT), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel=x, ylabel=y)
    plain(axes)
    return figure, axes


def plain(axes: Axes) -> None:
    """Leave out the frame where nothing is read off, and draw a grid below all else."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.9")
    axes.set_axisbelow(True)


def look(number: int) -> Mapping[str, str]:
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
    looks = {"fontsize": 8, "title_fontsize": 8, "alignment": "left", "frameon": False}
    shown = figure.legend(handles, names, loc="outside right upper", title=title, **looks)
    for text in shown.get_texts():
        text.set_parse_math(False)


def save(figure: Figure, path: Path) -> None:
    """Write ``figure`` as ``path``, which ends in ``.png``, and as an SVG beside it; the same figure, the same file."""
    figure.savefig(path, dpi=150)
    with rc_context({"svg.hashsalt": "metafew"}):
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
