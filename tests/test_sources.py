import io
import json
import os
from itertools import chain
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import requests
from PIL import Image

from metafew.data.formats.conversion import Conversion
from metafew.data.sources import glyphs, omniglot, shipped_split
from metafew.data.sources.glyphs import Glyphs
from metafew.data.sources.omniglot import Omniglot
from metafew.errors import UsageError

SPLITS = ["train", "val", "test"]


@pytest.fixture(scope="module")
def archives():
    """The folder of the real Omniglot archives, where there is one."""
    data = Path(os.environ.get("METAFEW_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (data / "omniglot" / "images_background.zip").is_file():
        pytest.skip("no Omniglot archives: set METAFEW_DATA")
    return data / "omniglot"


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Two characters in each archive, one of them held out by either split, and what macOS leaves in a zip."""
    rng = np.random.default_rng(0)
    members = {
        "images_background": ["Greek/character01", "Hebrew/character02"],
        "images_evaluation": ["Angelic/character01", "Tibetan/character01"],
    }
    originals = {}
    for name, characters in members.items():
        with ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            archive.writestr(f"{name}/", "")
            for number, character in enumerate(characters):
                archive.writestr(f"__MACOSX/{name}/{character}/._0001_01.png", "junk")
                archive.writestr(f"{name}/{character}/.DS_Store", "junk")
                for drawing in range(20, 0, -1):
                    key = f"{name}/{character}/{number:04}_{drawing:02}.png"
                    originals[key] = paper = rng.random((105, 105)) < 0.9
                    Image.fromarray(paper).save(file := io.BytesIO(), "PNG")
                    archive.writestr(key, file.getvalue())
    monkeypatch.setattr(omniglot, "CHARACTERS", {name: len(c) for name, c in members.items()})
    return tmp_path, originals


def source(root, split="lake", image_size=28, download=False):
    return Omniglot(str(root), split, image_size, download)


def assert_disjoint(splits):
    assert list(splits) == SPLITS
    names = [category.name for categories in splits.values() for category in categories]
    keys = [{key for category in categories for key in category.keys} for categories in splits.values()]
    assert len(names) == len(set(names))
    assert len(set.union(*keys)) == sum(map(len, keys))


# glyphs


@pytest.mark.slow
def test_glyphs_letters_follow_from_the_rule():
    assert glyphs.choose_letters() == shipped_split("glyphs")


def test_glyphs_classes():
    splits = Glyphs(28, None).splits()
    assert_disjoint(splits)
    assert [len(splits[split]) for split in SPLITS] == [153, 38, 64]


def test_glyphs_drawings_of_a_letter_differ_and_have_ink():
    letters = Glyphs(28, None)
    for category in chain.from_iterable(letters.splits().values()):
        images = list(letters.read(category.keys))
        assert len({image.tobytes() for image in images}) == len(images) >= 12
        assert all(image.max() > 200 for image in images)


@pytest.mark.parametrize("size", [20, 28, 84])
def test_glyphs_drawings_are_centred_and_leave_a_margin(size):
    image = next(Glyphs(size, None).read(["DejaVuSans-Bold/0048"]))
    assert image.shape == (1, size, size) and image.dtype == np.uint8
    rows, columns = np.nonzero(image[0])
    assert abs(rows.min() + rows.max() - size + 1) <= 1 and abs(columns.min() + columns.max() - size + 1) <= 1
    assert max(np.ptp(rows), np.ptp(columns)) + 1 == pytest.approx(size * 5 / 7, abs=2)
    assert image[0, size // 2, size // 2] == 255  # the bar of the H


def test_glyphs_computer_modern_is_trusted_for_ascii_only():
    assert all(face.startswith("cm") <= key.isascii() for face in glyphs.FACES for key in glyphs.coverage(face))
    assert len(glyphs.keys_of("A")) == len(glyphs.FACES) == 21


def test_glyphs_fingerprint_depends_on_size_and_not_on_jitter():
    assert Glyphs(28, None).fingerprint() == Glyphs(28, object()).fingerprint() != Glyphs(32, None).fingerprint()


def test_glyphs_names_a_missing_typeface(monkeypatch, tmp_path):
    monkeypatch.setattr("matplotlib.get_data_path", lambda: str(tmp_path))
    with pytest.raises(UsageError, match=r"needs .*DejaVuSans\.ttf from matplotlib"):
        Glyphs(28, None).fingerprint()


# omniglot


@pytest.mark.parametrize(("split", "counts"), [("lake", [792, 172, 659]), ("vinyals", [4112, 688, 1692])])
def test_omniglot_counts(archives, split, counts):
    splits = source(archives, split).splits()
    assert_disjoint(splits)
    assert [len(splits[s]) for s in SPLITS] == counts
    assert {len(set(category.keys)) for categories in splits.values() for category in categories} == {20}


def test_omniglot_vinyals_equals_the_published_list(archives):
    file = archives.parent / "splits" / "omniglot_vinyals_characters.json"
    if not file.is_file():
        pytest.skip("no published list")
    published = json.loads(file.read_text())
    for split, categories in source(archives, "vinyals").splits().items():
        names = {f"{name}/rot{degrees:03}" for name in published[split] for degrees in (0, 90, 180, 270)}
        assert {category.name for category in categories} == names


def test_omniglot_real_drawings_are_thin_ink_on_ground(archives):
    drawings = source(archives)
    images = np.stack(list(drawings.read([category.keys[0] for category in drawings.splits()["val"]])))
    assert images.shape == (172, 1, 28, 28) and images.dtype == np.uint8
    assert images.max() == 255 and 0.03 < images.mean() / 255 < 0.15


def test_omniglot_classes(small):
    lake, vinyals = (source(small[0], split).splits() for split in ("lake", "vinyals"))
    assert_disjoint(lake)
    assert [[category.name for category in lake[split]] for split in SPLITS] == [
        ["Greek/character01"],
        ["Hebrew/character02"],
        ["Angelic/character01", "Tibetan/character01"],
    ]
    assert [(c.name, c.turns) for c in vinyals["test"]] == [
        (f"Tibetan/character01/rot{90 * turns:03}", turns) for turns in range(4)
    ]
    assert len({c.keys for c in vinyals["test"]}) == 1
    assert [[c.group for c in lake[split]] for split in SPLITS] == [["Greek"], ["Hebrew"], ["Angelic", "Tibetan"]]
    assert {c.group for c in vinyals["test"]} == {"Tibetan"}
    assert len(vinyals["train"]) == 8
    assert lake["val"][0].keys[:2] == tuple(f"images_background/Hebrew/character02/0001_{i:02}.png" for i in (1, 2))


@pytest.mark.parametrize("size", [28, 35, 84])
def test_omniglot_reads_in_order_and_averages_by_area(small, size):
    root, originals = small
    keys = np.random.default_rng(1).choice(list(originals), 10)
    drawings = source(root, image_size=size)
    images, convert = list(drawings.read(keys)), Conversion(1, size, **drawings.conversion.options)
    for key, image in zip(keys, images, strict=True):
        rows = 255 * (~originals[key]).repeat(size, axis=0).reshape(size, 105, 105).mean(1)
        exact = rows.repeat(size, axis=1).reshape(size, size, 105).mean(2)
        assert image.shape == (1, size, size) and image.dtype == np.uint8
        assert np.abs(image[0] - exact).max() <= 0.5 + 1e-9
        np.testing.assert_array_equal(convert(Image.fromarray(originals[key])), image)  # as for predictions


def test_omniglot_fingerprint_follows_content_and_settings(small):
    root, originals = small
    before = {source(root, split, size).fingerprint() for split in ("lake", "vinyals") for size in (28, 32)}
    assert len(before) == 4 and source(root).fingerprint() in before
    with ZipFile(root / "images_evaluation.zip", "w") as archive:
        for key in originals:
            archive.writestr(key, "other bytes")
    assert source(root).fingerprint() not in before


def test_omniglot_names_the_known_splits(tmp_path):
    with pytest.raises(UsageError, match=r"dataset\.split to be lake or vinyals, got lakes: type"):
        source(tmp_path, "lakes")


@pytest.mark.parametrize("damage", ["truncated", "foreign", "incomplete"])
def test_omniglot_refuses_a_damaged_archive(small, damage):
    path = small[0] / "images_evaluation.zip"
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        with ZipFile(path, "w") as archive:
            archive.writestr("images_evaluation/Angelic/character01/0000_01.png" if damage == "incomplete" else "x", "")
    with pytest.raises(UsageError, match=r"expected .*images_evaluation\.zip to be .* 2 characters with 20 drawings"):
        source(small[0]).splits()


def test_omniglot_without_archives_and_download(tmp_path):
    with pytest.raises(UsageError, match=r"images_background\.zip.*download=false.*data_dir=PATH") as error:
        source(tmp_path / "none").splits()
    assert all(url in str(error.value) for url in omniglot.URLS)
    assert not (tmp_path / "none").exists()


def test_omniglot_without_network_names_both_addresses(tmp_path, monkeypatch):
    def fail(url, *args, **kwargs):
        raise requests.ConnectionError(url)

    monkeypatch.setattr("pooch.retrieve", fail)
    with pytest.raises(UsageError) as error:
        source(tmp_path / "new", download=True).splits()
    assert all(url in str(error.value) for url in omniglot.URLS) and "no network" in str(error.value)
    assert "data_dir=PATH" in str(error.value)


def test_omniglot_in_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UsageError, match="cannot be written"):
        source(tmp_path, download=True).splits()


def test_omniglot_downloads_from_the_mirror(small, tmp_path, monkeypatch):
    def retrieve(url, known_hash, fname, path, downloader):
        assert known_hash == f"md5:{omniglot.MD5[Path(fname).stem]}"
        if url.startswith(omniglot.URLS[0]):
            raise ValueError("another md5")
        (Path(path) / fname).write_bytes((small[0] / fname).read_bytes())

    monkeypatch.setattr("pooch.retrieve", retrieve)
    assert len(source(tmp_path / "new", download=True).splits()["test"]) == 2
