"""Parquet files as Hugging Face writes them, and the hub itself as a server on this machine."""

import io
import json
import sys
import threading
from collections import Counter
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hydra.utils import instantiate
from PIL import Image

from metafew.config.compose import compose_overrides
from metafew.data.formats.conversion import Conversion
from metafew.data.formats.images import decode
from metafew.data.formats.parquet import Parquet
from metafew.data.sources import hub
from metafew.data.sources.class_splits import divide
from metafew.errors import UsageError
from metafew.training.factory import make_source

COLOURS = np.random.default_rng(0).integers(0, 256, (100, 3), np.uint8)
SETTINGS = {"dataset.image_size": 8, "dataset.fractions": "[0.5,0.25,0.25]"}


def png(number):
    """A picture of one colour, by which a test recognises it."""
    Image.fromarray(np.broadcast_to(COLOURS[number], (8, 8, 3))).save(file := io.BytesIO(), "PNG")
    return file.getvalue()


def table(numbers, labels, names=None, image="image", label="label", nested=True):
    """Rows as `datasets` writes them, with what it says of the columns."""
    pictures = [png(number) for number in numbers]
    values = [{"bytes": p, "path": f"{n}.png"} for n, p in zip(numbers, pictures, strict=True)] if nested else pictures
    whole = pa.table({image: values, label: labels})
    if names is None:
        return whole
    about = {"info": {"features": {image: {"_type": "Image"}, label: {"names": names, "_type": "ClassLabel"}}}}
    return whole.replace_schema_metadata({"huggingface": json.dumps(about)})


def write(path, *args, rows=3, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table(*args, **kwargs), path, row_group_size=rows)
    return path


def test_a_part_of_a_mixture_keeps_its_column_of_labels(tmp_path):
    file = write(tmp_path / "b.parquet", range(8), list("aabbccdd"), label="species")
    words = ["dataset=mixture", f"dataset.sources=[{{dataset:hub,root:{file},label:species,name:birds}}]"]
    (part,) = make_source(compose_overrides(words)).all_components()
    assert part.title == "birds" and {c.name for split in part.splits().values() for c in split} == set("abcd")
    alone = make_source(compose_overrides(["dataset=hub", f"dataset.root={file}", "dataset.label=species"]))
    assert alone.title == "hub"


def colours(collection, keys):
    return [tuple(np.asarray(image)[0, 0]) for image in collection.open(keys)]


def expected(numbers):
    return [tuple(COLOURS[number]) for number in numbers]


# parquet


@pytest.mark.parametrize("nested", [True, False])
def test_parquet_reads_named_classes_in_any_order(tmp_path, nested):
    first = write(tmp_path / "0.parquet", range(7), [2, 0, 1, 0, 2, -1, 0], ["b", "a", "c", "none"], nested=nested)
    second = write(tmp_path / "1.parquet", range(7, 10), [0, None, 2], ["b", "a", "c", "none"], nested=nested)
    found = Parquet([first, second])
    assert list(found.files) == [first, second]
    assert list(found.classes.items()) == [
        ("b", ((0, 1), (0, 3), (0, 6), (1, 0))),
        ("a", ((0, 2),)),
        ("c", ((0, 0), (0, 4), (1, 2))),
    ]
    numbers = [6, 0, 9, 3, 3, 7, 1]
    assert colours(found, [divmod(n, 7) for n in numbers]) == expected(numbers)
    assert colours(found, found.classes["c"]) == expected([0, 4, 9])


@pytest.mark.parametrize(
    ("labels", "classes"), [(["x", "y", "x"], {"x": (0, 2), "y": (1,)}), ([10, 9, 10], {"9": (1,), "10": (0, 2)})]
)
def test_parquet_without_names_of_classes(tmp_path, labels, classes):
    file = write(tmp_path / "a.parquet", range(3), labels, image="img", label="fine_label")
    assert Parquet([file]).classes == {name: tuple((0, row) for row in rows) for name, rows in classes.items()}


