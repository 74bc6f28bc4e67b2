"""The command ``metafew``, also ``python -m metafew``: run an experiment, or one of the commands around it."""

from __future__ import annotations

import ast
import os
import sys
from importlib import import_module
from pathlib import Path

from metafew import cli
from metafew.errors import SIMILAR_OPTION, did_you_mean, nearest

TRAIN = "train"
COMMANDS = ("predict", "report", "prepare", "search", "export", "reproduce", "dashboard")
"""The commands besides ``train``, each a module of :mod:`metafew.commands` with a function ``main``."""


def main() -> None:
    """Run the command named by the first word; if there is none, as in ``metafew head=svm``, run an experiment."""
    if os.getcwd() not in sys.path:  # so that ``metafew`` finds the user's classes, as ``python -m metafew`` does
        sys.path.append(os.getcwd())
    first = sys.argv[1] if len(sys.argv) > 1 else TRAIN
    if first in COMMANDS:
        sys.exit(import_module(f"metafew.commands.{first}").main(sys.argv[2:]))
    if first != TRAIN and first.isidentifier():
        near = nearest(first, (TRAIN, *COMMANDS), SIMILAR_OPTION)
        print(
            f"metafew: expected a command of {', '.join((TRAIN, *COMMANDS))}, got {first}{did_you_mean(near)}: "
            f"type metafew {near or '--help'}",
            file=sys.stderr,
        )
        sys.exit(2)
    if sys.argv[1:2] == [TRAIN]:
        del sys.argv[1]
    cli.main("metafew", describe_commands())


def describe_commands() -> dict[str, str]:
    """Return the first line of each command's docstring, read from its module without importing it."""
    described = {TRAIN: "Run an experiment, or a sweep of several; may be left out."}
    for name in COMMANDS:
        text = (Path(cli.__file__).parent / "commands" / f"{name}.py").read_text(encoding="utf-8")
        described[name] = (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
    return described


if __name__ == "__main__":
    main()
