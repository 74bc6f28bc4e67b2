"""Label images with a trained model, given a few examples of each class.

  metafew predict ckpt=PATH support=DIR query=DIR|FILE [out=predictions.csv]

support contains one folder of example images per class; query is a folder of images to label, or one image. Images are
converted as in training, unless you type fit=crop|stretch|pad, invert=true|false (true for dark ink on paper),
white=NUMBER (in images of more than 8 bits) or background=white|black (behind transparent pixels). Models trained on
glyphs expect bright ink on a dark background. A model with a custom network (backbone=module) requires
trust=my_package.MyNetwork.
"""

from __future__ import annotations

import csv
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

import metafew
from metafew.commands.command_line import run_command
from metafew.data.formats.conversion import BACKGROUNDS, CHOICES, FITS, Conversion
from metafew.data.formats.damage import UnreadableImages, intact
from metafew.data.formats.remarks import remarks
from metafew.data.formats.scan import SUFFIXES, Scan
from metafew.data.formats.tree import Tree, class_files
from metafew.data.sources.class_folders import check_one_layout
from metafew.errors import UsageError
from metafew.io import atomic_write

if TYPE_CHECKING:
    from metafew.inference import Model, Task

    Row = tuple[str, str | None, np.ndarray]

DEFAULTS = {"out": "predictions.csv", "trust": ""} | dict.fromkeys(CHOICES, "")
REQUIRED = ("ckpt", "support", "query")
USAGE = __doc__.split("\n\n")[1].strip()
CHUNK = 256  # number of queries in memory at a time
NONE = ""  # the prediction for an image with non-finite logits; no class has this name


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run(lambda words: predict(parse(words)), arguments, __doc__)


def run(action: Callable[[Sequence[str]], None], arguments: Sequence[str] | None, usage: str) -> int:
    """Run a command as :func:`run_command` does, with options of a conversion in messages as it takes them."""

    def translated(words: Sequence[str]) -> None:
        try:
            action(words)
        except UsageError as error:
            raise UsageError(as_typed_here(str(error))) from error

    return run_command(translated, arguments, usage)


def as_typed_here(message: str) -> str:
    """Return a message with the options of a conversion in the form of this command, without their group."""
    return re.sub(rf"\bdataset\.(?=({'|'.join(CHOICES)})\b)", "", message)


def parse(
    arguments: Sequence[str],
    required: Sequence[str] = REQUIRED,
    defaults: Mapping[str, str] = DEFAULTS,
    usage: str = USAGE,
) -> dict[str, str]:
    """Return the value of each key of the command line.

    Args:
        arguments: the command line.
        required: keys that must have a value.
        defaults: the values of the other keys, those of a conversion included.
        usage: what to type, for messages.
    """
    values, keys = dict(defaults), (*required, *defaults)
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key not in keys or not equals or not value:
            raise UsageError(f"expected {', '.join(f'{key}=...' for key in keys)}, got {argument}: type {usage}")
        values[key] = value
    if missing := [key for key in required if key not in values]:
        lacking = " and ".join(f"{key}=..." for key in missing)
        raise UsageError(f"expected {lacking} too, got {' '.join(arguments)}: type {usage}")
    for key, allowed in {"invert": ("true", "false"), "fit": FITS, "background": BACKGROUNDS}.items():
        if values[key] not in ("", *allowed):
            raise UsageError(f"expected {key} to be {' or '.join(allowed)}, got {values[key]}: type {key}={allowed[0]}")
    return values


def predict(values: dict[str, str]) -> None:
    """Label the queries, write the CSV file, and print the number of predictions per class.

    Raises:
        UsageError: if an input cannot be used, or, once the file is written, if queries have no prediction.
    """
    files, examples = list_images(Path(values["query"])), read_examples(Path(values["support"]))
    model = metafew.load(values["ckpt"], values["trust"].split(","))
    conversion = choose_conversion(model, values)
    task = adapt(model, examples, conversion)
    if model.backbone.transductive or model.head.transductive:
        part = "norm" if model.backbone.transductive else "head"
        print(
            f"metafew: the {part} of this model is transductive: a prediction depends on the other images of its "
            f"chunk, {CHUNK} at a time in the order of their names",
            file=sys.stderr,
        )
    out = Path(values["out"])
    counts = write_predictions(out, task.classes, predictions(task, readable(files, conversion)))
    table = Table("class")
    for column in ("examples", "predicted"):
        table.add_column(column, justify="right")
    for name in task.classes:
        table.add_row(escape(name), str(len(examples.classes[name])), str(counts[name]))
    Console().print(table)
    print_remarks(model, conversion)
    unanswered = counts.pop(NONE, 0)
    print(f"{counts.total()} of {len(files)} images are labelled in {out}")
    if unanswered:
        raise UsageError(
            f"expected finite logits for every image, got NaN or infinity for {unanswered} of {len(files)}, whose rows "
            f"in {out} are empty, as the model diverged: type ckpt=PATH of a training with a smaller optimizer.lr or "
            "head.lr"
        )


