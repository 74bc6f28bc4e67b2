"""Run metafew.commands.export; without arguments it prints its usage."""

import sys

from metafew.commands.export import main

if __name__ == "__main__":
    sys.exit(main())
