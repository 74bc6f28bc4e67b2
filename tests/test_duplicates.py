"""Copies of an image within a class, across classes, splits and datasets: counted, said, refused or dropped."""

import json
import os
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metafew.data.augment import Augmentation
from metafew.data.datamodule import FewShot
from metafew.data.duplicates import count_copies, find_copies, hash_image, without_copies
from metafew.data.sources import Category, Source
from metafew.data.sources.features import Features
from metafew.data.sources.folder import Folder
from metafew.data.sources.mixture import Mixture
from metafew.data.store import Split, build, describe, verify
from metafew.data.summary import full_summary, summary_lines, warnings
from metafew.data.task_spec import TaskSpec
from metafew.errors import UsageError

COPIES = {
    "train": {"lion": [1, 2, 3, 4], "wolf": [5, 6, 7, 1]},
    "val": {"frog": [8, 9, 10, 11]},
    "test": {"yak": [12, 12, 12, 13], "zebra": [2, 3, 14, 15]},
}
"""The content of the images of each class: 1 is in two classes, 2 and 3 are in two splits, and 12 is three times."""


class Given(Source):
    """Images of one pixel whose values are given."""

    name, channels, image_size = "given", 1, 1

    def __init__(self, content=COPIES, duplicates="warn", turns=0):
        self.content, self.duplicates, self.turns, self.reads = content, duplicates, turns, 0

    def splits(self):
        return {
            split: [
                Category(name, tuple(f"{name}/{i}={value}" for i, value in enumerate(values)), number * self.turns)
                for number, (name, values) in enumerate(classes.items())
            ]
            for split, classes in self.content.items()
        }

    def fingerprint(self):
        return json.dumps([self.content, self.turns])

    def read(self, keys):
        for key in keys:
            self.reads += 1
            yield np.array(int(key.rpartition("=")[2]), np.uint8)


def stored(source, folder):
    """Return the values of the images of each class of a store."""
    built = build(source, folder)
    verify(built)
    splits = {split: Split(built, split) for split in ("train", "val", "test")}
    return {
        name: {label: split.images[rows].ravel().tolist() for label, rows in zip(split.names, split.rows, strict=True)}
        for name, split in splits.items()
    }


def test_copies_of_each_kind_are_counted_with_their_names(tmp_path):
    source = Given()
    summary = describe(build(source, tmp_path))["summary"]
    assert summary["classes"] == {"train": 2, "val": 1, "test": 2}
    assert summary["images"] == {"train": 8, "val": 4, "test": 8}
    copies = summary["duplicates"]
    assert {kind: found["images"] for kind, found in copies.items()} == {
        "within_class": 2,
        "across_classes": 3,
        "across_splits": 2,
    }
    (example,) = copies["across_splits"]["examples"]
    assert example == {"classes": ["lion (train)", "zebra (test)"], "images": 2, "files": ["lion/1=2", "zebra/0=2"]}
    assert copies["within_class"]["examples"][0]["files"] == ["yak/0=12", "yak/1=12"]
    (warning,) = warnings(source, summary)
    for word in ("images in several splits: 2 (2 of", "lion (train) and zebra (test)", "lion (train) and wolf (train)"):
        assert word in warning
    assert "copies within a class: 2 (2 of yak (test), such as yak/0=12 and yak/1=12)" in warning
    assert warning.endswith("type dataset.duplicates=drop, or remove them")
    assert "20 copies" not in warning and "given: copies within a class: 2" in full_summary(source, summary)


def test_copies_are_dropped_and_the_rest_is_kept(tmp_path):
    source = Given(duplicates="drop")
    assert stored(source, tmp_path) == {
        "train": {"lion": [4], "wolf": [5, 6, 7]},
        "val": {"frog": [8, 9, 10, 11]},
        "test": {"yak": [12, 13], "zebra": [14, 15]},
    }
    summary = describe(build(source, tmp_path))["summary"]
    assert summary["images"] == {"train": 4, "val": 4, "test": 4}
    assert warnings(source, summary)[0].endswith("dataset.duplicates=drop left 12 images")
    assert stored(Given(), tmp_path)["test"]["yak"] == [12, 12, 12, 13]  # another policy is another store


def test_a_class_that_is_a_copy_of_another_leaves_with_it_and_tasks_are_checked_again(tmp_path):
    content = COPIES | {"test": {"mirror": [8, 9, 10, 11], "yak": [1, 2, 20, 21], "zebra": [30, 31, 32, 33]}}
    source = Given(content, "drop")
    assert stored(source, tmp_path)["test"] == {"yak": [20, 21], "zebra": [30, 31, 32, 33]}
    spec = TaskSpec("test", way=3, shot=1, query=1, tasks=1, total=1, seed=0)
    assert not spec.shortages(source.splits()["test"], "given")
    data = FewShot(source, spec, spec, [spec], Augmentation([], {}), tmp_path, 0)
    with pytest.raises(UsageError, match=r"of dataset=given has 2: type test\.way=2, or dataset\.duplicates=warn"):
        data.sampler(spec)


