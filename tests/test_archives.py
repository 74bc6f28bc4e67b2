import errno
import io
import tarfile
import zipfile

import numpy as np
import pytest

from metafew.data.formats import archives
from metafew.data.formats.archives import read, unpack
from metafew.errors import UsageError

FILES = {"cats/1.png": b"one", "cats/deep/2.png": bytes(range(256)) * 5000, "dogs/1.png": b""}
TOTAL = sum(map(len, FILES.values()))
KINDS = ["a.zip", "a.tar", "a.tar.gz", "a.tgz", "A.ZIP"]
MEGABYTE = 1 << 20


def tarinfo(name, size=0, kind=tarfile.REGTYPE, link="", mode=0o644):
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname, info.mode = size, kind, link, mode
    return info


def make(path, files, mode=0o644):
    """Write an archive of files, behind a folder."""
    if path.suffix.lower() == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("cats/", "")
            for name, content in files.items():
                info = zipfile.ZipInfo(name)
                info.external_attr, info.compress_type = (0o100000 | mode) << 16, zipfile.ZIP_DEFLATED
                archive.writestr(info, content)
    else:
        with tarfile.open(path, "w" if path.suffix == ".tar" else "w:gz") as archive:
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
    archive = make(tmp_path / kind, {f"./{name}" if kind == "a.tar" else name: c for name, c in FILES.items()})
    for name, whole in FILES.items():
        assert read(archive, [name], len(whole))[name] == whole
    with pytest.raises(UsageError, match=rf"{kind}.*cats/deep/2\.png has 1280000 bytes where 1000 are allowed"):
        read(archive, ["cats/deep/2.png"], 1000)
    with pytest.raises(UsageError, match=rf"{kind} to contain birds/1\.png, got no such file"):
        read(archive, ["birds/1.png"], 1000)


def test_an_existing_folder_is_kept_and_a_killed_attempt_is_removed(tmp_path):
    archive = make(tmp_path / "a.zip", FILES)
    (tmp_path / ".new.part").mkdir()
    (tmp_path / ".new.part" / "half").write_bytes(b"")
    unpack(archive, tmp_path / "new", TOTAL)
    assert content(tmp_path / "new") == FILES and not (tmp_path / ".new.part").exists()
    (tmp_path / "new" / "mine").write_bytes(b"")
    unpack(archive, tmp_path / "new", TOTAL)
    assert "mine" in content(tmp_path / "new")


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "..\\x", "C:\\x", "\\x", "C:x", ".."])
@pytest.mark.parametrize("kind", ["a.zip", "a.tar"])
def test_members_outside_the_folder(tmp_path, kind, name):
    text = refused(make(tmp_path / kind, {"good": b"", name: b"evil"}))
    assert f"{name} would lie outside" in text
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {kind, ".here.lock"}


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"Z"]
)
def test_links_and_devices_in_a_tar(tmp_path, kind):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.addfile(tarinfo("good", 4), io.BytesIO(b"good"))
        archive.addfile(tarinfo("evil", kind=kind, link="good"))
    assert "evil is a link or a device" in refused(tmp_path / "a.tar")
    with pytest.raises(UsageError, match="evil is a link or a device"):
        read(tmp_path / "a.tar", ["evil"], 100)
    assert read(tmp_path / "a.tar", ["good"], 4)["good"] == b"good"


def test_a_link_in_a_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        info = zipfile.ZipInfo("evil")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    assert "evil is a link or a device" in refused(tmp_path / "a.zip")


