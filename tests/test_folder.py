import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from itertools import chain

import numpy as np
import pytest
from conftest import REAL_DATA
from image_folders import folder, grow, names, paint, refused, shades
from PIL import Image

from metafew.data import store
from metafew.data.formats.scan import SUFFIXES
from metafew.data.formats.tree import Tree
from metafew.data.sources.class_splits import divide
from metafew.data.sources.features import Features
from metafew.data.sources.folder import Folder
from metafew.data.summary import summary_lines
from metafew.errors import UsageError
from metafew.training.instantiate import make

SPLITS = ["train", "val", "test"]
LETTERS = "abcdefghij"


# trees


def test_tree_finds_images_by_suffix_and_ignores_what_is_hidden(tmp_path):
    for suffix in SUFFIXES:
        paint(tmp_path / "b" / f"x{suffix}")
    paint(tmp_path / "a" / "LOUD.JPG")
    for junk in ("b/.DS_Store", "b/._x.png", "b/notes.txt", "empty/notes.txt", "__MACOSX/b/x.png", ".git/b/x.png"):
        paint(tmp_path / "b" / "x.png").rename(tmp_path / "moved")
        (tmp_path / junk).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "moved").rename(tmp_path / junk)
    paint(tmp_path / "b" / "x.png")
    tree = Tree(tmp_path)
    assert tree.classes == {"a": ("a/LOUD.JPG",), "b": tuple(sorted(f"b/x{suffix}" for suffix in SUFFIXES))}
    assert [len(list(tree.open(keys))) for keys in tree.classes.values()] == [1, len(SUFFIXES)]
    assert sorted(tree.files) == sorted(tmp_path / key for keys in tree.classes.values() for key in keys)


def test_tree_names_nested_classes_by_their_path(tmp_path):
    grow(tmp_path, ["Greek/character02", "Greek/character01", "Hebrew/character01", "Latin", "Latin/small"])
    tree = Tree(tmp_path)
    assert list(tree.classes) == [
        "Greek/character01",
        "Greek/character02",
        "Hebrew/character01",
        "Latin",
        "Latin/small",
    ]
    assert tree.classes["Latin"] == ("Latin/0.png", "Latin/1.png")


def test_tree_follows_links_and_not_in_circles(tmp_path):
    grow(tmp_path / "elsewhere", ["a"])
    (tmp_path / "root" / "b").mkdir(parents=True)
    (tmp_path / "root" / "a").symlink_to(tmp_path / "elsewhere" / "a")
    (tmp_path / "root" / "b" / "up").symlink_to(tmp_path / "root")
    (tmp_path / "root" / "b" / "self").symlink_to(tmp_path / "root" / "b")
    assert Tree(tmp_path / "root").classes == {"a": ("a/0.png", "a/1.png")}


def test_tree_reads_in_the_order_of_keys_and_names_the_damaged_file(tmp_path):
    tree = Tree(grow(tmp_path, "ab"))
    assert [image.getpixel((0, 0)) for image in tree.open(["b/1.png", "a/0.png", "b/0.png"])] == [11, 0, 10]
    (tmp_path / "b" / "0.png").write_bytes(b"")
    with pytest.raises(UsageError, match=rf"^{re.escape(str(tmp_path))}/b/0\.png cannot be read .*empty"):
        list(tree.open(["a/0.png", "b/0.png"]))


