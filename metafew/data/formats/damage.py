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
        place: what contains them: a ``folder``, or another ``file`` such as an array or an archive.
    """

    def __init__(self, faults: Sequence[tuple[str, str]], place: str = "folder"):
        self.faults, self.place = list(faults), place
        named = [f"{name} ({problem})" for name, problem in self.faults[:LISTED]]
        if len(self.faults) > LISTED:
            named.append(f"and {len(self.faults) - LISTED} more")
        (name, problem), *others = self.faults
        if others:
            said = f"{len(self.faults)} images cannot be read: {', '.join(named)}: replace them or take them"
        else:
            said = f"{name} cannot be read as an image ({problem}): replace it or take it"
        super().__init__(f"{said} out of the {place}")

    @classmethod
    def joined(cls, errors: Sequence[UnreadableImages]) -> UnreadableImages:
        """Return one error for the images of several."""
        return cls([fault for error in errors for fault in error.faults], errors[0].place)


def readable(images: Iterator[T], errors: list[UnreadableImages]) -> Iterator[T]:
    """Yield the readable images, and append the errors of the others to ``errors``.

    Args:
        images: an iterator that raises UnreadableImages for a damaged image and continues with the next, as ``map``
            does.
        errors: the errors so far.
    """
    while True:
        try:
            yield next(images)
        except StopIteration:
            return
        except UnreadableImages as error:
            errors.append(error)


def intact(images: Iterator[T]) -> Iterator[T]:
    """Yield the readable images; after the last one, raise UnreadableImages for all others at once."""
    errors: list[UnreadableImages] = []
    yield from readable(images, errors)
    if errors:
        raise UnreadableImages.joined(errors)


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
