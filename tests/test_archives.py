import errno
import gzip
import io
import tarfile

import numpy as np
import pytest

from metafew.data.formats import archives
from metafew.data.formats.archives import read, unpack
from metafew.errors import UsageError

FILES = {"cats/1.png": b"one", "cats/deep/2.png": bytes(range(256)) * 5000, "dogs/1.png": b""}
TOTAL = sum(map(len, FILES.values()))
KINDS = ["a.tar.gz", "a.tgz"]
MEGABYTE = 1 << 20


def tarinfo(name, size=0, kind=tarfile.REGTYPE, link="", mode=0o644):
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname, info.mode = size, kind, link, mode
    return info


def make(path, files, mode=0o644):
    """Write an archive of files, behind a folder."""
    with tarfile.open(path, "w:gz") as archive:
        archive.addfile(tarinfo("cats", kind=tarfile.DIRTYPE))
        for name, content in files.items():
            archive.addfile(tarinfo(name, len(content), mode=mode), io.BytesIO(content))
    return path


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(archive, limit=MEGABYTE * 10):
    """Return the message of a failure to unpack, which leaves nothing behind."""
    folder = archive.parent / "to" / "here"
    with pytest.raises(UsageError) as caught:
        unpack(archive, folder, limit)
    assert [path.name for path in folder.parent.iterdir() if path.suffix != ".lock"] == []
    assert str(archive) in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_every_file_is_unpacked(tmp_path, kind):
    archive = make(tmp_path / kind, FILES, mode=0o6777)
    unpack(archive, tmp_path / "new" / "folder", TOTAL)
    assert content(tmp_path / "new" / "folder") == FILES
    (tmp_path / "plain").write_bytes(b"")
    modes = {path.stat().st_mode for path in (tmp_path / "new" / "folder").rglob("*.png")}
    assert modes == {(tmp_path / "plain").stat().st_mode}  # neither executable nor setuid
    assert "allowed" in refused(archive, TOTAL - 1)


@pytest.mark.parametrize("kind", KINDS)
def test_one_member(tmp_path, kind):
    archive = make(tmp_path / kind, {f"./{name}" if kind == "a.tgz" else name: c for name, c in FILES.items()})
    for name, whole in FILES.items():
        assert read(archive, [name], len(whole))[name] == whole
    with pytest.raises(UsageError, match=rf"{kind}.*cats/deep/2\.png has 1280000 bytes where 1000 are allowed"):
        read(archive, ["cats/deep/2.png"], 1000)
    with pytest.raises(UsageError, match=rf"{kind} to contain birds/1\.png, got no such file"):
        read(archive, ["birds/1.png"], 1000)


def test_an_existing_folder_is_kept_and_a_killed_attempt_is_removed(tmp_path):
    archive = make(tmp_path / "a.tgz", FILES)
    (tmp_path / ".new.part").mkdir()
    (tmp_path / ".new.part" / "half").write_bytes(b"")
    unpack(archive, tmp_path / "new", TOTAL)
    assert content(tmp_path / "new") == FILES and not (tmp_path / ".new.part").exists()
    (tmp_path / "new" / "mine").write_bytes(b"")
    unpack(archive, tmp_path / "new", TOTAL)
    assert "mine" in content(tmp_path / "new")


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "..\\x", "C:\\x", "\\x", "C:x", ".."])
def test_members_outside_the_folder(tmp_path, name):
    text = refused(make(tmp_path / "a.tgz", {"good": b"", name: b"evil"}))
    assert f"{name} would lie outside" in text
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"a.tgz", ".here.lock"}


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"Z"]
)
def test_links_and_devices_in_a_tar(tmp_path, kind):
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as archive:
        archive.addfile(tarinfo("good", 4), io.BytesIO(b"good"))
        archive.addfile(tarinfo("evil", kind=kind, link="good"))
    assert "evil is a link or a device" in refused(tmp_path / "a.tgz")
    with pytest.raises(UsageError, match="evil is a link or a device"):
        read(tmp_path / "a.tgz", ["evil"], 100)
    assert read(tmp_path / "a.tgz", ["good"], 4)["good"] == b"good"


