"""Build the stores of a dataset, verify them and show what they hold.

  python scripts/prepare.py dataset=NAME [dataset.x=y ...] [data_dir=DIR] [cache_dir=DIR] [out=FILE.png]

Missing files are fetched. What is typed is what train.py takes, which finds the stores ready afterwards. The contact
sheet FILE.png (default DATASET.png) shows three tasks of training and three of testing.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from metafew import cli
from metafew.analysis.contact_sheet import contact_sheet, sample
from metafew.data.sources import SPLITS, Source
from metafew.data.store import Split, build, place, verify
from metafew.errors import carry_out

TASKS = 3  # of training and of testing, on the contact sheet


def show(stores: dict[Source, Path]) -> None:
    """Print a table of the splits of every store, with the images of the smallest and largest class, and its place."""
    table = Table(*(Column(word, no_wrap=True) for word in ("dataset", "split")))
    for column in ("classes", "images", "smallest", "largest", "pixels", "MB"):
        table.add_column(column, justify="right", no_wrap=True)
    for source, folder in stores.items():
        for name in SPLITS:
            split = Split(folder, name)
            count, channels, height, width = split.images.shape
            sizes = [len(rows) for rows in split.rows] or [0]
            pixels, megabytes = f"{height}×{width}×{channels}", f"{split.images.nbytes / 1e6:.1f}"
            numbers = map(str, (len(split.names), count, min(sizes), max(sizes)))
            table.add_row(escape(source.title), name, *numbers, pixels, megabytes)
        table.add_section()
    Console().print(table)
    for source, folder in stores.items():
        print(f"the store of {source.title} is {folder}")


def draw(source: Source, stores: dict[Source, Path], path: Path) -> None:
    """Draw the contact sheet; the datasets of a split take turns."""
    sheet = {}
    for name in ("train", "test"):
        turns = islice(cycle(source.components(name)), TASKS)
        sheet[name] = [
            sample(Split(stores[each], name), f"{name}: {each.title}, task {number + 1}", seed=number)
            for number, each in enumerate(turns)
        ]
    contact_sheet(sheet["train"], sheet["test"], path)
    print(f"the contact sheet is {path}")


def prepare(typed: Sequence[str]) -> None:
    """Do what the command line says."""
    from metafew.training.factory import make_source

    out = [word.removeprefix("out=") for word in typed if word.startswith("out=")]
    cfg = cli.configuration([word for word in typed if not word.startswith("out=")])
    source = make_source(cfg)
    stores = {each: build(each, place(cfg.cache_dir)) for each in source.everything()}
    for folder in stores.values():
        verify(folder)
    show(stores)
    if all(each.dtype is np.uint8 for each in stores):
        draw(source, stores, Path(out[-1] if out else f"{cfg.hydra.runtime.choices.dataset}.png"))


def main(typed: Sequence[str]) -> int:
    """Carry out what is typed, and return the exit code."""
    return carry_out(prepare, typed, __doc__)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
