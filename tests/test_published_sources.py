import csv
import gc
import io
import json
import os
import pickle
import tarfile
import weakref
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
from conftest import REAL_DATA
from PIL import Image

from metafew.data.formats.arrays import Arrays, read_npz, read_pickle
from metafew.data.formats.damage import intact
from metafew.data.sources import cifar, cub, shipped_split
from metafew.data.sources.cifar import CIFARFS, FC100
from metafew.data.sources.cub import CUB
from metafew.data.sources.mini_imagenet import MiniImageNet
from metafew.data.sources.tiered_imagenet import TieredImageNet
from metafew.errors import UsageError

SPLITS = ["train", "val", "test"]
SIDE = 6  # pixels of the images made here; sources are asked for this size, so that nothing is resampled
MINI = shipped_split("mini_imagenet")
TIERED = {s: [w for wnids in tiers.values() for w in wnids] for s, tiers in shipped_split("tiered_imagenet").items()}


class Python2Pickler(pickle._Pickler):
    """Writes what Python 2 wrote: strings and bytes are the same byte strings."""

    dispatch = pickle._Pickler.dispatch.copy()

    def save_bytes(self, obj):
        self.write(pickle.BINSTRING + len(obj).to_bytes(4, "little") + obj)

    def save_str(self, obj):
        self.save_bytes(obj.encode("latin1"))

    dispatch[bytes] = save_bytes
    dispatch[str] = save_str


def pickled(content):
    Python2Pickler(file := io.BytesIO(), protocol=2).dump(content)
    return file.getvalue().replace(b"numpy._core.", b"numpy.core.")


def picture(name, number=0):
    """Pixels that tell the class, the image and the channels apart."""
    rng = np.random.default_rng([number, *name.encode()])
    return rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


def plain(name, number=0):
    """An image of one colour, which JPEG leaves as it is, about."""
    return np.broadcast_to(picture(name, number)[0, 0], (SIDE, SIDE, 3)).copy()


def write_image(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, quality=95, subsampling=0)


def encoded(image, form="PNG"):
    Image.fromarray(image).save(file := io.BytesIO(), form)
    return file.getvalue()


def stacked(classes, images=1):
    """The images and labels of classes, as in a file that lists them class after class."""
    pictures = np.stack([picture(name, number) for name in classes for number in range(images)])
    return pictures, np.repeat(np.arange(len(classes)), images)


def assert_disjoint(splits, counts):
    assert list(splits) == SPLITS
    assert [len(splits[split]) for split in SPLITS] == counts
    names = [category.name for categories in splits.values() for category in categories]
    keys = [key for categories in splits.values() for category in categories for key in category.keys]
    assert len(names) == len(set(names)) and len(keys) == len(set(keys))


def assert_sentence(found, *parts):
    text = str(found.value)
    assert "\n" not in text and all(part in text for part in parts), text


def refused(source, *parts):
    with pytest.raises(UsageError) as found:
        for categories in source.splits().values():
            list(source.read([category.keys[0] for category in categories]))
    assert_sentence(found, *parts)


# arrays


def test_arrays_have_classes_in_the_order_of_labels():
    images = np.arange(4 * 2 * 2 * 3, dtype=np.uint8).reshape(4, 2, 2, 3)
    collection = Arrays(images, [10, 9, 10, 9], None, [])
    assert collection.classes == {"9": (1, 3), "10": (0, 2)}
    assert list(collection.classes) == ["9", "10"]
    assert [(image == images[key]).all() for key, image in zip([2, 0, 2], collection.open([2, 0, 2]), strict=True)]
    assert Arrays(images, ["b", "a", "b", "b"], {"a": "ant", "b": "bee"}, []).classes == {"ant": (1,), "bee": (0, 2, 3)}


def test_arrays_are_loaded_by_reading_and_let_go_of_after_it():
    loaded = []

    def load():
        images = np.zeros((3, 2, 2), np.uint8)
        loaded.append(weakref.ref(images))
        return images

    collection = Arrays(load, [0, 0, 1], None, [])
    assert not loaded
    for _ in range(2):
        assert len([image.copy() for image in collection.open([0, 2])]) == 2
        gc.collect()
        assert loaded[-1]() is None
    assert len(loaded) == 2


@pytest.mark.parametrize("form", ["bytes", "array", "opencv"])
def test_arrays_decode_encoded_images(form):
    content = encoded(picture("a"))
    row = {"bytes": content, "array": np.frombuffer(content, np.uint8)}
    row["opencv"] = row["array"][:, None]
    assert (np.asarray(next(Arrays([row[form]], [0], None, []).open([0]))) == picture("a")).all()


@pytest.mark.parametrize("images", [np.zeros((2, 4, 4)), np.zeros((2, 4, 4, 2), np.uint8), [b"x", b"y"], ["x", "y"]])
def test_arrays_refuse_what_is_no_image(images):
    with pytest.raises(UsageError, match="image 1 of "):
        list(Arrays(images, [0, 1], None, [Path("f.npz")]).open([1]))