def test_tree_sentences(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="nowhere is not a folder"):
        Tree(tmp_path / "nowhere")
    paint(tmp_path / "stray.png")
    with pytest.raises(UsageError, match=r"holds no folder of images \(\.png, "):
        Tree(tmp_path)
    grow(tmp_path, "ab")
    with pytest.raises(UsageError, match=r"expected 3 listed files, but .*a/7\.png is missing, the first of 2"):
        Tree(tmp_path, [("b/1.png", "x"), ("b/7.png", "y"), ("a/7.png", "x")])
    scandir = os.scandir

    def deny(path):
        if str(path).endswith("b"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", deny)
    with pytest.raises(UsageError, match=r"b cannot be listed \(Permission denied\)"):
        Tree(tmp_path)


# forms of root


def test_the_yaml_makes_it(composed):
    cfg, _, _ = composed("dataset=folder")
    assert isinstance(source := make(cfg.dataset), Folder)
    assert "type dataset.root=DIR" in refused(source)


def test_tables_call_data_by_the_name_of_its_folder_or_file(tmp_path):
    source = folder(tmp_path / "my birds.v2")
    summary = {"classes": {"train": 3}, "images": {"train": 9}, "ignored": {}}
    assert summary_lines(source, summary) == ["my birds.v2: 3 classes, 9 images (train)"]
    assert source.title == "folder", "the word of messages and of checkpoints"
    source.label = "birds"
    assert source.display_name == "birds", "its name in a mixture"
    np.savez(tmp_path / "a.b.npz", x_test=np.eye(2), y_test=["c", "d"])
    assert Features(str(tmp_path / "a.b.npz")).display_name == "a.b"


def test_classes_are_drawn(tmp_path):
    drawn = names(folder(grow(tmp_path, LETTERS)))
    assert list(drawn) == SPLITS and [len(drawn[split]) for split in SPLITS] == [6, 2, 2]
    assert sorted(chain.from_iterable(drawn.values())) == list(LETTERS)
    assert drawn == {"train": [*"abfgij"], "val": [*"dh"], "test": [*"ce"]}  # for ever
    assert names(folder(tmp_path, split_seed=1)) != drawn
    assert names(folder(tmp_path, fractions=[0, 0, 1])) == {"train": [], "val": [], "test": list(LETTERS)}


def test_images_of_a_class_are_its_own(tmp_path):
    source = folder(grow(tmp_path, LETTERS), channels=1)
    for split in SPLITS:
        places = [LETTERS.index(category.name) for category in source.splits()[split]]
        assert shades(source, split) == [[10 * place, 10 * place + 1] for place in places]


def test_nested_alphabets_are_groups(tmp_path):
    grow(tmp_path, ["Greek/alpha", "Greek/beta", "Old/Hebrew/alef", "flat"])
    found = chain.from_iterable(folder(tmp_path, layout="classes").splits().values())
    assert {category.name: category.group for category in found} == {
        "Greek/alpha": "Greek",
        "Greek/beta": "Greek",
        "Old/Hebrew/alef": "Old/Hebrew",
        "flat": "",
    }


@pytest.mark.parametrize("words", [["train", "val", "test"], ["Train", "valid", "Test"], ["train", "validation"]])
def test_folders_of_splits(tmp_path, words):
    for word, letter in zip(words, "abc", strict=False):
        grow(tmp_path / word, [f"deep/{letter}", f"low/{letter}"])
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / ".cache").mkdir()
    paint(tmp_path / "preview.png")
    expected = {split: [f"deep/{letter}", f"low/{letter}"] for split, letter in zip(SPLITS, "abc", strict=True)}
    expected |= {"test": []} if len(words) == 2 else {}
    source = folder(tmp_path)
    assert names(source) == expected
    assert shades(source, "val") == [[0, 1], [10, 11]]
    assert source.splits()["val"][1].group == "low"


def test_other_folders_are_classes(tmp_path):
    grow(tmp_path, ["train", "test", "bus"])
    assert sorted(chain.from_iterable(names(folder(tmp_path)).values())) == ["bus", "test", "train"]


def test_a_file_of_splits_is_stronger_than_folders_of_splits(tmp_path):
    grow(tmp_path, ["train/a", "test/b", "val/c"])
    (tmp_path / "s.json").write_text('{"train": ["test/b", "val/c"], "test": ["train/a"]}')
    assert names(folder(tmp_path, splits="s.json")) == {"train": ["test/b", "val/c"], "val": [], "test": ["train/a"]}


def test_splits_of_a_folder_need_classes_of_their_own(tmp_path):
    grow(tmp_path / "train", ["cat", "dog"])
    grow(tmp_path / "test", ["dog", "emu"])
    assert "class 'dog' is in train and again in test" in refused(folder(tmp_path))
    grow(tmp_path / "val", ["fox"])
    grow(tmp_path / "valid", ["gnu"])
    assert "got test, train, val, valid" in refused(folder(tmp_path))


@pytest.mark.parametrize("form", ["json", "csv"])
def test_listed_splits(tmp_path, form, monkeypatch):
    grow(tmp_path / "root", LETTERS)
    content = "class,split\nd,train\nb,train\n\na,validation\nj,test\nc,test\n"
    if form == "json":
        content = json.dumps({"train": ["d", "b"], "val": ["a"], "test": ["j", "c"]})
    file = tmp_path / f"mine.{form}"
    file.write_text(content, encoding="utf-8-sig")  # as spreadsheets write it
    expected = {"train": ["d", "b"], "val": ["a"], "test": ["j", "c"]}
    assert names(folder(tmp_path / "root", splits=str(file))) == expected
    monkeypatch.chdir(tmp_path)
    assert names(folder("root", splits=file.name)) == expected
    monkeypatch.chdir("/")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert names(folder("~/root", splits=f"~/{file.name}")) == expected
    file.rename(tmp_path / "root" / file.name)
    assert names(folder(tmp_path / "root", splits=file.name)) == expected