@pytest.mark.parametrize("kind", ["a.zip", "a.tar.gz"])
@pytest.mark.parametrize("count", [1, 50])
def test_a_bomb(tmp_path, kind, count):
    files = {f"zeros{i}": bytes(50 * MEGABYTE // count) for i in range(count)}
    archive = make(tmp_path / kind, files)
    assert archive.stat().st_size < MEGABYTE / 5
    assert "are allowed" in refused(archive, MEGABYTE)
    with pytest.raises(UsageError, match="are allowed"):
        read(archive, ["zeros0"], MEGABYTE - 1)


def test_a_zip_that_lies_about_sizes(tmp_path):
    archive = make(tmp_path / "a.zip", {"zeros": bytes(5 * MEGABYTE)})
    lie = archive.read_bytes().replace((5 * MEGABYTE).to_bytes(4, "little"), (1000).to_bytes(4, "little"))
    archive.write_bytes(lie)
    with zipfile.ZipFile(archive) as file:
        assert file.getinfo("zeros").file_size == 1000
    assert "zeros cannot be read" in refused(archive, MEGABYTE)


def test_a_sparse_tar_of_ten_gigabytes(tmp_path):
    size = 10 << 30
    header = bytearray(tarinfo("hole", 0, tarfile.GNUTYPE_SPARSE).tobuf(tarfile.GNU_FORMAT))
    header[386:398], header[398:410] = b"%011o\0" % 0, b"%011o\0" % 0  # one region, empty
    header[483:495] = tarfile.itn(size, 12, tarfile.GNU_FORMAT)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "a.tar").write_bytes(header + bytes(10240))
    with tarfile.open(tmp_path / "a.tar") as archive:
        assert archive.next().size == size
    assert f"hole has {size} bytes where {MEGABYTE} are allowed" in refused(tmp_path / "a.tar", MEGABYTE)


def test_an_encrypted_zip(tmp_path):
    archive = make(tmp_path / "a.zip", {"secret": b"text"})
    content = bytearray(archive.read_bytes())
    for signature, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        content[content.rindex(signature) + flags] |= 1
    archive.write_bytes(content)
    assert "secret cannot be read" in (text := refused(archive)) and "encrypted" in text


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("keep", [0, 1, 100, 600, 0.3, 0.6, -10])
def test_a_cut_archive(tmp_path, kind, keep):
    rng = np.random.default_rng(0)
    whole = make(tmp_path / kind, {f"{i}.png": rng.bytes(1500 + 100 * i) for i in range(10)}).read_bytes()
    end = len(whole) - tarfile.RECORDSIZE if kind == "a.tar" and keep == -10 else len(whole)
    (tmp_path / kind).write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep % end])
    assert "cannot be read" in refused(tmp_path / kind)


def test_a_tar_cut_between_members_or_with_a_damaged_header(tmp_path):
    archive = make(tmp_path / "a.tar", {f"{i}.png": bytes(512) for i in range(3)})
    whole = bytearray(archive.read_bytes())
    archive.write_bytes(whole[: 512 * 5])  # the folder and two files
    assert "cut off or damaged after 2560 bytes" in refused(archive)
    whole[512 * 3 + 150] ^= 1  # in the checksum of a header
    archive.write_bytes(whole)
    assert "cut off or damaged after 1536 bytes" in refused(archive)


def test_changed_bytes_in_a_zip(tmp_path):
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("picture", b"unmistakable")
    archive.write_bytes(archive.read_bytes().replace(b"unmistakable", b"unmistakible"))
    assert "picture cannot be read" in refused(archive)
    with pytest.raises(UsageError, match="picture cannot be read"):
        read(archive, ["picture"], 100)


@pytest.mark.parametrize("kind", KINDS)
def test_not_an_archive(tmp_path, kind):
    (tmp_path / kind).write_bytes(b"<html>" * 1000)
    assert "cannot be read" in refused(tmp_path / kind)


def test_a_file_where_another_member_needs_a_folder(tmp_path):
    assert "cannot be unpacked" in refused(make(tmp_path / "a.zip", {"a": b"", "a/b": b""}))


def test_a_name_that_no_file_can_have(tmp_path):
    assert "cannot be unpacked" in refused(make(tmp_path / "a.tar", {"a\0b" + "c" * 200: b""}))
    assert "cannot be unpacked" in refused(make(tmp_path / "a.zip", {"c" * 300: b""}))


def test_a_disk_without_room(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(archives.os, "replace", full)
    assert "No space left on device" in refused(make(tmp_path / "a.zip", FILES))
