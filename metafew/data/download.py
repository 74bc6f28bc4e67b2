"""Download files from mirrors, resuming interrupted downloads and verifying checksums.

pooch verifies a file and moves it into place. Its ``HTTPDownloader`` cannot replace :class:`ResumingDownloader`: it
always starts at the first byte, and its file is deleted when the connection breaks. Given a Range header and the
partial file, it would not distinguish a server that resumes from one that starts over, and would lose the last bytes
before an interruption.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections import deque
from pathlib import Path
from typing import Any, NamedTuple

import pooch
import requests
from filelock import FileLock
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from urllib3.exceptions import HTTPError

from metafew.errors import UsageError

CHUNK = 1 << 18  # bytes
TIMEOUT = (10, 60)  # seconds to connect, and between two chunks
COLUMNS = (
    TextColumn("{task.description}"),
    BarColumn(),
    DownloadColumn(),
    TransferSpeedColumn(),
    TimeRemainingColumn(),
)


class Remote(NamedTuple):
    """A file on the web.

    Attributes:
        name: its name on disk.
        urls: complete addresses, tried in order.
        checksum: ``md5:...`` or ``sha256:...``; None if none is published, in which case only the size is checked.
        size: number of bytes, used if a server does not send the length.
    """

    name: str
    urls: tuple[str, ...]
    checksum: str | None
    size: int | None = None


class CutOffError(Exception):
    """The server stopped sending; the message contains the number of received bytes."""


def obtain(folder: Path, remote: Remote, download: bool, dataset: str) -> Path:
    """Return the path of a file in ``folder``, downloading it first if it is missing.

    An incomplete download is a hidden file that the next attempt resumes; it is renamed once complete and verified.
    Concurrent processes wait for the first one.

    Args:
        folder: the folder of the file, created if necessary.
        remote: the file.
        download: whether it may be downloaded.
        dataset: the value of ``dataset`` that needs the file, for error messages.

    Raises:
        UsageError: if the file is missing, and downloading it is forbidden or failed.
    """
    folder = folder.absolute()  # pooch would expand ~
    path = folder / remote.name
    if path.is_file():
        return path
    reason = (
        fetch(folder, remote) if download else f"dataset.download=false forbids downloading {' or '.join(remote.urls)}"
    )
    if reason:
        raise UsageError(
            f"expected {remote.name} in {folder} for dataset={dataset}, got no such file, and {reason}: "
            f"{'type the command again, ' if download else ''}put the file into {folder} by hand, or type "
            f"dataset.root=DIR of a folder that contains it (data_dir=PATH moves the folders of all datasets)"
        )
    return path


def fetch(folder: Path, remote: Remote) -> str | None:
    """Download a file into ``folder`` unless it exists; return the reason for a failure, or None."""
    unwritable = f"that folder cannot be written, so {' or '.join(remote.urls)} was not downloaded"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            return unwritable
        with FileLock(folder / f".{remote.name}.lock"):
            return None if (folder / remote.name).is_file() else try_mirrors(folder, remote)
    except OSError:
        return unwritable


def try_mirrors(folder: Path, remote: Remote) -> str | None:
    """Download a file from the first mirror that has it; return the reasons if all mirrors fail, or None."""
    part = folder / f".{remote.name}.part"
    waiting, failures = deque(remote.urls), []
    while waiting:
        url, resumed = waiting.popleft(), part.exists()
        try:
            pooch.retrieve(url, remote.checksum, remote.name, folder, downloader=ResumingDownloader(part, remote))
            return None
        except (requests.RequestException, CutOffError) as error:
            failures.append(f"{url} ({explain(error)})")
        except OSError as error:  # a local error, which would occur with every mirror
            failures.append(f"{url} ({explain(error)})")
            break
        except ValueError:  # pooch: the checksum differs, and the file is deleted
            if resumed:  # the partial file may be damaged, or from another version
                waiting.appendleft(url)
            else:
                failures.append(f"{url} (checksum differs)")
    return f"downloading it failed from {' and '.join(failures)}"


class ResumingDownloader:
    """A downloader for pooch that resumes where an earlier attempt was interrupted.

    Args:
        part: the partial file.
        remote: the file to download.
    """

    def __init__(self, part: Path, remote: Remote):
        self.part, self.remote = part, remote

    def __call__(self, url: str, output: str, _: Any) -> None:
        """Append the missing bytes to the partial file, and rename it to ``output`` once it is complete.

        Raises:
            CutOffError: if the server stops early.
            OSError: if the disk is full, or the server cannot be reached or refuses (``requests.RequestException``).
        """
        # Without a checksum, a partial file from another version would go unnoticed.
        held = self.part.stat().st_size if self.remote.checksum and self.part.exists() else 0
        with request(url, held) as response:
            start = held if response.status_code == requests.codes.partial_content else 0
            length = response.headers.get("Content-Length")
            total = start + int(length) if length else self.remote.size
            free = shutil.disk_usage(self.part.parent).free
            if total and total - held > free:
                raise OSError(errno.ENOSPC, f"{total - held} bytes are needed and {free} are free")
            self._receive(response, start, total)
        os.replace(self.part, output)

    def _receive(self, response: requests.Response, start: int, total: int | None) -> None:
        """Write the body after the first ``start`` bytes of the partial file."""
        with open(self.part, "ab" if start else "wb") as file, Progress(*COLUMNS, transient=True) as progress:
            task = progress.add_task(self.remote.name, total=total, completed=start)
            try:
                # Not response.iter_content: it loses the last bytes before an interruption, and decompresses a .tar.gz
                # that the server declares to be a tar file with gzip encoding.
                for chunk in response.raw.stream(CHUNK, decode_content=False):
                    file.write(chunk)
                    progress.advance(task, len(chunk))
            except HTTPError as error:
                raise CutOffError(f"cut off after {file.tell()} of {total or 'unknown'} bytes") from error
            if total and file.tell() < total:
                raise CutOffError(f"cut off after {file.tell()} of {total} bytes")


def request(url: str, start: int) -> requests.Response:
    """Request a file from byte ``start`` on, or the complete file if the server has no such byte."""
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    response = requests.get(url, headers=headers, stream=True, timeout=TIMEOUT)
    if start and response.status_code == requests.codes.requested_range_not_satisfiable:
        response.close()
        return request(url, 0)
    response.raise_for_status()
    return response


def explain(error: Exception) -> str:
    """Return a short reason for a failed download."""
    match error:
        case requests.HTTPError(response=requests.Response(status_code=status)):
            return str(status)
        case requests.Timeout():
            return "no answer in time"
        case requests.ConnectionError():
            return f"no network: {type(error).__name__}"
        case requests.RequestException():
            return type(error).__name__
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            return f"no room on the disk: {error.strerror}"
        case _:
            return str(error)