def test_copies_are_refused_each_time(tmp_path):
    for _ in range(2):
        source = Given(duplicates="error")
        with pytest.raises(UsageError, match=r"images in several splits: 2 .*lion.* and zebra"):
            build(source, tmp_path)
    assert source.reads == 0  # the second time, the store was there
    clean = Given({"train": {"a": [1, 2]}, "val": {}, "test": {"b": [3]}}, "error")
    assert describe(build(clean, tmp_path))["summary"]["duplicates"] == {}


def test_published_data_are_counted_and_neither_warned_of_nor_changed(tmp_path):
    source = Given(duplicates=None)
    assert stored(source, tmp_path)["test"]["yak"] == [12, 12, 12, 13]
    summary = describe(build(source, tmp_path))["summary"]
    assert summary["duplicates"]["within_class"]["images"] == 2 and warnings(source, summary) == []
    for published in (19, 21):
        source.published_images = published
        (warning,) = warnings(source, summary)
        assert f"expected the {published} images of the published benchmark for dataset=given, got 20" in warning
    source.published_images = 20
    assert warnings(source, summary) == []


def test_one_image_in_several_rotations_is_no_copy(tmp_path):
    same = {"train": {"rot000": [1, 2], "rot090": [1, 2]}, "val": {}, "test": {}}
    assert describe(build(Given(same, turns=1), tmp_path))["summary"]["duplicates"] == {}
    assert describe(build(Given(same), tmp_path))["summary"]["duplicates"]["across_classes"]["images"] == 2


def test_the_classes_with_most_copies_are_the_examples(tmp_path):
    values = iter(range(100))
    classes = {name: [next(values) for _ in range(6)] for name in "abcde"}
    pairs = {f"{name}2": found[:count] for count, (name, found) in enumerate(classes.items(), 1)}
    copies = describe(build(Given({"train": classes, "val": {}, "test": pairs}), tmp_path))["summary"]["duplicates"]
    assert copies["across_splits"]["images"] == 15
    assert [(e["classes"], e["images"]) for e in copies["across_splits"]["examples"]] == [
        ([f"{name} (train)", f"{name}2 (test)"], count) for name, count in (("e", 5), ("d", 4), ("c", 3))
    ]


@given(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=6), min_size=1, max_size=5))
def test_copies_are_those_of_a_plain_count(content):
    """Compare with sets: what is left has each image once in its class, and shares none with another class."""
    rows = iter(range(100))
    classes = {"train": [{"name": str(n), "turns": 0, "keys": [next(rows) for _ in c]} for n, c in enumerate(content)]}
    flat = [value for values in content for value in values]
    hashes = {"train": np.array([hash_image(bytes([value])) for value in flat], np.uint64)}
    groups = find_copies(classes, hashes)
    copies = count_copies(groups, lambda _, row: str(row))
    assert copies.get("within_class", {"images": 0})["images"] == sum(len(c) - len(set(c)) for c in content)
    several = {value for value in flat if sum(value in values for values in content) > 1}
    assert copies.get("across_classes", {"images": 0})["images"] == len(several)
    left = {each["name"]: [flat[row] for row in each["keys"]] for each in without_copies(classes, groups)["train"]}
    expected = {str(n): [v for v in dict.fromkeys(values) if v not in several] for n, values in enumerate(content)}
    assert left == {name: values for name, values in expected.items() if values}


def test_equal_vectors_are_found_by_row(tmp_path):
    x = np.arange(24, dtype=np.float64).reshape(6, 4)
    y, other = np.vstack([x[2:4], x[:1] + 9]), list("ddd")
    np.savez(tmp_path / "v.npz", x_train=x, y_train=list("aabbcc"), x_test=y, y_test=other)
    source = Features(str(tmp_path / "v.npz"))
    (warning,) = warnings(source, describe(build(source, tmp_path / "c"))["summary"])
    assert (
        "images in several splits: 2 (2 of b (train) and d (test), such as row 2 of x_train and row 0 of x_test)"
        in (warning)
    )


def test_classes_of_one_name_in_two_splits_are_two_classes(tmp_path):
    x = np.arange(24, dtype=np.float64).reshape(6, 4)
    y = {"y_train": list("aabb"), "y_test": list("ac")}
    np.savez(tmp_path / "v.npz", x_train=x[[0, 1, 1, 2]], x_test=x[[0, 3]], **y)
    source = Features(str(tmp_path / "v.npz"))
    summary = describe(build(source, tmp_path / "c"))["summary"]
    copies = {kind: found["images"] for kind, found in summary["duplicates"].items()}
    assert copies == {"across_classes": 2, "across_splits": 1}
    (warning,) = warnings(source, summary)
    assert "images in several classes: 2" in warning and "a (train) and b (train)" in warning


def folder(root, **options):
    settings = {"splits": None, "labels": None, "fractions": [0.5, 0, 0.5], "split_seed": 0, "channels": 1}
    settings |= {"layout": "auto", "columns": None}
    settings |= options
    return Folder(str(root), **settings, image_size=4, fit="crop", invert=False, white=None, background=None)


