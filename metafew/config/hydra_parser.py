"""Let Hydra read a command line on Python 3.14.

Since Python 3.14, argparse checks the help string of an argument for ``%`` when the argument is added. Hydra 1.3 passes
an object that is not a string as the help of ``--shell-completion``, so every Hydra program fails with ``ValueError:
badly formed help string`` (https://github.com/facebookresearch/hydra/issues/3121).
"""

from __future__ import annotations

import argparse
from types import SimpleNamespace
from typing import Any

from hydra._internal import utils


class AnyHelp(argparse.ArgumentParser):
    """A parser whose arguments may have any object as their help."""

    def add_argument(self, *names: Any, help: Any = None, **options: Any) -> argparse.Action:
        """Add an argument, and set its help afterwards, when argparse no longer checks it."""
        action = super().add_argument(*names, **options)
        action.help = help
        return action


def accept_any_help() -> None:
    """Make Hydra parse the command line of this process with :class:`AnyHelp`."""
    utils.argparse = SimpleNamespace(ArgumentParser=AnyHelp)  # type: ignore[assignment]
