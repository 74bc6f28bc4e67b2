"""Run metafew.commands.device_check; without arguments it prints its usage."""

import sys

from metafew.commands.device_check import main

if __name__ == "__main__":
    sys.exit(main())
