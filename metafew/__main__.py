"""The command line as ``python -m metafew``."""

from metafew.cli import main

if __name__ == "__main__":
    main()
