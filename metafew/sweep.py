"""What a multirun says at its end."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig


class FailedCells(Callback):
    """Names the cells of a multirun that ended in an error, and lets the whole exit with 1."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Note when the sweep begins: its folder may hold results of an earlier one."""
        self.begin = time.time()

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Read every results.json of the sweep."""
        files = sorted(Path(config.hydra.sweep.dir).glob("**/results.json"))
        cells = [file for file in files if file.stat().st_mtime >= self.begin]
        errors = {cell.parent: json.loads(cell.read_text()).get("error") for cell in cells}
        failed = {cell: error for cell, error in errors.items() if error}
        if failed:
            print(f"{len(failed)} of {len(cells)} cells failed:", file=sys.stderr)
            for cell, error in failed.items():
                print(f"  {cell}: {error}", file=sys.stderr)
            sys.exit(1)