def adapt(model: Model, examples: Tree, conversion: Conversion) -> Task:
    """Return the task of the classes of ``examples``."""
    labels = [name for name, keys in examples.classes.items() for _ in keys]
    support = list(intact(map(conversion, examples.open([key for keys in examples.classes.values() for key in keys]))))
    return model.adapt(np.stack(support), labels)


def choose_conversion(model: Model, values: dict[str, str]) -> Conversion:
    """Return the conversion of the model with the options of the command line, and print differences from training."""
    parsers = {"invert": "true".__eq__, "white": parse_number}
    typed = {key: parsers.get(key, str)(values[key]) for key in CHOICES if values[key]}
    for key, value in typed.items():
        trained = (model.trained_conversion or typed)[key]
        if value != trained:
            print(
                f"metafew: expected {key}={trained}, as in training, got {values[key]}: leave it out to follow the "
                "training",
                file=sys.stderr,
            )
    return Conversion(model.channels, model.image_size, **model.conversion.options | typed)


def print_remarks(model: Model, conversion: Conversion) -> None:
    """Print remarks on the converted images."""
    # A model trained on cropped images is expected to crop others.
    seen = {key: value for key, value in conversion.seen.items() if not (model.trained_conversion and "cut" in key)}
    found = remarks(seen)
    if model.trained_conversion is None:
        found.append(
            "expected a checkpoint that holds how training converted image files, got one of an earlier version, of a "
            f"dataset without such files, or of several: type fit=... and invert=... where {conversion.fit} and "
            f"{str(conversion.invert).lower()} are wrong"
        )
    for remark in found:
        print(f"metafew: {as_typed_here(remark)}", file=sys.stderr)


def parse_number(word: str) -> float:
    """Return a word as a number; raises UsageError if it is not one."""
    try:
        return float(word)
    except ValueError:
        raise UsageError(f"expected white to be a number, got {word}: type white=65535") from None


def read_examples(support: Path) -> Tree:
    """Return the examples of each class.

    Raises:
        UsageError: if there are none, a class has no readable image, or the classes are ambiguous.
    """
    scan = Scan(support)
    rows = class_files(scan)
    # A missing class is never predicted, so its images would receive the label of another class.
    lacking = [name for name in scan.empty if str(PurePosixPath(name).parent) not in scan.images] + scan.dead_links()
    if lacking:
        raise UsageError(
            f"expected examples of every class in {support}, got no image that can be read ({', '.join(SUFFIXES)}) in "
            f"{', '.join(sorted(lacking))}: convert the images, or move what is no class elsewhere"
        )
    check_one_layout(support, {name for _, name in rows}, "move the images of each class into one folder")
    return Tree(support, rows, scan)


def list_images(query: Path) -> dict[str, Path]:
    """Return the image files of a folder, or the single file, by their names in the CSV file."""
    if query.is_file():
        return {query.name: query}
    paths = []
    if query.is_dir():
        scan = Scan(query)
        scan.warn()
        paths = sorted(query / folder / name for folder, names in scan.images.items() for name in names)
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
            print(f"metafew: left out: {error}", file=sys.stderr)


def predictions(task: Task, queries: Iterator[tuple[str, np.ndarray]]) -> Iterator[Row]:
    """Yield the name of each image, the predicted class, if any, and the probability of each class."""
    while chunk := list(islice(queries, CHUNK)):
        names, images = zip(*chunk, strict=True)
        found = task.predict(np.stack(images))
        yield from zip(names, task.most_probable(found), found.numpy(), strict=True)


def write_predictions(out: Path, classes: list[str], rows: Iterable[Row]) -> Counter[str]:
    """Write the CSV file atomically and return the number of predictions of each class and of :data:`NONE`.

    Raises:
        UsageError: if there are no rows, or the file cannot be written.
    """
    counts: Counter[str] = Counter()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(out, newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["file", "predicted", "probability", *(f"p({name})" for name in classes)])
            for name, predicted, row in rows:
                counts[predicted or NONE] += 1
                shown = [NONE] * (1 + len(row)) if predicted is None else [f"{p:.6f}" for p in (row.max(), *row)]
                writer.writerow([name, predicted or NONE, *shown])
            if not counts:
                raise UsageError("expected at least one query that can be read, got none: type query=PATH of others")
    except OSError as error:
        raise UsageError(
            f"expected out={out} to be a file that can be written, got {error}: type out=FILE.csv"
        ) from error
    return counts
