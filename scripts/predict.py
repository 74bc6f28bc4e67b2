"""Label images with a trained model that is shown a few examples of each class.

  python scripts/predict.py ckpt=PATH support=DIR query=DIR|FILE [out=predictions.csv] [invert=false] [fit=crop]

support has a folder of example images for each class, query is a folder of the images to label, or one image. Of an
image that is no square, fit=crop takes the middle and fit=stretch all of it. Models of drawings (glyphs, omniglot) know
bright ink on a dark ground: type invert=true for dark ink on paper. A model with a network of your own
(backbone=module) may call it if you type trust=my_package.MyNetwork.
"""

from __future__ import annotations

import csv
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

import metafew
from metafew.data.formats.images import FITS, decode, to_pixels
from metafew.data.formats.tree import SUFFIXES, Tree, hidden
from metafew.errors import UsageError, carry_out

if TYPE_CHECKING:
    from metafew.inference import Task

DEFAULTS = {"out": "predictions.csv", "invert": "false", "fit": FITS[0], "trust": ""}
WORDS = ("ckpt", "support", "query", *DEFAULTS)
USAGE = __doc__.split("\n\n")[1].strip()
AT_ONCE = 256  # queries that are in memory together


def parse(typed: Sequence[str]) -> dict[str, str]:
    """Return the value of each word."""
    values = dict(DEFAULTS)
    for argument in typed:
        word, equals, value = argument.partition("=")
        if word not in WORDS or not equals or not value:
            raise UsageError(f"predict takes {', '.join(f'{w}=...' for w in WORDS)}, not {argument}: type {USAGE}")
        values[word] = value
    if missing := [word for word in WORDS if word not in values]:
        raise UsageError(f"predict wants {' and '.join(f'{w}=...' for w in missing)} too: type {USAGE}")
    for word, allowed in {"invert": ("true", "false"), "fit": FITS}.items():
        if values[word] not in allowed:
            raise UsageError(f"{word} is {' or '.join(allowed)}, not {values[word]}: type {word}={allowed[0]}")
    return values


def list_images(query: Path) -> dict[str, Path]:
    """Return the image files of a folder, or the one file, by the names that they have in the CSV."""
    if query.is_file():
        return {query.name: query}
    files = {path.relative_to(query).as_posix(): path for path in sorted(query.rglob("*")) if path.is_file()}
    images = {
        name: path
        for name, path in files.items()
        if name.lower().endswith(SUFFIXES) and not any(map(hidden, name.split("/")))
    }
    if not images:
        raise UsageError(
            f"query={query} is no image and no folder with images ({', '.join(SUFFIXES)}): type query= and the path "
            "of either"
        )
    return images


def predict(values: dict[str, str]) -> None:
    """Label the queries, write the CSV, and print how many there are of each class."""
    files, examples = list_images(Path(values["query"])), Tree(Path(values["support"]))
    model = metafew.load(values["ckpt"], values["trust"].split(","))

    def pixels(image: Image.Image) -> np.ndarray:
        found = to_pixels(image, model.channels, model.image_size, values["fit"])
        return 255 - found if values["invert"] == "true" else found

    labels = [name for name, keys in examples.classes.items() for _ in keys]
    support = [pixels(image) for keys in examples.classes.values() for image in examples.open(keys)]
    task = model.adapt(np.stack(support), labels)
    if model.backbone.transductive:
        print(
            "metafew: the norm of this model is transductive: a prediction depends on the images asked with it, "
            f"{AT_ONCE} at a time in the order of their names",
            file=sys.stderr,
        )
    out = Path(values["out"])
    counts = write(out, task.classes, labelled(task, files, pixels))
    table = Table("class")
    for column in ("examples", "predicted"):
        table.add_column(column, justify="right")
    for name in task.classes:
        table.add_row(escape(name), str(labels.count(name)), str(counts[name]))
    Console().print(table)
    print(f"{counts.total()} of {len(files)} images are labelled in {out}")


def readable(files: dict[str, Path], pixels: Callable[[Image.Image], np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield names and pixels, and say which files cannot be read."""
    bar = Console(stderr=True)
    for name, path in track(files.items(), "images", console=bar, transient=True, disable=not bar.is_terminal):
        try:
            yield name, pixels(decode(path, str(path)))
        except UsageError as error:
            print(f"metafew: left out: {error}", file=sys.stderr)


def labelled(
    task: Task, files: dict[str, Path], pixels: Callable[[Image.Image], np.ndarray]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the name of each image that can be read, and the probability of each class."""
    queries = readable(files, pixels)
    while chunk := list(islice(queries, AT_ONCE)):
        names, images = zip(*chunk, strict=True)
        yield from zip(names, task.predict(np.stack(images)).numpy(), strict=True)


def write(out: Path, classes: list[str], rows: Iterable[tuple[str, np.ndarray]]) -> Counter[str]:
    """Write the CSV whole or not at all, and return how often each class is predicted; there must be a row."""
    unfinished, counts = out.with_name(f"{out.name}.tmp"), Counter()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["file", "predicted", "probability", *(f"p({name})" for name in classes)])
            for name, probabilities in rows:
                predicted = classes[probabilities.argmax()]
                counts[predicted] += 1
                writer.writerow([name, predicted, *(f"{p:.6f}" for p in (probabilities.max(), *probabilities))])
        if not counts:
            raise UsageError("none of the queries can be read as an image: type query= and the path of others")
        os.replace(unfinished, out)
    except OSError as error:
        raise UsageError(f"{out} cannot be written ({error}): type out=FILE.csv") from error
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
    return counts


def main(typed: Sequence[str]) -> int:
    """Carry out what is typed, and return the exit code."""
    return carry_out(lambda words: predict(parse(words)), typed, __doc__)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
