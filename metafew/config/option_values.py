"""Validate the values of options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from metafew.errors import UsageError


def check_integer(option: str, value: int, least: int, example: int | None = None) -> None:
    """Raise UsageError unless the value of an option is an integer of at least ``least``."""
    if not isinstance(value, int) or value < least:
        raise UsageError(
            f"expected {option} to be an integer of at least {least}, got {value}: type {option}={example or least}"
        )


def check_choice(option: str, value: Any, choices: Sequence[Any]) -> None:
    """Raise UsageError unless the value of an option is one of ``choices``."""
    if value not in choices:
        words = ["null" if choice is None else str(choice) for choice in choices]
        raise UsageError(f"expected {option} to be {' or '.join(words)}, got {value}: type {option}={words[0]}")
