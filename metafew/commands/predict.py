"""Label images with a trained model, given a few examples of each class.

  metafew predict ckpt=PATH support=DIR query=DIR|FILE [out=predictions.csv]

support contains one folder of example images per class; query is a folder of images to label, or one image. If folders
inside query are named after classes, the accuracy on their images is measured. A contact sheet and a page are written
beside predictions.csv, as predictions.png and predictions.html.

Images are converted as in training, unless you type fit=crop|stretch|pad, invert=true|false (true for dark ink on
paper), white=NUMBER (in images of more than 8 bits) or background=white|black (behind transparent pixels), of which
null is the default of a dataset. Models trained on glyphs expect bright ink on a dark background: without invert=,
images are inverted if the examples have a light background. A model with a custom network (backbone=module) requires
trust=my_package.MyNetwork; chosen=NAME selects one of several options of a head (head.lr=[0.1,0.5] in training).
"""

from __future__ import annotations

import logging
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console

import metafew
from metafew.analysis.labelling.labelling import Labelling, true_class
from metafew.commands.command_line import print_message, run_command
from metafew.commands.image_conversion import choose_conversion
from metafew.commands.queries import (
    CHUNK,
    PICTURES,
    check_beside,
    examples_of,
    list_images,
    predictions,
    readable,
    write_pictures,
    write_predictions,
)
from metafew.config.quoting import parsed
from metafew.data.formats.conversion import BACKGROUNDS, CHOICES, FITS, Conversion
from metafew.data.formats.damage import intact
from metafew.data.formats.remarks import remarks
from metafew.data.formats.scan import SUFFIXES, Scan
from metafew.data.formats.tree import Tree, class_files
from metafew.data.sources.class_folders import check_one_layout
from metafew.errors import UsageError

if TYPE_CHECKING:
    from metafew.inference import Model, Task

DEFAULTS = {"out": "predictions.csv", "trust": "", "chosen": ""} | dict.fromkeys(CHOICES, "")
REQUIRED = ("ckpt", "support", "query")
USAGE = __doc__.split("\n\n")[1].strip()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run(lambda words: predict(parse(words)), arguments, __doc__)


def run(action: Callable[[Sequence[str]], None], arguments: Sequence[str] | None, usage: str) -> int:
    """Run a command as :func:`run_command` does, with conversion options in messages as the command takes them."""

    def translated(words: Sequence[str]) -> None:
        try:
            with warnings_as_typed_here():
                action(words)
        except UsageError as error:
            raise UsageError(as_typed_here(str(error))) from error

    return run_command(translated, arguments, usage)


def as_typed_here(message: str) -> str:
    """Return a message with options in the form of this command instead of those of a dataset or of Python.

    >>> as_typed_here("dataset.fit=pad"), as_typed_here("trust=['nets.ResNet', 'nets.Norm']")
    ('fit=pad', 'trust=nets.ResNet,nets.Norm')
    """
    message = re.sub(r"\btrust=\[.*?\]", lambda names: re.sub(r"[\[\]' ]", "", names[0]), message)
    message = re.sub(rf"\bdataset\.(?=({'|'.join(CHOICES)})\b)", "", message)
    return message.replace("dataset.root=", "support=")


