"""The images that predict labels, and the file of predictions."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.progress import track

from metafew.analysis.labelling.labelled_images import draw_labelled_images
from metafew.analysis.labelling.labelling import Labelling, Prediction
from metafew.analysis.labelling.labelling_page import labelling_page
from metafew.analysis.style import as_colours
from metafew.commands.command_line import print_message, written
from metafew.data.formats.conversion import Conversion
from metafew.data.formats.damage import UnreadableImages
from metafew.data.formats.scan import SUFFIXES, Scan
from metafew.errors import UsageError
from metafew.io import atomic_write

if TYPE_CHECKING:
    from metafew.inference import Task

CHUNK = 256
"""Number of queries in memory at a time."""
PICTURES = (".png", ".html")
"""Suffixes of the contact sheet and the page, which are written next to the CSV file."""


def list_images(query: Path, sheet: Path) -> dict[str, Path]:
    """Return the image files of a folder, or the single file, by their names in the CSV file.

    Args:
        query: the folder or file.
        sheet: the contact sheet of an earlier run, which is not listed.
    """
    if query.is_file():
        return {query.name: query}
    paths = []
    if query.is_dir():
        scan = Scan(query)
        scan.warn()
        paths = sorted(query / folder / name for folder, names in scan.images.items() for name in names)
        paths = [path for path in paths if path.name != sheet.name or path.resolve() != sheet.resolve()]
    if not paths:
        raise UsageError(
            f"expected query to be an image or a folder of images ({', '.join(SUFFIXES)}), got {query}: type query=PATH"
        )
    return {path.relative_to(query).as_posix(): path for path in paths}


def readable(files: dict[str, Path], conversion: Conversion) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the name and pixels of each image, and print the names of unreadable files."""
    bar = Console(stderr=True)
    for name, path in track(files.items(), "images", console=bar, transient=True, disable=not bar.is_terminal):
        try:
            yield name, conversion(path)
        except UnreadableImages as error:
            print_message(f"left out: {error}")


def predictions(
    task: Task, queries: Iterator[tuple[str, np.ndarray]], truths: Mapping[str, str | None]
) -> Iterator[tuple[Prediction, np.ndarray]]:
    """Yield the prediction for each image, and the probability of each class.

    Args:
        task: the task.
        queries: the name and pixels of each image.
        truths: the class of each image, if it is given.
    """
    while chunk := list(islice(queries, CHUNK)):
        names, images = zip(*chunk, strict=True)
        found, distances = task.predict_with_distances(np.stack(images))
        rows = zip(names, task.most_probable(found), found.numpy(), distances.tolist(), strict=True)
        for name, predicted, row, distance in rows:
            yield Prediction(name, truths[name], predicted, float(row.max()), distance), row


def write_predictions(
    out: Path, classes: Sequence[str], rows: Iterable[tuple[Prediction, np.ndarray]], with_truth: bool
) -> list[Prediction]:
    """Write the CSV file atomically and return the predictions.

    Args:
        out: the file.
        classes: the classes, in the order of the probabilities.
        rows: predictions and probabilities.
        with_truth: whether to write a column with the true class.

    Raises:
        UsageError: if there are no rows, or the file cannot be written.
    """
    found: list[Prediction] = []
    columns = ["file", *(["truth"] if with_truth else []), "predicted", "probability", "distance", "unknown"]
    with written(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(out, newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow([*columns, *(f"p({name})" for name in classes)])
            for prediction, row in rows:
                found.append(prediction)
                start = [prediction.file, *([prediction.truth or ""] if with_truth else [])]
                writer.writerow([*start, *cells(prediction, row)])
            if not found:
                raise UsageError("expected at least one query that can be read, got none: type another query=PATH")
    return found


def check_beside(out: Path, query: Path) -> None:
    """Check that the contact sheet and the page replace nothing but those of an earlier run.

    Raises:
        UsageError: if one of them exists without the CSV file, or is the query.
    """
    for beside in (out.with_suffix(suffix) for suffix in PICTURES):
        if beside.exists() and (not out.exists() or beside.resolve() == query.resolve()):
            raise UsageError(
                f"expected out={out} to have a name of its own, got {beside} beside it, which would be replaced: type "
                "out=FILE.csv"
            )


def cells(prediction: Prediction, row: np.ndarray) -> list[str]:
    """Return the cells of a prediction and its probabilities, empty for an image with non-finite logits."""
    if prediction.predicted is None:
        return [""] * (4 + len(row))
    mark = str(prediction.unknown).lower()
    return [
        prediction.predicted,
        f"{prediction.probability:.6f}",
        f"{prediction.distance:.4f}",
        mark,
        *(f"{p:.6f}" for p in row),
    ]


def write_pictures(
    labelling: Labelling,
    examples: Mapping[str, Sequence[np.ndarray]],
    files: Mapping[str, Path],
    conversion: Conversion,
    model: Sequence[str],
    command: str,
    out: Path,
) -> None:
    """Write the contact sheet and the page, with the stem of the CSV file.

    Args:
        labelling: the predictions.
        examples: the converted examples of each class.
        files: the image files by their names in the CSV file.
        conversion: converts an image file.
        model: lines that describe the model.
        command: the command line.
        out: the CSV file.

    Raises:
        UsageError: if one of them cannot be written.
    """
    again = Conversion(conversion.channels, conversion.size, **conversion.options)  # a copy: conversion keeps counts

    def image(name: str) -> np.ndarray:
        return as_colours(again(files[name]), again.invert)

    shown = {name: [as_colours(each, again.invert) for each in images] for name, images in examples.items()}
    sheet, page = (out.with_suffix(suffix) for suffix in PICTURES)
    with written(out):
        draw_labelled_images(labelling, shown, image, sheet)
        with atomic_write(page) as file:
            file.write(labelling_page(labelling, model, image, sheet, command))


def examples_of(task: Task) -> dict[str, list[np.ndarray]]:
    """Return the converted examples of each class, uint8 ``(c, h, w)``."""
    pixels = (task.support.images[0] * 255).round().byte().numpy()
    labels = task.support.labels[0].numpy()
    return {name: list(pixels[labels == number]) for number, name in enumerate(task.classes)}
