"""Read tar archives compressed by gzip, accepting only ordinary files up to a size limit.

``tarfile.data_filter`` does not replace these checks. It accepts links within the folder, extracts ``/x`` as ``x``, and
accepts a name such as ``C:x`` on systems where it is a file name. Archives of datasets have no such members, so
archives with any are refused. ``tarfile`` does not limit the total size, but reads no more of a member than its
declared size.
"""

from __future__ import annotations

import os
import shutil
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

from filelock import FileLock

from metafew.errors import UsageError

CHUNK = 1 << 20  # bytes
UNREADABLE = (tarfile.TarError, zlib.error, EOFError, OSError, ValueError)


def unpack(archive: Path, folder: Path, limit: int) -> None:
    """Extract an archive into ``folder`` atomically, unless the folder exists.

    Permissions in the archive are ignored: files get the permissions of new files.

    Args:
        archive: a .tar.gz or .tgz file.
        folder: the folder to create.
        limit: maximum total size of the files, in bytes.

    Raises:
        UsageError: if the archive is damaged, its files exceed ``limit``, or a member is not an ordinary file below
            ``folder``; or if the disk is full.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            if not folder.exists():
                extract(archive, folder, limit)
    except (OSError, ValueError) as error:  # ValueError: an invalid file name
        raise UsageError(
            f"expected {archive} to fit into {folder}, but it cannot be unpacked ({error}): make room there, or "
            "unpack it elsewhere and type dataset.root=DIR"
        ) from error


def extract(archive: Path, folder: Path, limit: int) -> None:
    """Write the members of an archive into a temporary folder, and rename it to ``folder``."""
    unfinished = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(unfinished, ignore_errors=True)  # left by an interrupted process
    try:
        unfinished.mkdir()
        for tar, member in members(archive):
            path = PureWindowsPath(member.name)  # parses the separators and roots of every system
            if path.anchor or ".." in path.parts:
                raise refusal(archive, member, "would lie outside its folder")
            file = unfinished.joinpath(*path.parts)
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("wb") as output:
                for chunk in contents(archive, tar, member, limit):
                    limit -= output.write(chunk)
        os.replace(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def read(archive: Path, names: Sequence[str], limit: int) -> dict[str, bytes]:
    """Return the contents of members of an archive, in a single pass.

    Args:
        archive: a .tar.gz or .tgz file.
        names: the paths of the members.
        limit: maximum size of each member, in bytes.

    Raises:
        UsageError: if the archive is damaged, a member is missing, or one has more than ``limit`` bytes.
    """
    requested, found = {PurePosixPath(name): name for name in names}, {}
    for tar, member in members(archive):
        if (name := requested.get(PurePosixPath(member.name))) and name not in found:
            found[name] = b"".join(contents(archive, tar, member, limit))
            if len(found) == len(names):
                return found
    missing = next(name for name in names if name not in found)
    raise UsageError(f"expected {archive} to contain {missing}, got no such file: replace it with a complete copy")


def members(archive: Path) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """Yield the open archive with each of its members in order, except folders.

    Raises:
        UsageError: if the archive is damaged.
    """
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                if not member.isdir():
                    yield tar, member
            tar.fileobj.seek(tar.offset)  # where tarfile stopped: at the end or, without an error, at a damaged header
            if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"cut off or damaged after {tar.offset} bytes")
            while tar.fileobj.read(CHUNK):  # to the end, where gzip verifies the checksum
                pass
    except UNREADABLE as error:
        raise UsageError(
            f"expected {archive} to be an intact archive, but it cannot be read ({error}): replace it with a good copy"
        ) from error


def contents(archive: Path, tar: tarfile.TarFile, member: tarfile.TarInfo, limit: int) -> Iterator[bytes]:
    """Yield a member in chunks.

    Raises:
        UsageError: if it is not an intact, ordinary file of at most ``limit`` bytes.
    """
    if not member.isreg():
        raise refusal(archive, member, "is a link or a device")
    if member.size > limit:
        raise refusal(archive, member, f"has {member.size} bytes where {limit} are allowed")
    try:
        stream = tar.extractfile(member)
        assert stream is not None  # only folders and devices have no content
        with stream:
            while chunk := stream.read(CHUNK):
                yield chunk
    except UNREADABLE as error:
        raise refusal(archive, member, f"cannot be read ({error})") from error


def refusal(archive: Path, member: tarfile.TarInfo, fault: str) -> UsageError:
    """Return a UsageError about a member and its fault."""
    return UsageError(
        f"expected {archive} to contain only intact ordinary files, but {member.name} {fault}: replace the archive"
    )
