"""Run metafew.commands.predict; without arguments it prints its usage."""

import sys

from metafew.commands.predict import main

if __name__ == "__main__":
    sys.exit(main())
