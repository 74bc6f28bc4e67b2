"""A contact sheet of labelled images: one row per predicted class, with its examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metafew.analysis.contact_sheet import tiles
from metafew.analysis.features.plots import shorten
from metafew.analysis.labelling.labelling import Labelling, Prediction
from metafew.analysis.style import ORANGE

CLASSES, EXAMPLES, IMAGES = 20, 3, 10
CELL, EDGE = 0.8, 0.15  # inches: an image, and the margins
LONGEST = 12
"""Maximum number of characters in a line of a caption."""
CAPTION, GAP = 0.4, 0.5  # in image sizes: the space for a caption, and between examples and labelled images


def draw_labelled_images(
    labelling: Labelling,
    examples: Mapping[str, Sequence[np.ndarray]],
    image: Callable[[str], np.ndarray],
    path: Path,
) -> None:
    """Draw up to three examples and ten labelled images of each class, from the most to the least probable.

    Captions are probabilities, with a question mark if the image is marked as unknown; those of wrong predictions are
    orange, with the true class. Of more than 20 classes, those with the most predictions are drawn.

    Args:
        labelling: the predictions.
        examples: the examples of each class, uint8 ``(h, w, 3)``.
        image: returns the image of a file in the same form.
        path: the PNG to write.
    """
    found = {name: [p for p in labelling.predictions if p.predicted == name] for name in labelling.examples}
    kept = set(sorted(found, key=lambda name: -len(found[name]))[:CLASSES])
    shown = {name: spread(row) for name, row in found.items() if name in kept}
    size = len(next(iter(examples.values()))[0])
    line = max(1, size // 28)
    first = min(EXAMPLES, max(map(len, examples.values())))  # column of labelled images
    columns = first + max(1, *map(len, shown.values()))
    lefts = [round(k * (size + line) + GAP * size * (k >= first)) for k in range(columns)]
    step = round((1 + CAPTION) * size) + line
    pixels = []
    for name, row in shown.items():
        pixels.append(dict(zip(lefts, examples[name][:EXAMPLES], strict=False)))
        pixels[-1] |= {left: image(p.file) for left, p in zip(lefts[first:], row, strict=False)}
    canvas = tiles(pixels, step, line, (len(shown) * step, lefts[-1] + size + 2 * line))
    high, wide = (CELL * length / size for length in canvas.shape[:2])
    figure = Figure(figsize=(wide, high))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(canvas)
    name_rows(axes, [f"{shorten(name)}\n{len(found[name])} predicted" for name in shown], step, size)
    for left, words in {0: "examples", lefts[first]: heading(shown, found)}.items():
        axes.text(left, -0.1 * size, words, fontsize=8)
    for number, row in enumerate(shown.values()):
        for left, prediction in zip(lefts[first:], row, strict=False):
            draw_caption(axes, prediction, left + size / 2 + line, number * step + size + 2 * line)
    figure.savefig(path, dpi=150, bbox_inches="tight", pad_inches=EDGE)


def heading(shown: Mapping[str, Sequence[Prediction]], found: Mapping[str, Sequence[Prediction]]) -> str:
    """Return the heading of the labelled images: what captions mean, and how many images and classes are drawn."""
    parts = ["labelled images and their probability", "?: marked as unknown"]
    parts += ["orange: wrong, with the true class"] * any(p.wrong for row in shown.values() for p in row)
    parts += [f"at most {IMAGES} per class"] * any(len(found[name]) > IMAGES for name in shown)
    parts += [f"{len(shown)} of {len(found)} classes"] * (len(shown) < len(found))
    return "; ".join(parts)


def spread(row: Sequence[Prediction]) -> list[Prediction]:
    """Return up to ten predictions, evenly spaced by rank, in descending order of probability."""
    ordered = sorted(row, key=lambda p: -p.probability)
    return [ordered[k] for k in np.linspace(0, len(ordered) - 1, min(len(ordered), IMAGES)).round().astype(int)]


def name_rows(axes: Axes, labels: Sequence[str], step: int, size: int) -> None:
    """Write the label of each row to its left."""
    axes.set(xticks=[])
    axes.spines[:].set_visible(False)
    axes.set_yticks([row * step + size / 2 for row in range(len(labels))], labels, fontsize=8, parse_math=False)
    axes.tick_params(length=0)


def draw_caption(axes: Axes, prediction: Prediction, x: float, y: float) -> None:
    """Write the probability of a prediction below its image and, if it is wrong, the end of the true class below it."""
    words = f"{100 * prediction.probability:.0f} %{'?' * prediction.unknown}"
    style: dict[str, Any] = {"color": "black"}
    if prediction.wrong:
        words = f"{words}\n{shorten(str(prediction.truth), LONGEST)}"
        style = {"color": ORANGE, "weight": "bold"}
    axes.text(x, y, words, fontsize=6.5, parse_math=False, ha="center", va="top", **style)