@pytest.fixture
def photos(tmp_path):
    """Four classes of three images."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for name in "abcd":
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(rng.integers(0, 256, (4, 4), np.uint8)).save(tmp_path / "photos" / name / f"{i}.bmp")
    return tmp_path / "photos"


def test_too_few_test_images_without_copies_end_a_run_before_training(photos, tmp_path, launch):
    for i in (1, 2):
        shutil.copy(photos / "d" / "0.bmp", photos / "d" / f"{i}.bmp")
    (tmp_path / "s.json").write_text('{"train": ["a", "b"], "test": ["c", "d"]}')
    words = ["dataset=folder", f"dataset.root={photos}", f"dataset.splits={tmp_path}/s.json", "dataset.duplicates=drop"]
    shape = ["val.total=0", "train.way=2", "train.query=1", "test.way=2", "test.query=1", "dataset.image_size=16"]
    with pytest.raises(UsageError, match=r"in the test split .*dataset\.duplicates=warn$"):
        launch(*words, *shape, out=tmp_path / "run")
    assert not [*(tmp_path / "run").rglob("*.ckpt")]


def count_reads(source):
    read, calls = source.read, []
    source.read = lambda keys: calls.append(len(keys)) or read(keys)
    return calls


def test_a_touched_or_copied_folder_is_the_same_data(photos, tmp_path):
    first = build(folder(photos), tmp_path / "cache")
    os.utime(photos / "a" / "0.bmp", ns=(0, 1))
    shutil.copytree(photos, tmp_path / "copy")
    for root in (photos, tmp_path / "copy"):
        again = folder(root)
        reads = count_reads(again)
        assert build(again, tmp_path / "cache") == first and sum(reads) == 12
        assert build(again, tmp_path / "cache") == first and sum(reads) == 12  # only once
    assert [path.name for path in (tmp_path / "cache").glob("*/")].count(first.name) == 1
    assert len(list((tmp_path / "cache").glob("*/"))) == 2  # with the folder of keys


def test_other_pixels_of_equal_size_and_time_are_other_data(photos, tmp_path):
    file = photos / "a" / "0.bmp"
    before, first = file.stat(), build(folder(photos), tmp_path / "cache")
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    second = build(folder(photos), tmp_path / "cache")
    assert second != first and describe(second)["fingerprint"] != describe(first)["fingerprint"]
    file.write_bytes(content)
    assert build(folder(photos), tmp_path / "cache") == first


def test_the_same_pixels_with_other_labels_are_other_data(tmp_path):
    renamed = COPIES | {"val": {"toad": COPIES["val"]["frog"]}}
    moved = COPIES | {"train": {"lion": [1, 2, 3, 4, 5], "wolf": [6, 7, 1]}}
    found = {describe(build(Given(each), tmp_path))["fingerprint"] for each in (COPIES, renamed, moved)}
    assert len(found) == 3


def test_a_store_that_was_deleted_is_built_again(photos, tmp_path):
    first = build(folder(photos), tmp_path / "cache")
    shutil.rmtree(first)
    assert build(folder(photos), tmp_path / "cache") == first
    verify(first)


def mixture(tmp_path, first, *test_only):
    def find(root, _):
        source = folder(root, channels=3 if root == first else 1)
        source.label = root.name
        return source

    return Mixture(find, [first], test_only, 4, None)


def test_a_test_dataset_with_the_images_of_one_that_is_trained_on(photos, tmp_path):
    """One of them is stored in colour, the other in grey."""
    shutil.copytree(photos, tmp_path / "copy")
    shutil.rmtree(photos / "a")
    source, spec = mixture(tmp_path, photos, tmp_path / "copy"), TaskSpec("test", 2, 1, 1, 1, 1, 0)
    data = FewShot(source, spec, spec, [spec], Augmentation([], {}), tmp_path / "cache", 0)
    found = data.summaries()
    tested = {name for name in Split(data.folder(source.test_sources[0]), "test").names} - {"a"}
    trained = tested & set(Split(data.folder(source.sources[0]), "train").names)
    expected = {"source": "photos", "share": len(tested) / 2, "trained": len(trained) / 2}
    assert found["copy"]["shared"] == expected and "shared" not in found["photos"]
    assert found["photos"]["classes"] == {"train": 2, "val": 0, "test": 1}


def test_lines_say_what_was_not_read(tmp_path):
    class Partial(Given):
        ignored = {"*.npy in c03": 2, "hidden folder @eaDir": 1300}  # noqa: RUF012

    summary = describe(build(Partial(), tmp_path))["summary"]
    lines = summary_lines(Partial(), summary)
    assert lines == [
        "given: 2 + 1 + 2 classes, 8 + 4 + 8 images (train + val + test)",
        "given: not read: 1,300 × hidden folder @eaDir, 2 × *.npy in c03",
    ]
    assert "given: not read: 2 × *.npy in c03" in full_summary(Partial(), summary)
