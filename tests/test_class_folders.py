"""What is read of a folder of images, what is counted as not read, and which layouts are refused."""

import logging
import os
import unicodedata
from itertools import chain

import pytest
from image_folders import folder, grow, names, paint, refused

from metafew.data.formats.scan import Scan
from metafew.data.formats.tree import Tree


def classes(source):
    return sorted(chain.from_iterable(names(source).values()))


# what is not read


def test_everything_that_is_not_read_is_counted(tmp_path, caplog):
    grow(tmp_path, ["cat", "dog"])
    for file in ("cat/a.heic", "cat/b.heic", "cat/notes.txt", "npy/0.npy", "npy/1.npy", "dog/noname"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(b"")
    for junk in ("@eaDir/cat", "cat/@eaDir", "#recycle/dog", ".git/a"):
        paint(tmp_path / junk / "0.png")
    paint(tmp_path / "cat" / "._0.png")
    paint(tmp_path / "stray.png")
    (tmp_path / "hollow" / "deeper").mkdir(parents=True)
    (tmp_path / "cat" / "dead.png").symlink_to("nowhere.png")
    (tmp_path / "gone").symlink_to("nowhere")
    (tmp_path / "cat" / "round.png").symlink_to("round.png")
    os.mkfifo(tmp_path / "dog" / "pipe.png")
    with caplog.at_level(logging.WARNING):
        source = folder(tmp_path, fractions=[0.5, 0, 0.5])
        assert classes(source) == ["cat", "dog"]
    assert source.ignored == {
        "*.heic in cat": 2,
        "*.npy in npy": 2,
        "*.txt in cat": 1,
        "file without suffix in dog": 1,
        "folder without images: hollow": 1,
        "folder without images: npy": 1,
        "hidden file ._*": 1,
        "hidden folder #recycle": 1,
        "hidden folder .git": 1,
        "hidden folder @eaDir": 2,
        "images outside of class folders: stray.png": 1,
        "link to a missing file: cat/dead.png": 1,
        "link to a missing file: cat/round.png": 1,
        "link to a missing file: gone": 1,
        "pipe, socket or device: dog/pipe.png": 1,
    }
    (warning,) = caplog.messages
    missed = ("*.heic in cat (2)", "npy (1)", "hollow (1)", "stray.png", "dead.png", "gone", "pipe.png", "dog (1)")
    assert all(word in warning for word in missed)
    assert not any(word in warning for word in ("hidden", "txt", "deeper"))


def test_nothing_is_said_of_a_folder_that_is_read_whole(tmp_path, caplog):
    (grow(tmp_path, ["cat", "dog"]) / "README.md").touch()
    (tmp_path / "cat" / ".DS_Store").touch()
    assert Tree(tmp_path).ignored == {f"*.md in {tmp_path.name}": 1, "hidden file .DS_Store": 1}
    assert not caplog.messages


def test_many_places_are_counted_together(tmp_path):
    for i in range(9):
        paint(tmp_path / f"c{i}" / "0.png")
        (tmp_path / f"c{i}" / "0.xml").touch()
        (tmp_path / f"c{i}" / "1.xml").touch()
    ignored = Tree(tmp_path).ignored
    assert ignored["*.xml in c0"] == 2 and ignored["*.xml in 5 more"] == 10 and sum(ignored.values()) == 18


def test_no_folder_is_read_twice(tmp_path):
    grow(tmp_path / "root", ["a", "b"])
    grow(tmp_path, ["outside"])
    (tmp_path / "root" / "a" / "to_b").symlink_to(tmp_path / "root" / "b")
    (tmp_path / "root" / "b" / "to_a").symlink_to(tmp_path / "root" / "a")
    (tmp_path / "root" / "0").symlink_to(tmp_path / "root" / "b")
    (tmp_path / "root" / "c").symlink_to(tmp_path / "outside")
    (tmp_path / "root" / "d").symlink_to(tmp_path / "outside")
    tree = Tree(tmp_path / "root")
    assert list(tree.classes) == ["a", "b", "c"]
    twice = "link to a folder that is read under another name:"
    assert tree.ignored == {f"{twice} {name}": 1 for name in ("0", "a/to_b", "b/to_a", "d")}


def test_links_to_hidden_folders_are_followed(tmp_path):
    grow(tmp_path / ".store", ["a"])
    (tmp_path / "cat").symlink_to(tmp_path / ".store" / "a")
    assert list(Tree(tmp_path).classes) == ["cat"]


def test_images_and_classes_that_a_file_leaves_out_are_counted(tmp_path, caplog):
    (grow(tmp_path, ["a", "b", "c"]) / "l.csv").write_text("file,class,set\na/0.png,x,train\nb/0.png,y,test\n")
    source = folder(tmp_path, labels="l.csv", fractions=[0.5, 0, 0.5])
    assert source.ignored == {"image that l.csv does not list": 4, "column set of l.csv": 2}
    assert "l.csv has columns that are not read: set" in caplog.text
    (tmp_path / "s.csv").write_text("class,split\na,train\nb,test\n")
    assert folder(tmp_path, splits="s.csv").ignored == {
        "image of 1 classes in no split, such as c": 2,
        f"*.csv in {tmp_path.name}": 2,
    }


# what is a class


def test_numbers_in_names_are_ordered_by_value(tmp_path):
    grow(tmp_path, ["a10", "a2", "b1", "a02", "B1"])
    assert list(Tree(tmp_path).classes) == ["B1", "a02", "a2", "a10", "b1"]
    assert names(folder(tmp_path, fractions=[0, 0, 1]))["test"] == ["B1", "a02", "a2", "a10", "b1"]


def test_a_folder_called_images_belongs_to_the_class_that_holds_it(tmp_path):
    grow(tmp_path, ["n1/images", "n2/images", "n3/Images"])
    (tmp_path / "n1" / "n1_boxes.txt").touch()
    tree = Tree(tmp_path)
    assert tree.classes["n1"] == ("n1/images/0.png", "n1/images/1.png") and list(tree.classes) == ["n1", "n2", "n3"]
    grow(tmp_path, ["n3/masks"])
    assert list(Tree(tmp_path).classes) == ["n1", "n2", "n3/Images", "n3/masks"]
    assert list(Tree(grow(tmp_path / "other", ["images"])).classes) == ["images"]


@pytest.mark.parametrize(
    ("folders", "got"),
    [
        (["dog", "dog/puppies", "emu"], "images of classes in dog and in dog/puppies"),
        (["cat/autumn", "cat/spring", "dog"], "images of classes in dog and in cat/spring"),
        (["cat", "dog", "x/y/z"], "images of classes in cat and in x/y/z"),
    ],
)
def test_class_folders_of_unequal_depth_are_refused(tmp_path, folders, got):
    message = refused(folder(grow(tmp_path, folders)))
    assert got in message and "dataset.layout=classes" in message and "dataset.layout=top" in message
    assert classes(folder(tmp_path, layout="classes", fractions=[0.5, 0, 0.5])) == sorted(folders)
    tops = sorted({name.partition("/")[0] for name in folders})
    assert classes(folder(tmp_path, layout="top", fractions=[0.5, 0, 0.5])) == tops


def test_the_images_of_a_class_are_all_below_its_folder_with_layout_top(tmp_path):
    source = folder(grow(tmp_path, ["cat/autumn", "cat/spring", "dog"]), layout="top", fractions=[0.5, 0, 0.5])
    sizes = {category.name: len(category.keys) for found in source.splits().values() for category in found}
    assert sizes == {"cat": 4, "dog": 2}


@pytest.mark.parametrize("word", ["test", "Train", "validation", "training"])
@pytest.mark.parametrize("place", ["data/{}/a", "a/{}"])
def test_folders_of_splits_in_other_folders_are_refused(tmp_path, word, place):
    grow(tmp_path, [place.format(word), place.format("z")])
    message = refused(folder(tmp_path))
    assert f"such as {place.format(word)}" in message and "type dataset.root=DIR" in message
    assert place.format(word) in classes(folder(tmp_path, layout="classes", fractions=[0.5, 0, 0.5]))


def test_other_folders_beside_those_of_splits_are_refused(tmp_path):
    grow(tmp_path, ["train/a", "test/b", "val/c", "extra/d"])
    message = refused(folder(tmp_path))
    assert "got test, train, val beside extra: type dataset.layout=splits" in message
    source = folder(tmp_path, layout="splits")
    assert names(source) == {"train": ["a"], "val": ["c"], "test": ["b"]}
    assert source.ignored == {"folder beside those of the splits: extra": 1}
    assert classes(folder(tmp_path, layout="classes")) == ["extra/d", "test/b", "train/a", "val/c"]


def test_folders_without_images_beside_those_of_splits_are_counted(tmp_path):
    grow(tmp_path, ["training/a", "testing/b"])
    (tmp_path / "annotations" / "deeper").mkdir(parents=True)
    source = folder(tmp_path)
    assert names(source) == {"train": ["a"], "val": [], "test": ["b"]}
    assert source.ignored == {"folder beside those of the splits: annotations": 1}


def test_links_from_a_split_to_a_folder_that_is_not_read_are_followed(tmp_path):
    grow(tmp_path, ["all/a", "all/b"])
    for split, name in (("train", "a"), ("test", "b")):
        (tmp_path / split).mkdir()
        (tmp_path / split / name).symlink_to(tmp_path / "all" / name)
    assert names(folder(tmp_path, layout="splits")) == {"train": ["a"], "val": [], "test": ["b"]}
    (tmp_path / "test" / "again").symlink_to(tmp_path / "train" / "a")
    assert "train, got images without classes, or none of its own" in refused(folder(tmp_path, layout="splits"))
    assert "got test, train beside all" in refused(folder(tmp_path))


def test_the_tree_of_tiny_imagenet_is_read_from_its_training_folder(tmp_path):
    grow(tmp_path, ["train/n1/images", "train/n2/images", "val/images", "test/images"])
    (tmp_path / "wnids.txt").touch()
    (tmp_path / "val" / "val_annotations.txt").touch()
    message = refused(folder(tmp_path))
    assert "got images without classes" in message and f"type dataset.root={tmp_path / 'train'}," in message
    assert classes(folder(tmp_path / "train", fractions=[0.5, 0, 0.5])) == ["n1", "n2"]


def test_the_same_classes_in_every_split_are_refused_with_advice(tmp_path):
    grow(tmp_path, ["train/a", "train/b", "test/a"])
    message = refused(folder(tmp_path))
    assert "class 'a' is in " in message and f"type dataset.root={tmp_path / 'train'}, whose classes" in message


def test_layouts_that_do_not_fit_are_refused(tmp_path):
    grow(tmp_path, ["a", "b"])
    assert "got none" in refused(folder(tmp_path, layout="splits"))
    with pytest.raises(Exception, match=r"dataset\.layout to be auto or classes or top or splits, got flat"):
        folder(tmp_path, layout="flat")
    (tmp_path / "l.csv").write_text("file,class\na/0.png,x\n")
    assert "expected dataset.layout=auto, as l.csv contains the labels" in refused(
        folder(tmp_path, layout="top", labels="l.csv")
    )


# Unicode


@pytest.mark.parametrize(("form", "other"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_match_in_any_unicode_form(tmp_path, form, other):
    name, written = (unicodedata.normalize(each, "café") for each in (form, other))
    grow(tmp_path, ["a", name])
    (tmp_path / "s.csv").write_text(f"class,split\na,train\n{written},test\n", encoding="utf-8")
    source = folder(tmp_path, splits="s.csv")
    assert names(source)["test"] == [unicodedata.normalize("NFC", "café")]
    assert len(list(source.read(source.splits()["test"][0].keys))) == 2
    (tmp_path / "l.csv").write_text(f"file,class\na/0.png,{name}\n{written}/0.png,{written}\n", encoding="utf-8")
    source = folder(tmp_path, labels="l.csv", fractions=[1, 0, 0])
    ((category,),) = (found for found in source.splits().values() if found)
    assert len(list(source.read(category.keys))) == 2


def test_two_folders_of_one_name_are_refused(tmp_path):
    grow(tmp_path, [unicodedata.normalize(form, "café") for form in ("NFC", "NFD")])
    if len(os.listdir(tmp_path)) < 2:
        pytest.skip("this file system has one Unicode form")
    assert "different Unicode forms: rename one" in refused(folder(tmp_path))


# the option itself


@pytest.mark.parametrize(
    ("root", "got"), [("", "none"), (" ", "none"), (None, "none"), (True, "the bool True"), ([1], "the list")]
)
def test_roots_that_are_no_paths_are_refused(root, got):
    source = folder(None)
    source.root = root
    assert f"expected a path in dataset.root, got {got}" in refused(source) and "type dataset.root=" in refused(source)


def test_a_number_is_the_name_of_a_folder(tmp_path, monkeypatch):
    grow(tmp_path, ["2021/a", "2021/b"])
    monkeypatch.chdir(tmp_path)
    source = folder(None, fractions=[0.5, 0, 0.5])
    source.root = 2021
    assert classes(source) == ["a", "b"]


def test_a_scan_of_a_file_is_refused(tmp_path):
    with pytest.raises(Exception, match=r"0\.png is not a folder"):
        Scan(paint(tmp_path / "a" / "0.png"))
