"""One message for files that cannot be read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from metafew.errors import UsageError


@contextmanager
def explain_damage(
    name: object, kind: str, *errors: type[Exception], advice: str = "replace it with a good copy"
) -> Iterator[None]:
    """Raise UsageError, saying that ``name`` cannot be read as ``kind``, if the body raises one of ``errors``."""
    try:
        yield
    except UsageError:
        raise
    except errors as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".")
        raise UsageError(f"{name} cannot be read as {kind} ({reason}): {advice}") from error