def test_parquet_takes_the_only_columns_or_the_one_typed(tmp_path):
    whole = table(range(3), ["x", "y", "x"], image="photo", label="bird")
    pq.write_table(whole, tmp_path / "a.parquet")
    assert set(Parquet([tmp_path / "a.parquet"]).classes) == {"x", "y"}
    pq.write_table(whole.append_column("place", pa.array(["p", "p", "q"])), file := tmp_path / "b.parquet")
    with pytest.raises(UsageError, match=r"b\.parquet.*bird \(string\), place \(string\): type dataset.label=bird or "):
        Parquet([file])
    assert Parquet([file], "place").classes == {"p": ((0, 0), (0, 1)), "q": ((0, 2),)}
    with pytest.raises(
        UsageError, match=r"column 'plaice' of labels .* photo \(struct.*dataset.label=bird or dataset.label=place"
    ):
        Parquet([file], "plaice")


@pytest.mark.parametrize(
    "labels",
    [pa.array(["x", "y", "x"]).dictionary_encode(), pa.array([b"x", b"y", b"x"]), pa.array([True, False, True])],
    ids=["dictionary", "bytes", "booleans"],
)
def test_parquet_takes_the_column_called_label_whatever_its_type(tmp_path, labels):
    whole = table(range(3), labels, nested=False).append_column("width", pa.array([6, 7, 8]))
    pq.write_table(whole, file := tmp_path / "a.parquet")
    assert sorted(map(len, Parquet([file]).classes.values())) == [1, 2]


def test_parquet_does_not_pass_over_a_column_called_label(tmp_path):
    whole = table(range(3), [[0], [1], [0]]).append_column("width", pa.array([6, 7, 8]))
    pq.write_table(whole, file := tmp_path / "a.parquet")
    with pytest.raises(UsageError, match=r"label \(list.*, width \(int64\): type dataset\.label=width"):
        Parquet([file])


def test_parquet_without_images(tmp_path):
    pq.write_table(pa.table({"text": ["a"], "label": [1]}), file := tmp_path / "a.parquet")
    with pytest.raises(UsageError, match=r"a column of images .* text \(string\), label \(int64\): call .* image"):
        list(Parquet([file]).open([(0, 0)]))


def test_parquet_reads_each_row_group_once_and_no_other(tmp_path, monkeypatch):
    file = write(tmp_path / "a.parquet", range(50), [number % 5 for number in range(50)], rows=10)
    found, read = Parquet([file]), []
    original = pq.ParquetFile.read_row_group

    def counted(self, group, columns):
        read.append((group, columns))
        return original(self, group, columns)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    numbers = np.random.default_rng(1).permutation([*range(20), 49]).tolist()
    assert colours(found, [(0, number) for number in numbers]) == expected(numbers)
    assert sorted(read) == [(group, ["image.bytes"]) for group in (0, 1, 4)]


@pytest.mark.parametrize("damage", ["foreign", "truncated", "empty", "absent"])
def test_parquet_names_a_damaged_file(tmp_path, damage):
    file = write(tmp_path / "a.parquet", range(3), [0, 1, 0])
    content = {"foreign": b"<html>" * 99, "truncated": file.read_bytes()[:-50], "empty": b"", "absent": None}[damage]
    file.unlink() if content is None else file.write_bytes(content)
    with pytest.raises(UsageError, match=r"a\.parquet cannot be read as a parquet file"):
        Parquet([file])


def test_parquet_names_a_damaged_image_and_damaged_pages(tmp_path):
    whole = table(range(3), [0, 1, 0])
    images = [{"bytes": content, "path": "x"} for content in (png(0), b"GIF89a", None)]
    pq.write_table(whole.set_column(0, "image", pa.array(images)), file := tmp_path / "a.parquet")
    found = Parquet([file])
    assert colours(found, [(0, 0)]) == expected([0])
    for row in (1, 2):
        with pytest.raises(UsageError, match=rf"row {row} of .*a\.parquet .* or take it out of the file$"):
            list(found.open([(0, row)]))
    content = bytearray(file.read_bytes())
    content[4:60] = bytes(56)
    file.write_bytes(content)
    with pytest.raises(UsageError, match=r"a\.parquet cannot be read as a parquet file"):
        list(found.open([(0, 0)]))


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    file = write(tmp_path / "a.parquet", range(2), [0, 1])
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UsageError, match=r"pip install metafew\[hub\]"):
        Parquet([file])


