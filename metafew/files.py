"""The configuration's folder, and files that are there whole or not at all. Imports no torch."""

from __future__ import annotations

import json
import os
from pathlib import Path

INSTALLED = Path(__file__).parent / "conf"
CONF = INSTALLED if INSTALLED.is_dir() else Path(__file__).parents[1] / "conf"


def write_json(path: Path, content: dict) -> None:
    """Write ``content`` whole or not at all, in a folder that is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
    os.replace(unfinished, path)
