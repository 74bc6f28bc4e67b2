"""Run metafew.commands.dashboard; without arguments it prints its usage."""

import sys

from metafew.commands.dashboard import main

if __name__ == "__main__":
    sys.exit(main())