def test_a_damaged_image_in_an_array_is_taken_out_of_its_file():
    with pytest.raises(UsageError, match=r"^image 1 of f\.npz cannot .*: replace it or take it out of the file$"):
        list(intact(Arrays([encoded(picture("a")), b"x"], [0, 1], None, [Path("f.npz")]).open([0, 1])))


def test_arrays_refuse_another_number_of_labels():
    with pytest.raises(UsageError, match="3 labels for 2 images"):
        list(Arrays(np.zeros((2, 4, 4), np.uint8), [0, 1, 1], None, []).open([0]))


@pytest.mark.parametrize("image", ["images", "image_data", "data", "x"])
@pytest.mark.parametrize("label", ["labels", "targets", "y", "label_specific"])
def test_npz_and_pickles_under_the_usual_names(tmp_path, image, label):
    images, labels = stacked("abc", 2)
    np.savez(tmp_path / "f.npz", **{image: images, label: labels})
    (tmp_path / "f.pkl").write_bytes(pickled({image: images, label: labels.tolist()}))
    for content in (read_npz(tmp_path / "f.npz"), read_pickle(tmp_path / "f.pkl")):
        assert (content.images() == images).all() and (content.labels == labels).all() and content.names is None


def test_npz_labels_are_read_without_the_images(tmp_path):
    np.savez(tmp_path / "f.npz", images=stacked("ab")[0], labels=[0, 1])
    with ZipFile(tmp_path / "f.npz") as archive:
        place = archive.getinfo("images.npy").header_offset
    content = bytearray((tmp_path / "f.npz").read_bytes())
    content[place + 300] ^= 255
    (tmp_path / "f.npz").write_bytes(content)
    found = read_npz(tmp_path / "f.npz")
    assert found.labels.tolist() == [0, 1]
    with pytest.raises(UsageError, match=r"f\.npz cannot be read as an \.npz file .*CRC"):
        found.images()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"pictures": [0], "labels": [0]}, "lacks images or"),
        ({"images": [0]}, "lacks labels or"),
        ({"images": [0], "labels": [0.5]}, "integers or strings"),
        ({"images": [0], "labels": [[0]]}, r"shape \(1, 1\)"),
        ({"images": [None], "labels": np.array([None])}, "Object arrays|object"),
    ],
)
def test_npz_and_pickles_of_something_else(tmp_path, content, sentence):
    np.savez(tmp_path / "f.npz", **{name: np.array(value) for name, value in content.items()})
    (tmp_path / "f.pkl").write_bytes(pickled(content))
    for read, file in ((read_npz, "f.npz"), (read_pickle, "f.pkl")):
        with pytest.raises(UsageError, match=rf"f\.(npz|pkl)[^\n]*({sentence})"):
            read(tmp_path / file)


@pytest.mark.parametrize("rows", [{"a": [0]}, {"a": [0, 1, 2]}, {"a": ["x"]}, [0, 1], {"a": [0.5, 1.5, None]}])
def test_pickled_rows_must_be_those_of_the_images(tmp_path, rows):
    (tmp_path / "f.pkl").write_bytes(pickled({"image_data": stacked("ab")[0], "class_dict": rows}))
    with pytest.raises(
        UsageError, match=r"f\.pkl cannot be read as images with one label each, or a place in class_dict"
    ):
        read_pickle(tmp_path / "f.pkl")


@pytest.mark.parametrize(
    "content",
    [
        {"images": 5, "class_dict": {"a": [0]}},
        {"images": [0, 1], "labels": [[0], [1, 2]]},
        {"images": [0], "labels": [0], "catname2label": [0]},
    ],
)
def test_pickles_without_order(tmp_path, content):
    (tmp_path / "f.pkl").write_bytes(pickled(content))
    with pytest.raises(UsageError, match=r"f\.pkl cannot be read as images with one label each"):
        read_pickle(tmp_path / "f.pkl")


def test_pickled_names_must_be_those_of_the_labels(tmp_path):
    content = {"data": stacked("ab")[0], "labels": [0, 1], "catname2label": {"a": 0}}
    (tmp_path / "f.pkl").write_bytes(pickled(content))
    with pytest.raises(UsageError, match=r"f\.pkl .*catname2label lacks 1"):
        read_pickle(tmp_path / "f.pkl")


@pytest.mark.parametrize("content", [b"", b"PK\3\4 no zip", b"junk", pickle.dumps(np.zeros(3))])
def test_damaged_npz(tmp_path, content):
    (tmp_path / "f.npz").write_bytes(content)
    with pytest.raises(UsageError, match=r"f\.npz cannot be read as an \.npz file of arrays"):
        read_npz(tmp_path / "f.npz")