@pytest.mark.parametrize("count", [1, 50])
def test_a_bomb(tmp_path, count):
    files = {f"zeros{i}": bytes(50 * MEGABYTE // count) for i in range(count)}
    archive = make(tmp_path / "a.tgz", files)
    assert archive.stat().st_size < MEGABYTE / 5
    assert "are allowed" in refused(archive, MEGABYTE)
    with pytest.raises(UsageError, match="are allowed"):
        read(archive, ["zeros0"], MEGABYTE - 1)


def test_a_sparse_tar_of_ten_gigabytes(tmp_path):
    size = 10 << 30
    header = bytearray(tarinfo("hole", 0, tarfile.GNUTYPE_SPARSE).tobuf(tarfile.GNU_FORMAT))
    header[386:398], header[398:410] = b"%011o\0" % 0, b"%011o\0" % 0  # one region, empty
    header[483:495] = tarfile.itn(size, 12, tarfile.GNU_FORMAT)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "a.tgz").write_bytes(gzip.compress(header + bytes(10240)))
    with tarfile.open(tmp_path / "a.tgz") as archive:
        assert archive.next().size == size
    assert f"hole has {size} bytes where {MEGABYTE} are allowed" in refused(tmp_path / "a.tgz", MEGABYTE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("keep", [0, 1, 100, 600, 0.3, 0.6, -10])
def test_a_cut_archive(tmp_path, kind, keep):
    rng = np.random.default_rng(0)
    whole = make(tmp_path / kind, {f"{i}.png": rng.bytes(1500 + 100 * i) for i in range(10)}).read_bytes()
    (tmp_path / kind).write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    assert "cannot be read" in refused(tmp_path / kind)


def test_a_tar_cut_between_members_or_with_a_damaged_header(tmp_path):
    archive = make(tmp_path / "a.tgz", {f"{i}.png": bytes(512) for i in range(3)})
    whole = bytearray(gzip.decompress(archive.read_bytes()))
    archive.write_bytes(gzip.compress(whole[: 512 * 5]))  # the folder and two files
    assert "cut off or damaged after 2560 bytes" in refused(archive)
    whole[512 * 3 + 150] ^= 1  # in the checksum of a header
    archive.write_bytes(gzip.compress(whole))
    assert "cut off or damaged after 1536 bytes" in refused(archive)


def test_changed_bytes(tmp_path):
    whole = gzip.decompress(make(tmp_path / "a.tgz", {"picture": b"unmistakable"}).read_bytes())
    stored = gzip.compress(whole, 0).replace(b"unmistakable", b"unmistakible")
    (tmp_path / "a.tgz").write_bytes(stored)
    assert "cannot be read (CRC check failed" in refused(tmp_path / "a.tgz")


@pytest.mark.parametrize("kind", KINDS)
def test_not_an_archive(tmp_path, kind):
    (tmp_path / kind).write_bytes(b"<html>" * 1000)
    assert "cannot be read" in refused(tmp_path / kind)


def test_a_file_where_another_member_needs_a_folder(tmp_path):
    assert "cannot be unpacked" in refused(make(tmp_path / "a.tgz", {"a": b"", "a/b": b""}))


def test_a_name_that_no_file_can_have(tmp_path):
    assert "cannot be unpacked" in refused(make(tmp_path / "a.tgz", {"a\0b" + "c" * 200: b""}))
    assert "cannot be unpacked" in refused(make(tmp_path / "a.tgz", {"c" * 300: b""}))


def test_a_disk_without_room(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(archives.os, "replace", full)
    assert "No space left on device" in refused(make(tmp_path / "a.tgz", FILES))
