import errno
import hashlib
import io
import os
import subprocess
import sys
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pytest

from metafew.data import download
from metafew.data.download import Remote, obtain
from metafew.errors import UsageError

BODY = np.random.default_rng(0).bytes(700_000)
CUT = 300_000
NAME = "images.zip"


class Handler(BaseHTTPRequestHandler):
    """Serves BODY; the words in the address say how: /cut/..., /plain/..., /wrong/..., /missing/..., /full/..."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        ways = self.path.split("/")[1:-1]
        body = BODY[::-1] if "wrong" in ways else BODY
        asked = self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        if "missing" in ways:
            return self.answer(404, b"", {})
        if "plain" in ways:
            start, asked = 0, None
        if asked and start >= len(body):
            return self.answer(416, b"", {"Content-Range": f"bytes */{len(body)}"})
        if asked and "shifted" in ways:
            return self.answer(206, body, {"Content-Range": f"bytes 0-{len(body) - 1}/{len(body)}"})
        if "gzip" in ways:
            return self.answer(200, body, {"Content-Encoding": "gzip"})
        span = {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"} if asked else {}
        if "untold" in ways:
            self.close_connection = True
        self.answer(206 if asked else 200, body[start:], span, CUT if "cut" in ways else None, "untold" not in ways)

    def answer(self, status, body, headers, end=None, sized=True):
        self.server.seen.append((self.path, self.headers.get("Range"), status, len(body[:end])))
        self.send_response(status)  # after which the client may ask again
        for key, value in headers.items():
            self.send_header(key, value)
        if sized:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.close_connection = self.close_connection or end is not None
        self.wfile.write(body[:end])

    def handle(self):
        with suppress(ConnectionError):  # the client left
            super().handle()

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        httpd.seen = []
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield httpd
        httpd.shutdown()
        thread.join()


def remote(server, *ways, checksum=None, size=None):
    base = f"http://127.0.0.1:{server.server_port}/"
    urls = tuple(f"{base}{way}{NAME}" for way in ways or ("",))
    return Remote(NAME, urls, checksum or f"md5:{hashlib.md5(BODY).hexdigest()}", size)


def refused(folder, what, **options):
    """Return the message of a failure, which leaves nothing under the final name."""
    with pytest.raises(UsageError) as caught:
        obtain(folder, what, options.get("download", True), "omniglot")
    text = str(caught.value)
    assert not (folder / NAME).exists()
    assert text.startswith(f"expected {NAME} in {folder} for dataset=omniglot, got no such file")
    assert f"put the file into {folder}" in text and "dataset.root=DIR" in text and "data_dir=PATH" in text
    assert all(url in text for url in what.urls) and "\n" not in text
    return text


def visible(folder):
    return [path.name for path in folder.iterdir() if not path.name.startswith(".")]


def part(folder):
    return folder / f".{NAME}.part"


@pytest.mark.parametrize("algorithm", ["md5", "sha256"])
def test_a_file_is_downloaded_once_and_completely(server, tmp_path, algorithm):
    what = remote(server, checksum=f"{algorithm}:{hashlib.new(algorithm, BODY).hexdigest()}")
    for _ in range(2):
        path = obtain(tmp_path / "a" / "b", what, True, "omniglot")
        assert path == tmp_path / "a" / "b" / NAME and path.read_bytes() == BODY
    assert len(server.seen) == 1 and server.seen[0][1] is None
    assert visible(path.parent) == [NAME] and not part(path.parent).exists()
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask()


def umask():
    os.umask(mask := os.umask(0))
    return mask


def test_an_existing_file_is_never_downloaded(server, tmp_path):
    (tmp_path / NAME).write_bytes(b"mine")
    assert obtain(tmp_path, remote(server), False, "omniglot").read_bytes() == b"mine"
    assert server.seen == []


@pytest.mark.parametrize("way", ["", "untold/"])
def test_after_a_cut_the_next_attempt_resumes(server, tmp_path, way):
    text = refused(tmp_path, remote(server, "cut/"))
    assert f"cut off after {CUT} of {len(BODY)} bytes" in text and "type the command again" in text
    assert part(tmp_path).read_bytes() == BODY[:CUT]
    assert obtain(tmp_path, remote(server, way), True, "omniglot").read_bytes() == BODY
    assert server.seen[1][1:] == (f"bytes={CUT}-", 206, len(BODY) - CUT)
    assert not part(tmp_path).exists()


def test_after_a_cut_the_next_mirror_resumes(server, tmp_path):
    assert obtain(tmp_path, remote(server, "cut/", ""), True, "omniglot").read_bytes() == BODY
    assert [seen[3] for seen in server.seen] == [CUT, len(BODY) - CUT]


def test_the_published_size_reveals_a_cut_if_the_server_sends_no_length(server, tmp_path):
    assert f"cut off after {CUT} of {len(BODY)}" in refused(tmp_path, remote(server, "cut/untold/", size=len(BODY)))


@pytest.mark.parametrize("way", ["plain/", "shifted/"])
def test_a_server_that_cannot_resume_starts_over(server, tmp_path, way):
    part(tmp_path).write_bytes(BODY[:CUT])
    assert obtain(tmp_path, remote(server, way), True, "omniglot").read_bytes() == BODY
    assert server.seen[0][1] == f"bytes={CUT}-" and server.seen[-1][3] == len(BODY)


def test_what_a_server_calls_an_encoding_is_kept(server, tmp_path):
    """Some call a .tar.gz a tar in gzip encoding."""
    assert obtain(tmp_path, remote(server, "gzip/"), True, "omniglot").read_bytes() == BODY


def test_a_part_as_long_as_the_file_starts_over(server, tmp_path):
    part(tmp_path).write_bytes(bytes(len(BODY)))
    assert obtain(tmp_path, remote(server), True, "omniglot").read_bytes() == BODY
    assert [(seen[1], seen[2]) for seen in server.seen] == [(f"bytes={len(BODY)}-", 416), (None, 200)]


def test_a_part_of_something_else_starts_over_at_the_same_address(server, tmp_path):
    part(tmp_path).write_bytes(b"<html>please log in</html>")
    assert obtain(tmp_path, remote(server), True, "omniglot").read_bytes() == BODY
    assert [seen[1] for seen in server.seen] == ["bytes=26-", None]


def test_a_part_is_no_help_without_a_checksum(server, tmp_path):
    part(tmp_path).write_bytes(bytes(CUT))
    assert obtain(tmp_path, remote(server)._replace(checksum=None), True, "omniglot").read_bytes() == BODY
    assert server.seen[0][1] is None
    what = remote(server, "cut/")._replace(checksum=None, name="other")
    with pytest.raises(UsageError, match=f"cut off after {CUT} of {len(BODY)}"):
        obtain(tmp_path, what, True, "omniglot")
    assert visible(tmp_path) == [NAME]


@pytest.mark.parametrize("first", ["wrong/", "missing/"])
def test_the_second_mirror_is_good(server, tmp_path, first):
    assert obtain(tmp_path, remote(server, first, ""), True, "omniglot").read_bytes() == BODY
    assert [seen[:2] for seen in server.seen] == [(f"/{first}{NAME}", None), (f"/{NAME}", None)]
    assert visible(tmp_path) == [NAME]


def test_every_mirror_says_what_happened(server, tmp_path):
    what = remote(server, "wrong/", "missing/", "wrong/plain/")
    text = refused(tmp_path, what)
    for url, reason in zip(what.urls, ("checksum differs", "404", "checksum differs"), strict=True):
        assert f"{url} ({reason})" in text
    assert visible(tmp_path) == [] and not part(tmp_path).exists()


def test_no_network(server, tmp_path):
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as closed:
        what = remote(closed)
    assert "no network" in refused(tmp_path, what)
    assert "MissingSchema" in refused(tmp_path, Remote(NAME, ("nowhere",), what.checksum))


def test_no_answer(server, tmp_path, monkeypatch):
    def slow(*args, **options):
        assert all(0 < seconds < 120 for seconds in options["timeout"])
        raise download.requests.ReadTimeout

    monkeypatch.setattr(download.requests, "get", slow)
    assert "no answer in time" in refused(tmp_path, remote(server))


@pytest.mark.parametrize(("way", "size"), [("", None), ("untold/", len(BODY))])
def test_a_disk_that_is_too_small_is_not_filled(server, tmp_path, monkeypatch, way, size):
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: SimpleNamespace(free=len(BODY) - 1))
    what = remote(server, way, size=size)
    text = refused(tmp_path, what)
    assert f"no room on the disk: {len(BODY)} bytes are needed and {len(BODY) - 1} are free" in text
    assert not part(tmp_path).exists()
    part(tmp_path).write_bytes(BODY[:CUT])  # what is left to fetch has room
    assert obtain(tmp_path, what, True, "omniglot").read_bytes() == BODY


def test_a_disk_that_fills_up_meanwhile(server, tmp_path, monkeypatch):
    class Full(io.FileIO):
        def write(self, chunk):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(download, "open", Full, raising=False)
    with pytest.raises(UsageError, match=r"no room on the disk: No space left on device.*type the command again"):
        obtain(tmp_path, remote(server, "", "plain/"), True, "omniglot")
    assert visible(tmp_path) == [] and len(server.seen) == 1  # a mirror would meet the same disk


def test_downloading_is_forbidden(server, tmp_path):
    text = refused(tmp_path / "none", remote(server), download=False)
    assert "dataset.download=false forbids" in text and "again" not in text
    assert not (tmp_path / "none").exists() and server.seen == []


def test_a_folder_that_cannot_be_written(server, tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    assert "cannot be written" in refused(tmp_path / "file" / "below", remote(server))
    (tmp_path / "locked" / f".{NAME}.lock").mkdir(parents=True)  # as a lock of another user, no file to open
    assert "cannot be written" in refused(tmp_path / "locked", remote(server))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "cannot be written" in refused(tmp_path, remote(server))
    assert server.seen == []


def test_threads_and_processes_download_once(server, tmp_path):
    what = remote(server)
    code = (
        "import sys; from pathlib import Path; from metafew.data.download import Remote, obtain; "
        "obtain(Path(sys.argv[1]), Remote(sys.argv[2], (sys.argv[3],), sys.argv[4]), True, 'omniglot')"
    )
    command = [sys.executable, "-c", code, str(tmp_path), what.name, what.urls[0], what.checksum]
    processes = [subprocess.Popen(command) for _ in range(2)]
    threads = [threading.Thread(target=obtain, args=(tmp_path, what, True, "omniglot")) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [process.wait() for process in processes] == [0, 0]
    assert len(server.seen) == 1 and (tmp_path / NAME).read_bytes() == BODY