# hub


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A hub with one set, `someone/birds`: two configurations, the first in two splits and three files."""
    there = tmp_path / "there"
    names = list("abcdefgh")
    files = {
        "/plain/train/0.parquet": table(range(20), [n % 8 for n in range(20)], names),
        "/plain/train/1.parquet": table(range(20, 30), [n % 8 for n in range(20, 30)], names),
        "/plain/test/0.parquet": table(range(30, 40), [n % 8 for n in range(30, 40)], names),
        "/other/train/0.parquet": table(range(8), list("stuvwxyz")),
    }
    for path, content in files.items():
        (there / path[1:]).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(content, there / path[1:])
    asked = []

    class Handler(BaseHTTPRequestHandler):
        wrong = False  # whether its checksum is

        def do_GET(self):
            asked.append(self.path)
            path = self.path.removeprefix("/go").removeprefix("/file")
            content = (there / path[1:]).read_bytes() if path in files else b""
            if self.path.startswith("/go/"):
                checksum = sha256(content + b"x" * self.wrong).hexdigest()
                return self.answer(302, headers={"X-Linked-ETag": f'"{checksum}"', "Location": f"/file{path}"})
            if self.path.startswith("/file/"):
                return self.answer(200, content)
            listing: dict = {}
            for config, split, name in (path[1:].split("/") for path in files):
                listing.setdefault(config, {}).setdefault(split, []).append(f"{hub.HUB}/go/{config}/{split}/{name}")
            answers = {"birds": listing, "nothing": {}, "escape": {"..": {"train": []}}, "text": {"error": "none"}}
            repo = self.path.removeprefix("/api/datasets/someone/").removesuffix("/parquet")
            if repo in answers:
                return self.answer(200, json.dumps(answers[repo]).encode())
            return self.answer(503 if repo == "busy" else 401)

        do_HEAD = do_GET

        def answer(self, status, content=b"", headers=None):
            self.send_response(status)
            for header, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
                self.send_header(header, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, *_):
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(hub, "HUB", f"http://127.0.0.1:{running.server_port}")
    running.asked, running.handler = asked, Handler
    yield running
    running.shutdown()
    running.server_close()


@pytest.fixture
def make(composed, tmp_path):
    """The source of a command line."""

    def go(**settings):
        typed = SETTINGS | {"data_dir": tmp_path} | {f"dataset.{word}": value for word, value in settings.items()}
        cfg = composed("dataset=hub", *(f"{word}={value}" for word, value in typed.items()))[0]
        return instantiate(cfg.dataset, _convert_="all")

    return go


def test_hub_pools_all_splits_of_the_first_configuration(server, make, tmp_path):
    birds = make(repo="someone/birds")
    splits = birds.splits()
    assert [len(categories) for categories in splits.values()] == [4, 2, 2]
    categories = list(chain.from_iterable(splits.values()))
    assert {c.name: len(c.keys) for c in categories} == Counter("abcdefgh"[n % 8] for n in range(40))
    for category in categories:
        images = np.stack(list(birds.read(category.keys)))
        assert images.shape == (5, 3, 8, 8) and images.dtype == np.uint8
        assert {tuple(image[:, 0, 0]) for image in images} == set(
            expected(range("abcdefgh".index(category.name), 40, 8))
        )
    there = tmp_path / "hub" / "someone--birds"
    assert sorted(str(f.relative_to(there)) for f in there.rglob("*.parquet")) == [
        "plain/test/0.parquet",
        "plain/train/0.parquet",
        "plain/train/1.parquet",
    ]


def test_hub_warns_of_a_dataset_of_which_it_has_converted_a_part(make, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(hub, "obtain", lambda target, *_: target)
    listing = {
        "default": {"partial-train": ["https://hub/api/datasets/a/birds/parquet/default/partial-train/0.parquet"]}
    }
    (tmp_path / "hub" / "a--birds").mkdir(parents=True)
    (tmp_path / "hub" / "a--birds" / hub.LISTING).write_text(json.dumps(listing))
    make(repo="a/birds", download=False)._downloads("a/birds")
    assert "has converted only the first part of a/birds" in caplog.text


def test_parquet_says_where_its_temporary_file_is_if_that_is_full(tmp_path, monkeypatch):
    file = write(tmp_path / "a.parquet", range(3), [0, 1, 0])

    class Full(io.BytesIO):
        def write(self, content):
            self.full = True
            return super().write(content)

        def close(self):  # as of a file, whose buffer is written at last
            if getattr(self, "full", False):
                self.full = False
                raise OSError(28, "No space left on device")

    monkeypatch.setattr("metafew.data.formats.parquet.TemporaryFile", Full)
    with pytest.raises(UsageError, match="set TMPDIR to a larger one"):
        list(Parquet([file]).open([(0, 0)]))


def test_hub_asks_nothing_of_the_network_twice(server, make):
    first = make(repo="someone/birds")
    before = first.splits(), first.fingerprint()
    server.asked.clear()
    again = make(repo="someone/birds", download="false")
    assert (again.splits(), again.fingerprint()) == before and not server.asked
    assert again.fingerprint() != make(repo="someone/birds", image_size=9).fingerprint()


def test_hub_takes_the_configuration_typed(server, make):
    found = {c.name for categories in make(repo="someone/birds", config="other").splits().values() for c in categories}
    assert found == set("stuvwxyz")
    with pytest.raises(UsageError, match=r"no configuration 'others': .* plain, other"):
        make(repo="someone/birds", config="others").splits()


def test_hub_verifies_what_it_fetches(server, make, tmp_path):
    server.handler.wrong = True
    with pytest.raises(UsageError, match=r"0\.parquet.*checksum"):
        make(repo="someone/birds").splits()
    assert not list((tmp_path / "hub").rglob("*.parquet"))
    assert hub.published_checksum(f"{hub.HUB}/go/plain/test/0.parquet").startswith("sha256:")
    assert hub.published_checksum(f"{hub.HUB}/file/plain/test/0.parquet") is None  # of a file that the hub itself holds


@pytest.mark.parametrize(
    ("repo", "sentence"),
    [
        ("someone/bird", "no public dataset of that name: type dataset.repo="),
        ("someone/busy", r"failed \(503\)"),
        ("someone/nothing", "lists no parquet files"),
        ("someone/escape", "lists no parquet files"),
        ("someone/text", "lists no parquet files"),
    ],
)
def test_hub_says_what_the_hub_does_not_have(server, make, tmp_path, repo, sentence):
    with pytest.raises(UsageError, match=sentence):
        make(repo=repo).splits()
    assert not (tmp_path / "hub").exists()


def test_hub_without_network(make, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(hub, "HUB", "http://127.0.0.1:9")
    with pytest.raises(UsageError, match=r"http://127\.0\.0\.1:9/.* failed \(no network.*dataset.root=DIR"):
        make(repo="someone/birds").splits()
    with pytest.raises(UsageError, match=r"someone--birds, and dataset.download=false forbids"):
        make(repo="someone/birds", download="false").splits()


@pytest.mark.parametrize("repo", ["a/b/c", "../b", "https://huggingface.co/a", "a/..", "/a"])
def test_hub_refuses_what_is_no_repository(make, repo):
    with pytest.raises(Exception, match=r"dataset.repo to be OWNER/NAME") as error:
        make(repo=repo)
    assert isinstance(error.value.__cause__ or error.value, UsageError)


def test_hub_reads_parquet_files_of_a_folder(make, tmp_path):
    with pytest.raises(UsageError, match=r"hub holds no \*\.parquet: type dataset.repo="):
        make().splits()
    write(tmp_path / "own" / "b.parquet", range(4), list("wxyz"))
    write(tmp_path / "own" / "a.parquet", range(4, 8), list("wxyz"))
    own = make(root=tmp_path / "own")
    categories = {c.name: c.keys for found in own.splits().values() for c in found}
    assert categories == {name: ((0, (0, row)), (0, (1, row))) for row, name in enumerate("wxyz")}
    assert [tuple(image[:, 0, 0]) for image in own.read(categories["y"])] == expected([6, 2])


def test_hub_refuses_options_of_files_that_it_does_not_read(make, tmp_path):
    file = write(tmp_path / "a.parquet", range(4), list("wxyz"))
    with pytest.raises(UsageError, match=r"expected dataset\.config=null, as .*, got birds: type dataset\.config=null"):
        make(root=file, config="birds").splits()
    with pytest.raises(UsageError, match=r"expected a CSV file for the columns that dataset\.columns names, got none"):
        make(root=file, columns="{class: kind}").splits()


def test_names_of_digits_are_names(tmp_path):
    file = write(tmp_path / "b.parquet", range(8), list("aabbccdd"), label="2023")
    words = ["dataset=hub", f"dataset.root={file}", "dataset.label=2023"]
    found = make_source(compose_overrides(words)).splits()
    assert {c.name for split in found.values() for c in split} == set("abcd")
    assert make_source(compose_overrides([*words, "dataset.repo=a/b", "dataset.config=7"])).config == "7"


def pixels(mode, shape):
    """Return a PNG of random pixels."""
    rng = np.random.default_rng(1)
    dtype, high = (np.uint16, 5000) if mode == "I;16" else (np.uint8, 256)
    array = rng.integers(0, high, shape, dtype)
    Image.fromarray(array).save(file := io.BytesIO(), "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("mode", "pair"),
    [
        ("RGB", [{"channels": 1}, {"channels": 3}]),
        ("RGB", [{"fit": "stretch"}, {"fit": "crop"}]),
        ("RGB", [{"fit": "pad", "background": "white"}, {"fit": "pad", "background": "black"}]),
        ("RGBA", [{"background": "white"}, {"background": "black"}]),
        ("RGB", [{"invert": False}, {"invert": True}]),
        ("I;16", [{"white": 6000}, {"white": 9000}]),
    ],
)
def test_hub_converts_images_as_typed(make, tmp_path, mode, pair):
    content = pixels(mode, (10, 14, *{"RGB": [3], "RGBA": [4]}.get(mode, [])))
    rows = pa.table({"image": [{"bytes": content, "path": "a.png"}] * 4, "label": list("wxyz")})
    pq.write_table(rows, file := tmp_path / "a.parquet")
    converted = []
    for options in pair:
        converted += make(root=file, **options).read([(0, (0, 0))])
        expected = Conversion(**{"channels": 3, "size": 8} | options)(decode(io.BytesIO(content), "the image"))
        assert np.array_equal(converted[-1], expected)
    assert not np.array_equal(*converted)


def test_the_seed_of_the_hub_draws_its_splits(make, tmp_path):
    write(tmp_path / "own" / "a.parquet", range(8), list("stuvwxyz"))
    drawn = [
        {split: [c.name for c in found] for split, found in make(root=tmp_path / "own", **seed).splits().items()}
        for seed in ({}, {"split_seed": 0}, {"split_seed": 1})
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[2] == {
        split: [*names] for split, names in divide(list("stuvwxyz"), None, [0.5, 0.25, 0.25], 1, None).items()
    }


def test_hub_takes_splits_from_a_file(make, tmp_path):
    write(tmp_path / "own" / "a.parquet", range(4), list("wxyz"))
    (tmp_path / "s.json").write_text('{"train": ["z", "w"], "test": ["x"]}')
    splits = make(root=tmp_path / "own", splits=tmp_path / "s.json").splits()
    assert {split: [c.name for c in found] for split, found in splits.items()} == {
        "train": ["z", "w"],
        "val": [],
        "test": ["x"],
    }
