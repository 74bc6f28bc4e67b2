"""Report damaged files to the user."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from metafew.errors import UsageError

T = TypeVar("T")

LISTED = 20
"""Maximum number of damaged images named in a message."""


class UnreadableImages(UsageError):
    """Raised for unreadable images; the message names the first ones.

    Args:
        faults: the name and fault of each image.
    """

    def __init__(self, faults: Sequence[tuple[str, str]]):
        self.faults = list(faults)
        named = [f"{name} ({problem})" for name, problem in self.faults[:LISTED]]
        if len(self.faults) > LISTED:
            named.append(f"and {len(self.faults) - LISTED} more")
        (name, problem), *others = self.faults
        super().__init__(
            f"{len(self.faults)} images cannot be read: {', '.join(named)}: replace them or take them out of the folder"
            if others
            else f"{name} cannot be read as an image ({problem}): replace it or take it out of the folder"
        )


def readable(images: Iterator[T], faults: list[tuple[str, str]]) -> Iterator[T]:
    """Yield the readable images, and append the others to ``faults``.

    Args:
        images: an iterator that raises UnreadableImages for a damaged image and continues with the next, as ``map``
            does.
        faults: the name and fault of each damaged image.
    """
    while True:
        try:
            yield next(images)
        except StopIteration:
            return
        except UnreadableImages as error:
            faults += error.faults


def intact(images: Iterator[T]) -> Iterator[T]:
    """Yield the readable images; after the last one, raise UnreadableImages for all others at once."""
    faults: list[tuple[str, str]] = []
    yield from readable(images, faults)
    if faults:
        raise UnreadableImages(faults)


@contextmanager
def explain_damage(
    name: object, kind: str, *errors: type[Exception], advice: str = "replace it with a good copy"
) -> Iterator[None]:
    """Convert ``errors`` raised in the body to a UsageError that ``name`` cannot be read as ``kind``."""
    try:
        yield
    except UsageError:
        raise
    except errors as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".")
        raise UsageError(f"{name} cannot be read as {kind} ({reason}): {advice}") from error