def test_a_single_array_is_no_npz(tmp_path):
    with (tmp_path / "f.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(UsageError, match="single array"):
        read_npz(tmp_path / "f.npz")


# CIFAR-100

PAIRS = sorted((fine, coarse) for pairs in shipped_split("cifar_fs").values() for coarse, fine in pairs)
FINE, COARSE = [fine for fine, _ in PAIRS], sorted({coarse for _, coarse in PAIRS})


def cifar_files():
    """The authors' three files, with 2 training images and 1 test image a class."""
    rng = np.random.default_rng(0)
    files = {"meta": {"fine_label_names": FINE, "coarse_label_names": COARSE}}
    for name, images in (("train", 2), ("test", 1)):
        fine = rng.permutation(np.repeat(np.arange(100), images))
        files[name] = {
            "data": rng.integers(0, 256, (len(fine), 3072), dtype=np.uint8),
            "fine_labels": fine.tolist(),
            "coarse_labels": [COARSE.index(PAIRS[label][1]) for label in fine],
            "filenames": [f"image_{row}.png" for row in range(len(fine))],
            "batch_label": f"{name}ing batch 1 of 1",
        }
    return files


def write_cifar(root, files, form="archive"):
    files = {name: each if isinstance(each, bytes) else pickled(each) for name, each in files.items()}
    if form == "folder":
        (root / "cifar-100-python").mkdir(parents=True)
        for name, content in files.items():
            (root / "cifar-100-python" / name).write_bytes(content)
        return root
    root.mkdir(exist_ok=True)
    with tarfile.open(root / "cifar-100-python.tar.gz", "w:gz", compresslevel=1) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(f"cifar-100-python/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return root


@pytest.mark.parametrize("form", ["archive", "folder"])
@pytest.mark.parametrize(("source", "counts"), [(CIFARFS, [64, 16, 20]), (FC100, [60, 20, 20])])
def test_cifar_classes_and_pixels(tmp_path, form, source, counts):
    files = cifar_files()
    images = source(str(write_cifar(tmp_path, files, form)), 32, False)
    splits = images.splits()
    assert_disjoint(splits, counts)
    superclass = dict(PAIRS)
    for split, categories in splits.items():
        pairs = {(superclass[category.name], category.name) for category in categories}
        if source is CIFARFS:
            assert pairs == set(map(tuple, shipped_split("cifar_fs")[split]))
        else:
            assert {above for above, _ in pairs} == set(shipped_split("fc100")[split])
    for category in (splits["train"][0], splits["test"][-1]):
        rows = [
            data.reshape(3, 32, 32)
            for name in ("train", "test")
            for data, label in zip(files[name]["data"], files[name]["fine_labels"], strict=True)
            if FINE[label] == category.name
        ]
        assert len(category.keys) == len(rows) == 3
        assert np.array_equal(list(images.read(category.keys)), rows)


def test_cifar_fingerprint_follows_the_file_the_split_and_the_size(tmp_path):
    root = str(write_cifar(tmp_path, cifar_files()))
    before = {CIFARFS(root, 32, False).fingerprint(), FC100(root, 32, False).fingerprint()}
    before.add(CIFARFS(root, 28, True).fingerprint())
    assert len(before) == 3 and CIFARFS(root, 28, False).fingerprint() in before
    os.utime(tmp_path / "cifar-100-python.tar.gz", (1, 1))
    assert CIFARFS(root, 28, True).fingerprint() not in before


def test_cifar_one_folder_serves_both_and_constructors_read_nothing(tmp_path):
    with pytest.raises(UsageError) as found:
        FC100(str(tmp_path / "absent"), 32, False).splits()
    assert_sentence(found, "dataset=fc100", *cifar.ARCHIVE.urls, "download=false", "dataset.root=DIR")


@pytest.mark.parametrize("name", ["train", "test", "meta"])
@pytest.mark.parametrize("form", ["archive", "folder"])
def test_cifar_damaged_pickle(tmp_path, name, form):
    files = {key: pickled(content) for key, content in cifar_files().items()}
    files[name] = files[name][:-40]
    where = "cifar-100-python.tar.gz" if form == "archive" else f"cifar-100-python/{name}"
    refused(
        CIFARFS(str(write_cifar(tmp_path, files, form)), 32, False), where, name, "cannot be read as a pickle of arrays"
    )


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("train", {"data": np.zeros((200, 3071), np.uint8)}, "data uint8 (200, 3071)"),
        ("train", {"data": np.zeros((200, 3072))}, "data float64"),
        ("test", {"coarse_labels": [0]}, "coarse_labels int64 (1,)"),
        ("test", {"fine_labels": None}, "fine_labels object ()"),
        ("test", {"fine_labels": [[0], [1, 2]]}, "ValueError"),
        ("meta", {"fine_label_names": FINE[:-1]}, "cannot be read as the class names"),
        ("meta", {"coarse_label_names": None}, "cannot be read as the class names"),
        ("meta", {"fine_label_names": ["emu", *FINE[1:]]}, "expected images of class 'apple' in the train split"),
    ],
)
def test_cifar_files_of_something_else(tmp_path, name, change, sentence):
    files = cifar_files()
    files[name] |= change
    refused(CIFARFS(str(write_cifar(tmp_path, files)), 32, False), sentence)


