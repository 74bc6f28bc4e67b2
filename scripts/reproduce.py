"""Run metafew.commands.reproduce on the pages of this checkout; without arguments it prints its usage."""

import sys
from pathlib import Path

from metafew.commands.reproduce import main

if __name__ == "__main__":
    sys.exit(main(docs=Path(__file__).parents[1] / "docs"))
