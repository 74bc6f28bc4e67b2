"""Report damaged files to the user."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from metafew.errors import UsageError


@contextmanager
def explain_damage(
    name: object, kind: str, *errors: type[Exception], advice: str = "replace it with a good copy"
) -> Iterator[None]:
    """Convert ``errors`` raised in the body into a UsageError that ``name`` cannot be read as ``kind``."""
    try:
        yield
    except UsageError:
        raise
    except errors as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".")
        raise UsageError(f"{name} cannot be read as {kind} ({reason}): {advice}") from error
