"""The exceptions that users are meant to see, and how a script shows them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence


class UsageError(Exception):
    """Something typed cannot be done. The text is one sentence: what was wanted, what came, what to type instead."""


class Diverged(UsageError):
    """Training or adaptation went to numbers that are not finite."""


def carry_out(act: Callable[[Sequence[str]], None], typed: Sequence[str], about: str) -> int:
    """Let a script do what is typed, or print ``about`` where nothing is, or help; return its exit code."""
    if not typed or {"-h", "--help"} & set(typed):
        print(about)
        return 0
    try:
        act(typed)
    except UsageError as error:
        print(f"metafew: {error}", file=sys.stderr)
        return 2
    return 0