def test_cifar_archive_without_a_member(tmp_path):
    files = cifar_files()
    del files["meta"]
    refused(CIFARFS(str(write_cifar(tmp_path, files)), 32, False), "cifar-100-python.tar.gz", "meta")


# mini-ImageNet


def mini_folders(root, prefix=""):
    for wnids in MINI.values():
        for wnid in wnids:
            write_image(root / prefix / wnid / f"{wnid}00000001.jpg", plain(wnid))


def mini_split_folders(root):
    for split, wnids in MINI.items():
        for wnid in wnids:
            write_image(root / split / wnid / f"{wnid}00000001.jpg", plain(wnid))


def mini_csv(root, folder="images"):
    for split, wnids in MINI.items():
        with (root / f"{split}.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["filename", "label"])
            for wnid in wnids:
                write_image(root / folder / f"{wnid}00000001.jpg", plain(wnid))
                rows.writerow([f"{wnid}00000001.jpg", wnid])


def mini_cache(root):
    for split, wnids in MINI.items():
        images, labels = stacked(wnids, 2)
        rows = {wnid: np.nonzero(labels == label)[0].tolist() for label, wnid in enumerate(wnids)}
        (root / f"mini-imagenet-cache-{split}.pkl").write_bytes(pickled({"image_data": images, "class_dict": rows}))


def mini_phases(root):
    first = 0
    for split, wnids in MINI.items():
        images, labels = stacked(wnids, 2)
        names = {wnid: first + label for label, wnid in enumerate(wnids)}
        content = {"data": images, "labels": (first + labels).tolist(), "catname2label": names}
        phase = "train_phase_train" if split == "train" else split
        (root / f"miniImageNet_category_split_{phase}.pickle").write_bytes(pickled(content))
        first += len(wnids)


def mini_npz(root, pattern="mini-imagenet-{}.npz", numbers=True, named=False):
    for split, wnids in MINI.items():
        images, labels = stacked(wnids, 2)
        content = {"images": images, "labels": labels if numbers else np.array(wnids)[labels]}
        np.savez(root / pattern.format(split), **content | ({"names": wnids} if named else {}))


def mini_parquet(root):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    names = sorted(wnid for wnids in MINI.values() for wnid in wnids)
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    for number, part in enumerate((names[:40], names[40:])):
        rows = [{"bytes": encoded(picture(name)), "path": None} for name in part]
        table = pa.table({"image": rows, "label": [names.index(name) for name in part]})
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        (root / "data").mkdir(exist_ok=True)
        parquet.write_table(table, root / "data" / f"train-{number:05}-of-00002.parquet")


def mini_cache_of_zenodo(root):
    mini_cache(root)
    (root / "mini-imagenet-cache-val.pkl").rename(root / "mini-imagenet-cache-validation.pkl")


FORMS = {
    "cache of Zenodo": (mini_cache_of_zenodo, picture, "wnids"),
    "folders": (mini_folders, plain, "wnids"),
    "folders below": (lambda root: mini_folders(root, "images"), plain, "wnids"),
    "folders of splits": (mini_split_folders, plain, "wnids"),
    "csv": (mini_csv, plain, "wnids"),
    "csv beside": (lambda root: mini_csv(root, ""), plain, "wnids"),
    "cache": (mini_cache, picture, "wnids"),
    "phases": (mini_phases, picture, "wnids"),
    "npz": (mini_npz, picture, "numbers"),
    "npz with wnids": (lambda root: mini_npz(root, "mini_imagenet_{}.npz", False), picture, "wnids"),
    "npz with names": (lambda root: mini_npz(root, named=True), picture, "wnids"),
    "npz of splits": (lambda root: mini_npz(root, "{}.npz"), picture, "numbers"),
    "parquet": (mini_parquet, picture, "wnids"),
}


def mini(root, size=SIDE):
    return MiniImageNet(str(root), size)


@pytest.mark.parametrize("form", FORMS)
def test_mini_imagenet_forms(tmp_path, form):
    write, image, known = FORMS[form]
    write(tmp_path)
    source = mini(tmp_path)
    splits = source.splits()
    assert_disjoint(splits, [64, 16, 20])
    tolerance = 3 if image is plain else 0
    for split, categories in splits.items():
        numbered = [f"{split}/{number:02}" for number in range(len(categories))]
        assert [c.name for c in categories] == (MINI[split] if known == "wnids" else numbered)
        read = np.array(list(source.read([category.keys[0] for category in categories])), int)
        wanted = np.array([image(wnid) for wnid in MINI[split]], int).transpose(0, 3, 1, 2)
        assert np.abs(read - wanted).max() <= tolerance
    if form in ("cache", "phases", "npz"):
        second = splits["val"][3].keys[1]
        assert np.array_equal(next(source.read([second])), picture(MINI["val"][3], 1).transpose(2, 0, 1))


@pytest.mark.parametrize("form", ["folders", "csv", "cache", "npz", "parquet"])
def test_mini_imagenet_fingerprint_follows_files_and_size(tmp_path, form):
    FORMS[form][0](tmp_path)
    before = {mini(tmp_path).fingerprint(), mini(tmp_path, SIDE + 1).fingerprint()}
    assert len(before) == 2 and mini(tmp_path).fingerprint() in before
    os.utime(next(file for file in sorted(tmp_path.rglob("*.*")) if file.is_file() and file.suffix != ".csv"), (1, 1))
    assert mini(tmp_path).fingerprint() not in before


def test_mini_imagenet_stretches(tmp_path):
    mini_folders(tmp_path)
    halves = np.zeros((8, 24, 3), np.uint8)
    halves[:, :12] = 255
    for file in (tmp_path / MINI["train"][0]).iterdir():
        write_image(file, halves)
    source = mini(tmp_path, 8)
    image = next(source.read(source.splits()["train"][0].keys)).astype(int)
    assert image[:, :, :3].min() > 200 and image[:, :, 5:].max() < 55


def test_mini_imagenet_absent(tmp_path):
    for root in (tmp_path / "absent", tmp_path):
        with pytest.raises(UsageError) as found:
            mini(root).splits()
        assert_sentence(
            found,
            str(root),
            "n01532829/",
            "train.csv",
            "mini-imagenet-cache-train.pkl",
            "miniImageNet_category_split_train_phase_train.pickle",
            "mini-imagenet-train.npz",
            "*.parquet",
            "dataset.root=DIR",
        )


def test_mini_imagenet_two_of_three_files_are_none(tmp_path):
    mini_cache(tmp_path)
    (tmp_path / "mini-imagenet-cache-val.pkl").unlink()
    refused(mini(tmp_path), "needs images in", "without mini-imagenet-cache-val.pkl")
    (tmp_path / "mini-imagenet-cache-test.pkl").rename(tmp_path / "mini-imagenet-cache-validation.pkl")
    refused(mini(tmp_path), "without mini-imagenet-cache-test.pkl: put")
    (tmp_path / "mini-imagenet-cache-validation.pkl").rename(tmp_path / "mini-imagenet-cache-test.pkl")
    mini_npz(tmp_path)
    assert len(mini(tmp_path).splits()["val"]) == 16


def test_mini_imagenet_missing_class(tmp_path):
    mini_split_folders(tmp_path)
    gone = MINI["val"][2]
    (tmp_path / "val" / gone / f"{gone}00000001.jpg").unlink()
    refused(mini(tmp_path), f"class '{gone}' in the val split")


@pytest.mark.parametrize("form", ["folders", "folders of splits", "csv"])
def test_mini_imagenet_foreign_class(tmp_path, form):
    FORMS[form][0](tmp_path)
    match form:
        case "folders":  # as in ImageNet itself
            write_image(tmp_path / "n01440764" / "n01440764_1.JPEG", plain("tench"))
        case "csv":
            with (tmp_path / "val.csv").open("a") as file:
                file.write(f"{MINI['val'][0]}00000001.jpg,n01440764\n")
        case _:
            write_image(tmp_path / "val" / "n01440764" / "n01440764_1.JPEG", plain("tench"))
    refused(mini(tmp_path), "no class 'n01440764'", "(and 0 more that do not belong there, and ", "dataset.root=DIR")


def test_mini_imagenet_another_split_of_the_same_classes(tmp_path):
    mini_cache(tmp_path)
    a, b = (tmp_path / f"mini-imagenet-cache-{split}.pkl" for split in ("train", "test"))
    a.rename(tmp_path / "other"), b.rename(a), (tmp_path / "other").rename(b)
    refused(mini(tmp_path), f"no class '{MINI['test'][0]}' in train", "mini-imagenet-cache-train.pkl")


def test_mini_imagenet_words_stay_within_their_split(tmp_path):
    for split, wnids in MINI.items():
        images, labels = stacked(wnids)
        content = {"data": images, "labels": labels, "catname2label": {f"thing {n}": n for n in labels.tolist()}}
        phase = "train_phase_train" if split == "train" else split
        (tmp_path / f"miniImageNet_category_split_{phase}.pickle").write_bytes(pickled(content))
    splits = mini(tmp_path).splits()
    assert_disjoint(splits, [64, 16, 20])
    assert splits["val"][3].name == "val/thing 3" and len(splits["val"][3].keys) == 1


def test_mini_imagenet_numbers_of_another_split(tmp_path):
    mini_npz(tmp_path)
    images, labels = stacked(MINI["train"])
    np.savez(tmp_path / "mini-imagenet-train.npz", images=images[:60], labels=labels[:60])
    refused(mini(tmp_path), "expected 64 classes for train", "mini-imagenet-train.npz holds 60")


@pytest.mark.parametrize("form", ["cache", "phases", "npz"])
def test_mini_imagenet_damaged_file(tmp_path, form):
    FORMS[form][0](tmp_path)
    file = sorted(tmp_path.iterdir())[0]
    file.write_bytes(file.read_bytes()[:-1000])
    refused(mini(tmp_path), str(file), "replace it with a good copy")


@pytest.mark.parametrize(
    "content",
    [b"file,class\na.jpg,n01532829\n", b"filename,label\n\xff\xfe,n01532829\n", b"filename,label\na.jpg\n", b""],
)
def test_mini_imagenet_damaged_list(tmp_path, content):
    mini_csv(tmp_path)
    whole = (tmp_path / "val.csv").read_bytes()
    (tmp_path / "val.csv").write_bytes(b"\xef\xbb\xbf" + whole)  # as Excel writes it
    assert len(mini(tmp_path).splits()["val"]) == 16
    (tmp_path / "val.csv").write_bytes(whole + whole.splitlines(keepends=True)[-1])
    refused(mini(tmp_path), "val.csv", "lists an image twice")
    (tmp_path / "val.csv").write_bytes(content)
    with pytest.raises(UsageError) as found:
        mini(tmp_path).splits()
    assert_sentence(found, "val.csv", "filename and label")


# tieredImageNet


def tiered_labels(split, words=False):
    tiers = shipped_split("tiered_imagenet")[split]
    general = {wnid: number for number, wnids in enumerate(tiers.values()) for wnid in wnids}
    return {
        "label_specific": np.arange(len(TIERED[split])),
        "label_general": np.array([general[wnid] for wnid in TIERED[split]]),
        "label_specific_str": [f"the {wnid}" if words else wnid for wnid in TIERED[split]],
        "label_general_str": list(tiers),
    }


def tiered_pickles(root, words=False, opencv=True):
    for split, wnids in TIERED.items():
        images = [np.frombuffer(encoded(picture(wnid)), np.uint8) for wnid in wnids]
        images = [image[:, None] for image in images] if opencv else images
        (root / f"{split}_images_png.pkl").write_bytes(pickled(images))
        (root / f"{split}_labels.pkl").write_bytes(pickled(tiered_labels(split, words)))


def tiered_npz(root, numbers=True):
    for number, (split, wnids) in enumerate(TIERED.items()):
        np.savez(root / f"{split}_images.npz", images=stacked(wnids)[0][..., ::-1])
        labels = {"labels": [1000 * number + n for n in range(len(wnids))]} if numbers else tiered_labels(split)
        (root / f"{split}_labels.pkl").write_bytes(pickled(labels))


def tiered_folders(root):
    for split, wnids in TIERED.items():
        for wnid in wnids:
            write_image(root / split / wnid / f"{wnid}_1.png", picture(wnid))


def ilsvrc(root):
    for wnid in [*TIERED["test"], *TIERED["val"], *TIERED["train"], *(f"n9900{n:04}" for n in range(1000 - 608))]:
        (root / wnid).mkdir()
        (root / wnid / f"{wnid}_1.JPEG").write_bytes(encoded(picture(wnid)))


TIERED_FORMS = {
    "pickles": (tiered_pickles, "wnids"),
    "pickles with words": (lambda root: tiered_pickles(root, True, False), "words"),
    "npz": (tiered_npz, "numbers"),
    "npz with wnids": (lambda root: tiered_npz(root, False), "wnids"),
    "folders": (tiered_folders, "wnids"),
    "ilsvrc": (ilsvrc, "wnids"),
}


def tiered(root):
    return TieredImageNet(str(root), SIDE)


@pytest.mark.parametrize("form", TIERED_FORMS)
def test_tiered_imagenet_forms(tmp_path, form):
    write, known = TIERED_FORMS[form]
    write(tmp_path)
    source = tiered(tmp_path)
    splits = source.splits()
    assert_disjoint(splits, [351, 97, 160])
    first = {"train": 0, "val": 1000, "test": 2000}
    for split, categories in splits.items():
        width = 3 if split != "val" else 2
        named = {
            "wnids": TIERED[split],
            "words": [f"{split}/{n:0{width}} the {wnid}" for n, wnid in enumerate(TIERED[split])],
            "numbers": [f"{split}/{first[split] + n:03}" for n in range(len(categories))],
        }
        assert [category.name for category in categories] == named[known]
        chosen = [0, 1, len(categories) - 1]
        read = list(source.read([categories[n].keys[0] for n in chosen]))
        assert np.array_equal(read, [picture(TIERED[split][n]).transpose(2, 0, 1) for n in chosen])


@pytest.mark.parametrize("form", ["pickles", "npz", "folders"])
def test_tiered_imagenet_fingerprint_follows_files(tmp_path, form):
    TIERED_FORMS[form][0](tmp_path)
    before = tiered(tmp_path).fingerprint()
    assert tiered(tmp_path).fingerprint() == before
    os.utime(next(file for file in sorted(tmp_path.rglob("*.*")) if file.is_file()), (1, 1))
    assert tiered(tmp_path).fingerprint() != before


def test_tiered_imagenet_numbers_of_another_split(tmp_path):
    tiered_npz(tmp_path)
    (tmp_path / "val_labels.pkl").write_bytes(pickled({"labels": [0, 1]}))
    refused(tiered(tmp_path), str(tmp_path), "expected 97 classes for val", "holds 2")


def test_tiered_imagenet_absent(tmp_path):
    for root in (tmp_path / "absent", tmp_path):
        refused(
            tiered(root), str(root), "_images_png.pkl", "_images.npz", "_labels.pkl", "n01440764/", "dataset.root=DIR"
        )


def test_tiered_imagenet_foreign_and_missing_classes(tmp_path):
    tiered_folders(tmp_path)
    (tmp_path / "val" / TIERED["val"][0]).rename(tmp_path / "test" / TIERED["val"][0])
    refused(tiered(tmp_path), f"no class '{TIERED['val'][0]}' in test")
    (tmp_path / "test" / TIERED["val"][0]).rename(tmp_path / "elsewhere")
    refused(tiered(tmp_path), f"class '{TIERED['val'][0]}' in the val split")


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("val_images_png.pkl", pickled([])[:-1], "cannot be read as a pickle of arrays"),
        ("val_images_png.pkl", pickled({0: b"x"}), "to hold a list of images, got a dict"),
        ("val_images_png.pkl", pickled([b"x"]), "97 labels for 1 images"),
        ("val_labels.pkl", pickled([0, 1]), "to hold a dictionary, got a list"),
        ("val_labels.pkl", pickled({"names": 0}), "label_specific or labels"),
        ("val_labels.pkl", pickled({"label_specific": [0, 1], "label_specific_str": ["a"]}), "IndexError"),
        ("val_labels.pkl", pickled({"labels": [[0, 1], [2]]}), "ValueError"),
    ],
)
def test_tiered_imagenet_damaged_files(tmp_path, name, content, sentence):
    tiered_pickles(tmp_path)
    (tmp_path / name).write_bytes(content)
    refused(tiered(tmp_path), name, sentence)


