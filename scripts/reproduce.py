"""Run all published tables and figures that are not finished yet, and make docs/reproduction.md of what came out.

  python scripts/reproduce.py all [out=DIR] [words for each of them]
  python scripts/reproduce.py NAMES... [out=DIR] [words for each of them]
  python scripts/reproduce.py page

NAMES are experiments. Words, such as seeds=[0,1,2], budget=paper, jobs=4 or data_dir=PATH, hold for
each. DIR (default outputs) gets a folder for each experiment and cells/, where finished runs stay: the same command
goes on where it stopped. Results are copied to docs/results, the figures to docs/pictures; page only makes the page.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from metafew.distributed.launch import ENDED, start
from metafew.errors import UsageError, carry_out
from metafew.experiments.page import page
from metafew.io import CONF, atomic_write, read_json

DOCS = Path(__file__).parents[1] / "docs"
NAMES = sorted(file.stem for file in (CONF / "experiment").glob("*.yaml"))


def reproduce(typed: Sequence[str]) -> None:
    """Do what the command line says."""
    failed = []
    if list(typed) != ["page"]:
        words = [word for word in typed if "=" in word and not word.startswith("out=")]
        out = next((Path(word.removeprefix("out=")) for word in typed if word.startswith("out=")), Path("outputs"))
        chosen = [word for word in typed if "=" not in word]
        chosen = NAMES if chosen == ["all"] else chosen
        if unknown := [name for name in chosen if name not in NAMES]:
            raise UsageError(f"an experiment is one of {', '.join(NAMES)}, not {unknown[0]}: type {NAMES[0]}")
        if not chosen:
            raise UsageError("an experiment is wanted, and none is typed: type all, or tasknorm_maml")
        for number, name in enumerate(chosen, 1):
            print(f"{number}/{len(chosen)} {name}", flush=True)
            folder = out / name
            code = start([f"experiment={name}", *words, f"hydra.run.dir={folder}", f"cells={out / 'cells'}"])
            if code in (ENDED, 130):
                raise UsageError("interrupted, and finished runs stay: type the same command to go on")
            if code != 2:  # else it was refused, and what stands there is of other words
                keep(name, folder)
            if code:
                failed.append(name)
    DOCS.mkdir(exist_ok=True)
    with atomic_write(DOCS / "reproduction.md") as file:
        file.write(page(DOCS / "results"))
    print(f"the page is {DOCS / 'reproduction.md'}")
    if failed:
        raise UsageError(
            f"some runs of {' and '.join(failed)} failed, for the reason above: type the same to try again"
        )


def keep(name: str, folder: Path) -> None:
    """Copy the results of one experiment, and its figures, beside the page."""
    report = read_json(folder / "results.json")
    if "rows" not in report:
        return
    for place in (DOCS / "results", DOCS / "pictures"):
        place.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(folder / "results.json", DOCS / "results" / f"{name}.json")
    for figure in report["figures"]:
        drawn = Image.open(folder / f"{figure}.png").convert("RGB").quantize(256)  # a third of the size
        drawn.save(DOCS / "pictures" / f"{name}_{figure}.png", optimize=True)


def main(typed: Sequence[str]) -> int:
    """Carry out what is typed, and return the exit code."""
    return carry_out(reproduce, typed, __doc__)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
