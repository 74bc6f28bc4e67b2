"""Raise UsageError when nothing can be written."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from metafew.errors import UsageError

PERMISSIONS = (errno.EACCES, errno.EPERM)
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, *PERMISSIONS)
"""Error numbers for a full or read-only disk and for missing permissions."""


@contextmanager
def writable(*folders: Path, option: str = "hydra.run.dir=DIR") -> Iterator[None]:
    """Raise UsageError if writing to ``folders`` fails inside this context for lack of space or permission.

    Args:
        folders: the folders.
        option: what to type for others.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in DISK:
            raise
        file = Path(os.path.abspath(error.filename or folders[0]))
        if error.errno in PERMISSIONS and not any(file.is_relative_to(os.path.abspath(each)) for each in folders):
            raise UsageError(
                f"expected {error.filename} to be accessible, got an error: {error.strerror}: change its permissions, "
                "or type the path of another one"
            ) from error
        at = f" ({error.filename})" if error.filename else ""
        places = " or ".join(map(str, folders))
        raise UsageError(
            f"expected a folder that can be written to, got an error in {places}: {error.strerror}{at}: free some "
            f"space, or type {option} with another folder"
        ) from error
