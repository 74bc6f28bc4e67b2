"""Run metafew.commands.search; without arguments it prints its usage."""

import sys

from metafew.commands.search import main

if __name__ == "__main__":
    sys.exit(main())
