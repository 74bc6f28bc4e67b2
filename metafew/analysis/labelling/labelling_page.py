"""A page about a labelled folder: accuracy, classes, confusion, a contact sheet, and the images to check first."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from metafew.analysis.html_document import document, figure
from metafew.analysis.labelling.labelling import NONE, Labelling, Prediction
from metafew.analysis.text_table import escape_html

IMAGES = 200
"""Maximum number of images on a page."""


def labelling_page(
    labelling: Labelling, model: Sequence[str], image: Callable[[str], np.ndarray], sheet: Path, command: str
) -> str:
    """Return the page in HTML.

    Args:
        labelling: the predictions.
        model: lines that describe the model.
        image: returns the image of a file, uint8 ``(h, w, 3)``.
        sheet: the PNG of :func:`~metafew.analysis.labelling.labelled_images.draw_labelled_images`.
        command: the command that labels the folder.
    """
    lines = [f"{labelling.answered} of {len(labelling.predictions)} images are labelled", *labelling.lines(), *model]
    sections = {"Result": "\n".join(["<ul>", *(f"<li>{escape_html(line)}</li>" for line in lines), "</ul>"])}
    tables = [labelling.class_table(), *([labelling.confusion_table()] if labelling.confusion else [])]
    sections |= {table.title: table.html() for table in tables}
    sections["Contact sheet"] = figure(sheet.read_bytes(), "contact sheet", kind="wide")
    shown = sorted(labelling.predictions, key=urgency)[:IMAGES]
    some = "" if len(shown) == len(labelling.predictions) else f"{len(shown)} of {len(labelling.predictions)}, "
    title = f"Images ({some}wrong ones first, then those marked as unknown, then by probability)"
    sections[title] = "\n".join(labelled_image(each, image(each.file)) for each in shown)
    return document("Labelled images", f"{len(labelling.predictions)} images", command, sections.items())


def urgency(prediction: Prediction) -> tuple[bool, bool, bool, float]:
    """Return a sorting key that is lowest for what a person should look at first."""
    answered = prediction.predicted is not None
    return not prediction.wrong, answered, not prediction.unknown, prediction.probability if answered else 0.0


def labelled_image(prediction: Prediction, pixels: np.ndarray) -> str:
    """Return an image with its prediction in HTML."""
    captions: list[str] = []
    if prediction.predicted is None:
        captions.append(NONE)
    else:
        captions.append(f"{prediction.predicted}, {100 * prediction.probability:.1f} %")
        captions.append(f"distance {prediction.distance:.2f}{', unknown' * prediction.unknown}")
    if prediction.wrong:
        captions.append(f"✗ {prediction.truth}")
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "PNG")
    lines = [breakable(prediction.file), *map(escape_html, captions)]
    return figure(png.getvalue(), prediction.file, "<br>".join(lines), f"small{' wrong' * prediction.wrong}")


def breakable(file: str) -> str:
    """Return a path in HTML that may break after slashes, hyphens and underscores, and before dots.

    >>> breakable("a<b/c-1.jpg")
    'a&lt;b/<wbr>c-<wbr>1<wbr>.jpg'
    """
    return "<wbr>".join(map(escape_html, re.split(r"(?<=[/_-])(?=.)|(?<=.)(?=\.)", file)))
