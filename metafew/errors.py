"""Errors that a user can correct, and suggestions of what was meant."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

SIMILAR_KEY, SIMILAR_OPTION = 0.72, 0.6
"""Minimum similarity, from 0 to 1, for suggesting a key, or an option of a group."""


class UsageError(Exception):
    """An error that the user can correct. The message says what was expected, what was given, and what to type.

    Attributes:
        in_stages: whether the stages of a run had begun, so that earlier results in its folder no longer hold.
    """

    in_stages: bool = False


class Diverged(UsageError):
    """Raised when training or adaptation produces values that are not finite."""


def reason(error: BaseException) -> str:
    """Return the message of ``error`` on one line, to quote in another message; its class name if it has none."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def did_you_mean(near: str | None) -> str:
    """Return the suggestion of a near word in parentheses, or an empty string."""
    return f" (did you mean {near}?)" if near else ""


def nearest(word: str, candidates: Sequence[str], similar: float = SIMILAR_KEY) -> str | None:
    """Return the candidate that was most likely meant; None if none is near.

    >>> nearest("lr", ["seed", "optimizer.lr"]), nearest("train.wya", ["train.way"]), nearest("18", ["resnet18"])
    ('optimizer.lr', 'train.way', 'resnet18')
    >>> nearest("epochs", ["seed", "optimizer.lr"]) is None
    True
    """
    last = {candidate: candidate.rpartition(".")[2] for candidate in candidates}
    end = word.rpartition(".")[2]
    same = [candidate for candidate in candidates if last[candidate] == end]
    close = [*get_close_matches(word, candidates, 1, similar), *get_close_matches(end, [*last.values()], 1, similar)]
    inside = [candidate for candidate in candidates if len(word) > 1 and word in candidate]
    found = (same or close or inside)[:1]
    return next((each for each in candidates if {each, last[each]} & {*found}), None)