def test_a_flat_folder_with_labels(tmp_path):
    for i, letter in enumerate(LETTERS):
        paint(tmp_path / "images" / f"{letter}.png", 10 * i)
    rows = [f"images/{letter}.png,{'odd' if i % 2 else 'even'},more" for i, letter in enumerate(LETTERS[:8])]
    rows += ['"images/i.png", "one, alone"', "images/j.png,alphabet/last"]
    (tmp_path / "labels.csv").write_text("filename,label\n" + "\n".join(rows))
    source = folder(tmp_path, labels="labels.csv", fractions=[1, 0, 0], channels=1)
    assert names(source)["train"] == ["alphabet/last", "even", "odd", "one, alone"]
    found = {category.name: list(source.read(category.keys)) for category in source.splits()["train"]}
    assert [int(image.max()) for image in found["odd"]] == [10, 30, 50, 70]
    assert source.splits()["train"][0].group == "alphabet"


def test_labels_may_have_absolute_paths(tmp_path):
    grow(tmp_path / "photos", "ab", images=2)
    rows = [f"{tmp_path}/photos/{letter}/{i}.png,{letter}{letter}" for letter in "ab" for i in range(2)]
    (tmp_path / "l.csv").write_text("file,class\n" + "\n".join(rows))
    source = folder(tmp_path / "photos", labels=str(tmp_path / "l.csv"), fractions=[1, 0, 0])
    assert names(source)["train"] == ["aa", "bb"] and not source.ignored
    (tmp_path / "l.csv").write_text("file,class\n" + "\n".join([*rows, "a/0.png,cc"]))
    source = folder(tmp_path / "photos", labels=str(tmp_path / "l.csv"))
    assert re.search(r"to list an image once, got a/0\.png 2 times", refused(source))


def test_a_list_of_images_may_hold_the_splits_of_their_classes(tmp_path):
    grow(tmp_path, "ab", images=2)
    rows = [f"{letter}/{i}.png,{letter},{split}" for letter, split in (("a", "train"), ("b", "test")) for i in range(2)]
    (tmp_path / "l.csv").write_text("file,class,split\n" + "\n".join(rows))
    found = names(folder(tmp_path, labels="l.csv", splits="l.csv"))
    assert found == {"train": ["a"], "val": [], "test": ["b"]}


def test_options_of_drawn_splits_are_refused_for_data_with_splits(tmp_path, launch):
    grow(tmp_path, [f"{split}/{split}{n}" for split in SPLITS for n in range(5)], images=4)
    words = ["dataset=folder", f"dataset.root={tmp_path}", "dataset.image_size=28"]
    for word in ("dataset.split_seed=7", "dataset.fractions=[1,0,0]"):
        with pytest.raises(UsageError, match=rf"as the data come with their splits, got {re.escape(word)}: leave it"):
            launch(*words, word)


def test_splits_drawn_at_random_are_written_in_a_file_that_draws_the_same(tmp_path, launch):
    grow(tmp_path / "photos", [f"class {number}" for number in range(12)], images=4)
    words = ["dataset=folder", f"dataset.root={tmp_path}/photos", "dataset.image_size=28", "trainer.max_steps=1"]
    words += [f"{split}.way=2" for split in ("train", "val", "test")]
    drawn, out = launch(*words, "dataset.split_seed=3", out=tmp_path / "drawn")
    splits = json.loads((out / "splits.json").read_text())
    assert splits == names(folder(tmp_path / "photos", split_seed=3)) and all(map(len, splits.values()))
    read, out = launch(*words, f"dataset.splits={out}/splits.json", out=tmp_path / "read")
    assert read["data"] == drawn["data"] and not (out / "splits.json").exists()


