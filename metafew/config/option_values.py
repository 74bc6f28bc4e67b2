"""Validate the values of options."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metafew.errors import UsageError


def as_list(value: Any) -> list:
    """Return the values of a list or tuple, or a list of the single value."""
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]


def check_integer(option: str, value: int, least: int, example: int | None = None, most: int | None = None) -> None:
    """Raise UsageError unless the value of an option is an integer of at least ``least`` and at most ``most``."""
    if most is not None and type(value) is int and value > most:
        raise UsageError(f"expected {option} to be an integer of at most {most}, got {value}: type {option}={most}")
    if type(value) is not int or value < least:  # True is an instance of int
        raise UsageError(
            f"expected {option} to be an integer of at least {least}, got {value}: type {option}={example or least}"
        )


def check_choice(option: str, value: Any, choices: Sequence[Any]) -> None:
    """Raise UsageError unless the value of an option is one of ``choices``."""
    if value not in choices:
        words = ["null" if choice is None else str(choice) for choice in choices]
        raise UsageError(f"expected {option} to be {' or '.join(words)}, got {value}: type {option}={words[0]}")


def option_path(option: str, value: Any, kind: str = "DIR") -> Path:
    """Return the path that is the value of an option, with ``~`` expanded.

    Hydra parses a name that consists of digits as a number.

    Args:
        option: the option.
        value: its value.
        kind: ``DIR`` or ``FILE``, for the error message.

    Raises:
        UsageError: if the value is empty, a list, or anything else that is not a path.
    """
    path = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if isinstance(path, str | Path) and str(path).strip():
        return Path(path).expanduser()
    if path is None or isinstance(path, str):
        raise UsageError(f"expected a path in {option}, got none: type {option}={kind}")
    raise UsageError(f"expected a path in {option}, got the {type(path).__name__} {path}: type {option}=./{kind}")
