"""Run metafew.commands.report; without arguments it prints its usage."""

import sys

from metafew.commands.report import main

if __name__ == "__main__":
    sys.exit(main())