# CUB

SPECIES = sorted(name for names in shipped_split("cub")["hilliard"].values() for name in names)


def birds(name):
    """A photograph wider than high, black but for the bird, whose box is 10 x 8 pixels at (13, 4)."""
    image = np.zeros((16, 30, 3), np.uint8)
    image[4:12, 13:23] = plain(name)[0, 0] | 64
    return image


def write_cub(root):
    """CUB_200_2011, with one photograph of each species."""
    folder = root / "CUB_200_2011"
    lists = {name: [] for name in ("images", "image_class_labels", "classes", "bounding_boxes")}
    for number, name in enumerate(SPECIES, start=1):
        file = f"{name}/{name[4:]}_{number:04}_{1000 + number}.jpg"
        write_image(folder / "images" / file, birds(name))
        lists["images"].append(f"{number} {file}")
        lists["image_class_labels"].append(f"{number} {number}")
        lists["classes"].append(f"{number} {name}")
        lists["bounding_boxes"].append(f"{number} 13.0 4.0 10.0 8.0")
    for name, lines in lists.items():
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return folder


def pack_cub(root):
    with tarfile.open(root / "CUB_200_2011.tgz", "w:gz", compresslevel=1) as archive:
        archive.add(write_cub(root / "unpacked"), "CUB_200_2011")
        info = tarfile.TarInfo("attributes.txt")
        archive.addfile(info, io.BytesIO())


