"""Run a command: its usage on request, errors as one line and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from metafew.errors import UsageError


def run_command(action: Callable[[Sequence[str]], None], arguments: Sequence[str] | None, usage: str) -> int:
    """Run ``action`` on a command line and return the exit code: 0, or 2 after a UsageError, which is printed.

    Args:
        action: what the command does.
        arguments: its command line; None takes that of the process.
        usage: printed instead if there are no arguments, or ``--help`` is among them.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or {"-h", "--help"} & set(arguments):
        print(usage)
        return 0
    try:
        action(arguments)
    except UsageError as error:
        print(f"metafew: {error}", file=sys.stderr)
        return 2
    return 0