def test_arrays(tmp_path):
    images = np.arange(8, dtype=np.uint8)[:, None, None, None] * np.ones((8, 5, 5, 3), np.uint8)
    labels = np.array([2, 0, 1, 2, 0, 1, 3, 2])
    np.savez(tmp_path / "set.npz", x=images, y=labels)
    source = folder(tmp_path / "set.npz", fractions=[1, 0, 0])
    assert names(source)["train"] == ["0", "1", "2", "3"]
    assert shades(source, "train") == [[1, 4], [2, 5], [0, 3, 7], [6]]
    np.savez(tmp_path / "set.npz", x=images, y=labels, names=np.array(["ant", "bee", "cat", "dog"]))
    (tmp_path / "s.json").write_text('{"train": ["cat"], "test": ["ant", "bee"]}')
    source = folder(tmp_path / "set.npz", splits=str(tmp_path / "s.json"))
    assert names(source) == {"train": ["cat"], "val": [], "test": ["ant", "bee"]}
    assert shades(source, "train") == [[0, 3, 7]]
    np.savez(tmp_path / "grey.npz", x=images[..., 0], y=np.array(list("ccbbaadd")))
    source = folder(tmp_path / "grey.npz", fractions=[1, 0, 0])
    assert names(source)["train"] == list("abcd")
    assert shades(source, "train") == [[4, 5], [2, 3], [0, 1], [6, 7]]


# pixels


@pytest.mark.parametrize("channels", [1, 3])
def test_any_mixture_of_images_has_one_form(tmp_path, channels):
    for i, mode in enumerate(["L", "RGB", "RGBA", "P", "1", "LA", "I;16"]):
        paint(tmp_path / "abc"[i % 3] / f"{i}.png", 255, (3 + 5 * i, 40 - 5 * i), mode if mode != "I;16" else "L")
    paint(tmp_path / "a" / "photo.jpg", 255, (50, 20), "CMYK")
    source = folder(tmp_path, channels=channels)
    images = [image for found in source.splits().values() for category in found for image in source.read(category.keys)]
    assert {(image.shape, image.dtype.name) for image in images} == {((channels, 6, 6), "uint8")}
    assert len(images) == 8 and min(image.min() for image in images) >= 253


def test_invert_makes_ink_bright(tmp_path):
    grow(tmp_path, "abc")
    plain, inverted = folder(tmp_path, channels=1), folder(tmp_path, channels=1, invert=True)
    for split in SPLITS:
        assert shades(inverted, split) == [[255 - shade for shade in row] for row in shades(plain, split)]


def test_fit(tmp_path):
    for name in "abc":
        image = np.zeros((6, 18), np.uint8)
        image[:, 6:12] = 255
        (tmp_path / name).mkdir()
        Image.fromarray(image).save(tmp_path / name / "0.png")
    means = [
        next(s.read(s.splits()["val"][0].keys)).mean() for s in (folder(tmp_path), folder(tmp_path, fit="stretch"))
    ]
    assert means[0] == 255 and means[1] == pytest.approx(85, abs=8)


def test_it_is_stored(tmp_path):
    source = folder(grow(tmp_path / "root", ["x/a", "x/b", "y/c"]), channels=1)
    built = store.build(source, tmp_path / "cache")
    for split in SPLITS:
        stored = store.Split(built, split)
        assert stored.names == names(source)[split]
        images = [list(image.ravel()) for c in source.splits()[split] for image in source.read(c.keys)]
        assert stored.images.reshape(-1, 36).tolist() == images
        assert stored.groups == [category.group for category in source.splits()[split]]


# fingerprints


def test_fingerprint_follows_files_and_settings(tmp_path):
    def fingerprints():
        changes = [{}, {"channels": 1}, {"image_size": 7}, {"fit": "stretch"}, {"invert": True}]
        changes += [{"split_seed": 1}, {"fractions": [0.2, 0.2, 0.6]}, {"splits": "s.csv"}]
        return [folder(tmp_path, **change).fingerprint() for change in changes]

    (grow(tmp_path, LETTERS) / "s.csv").write_text("class,split\na,train\nb,test\n")
    seen = fingerprints()
    assert len(set(seen)) == len(seen) and fingerprints() == seen
    paint(tmp_path / "a" / "0.png", 3, (9, 9))
    seen += fingerprints()
    (tmp_path / "a" / "0.png").rename(tmp_path / "a" / "00.png")
    seen += fingerprints()
    os.utime(tmp_path / "a" / "00.png", ns=(0, 1))
    seen += fingerprints()
    paint(tmp_path / "a" / "2.png")
    seen += fingerprints()
    assert len(set(seen)) == len(seen)
    (tmp_path / "s.csv").write_text("class,split\na,train\nc,test\n")
    assert [old == new for old, new in zip(seen[-8:], fingerprints(), strict=True)] == [True] * 7 + [False]