@pytest.fixture(scope="module")
def cub_folder(tmp_path_factory):
    return write_cub(tmp_path_factory.mktemp("cub"))


def birds_of(root, split="hilliard", boxes=False, size=8):
    return CUB(str(root), split, boxes, size, False)


def test_cub_splits(cub_folder):
    hilliard, meta = (birds_of(cub_folder.parent, split).splits() for split in ("hilliard", "meta_dataset"))
    assert_disjoint(hilliard, [100, 50, 50])
    assert_disjoint(meta, [140, 30, 30])
    for number, name in enumerate(SPECIES):
        split = "train" if number % 2 == 0 else "val" if number % 4 == 1 else "test"
        assert name in {category.name for category in hilliard[split]}
    assert {c.name for categories in meta.values() for c in categories} == set(SPECIES)


@pytest.mark.parametrize("form", ["folder", "parent", "archive"])
def test_cub_forms(cub_folder, tmp_path, form):
    if form == "archive":
        pack_cub(tmp_path)
    root = {"folder": cub_folder, "parent": cub_folder.parent, "archive": tmp_path}[form]
    source = birds_of(root, size=16)
    for split in SPLITS:
        category = source.splits()[split][0]
        image = next(source.read(category.keys))
        wanted = birds(category.name)[:, 7:23].transpose(2, 0, 1)  # the middle square
        assert np.abs(image.astype(int) - wanted).mean() < 12
    assert birds_of(root, size=16).fingerprint() == source.fingerprint()
    assert not [path for path in root.iterdir() if path.name.endswith(".part")]


