"""What a multirun keeps of an earlier one, and what it says at its end."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from metafew.config.moved import current
from metafew.io import read_json


class FailedCells(Callback):
    """Names the cells of a multirun that ended in an error, and lets the whole exit with 1."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Note what is there: the folder of the sweep may hold cells of an earlier one."""
        self.before = begun(config)

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Read the results of every cell of the sweep."""
        cells = [cell for cell, time in begun(config).items() if self.before.get(cell) != time]
        errors = {cell: read_json(cell / "results.json").get("error") for cell in cells}
        failed = {cell: error for cell, error in errors.items() if error}
        if failed:
            print(f"{len(failed)} of {len(cells)} cells failed:", file=sys.stderr)
            for cell, error in failed.items():
                print(f"  {cell}: {error}", file=sys.stderr)
            sys.exit(1)


def begun(config: DictConfig) -> dict[Path, int]:
    """Return when each cell in the folder of a sweep began, by the clock of that folder, in ns."""
    # Hydra writes this file in whatever process or machine carries out the cell.
    files = Path(config.hydra.sweep.dir).glob(f"**/{config.hydra.output_subdir}/overrides.yaml")
    return {file.parents[1]: file.stat().st_mtime_ns for file in sorted(files)}


def finished(out: Path, cfg: DictConfig) -> bool:
    """Tell whether ``out`` holds the results of this very configuration, however often it was interrupted."""
    saved = read_json(out / "results.json").get("config")
    return saved is not None and afresh(current(saved), out) == afresh(OmegaConf.to_container(cfg, resolve=True), out)


def afresh(config: dict, out: Path) -> dict:
    """Return ``config`` without a checkpoint of ``out`` itself, from which it only went on."""
    own = config["ckpt"] is not None and Path(config["ckpt"]).resolve().is_relative_to(out.resolve())
    return config | {"ckpt": None} if own else config
