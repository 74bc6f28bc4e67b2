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
import pooch
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from metafew import cli
from metafew.analysis.contact_sheet import contact_sheet, sample
from metafew.data.sources import Source
from metafew.data.store import Split, build, verify
from metafew.errors import UsageError

TASKS = 3  # of training and of testing, on the contact sheet


def configure(typed: Sequence[str]) -> tuple[DictConfig, str]:
    """Return the configuration that train.py would have, and the word that was typed for the dataset."""
    cli.register()
    try:
        with initialize_config_dir(str(cli.CONF), version_base="1.3"):
            cfg = compose("train", list(typed), return_hydra_config=True)
        return cfg, cfg.hydra.runtime.choices.dataset
    except (HydraException, OmegaConfBaseException) as error:
        raise UsageError(" ".join(str(error).split())) from error


def components(source: Source) -> list[Source]:
    """Return each dataset that tasks of training or testing come from, once."""
    return list({id(each): each for split in ("train", "test") for each in source.components(split)}.values())


def show(stores: dict[Source, Path]) -> None:
    """Print a table of the splits of every store, with the images of the smallest and largest class, and its place."""
    table = Table(*(Column(word, no_wrap=True) for word in ("dataset", "split")))
    for column in ("classes", "images", "smallest", "largest", "pixels", "MB"):
        table.add_column(column, justify="right", no_wrap=True)
    for source, folder in stores.items():
        for name in ("train", "val", "test"):
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
    from metafew.assemble import make_source  # imports torch, which takes seconds

    out = [word.removeprefix("out=") for word in typed if word.startswith("out=")]
    cfg, word = configure([word for word in typed if not word.startswith("out=")])
    source = make_source(cfg)
    cache = Path(cfg.cache_dir or pooch.os_cache("metafew"))
    stores = {each: build(each, cache) for each in components(source)}
    for folder in stores.values():
        verify(folder)
    show(stores)
    if all(each.dtype is np.uint8 for each in stores):
        draw(source, stores, Path(out[-1] if out else f"{word}.png"))


def main(typed: Sequence[str]) -> int:
    """Carry out what is typed, and return the exit code."""
    if not typed or {"-h", "--help"} & set(typed):
        print(__doc__)
        return 0
    try:
        prepare(typed)
    except UsageError as error:
        print(f"metafew: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