def test_a_part_of_cub_is_not_blamed_on_the_archive(tmp_path):
    (tmp_path / "CUB_200_2011" / "images").mkdir(parents=True)
    refused(birds_of(tmp_path), "got a folder without them", "or remove it")


def test_cub_boxes_hold_the_bird(cub_folder):
    source = birds_of(cub_folder, boxes=True)
    whole = birds_of(cub_folder)
    assert source.fingerprint() != whole.fingerprint()
    category = source.splits()["test"][7]
    colour = plain(category.name)[0, 0].astype(int) | 64
    inside, outside = (next(each.read(category.keys)).astype(int) for each in (source, whole))
    assert np.abs(inside - colour[:, None, None])[:, 1:-1, 1:-1].max() < 40
    assert outside[:, 0].max() < 40


def test_cub_boxes_are_cut_to_the_image(cub_folder, tmp_path):
    folder = write_cub(tmp_path)
    lines = (folder / "bounding_boxes.txt").read_text().splitlines()
    (folder / "bounding_boxes.txt").write_text("\n".join(["1 20.0 2.0 500.0 500.0", "2 40.0 0.0 5.0 5.0", *lines[2:]]))
    source = birds_of(tmp_path, boxes=True, size=10)
    splits = source.splits()
    assert next(source.read(splits["train"][0].keys)).shape == (3, 10, 10)
    with pytest.raises(UsageError, match=r"002\.Laysan_Albatross.* within the image of 30 x 16 pixels"):
        next(source.read(splits["val"][0].keys))