# draws


@pytest.mark.parametrize("count", [3, 4, 5, 10, 37, 100, 1000])
@pytest.mark.parametrize("fractions", [[0.64, 0.16, 0.20], [0.0, 0.5, 0.5], [0.98, 0.01, 0.01], [1, 0, 0]])
def test_draw_follows_the_fractions(count, fractions):
    drawn = divide([f"class {i}" for i in range(count)], None, fractions, 0)
    assert len(set(chain.from_iterable(drawn.values()))) == sum(map(len, drawn.values())) == count
    for fraction, split in zip(fractions, SPLITS, strict=True):
        assert len(drawn[split]) >= 1 if fraction else not drawn[split]
        assert abs(len(drawn[split]) - fraction * count) < 2
    if count == 100 and fractions[0] == 0.64:
        assert [len(drawn[split]) for split in SPLITS] == [64, 16, 20]


def test_draw_depends_on_names_and_seed_alone():
    classes = [f"class {i}" for i in range(50)]
    draws = [divide(classes, None, [0.5, 0.2, 0.3], seed) for seed in range(40)]
    assert divide(classes[::-1], None, [0.5, 0.2, 0.3], 7) == draws[7]
    assert len({tuple(draw["test"]) for draw in draws}) == 40
    # every class is in the test split of about 3 draws in 10: 600 places of 15 a draw
    often = [sum(name in draw["test"] for draw in draws) for name in classes]
    assert sum(often) == 600 and min(often) >= 1 and max(often) <= 25


# sentences


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", r"s\.json cannot be read as JSON"),
        ('["a"]', r"expected .*s\.json to be {\"train\": \[class, \.\.\.\]"),
        ('{"training": ["a"]}', "to be {"),
        ('{"train": "abc"}', "to be {"),
        ('{"train": [1, 2]}', "names in quotes"),
        (
            '{"train": ["a", "b"], "test": ["c", "a"]}',
            r"common class in .*s\.json, but class 'a' is in train and again in test",
        ),
        ('{"train": ["a", "a"]}', "class 'a' is in train and again in train"),
        (
            '{"train": ["a"], "val": ["Z"]}',
            r"class 'Z' in the val split of dataset=folder, but the files hold none \(1 classes",
        ),
    ],
)
def test_sentences_on_json_splits(tmp_path, content, sentence):
    (grow(tmp_path, "abc") / "s.json").write_text(content)
    assert re.search(sentence, refused(folder(tmp_path, splits="s.json")))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "one column each for class and split in .*, got the columns of an empty file"),
        (b"class,split\n", "lines of class and split in .*, got its header only"),
        (b"a,train\nb,test\n", "to be a header, such as class,split, got a, train: add that line"),
        (b"class,split\na\n", r"class and split in line 2 of .*s\.csv, got \['a'\]"),
        (b"class,split\n\na,train\n,test\n", r"line 4 of .*, got \['', 'test'\]"),
        (b"class,split\na,holdout\n", "class 'a' in line 2 of .*, got 'holdout': write train, val or test"),
        (b"class,split\na,train\na,test\n", "class 'a' is in train and again in test"),
        (b"class,split\n\xff\xfe,train\n", "cannot be read as CSV"),
        (b"class,split\n" + b"a" * 200_000 + b",train\n", "cannot be read as CSV"),
    ],
)
def test_sentences_on_csv_splits(tmp_path, content, sentence):
    (grow(tmp_path, "abc") / "s.csv").write_bytes(content)
    assert re.search(sentence, refused(folder(tmp_path, splits="s.csv")))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("a/0.png,x\na/1.png,y\n", r"to be a header, such as file,class, got a/0\.png, x: add that line"),
        ("file,class\na/0.png,x\n./a/0.png,y\n", r"to list an image once, got a/0\.png 2 times"),
        ("file,class\na/0.png,x\nb/0.png,y\na/0.png,x\n", r"to list an image once, got a/0\.png 2 times"),
        (
            "file,class\na/0.png,x\nb/9.png,y\nb/8.png,y\n",
            r"expected 3 listed files, but .*b/8\.png is missing, the first of 2",
        ),
        ("file\na/0.png\n", r"for file and class in .*, got the columns file: type '.*\{file:file,class:NAME\}'"),
    ],
)
def test_sentences_on_labels(tmp_path, content, sentence):
    (grow(tmp_path, "abc") / "l.csv").write_text(content)
    assert re.search(sentence, refused(folder(tmp_path, labels="l.csv")))


