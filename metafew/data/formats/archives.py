"""Archives: zip and tar files, of which nothing but ordinary files is taken, and no more bytes than allowed."""

from __future__ import annotations

import lzma
import os
import shutil
import stat
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, NamedTuple
from zipfile import BadZipFile, ZipFile

from filelock import FileLock

from metafew.errors import UsageError

CHUNK = 1 << 20  # bytes
UNREADABLE = (
    BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    OSError,
    ValueError,
    RuntimeError,  # of zipfile: encrypted, or compressed in a way that it does not know
)


class Member(NamedTuple):
    """A file in an archive.

    Attributes:
        name: Its path in the archive.
        size: Bytes that it says to have.
        ordinary: Whether it is a file, and no link or device.
        open: Opens it for reading.
    """

    name: str
    size: int
    ordinary: bool
    open: Callable[[], IO[bytes]]


def unpack(archive: Path, folder: Path, limit: int) -> None:
    """Unpack an archive into `folder`, unless that is there: complete or not at all.

    Files have the permissions of new files, whatever the archive says.

    Args:
        archive: A .zip, .tar, .tar.gz or .tgz file.
        folder: The folder to make.
        limit: Bytes that all files together may have.

    Raises:
        UsageError: The archive is damaged or encrypted, has more than `limit` bytes, or has a member that is no
            ordinary file below `folder`; or the disk has no room.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            if not folder.exists():
                write(archive, folder, limit)
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise UsageError(
            f"{archive} cannot be unpacked into {folder} ({error}): make room there, or unpack it elsewhere "
            f"and type dataset.root=DIR."
        ) from error


def write(archive: Path, folder: Path, limit: int) -> None:
    """Write the members of an archive into a temporary folder that becomes `folder`."""
    unfinished = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a killed process
    try:
        unfinished.mkdir()
        for each in members(archive):
            path = PureWindowsPath(each.name)  # which knows the separators and roots of every system
            if path.anchor or ".." in path.parts:
                raise refusal(archive, each, "would lie outside its folder")
            file = unfinished.joinpath(*path.parts)
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("wb") as output:
                for chunk in contents(archive, each, limit):
                    limit -= output.write(chunk)
        os.replace(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def read(archive: Path, names: Sequence[str], limit: int) -> dict[str, bytes]:
    """Return the contents of members of an archive, in one pass through it.

    Args:
        archive: A .zip, .tar, .tar.gz or .tgz file.
        names: The paths of the members.
        limit: Bytes that each of them may have.

    Raises:
        UsageError: The archive is damaged or encrypted, or has no such files of at most `limit` bytes.
    """
    wanted, found = {PurePosixPath(name): name for name in names}, {}
    for each in members(archive):
        if (name := wanted.get(PurePosixPath(each.name))) and name not in found:
            found[name] = b"".join(contents(archive, each, limit))
            if len(found) == len(names):
                return found
    missing = next(name for name in names if name not in found)
    raise UsageError(f"{archive} should hold {missing}, and does not: replace it with a complete copy.")


def members(archive: Path) -> Iterator[Member]:
    """List the members of a zip or tar file in their order, without its folders; `UsageError` if it is damaged."""
    try:
        yield from (zipped if archive.suffix.lower() == ".zip" else tarred)(archive)
    except UNREADABLE as error:
        raise UsageError(f"{archive} cannot be read ({error}): replace it with a good copy.") from error


def zipped(archive: Path) -> Iterator[Member]:
    """List the members of a zip file."""
    with ZipFile(archive) as file:
        for info in file.infolist():
            if not info.is_dir():
                kind = stat.S_IFMT(info.external_attr >> 16)  # 0 where the archive was not made on Unix
                yield Member(info.filename, info.file_size, kind in (0, stat.S_IFREG), partial(file.open, info))


def tarred(archive: Path) -> Iterator[Member]:
    """List the members of a tar file."""
    with tarfile.open(archive, "r:gz" if archive.suffix.lower() in (".gz", ".tgz") else "r:") as file:
        for info in file:
            if not info.isdir():
                yield Member(info.name, info.size, info.isreg(), partial(file.extractfile, info))
        file.fileobj.seek(file.offset)  # where tarfile stopped: at the end, or without a word at a damaged header
        if file.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"cut off or damaged after {file.offset} bytes")
        while file.fileobj.read(CHUNK):  # up to the checksum of gzip
            pass


def contents(archive: Path, member: Member, limit: int) -> Iterator[bytes]:
    """Read a member chunk by chunk; `UsageError` if it is no intact file of at most `limit` bytes."""
    if not member.ordinary:
        raise refusal(archive, member, "is a link or a device")
    if member.size > limit:
        raise refusal(archive, member, f"has {member.size} bytes where {limit} are allowed")
    read = 0
    try:
        with member.open() as file:
            while chunk := file.read(CHUNK):
                read += len(chunk)
                if read > limit:  # sizes can lie
                    raise refusal(archive, member, f"has more bytes than the {limit} that are allowed")
                yield chunk
    except UNREADABLE as error:
        raise refusal(archive, member, f"cannot be read ({error})") from error


def refusal(archive: Path, member: Member, fault: str) -> UsageError:
    """Return the error that names a member and what is wrong with it."""
    return UsageError(f"{archive} should hold intact ordinary files, but {member.name} {fault}: replace the archive.")