@contextmanager
def warnings_as_typed_here() -> Iterator[None]:
    """Print the warnings of metafew's loggers as this command prints its own."""

    class Formatter(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            return as_typed_here(f"metafew: {record.getMessage()}")

    handler = logging.StreamHandler()
    handler.setFormatter(Formatter())
    logger = logging.getLogger("metafew")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


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
        usage: the usage line for messages.
    """
    values, keys = dict(defaults), (*required, *defaults)
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key not in keys or not equals or not value:
            raise UsageError(f"expected {', '.join(f'{key}=...' for key in keys)}, got {argument}: type {usage}")
        values[key] = unquoted(value)
    if missing := [key for key in required if key not in values]:
        lacking = " and ".join(f"{key}=..." for key in missing)
        raise UsageError(f"expected {lacking} too, got {' '.join(arguments)}: type {usage}")
    for key, allowed in {"invert": ("true", "false"), "fit": FITS, "background": (*BACKGROUNDS, "null")}.items():
        if values[key] not in ("", *allowed):
            raise UsageError(f"expected {key} to be {' or '.join(allowed)}, got {values[key]}: type {key}={allowed[0]}")
    return values


def unquoted(value: str) -> str:
    """Return a value without the quotes of Hydra's grammar, in which other commands print paths.

    >>> unquoted("'o/head=svm/best.ckpt'"), unquoted("photos (1)"), unquoted("'s")
    ('o/head=svm/best.ckpt', 'photos (1)', "'s")
    """
    return str(*parsed(value)) if value[0] in "\"'" and parsed(value) else value


def predict(values: dict[str, str]) -> None:
    """Label the queries, write the CSV file and its pictures, and print what they show.

    Raises:
        UsageError: if an input cannot be used, or, once everything is written, if queries have no prediction.
    """
    out, query = Path(values["out"]), Path(values["query"])
    if not out.name or out.suffix.lower() in PICTURES:
        raise UsageError(f"expected out to be a CSV file, got {out}: type out=FILE.csv")
    check_beside(out, query)
    files, examples = list_images(query, out.with_suffix(".png")), read_examples(Path(values["support"]))
    model = load(values)
    conversion = choose_conversion(model, values, examples)
    task = adapt(model, examples, conversion)
    if model.backbone.transductive or model.head.transductive:
        part = "norm" if model.backbone.transductive else "head"
        print_message(
            f"the {part} of this model is transductive: a prediction depends on the other images of its chunk, {CHUNK} "
            "at a time in the order of their names"
        )
    truths = {name: true_class(name, examples.classes) for name in files}
    rows = predictions(task, readable(files, conversion), truths)
    found = write_predictions(out, task.classes, rows, any(truths.values()))
    labelling = Labelling({name: len(examples.classes[name]) for name in task.classes}, found)
    print_remarks(model, conversion)
    Console().print(labelling.class_table().rich())
    command = f"{USAGE.split(' ckpt=')[0]} {shlex.join(f'{key}={value}' for key, value in values.items() if value)}"
    write_pictures(labelling, examples_of(task), files, conversion, describe(model), command, out)
    print(*labelling.lines(), sep="\n")
    print(f"{labelling.answered} of {len(files)} images are labelled in {out}")
    sheet, page = (out.with_suffix(suffix) for suffix in PICTURES)
    print(f"the images with their labels are in {page}, an HTML page, and on the contact sheet {sheet}")
    if unanswered := len(found) - labelling.answered:
        raise UsageError(
            f"expected finite logits for every image, got NaN or infinity for {unanswered} of {len(files)}, whose rows "
            f"in {out} are empty, as the model diverged: type ckpt=PATH of a training with a smaller optimizer.lr or "
            "head.lr"
        )


def load(values: Mapping[str, str]) -> Model:
    """Return the model that the command line names.

    Raises:
        UsageError: if it cannot be loaded, or was trained on vectors.
    """
    # Commas, or a list in Hydra's grammar, as the error for a checkpoint with other classes advises.
    model = metafew.load(values["ckpt"], re.findall(r"[\w.]+", values["trust"]), values["chosen"] or None)
    if model.image_size == 1:
        raise UsageError(
            f"expected a model of images, got one of vectors (dataset={model.choices['dataset']}): call metafew.load "
            "in Python, whose models adapt to vectors"
        )
    return model


def adapt(model: Model, examples: Tree, conversion: Conversion) -> Task:
    """Return the task of the classes of ``examples``."""
    labels = [name for name, keys in examples.classes.items() for _ in keys]
    support = list(intact(map(conversion, examples.open([key for keys in examples.classes.values() for key in keys]))))
    return model.adapt(np.stack(support), labels)


def describe(model: Model) -> list[str]:
    """Return lines that describe a model, for the page."""
    choices = " ".join(f"{group}={word}" for group, word in model.choices.items())
    of_option = f" for {model.head.chosen}" if model.head.chosen else ""
    return [
        f"model: {choices}",
        f"probabilities are of logits divided by the temperature {model.temperature:.3g}, fitted on validation tasks"
        if model.temperature != 1
        else f"probabilities are not calibrated, as the checkpoint has no temperature{of_option}",
        "unknown: farther from the nearest class than its own examples are (a distance above 1)",
    ]


def print_remarks(model: Model, conversion: Conversion) -> None:
    """Print remarks on the converted images."""
    # A model trained on cropped images is expected to crop others.
    seen = {key: value for key, value in conversion.seen.items() if not (model.trained_conversion and "cut" in key)}
    for remark in remarks(seen):
        print_message(as_typed_here(remark))


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
            f"{', '.join(sorted(lacking))}: convert the images, or move folders that are not classes elsewhere"
        )
    if not rows:
        raise UsageError(
            f"expected one folder of example images for each class in {support}, got no such folder: type support=DIR"
        )
    check_one_layout(support, {name for _, name in rows}, "move the images of each class into one folder")
    return Tree(support, rows, scan)