@pytest.mark.parametrize(
    ("file", "change", "sentence"),
    [
        ("classes.txt", lambda text: text.replace("1 001.", "x 001.", 1), "number '1' is missing"),
        ("image_class_labels.txt", lambda text: text.replace("7 7\n", ""), "number '7' is missing"),
        ("images.txt", lambda text: text + "junk\n", "lines of a number and a text"),
        ("images.txt", lambda text: text + "201 nowhere.jpg\n", "is missing"),
        ("classes.txt", lambda text: text.replace("7 007.Parakeet_Auklet", "7 007.Emu"), "class '007.Parakeet_Auklet'"),
        ("bounding_boxes.txt", lambda text: text.replace("9 13.0", "9 x", 1), "ValueError"),
        ("bounding_boxes.txt", lambda text: text.replace("9 13.0", "9", 1), "ValueError"),
        ("bounding_boxes.txt", lambda text: text.partition("\n")[2], "none of 001.Black_footed_Albatross/"),
    ],
)
def test_cub_damaged_lists(cub_folder, tmp_path, file, change, sentence):
    for path in cub_folder.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
        else:
            (tmp_path / path.name).symlink_to(path)
    (tmp_path / file).write_text(change((tmp_path / file).read_text()))
    refused(birds_of(tmp_path, boxes=True), sentence)


def test_cub_absent(tmp_path):
    refused(birds_of(tmp_path), "dataset=cub", *cub.ARCHIVE.urls, "download=false")


def test_cub_archive_in_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "CUB_200_2011.tgz").write_bytes(b"")
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: os.close(-1))
    refused(birds_of(tmp_path), "cannot be unpacked", "unpack it elsewhere")


def test_cub_foreign_archive(tmp_path):
    with tarfile.open(tmp_path / "CUB_200_2011.tgz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("birds.txt"), io.BytesIO())
    refused(birds_of(tmp_path), "CUB_200_2011.tgz to contain CUB_200_2011/images.txt")


def test_cub_settings():
    with pytest.raises(
        UsageError, match=r"dataset\.split to be hilliard or meta_dataset, got random: type dataset\.split="
    ):
        birds_of("nowhere", "random")
    with pytest.raises(UsageError, match=r"dataset\.boxes to be True or False, got yes"):
        birds_of("nowhere", boxes="yes")


# what ships


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("cifar_fs", "cifar_fs"),
        ("fc100", "fc100"),
        ("mini_imagenet", "miniimagenet_ravi_wnids"),
        ("tiered_imagenet", "tieredimagenet"),
    ],
)
def test_shipped_splits_equal_the_published(name, file):
    path = REAL_DATA / "splits" / f"{file}.json"
    if not path.is_file():
        pytest.skip("no published splits: set METAFEW_DATA")
    assert shipped_split(name) == json.loads(path.read_text())
    assert list(shipped_split(name)) == SPLITS


@pytest.mark.parametrize(("split", "file"), [("hilliard", "cub_torchmeta"), ("meta_dataset", "metadataset_cu_birds")])
def test_shipped_species_equal_the_published(split, file):
    path = REAL_DATA / "splits" / f"{file}.json"
    if not path.is_file():
        pytest.skip("no published splits: set METAFEW_DATA")
    published = json.loads(path.read_text())
    for part, names in shipped_split("cub")[split].items():
        assert names == sorted(published["valid" if part == "val" and "valid" in published else part])


@pytest.mark.parametrize("name", ["cifar_fs", "fc100", "mini_imagenet", "tiered_imagenet", "cub"])
def test_configurations_make_their_source(composed, name):
    from hydra.utils import instantiate

    source = instantiate(composed(f"dataset={name}", "data_dir=nowhere")[0].dataset)
    assert source.name == name and source.channels == 3
    assert source.image_size == (32 if name in ("cifar_fs", "fc100") else 84)
