"""Run metafew.commands.prepare; without arguments it prints its usage."""

import sys

from metafew.commands.prepare import main

if __name__ == "__main__":
    sys.exit(main())