def test_sentences_on_files_that_are_not_there(tmp_path):
    grow(tmp_path, "abc")
    assert "a file in dataset.splits, but s.csv exists neither in the working directory nor in" in refused(
        folder(tmp_path, splits="s.csv")
    )
    assert "a file in dataset.labels, but l.csv exists neither in the working directory nor in" in refused(
        folder(tmp_path, labels="l.csv")
    )
    assert "is not a folder" in refused(folder(tmp_path / "nowhere"))
    assert "is not a folder" in refused(folder(tmp_path / "a" / "0.png"))
    assert "set.npz" in refused(folder(tmp_path / "set.npz"))


@pytest.mark.parametrize("labels", [None, "l.csv"])
def test_the_error_on_an_archive_unpacks_it(tmp_path, labels):
    archive, photos = tmp_path / "my photos.zip", grow(tmp_path / "photos", "abc")
    (tmp_path / "l.csv").write_text("file,class\na/0.png,x\n")
    shutil.make_archive(str(archive.with_suffix("")), "zip", photos)
    said = refused(folder(archive, labels=labels and str(tmp_path / labels)))
    assert said.startswith(f"expected a folder of images, got the archive {archive}: unpack it with python -m zipfile ")
    command = shlex.split(said.partition("unpack it with ")[2].partition(", and")[0])
    subprocess.run([sys.executable, *command[1:]], check=True)
    assert names(folder(command[-1])) == names(folder(photos))


@pytest.mark.parametrize("splits", [None, "s.json"])
def test_columns_without_a_csv_file_are_refused(tmp_path, splits):
    grow(tmp_path, "abc")
    (tmp_path / "s.json").write_text('{"train": ["a", "b"], "test": ["c"]}')
    said = refused(folder(tmp_path, splits=splits, columns={"class": "kind"}))
    assert "expected a CSV file for the columns that dataset.columns names, got none" in said


def test_sentences_on_arrays(tmp_path):
    file, images = tmp_path / "set.npz", np.zeros((3, 5, 5), np.uint8)
    np.savez(file, x=images, y=[0, 1, 2], names=["ant", "bee"])
    assert "got 2, none for label 2" in refused(folder(file))
    np.savez(file, x=images, y=[0, 1, 1], names=["ant", "ant"])
    assert "got 2, the same twice" in refused(folder(file))
    np.savez(file, x=images, y=[0, 1, 2])
    assert "dataset.labels=null" in refused(folder(file, labels="l.csv"))
    file.write_bytes(b"not a zip file")
    assert str(file) in refused(folder(file))


def test_sentence_on_too_few_classes(tmp_path):
    grow(tmp_path, "ab")
    said = "at least 3 classes to draw 3 splits from, got 2 (a, b): add classes, or type dataset.fractions=[1,0,0] "
    assert said in refused(folder(tmp_path))
    assert [len(found) for found in names(folder(tmp_path, fractions=[0.5, 0, 0.5])).values()] == [1, 0, 1]


@pytest.mark.parametrize(
    "fractions", [[0.5, 0.5], [0.5, 0.2, 0.2], [-0.2, 0.6, 0.6], 0.5, ["a", 0, 1], [float("nan")] * 3]
)
def test_sentence_on_fractions(tmp_path, fractions):
    with pytest.raises(
        UsageError, match=r"dataset\.fractions to be three non-negative numbers.*type dataset\.fractions=\[0\.64,"
    ):
        folder(tmp_path, fractions=fractions)


# real data


def test_caltech101():
    root = REAL_DATA / "caltech101" / "101_ObjectCategories"
    listing = REAL_DATA / "splits" / "caltech101_64_16_20_seed0.json"
    if not (root.is_dir() and listing.is_file()):
        pytest.skip("set METAFEW_DATA to a folder with caltech101/ to run this")
    source = folder(root, splits=str(listing), image_size=84)
    splits = source.splits()
    assert [len(splits[split]) for split in SPLITS] == [64, 16, 20]
    assert sum(len(set(category.keys)) for found in splits.values() for category in found) == 6198
    image = next(source.read(splits["test"][0].keys))
    assert image.shape == (3, 84, 84) and image.dtype == np.uint8 and image.std() > 20
