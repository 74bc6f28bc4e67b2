"""Validate the values of options."""

from __future__ import annotations

from collections.abc import Sequence
from math import isinf
from numbers import Integral
from os.path import expanduser
from pathlib import Path
from typing import Any

from metafew.errors import UsageError


def as_list(value: Any) -> list:
    """Return the values of a list or tuple, or a list of the single value."""
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]


def as_int(value: Any) -> Any:
    """Return an integer of another type, such as NumPy's, as an int, and any other value unchanged."""
    return int(value) if isinstance(value, Integral) and not isinstance(value, bool) else value


def check_integer(option: str, value: Any, least: int, example: int | None = None, most: int | None = None) -> None:
    """Raise UsageError unless the value of an option is an integer of at least ``least`` and at most ``most``."""
    if most is not None and type(value) is int and value > most:
        raise UsageError(f"expected {option} to be an integer of at most {most}, got {value}: type {option}={most}")
    if type(value) is not int or value < least:  # True is an instance of int
        if isinstance(value, float) and value.is_integer() and value >= least:  # 1e3
            example = int(value)
        raise UsageError(
            f"expected {option} to be an integer of at least {least}, got {value}: type {option}={example or least}"
        )


def check_range(option: str, value: Any, least: float, most: float) -> None:
    """Raise UsageError unless the value of an option is a number from ``least`` to ``most``."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most or isinf(value):
        bounds = f"of at least {least}" if isinf(most) else f"from {least} to {most}"
        raise UsageError(f"expected {option} to be a number {bounds}, got {value}: type --cfg job to see its default")


def check_positive(option: str, value: float, example: float) -> None:
    """Raise UsageError unless the value of an option is positive."""
    if not value > 0:
        raise UsageError(f"expected {option} to be positive, got {value}: type {option}={example}")


def check_truth(option: str, value: Any) -> None:
    """Raise UsageError unless the value of an option is true or false."""
    if not isinstance(value, bool):
        raise UsageError(f"expected {option} to be true or false, got {value}: type {option}=true")


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
        return Path(expanduser(path))  # the method of Path fails for ~x if there is no user x
    if path is None or isinstance(path, str):
        raise UsageError(f"expected a path in {option}, got none: type {option}={kind}")
    raise UsageError(f"expected a path in {option}, got the {type(path).__name__} {path}: type {option}=./{kind}")
