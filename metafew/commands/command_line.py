"""Run a command: print usage on request, and errors as one line with an exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from os.path import expanduser
from pathlib import Path
from typing import Any

from metafew.config.overrides import key
from metafew.config.paths import FOLDERS
from metafew.errors import UsageError
from metafew.io import print_any_character


def run_command(action: Callable[[Sequence[str]], None], arguments: Sequence[str] | None, usage: str) -> int:
    """Run ``action`` on a command line and return the exit code: 0, or 2 after a UsageError, which is printed.

    Args:
        action: the command, as a function of its arguments.
        arguments: the command line; None for that of the process.
        usage: printed instead if there are no arguments, or if they contain ``--help``.
    """
    print_any_character()
    arguments = [with_home(word) for word in (sys.argv[1:] if arguments is None else arguments)]
    if not arguments or {"-h", "--help"} & set(arguments):
        print(usage)
        return 0
    try:
        action(arguments)
    except UsageError as error:
        print_message(error)
        return 2
    return 0


def own_options(arguments: Sequence[str], defaults: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the values of a command's own options, ``KEY=VALUE``, of which the last counts, and the other words.

    Raises:
        UsageError: if a value is empty.

    >>> own_options(["a", "out=b", "seed=1", "out=c"], {"out": "report", "rows": None})
    ({'out': 'c', 'rows': None}, ['a', 'seed=1'])
    """
    options, others = dict(defaults), []
    for word in arguments:
        key, equals, value = word.partition("=")
        if equals and key in defaults:
            if not value:  # an empty variable of the shell; as a path, it would be the current folder
                raise UsageError(f"expected {key} to have a value, got {word}: leave it out, or type {key}=VALUE")
            options[key] = value
        else:
            others.append(word)
    return options, others


def check_out(words: Sequence[str]) -> None:
    """Raise UsageError if overrides choose the folder of a run, for a command of several runs in the folder ``out``."""
    if folder := next((word for word in words if key(word) in FOLDERS), None):
        raise UsageError(f"expected out=DIR for the folder of several runs, got {folder}: type out=DIR instead")


def print_message(message: object) -> None:
    """Print a line for the user on the standard error."""
    print(f"metafew: {message}", file=sys.stderr)


@contextmanager
def written(out: Path, example: str = "FILE.csv") -> Iterator[None]:
    """Raise UsageError, which advises ``out=example``, if the file or one beside it cannot be written inside."""
    if not out.name:
        raise UsageError(f"expected out to be a file, got {out}: type out={example}")
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"expected out={out} to be a file that can be written, got {error}: type out={example}"
        ) from error


def with_home(word: str) -> str:
    """Expand ``~`` to the home folder in ``KEY=~/x``, with or without quotes, or in a path."""
    key, equals, value = word.partition("=") if "=" in word else ("", "", word)
    bare = value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'" else value
    return f"{key}{equals}{expanduser(bare)}" if bare.startswith("~") else word
