"""Let Hydra read a command line on Python 3.14.

Since Python 3.14 argparse looks for ``%`` in a help when the argument is added. Hydra 1.3 gives that of
``--shell-completion`` as an object which can only be printed, so each program that uses it ends in ``ValueError: badly
formed help string`` (https://github.com/facebookresearch/hydra/issues/3121).
"""

from __future__ import annotations

import argparse
from types import SimpleNamespace
from typing import Any

from hydra._internal import utils


class AnyHelp(argparse.ArgumentParser):
    """A parser whose arguments may have any object as their help."""

    def add_argument(self, *names: Any, help: Any = None, **options: Any) -> argparse.Action:
        """Add an argument, and its help only afterwards: argparse does not look at it then."""
        action = super().add_argument(*names, **options)
        action.help = help
        return action


def accept_any_help() -> None:
    """Have Hydra parse the command line of this process by :class:`AnyHelp`."""
    utils.argparse = SimpleNamespace(ArgumentParser=AnyHelp)  # type: ignore[assignment]
