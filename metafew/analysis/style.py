"""What all figures share: how they are saved, and lines that are told apart in any colour vision and in grey."""

from __future__ import annotations

from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

BLUE, ORANGE = "#0072b2", "#d55e00"  # told apart by all common kinds of colour vision, and in grey
COLOURS = ("#0072b2", "#e69f00", "#000000", "#56b4e9", "#d55e00")  # those of Okabe and Ito
MARKERS = ("o", "^", "s", "x", "D")
LINES = ("-", "--", "-.", ":")


def save(figure: Figure, path: Path) -> None:
    """Write ``figure`` as ``path``, which ends in ``.png``, and as an SVG beside it; the same figure, the same file."""
    figure.savefig(path, dpi=150)
    with rc_context({"svg.hashsalt": "metafew"}):
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
