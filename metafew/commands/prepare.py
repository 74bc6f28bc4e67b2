"""Build the stores of a dataset, verify them and print what they contain.

  metafew prepare dataset=NAME [dataset.x=y ...] [data_dir=DIR] [cache_dir=DIR] [out=FILE.png]

Missing files are downloaded. The overrides are those of train.py, which then uses the stores. The contact sheet
FILE.png (default DATASET.png) shows three training tasks and three test tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from metafew.analysis.contact_sheet import contact_sheet, draw_sample
from metafew.commands.command_line import own_options, print_message, run_command
from metafew.config.compose import compose_overrides
from metafew.data.sources import SPLITS, Source
from metafew.data.store import Split, build, store_root, summary_of, verify
from metafew.data.summary import full_summary, warnings

TASKS = 3  # tasks of each split on the contact sheet
WIDE = 1000  # columns, more than in any table


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(prepare, arguments, __doc__)


def prepare(arguments: Sequence[str]) -> None:
    """Build and verify the stores, print what they contain, and draw the contact sheet."""
    from metafew.training.factory import make_source  # imports torch

    options, overrides = own_options(arguments, {"out": None})
    cfg = compose_overrides(overrides, sweeps=False)
    source = make_source(cfg)
    stores = {each: build(each, store_root(cfg.cache_dir)) for each in source.all_components()}
    for folder in stores.values():
        verify(folder)
    print_stores(stores)
    print_summaries(stores)
    if all(each.dtype is np.uint8 for each in stores):
        draw_tasks(source, stores, Path(options["out"] or f"{cfg.hydra.runtime.choices.dataset}.png"))


def print_stores(stores: dict[Source, Path]) -> None:
    """Print the splits of every store with the sizes of the smallest and largest class, and the store's folder."""
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
            table.add_row(escape(source.display_name), name, *numbers, pixels, megabytes)
        table.add_section()
    Console(width=WIDE).print(table)  # a terminal wraps long lines, but rich would truncate numbers
    for source, folder in stores.items():
        print(f"the store of {source.display_name} is {folder}")


def print_summaries(stores: dict[Source, Path]) -> None:
    """Print what was not read, properties of the images, copies, and warnings."""
    for source, folder in stores.items():
        summary = summary_of(source, folder)
        print(*full_summary(source, summary), sep="\n")
        for message in warnings(source, summary):
            print_message(message)


def draw_tasks(source: Source, stores: dict[Source, Path], path: Path) -> None:
    """Draw the contact sheet; the datasets of a mixture take turns."""
    sheet = {}
    for name in ("train", "test"):
        turns = islice(cycle(source.components(name)), TASKS)
        sheet[name] = [
            draw_sample(Split(stores[each], name), f"{name}: {each.display_name}, task {number + 1}", seed=number)
            for number, each in enumerate(turns)
        ]
    contact_sheet(sheet["train"], sheet["test"], path)
    print(f"the contact sheet is {path}")
