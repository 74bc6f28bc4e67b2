"""The commands behind the scripts: what they write, and the messages of what they cannot do."""

import ast
import csv
import json
import logging
import os
import shlex
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from PIL import Image
from runs import SCRIPTS

from metafew import __main__
from metafew.analysis.labelling.labelling import Labelling
from metafew.commands import predict, prepare, queries, reproduce
from metafew.commands.command_line import written
from metafew.commands.image_conversion import choose_conversion
from metafew.config.quoting import to_paste
from metafew.data.formats.conversion import CHOICES, Conversion
from metafew.data.formats.tree import Tree
from metafew.data.store import Split
from metafew.errors import UsageError
from metafew.heads.head import Head

BRIGHT = {"dark": 30, "middle": 130, "white": 235}

COMMANDS = ["dashboard", "device_check", "export", "predict", "prepare", "report", "reproduce", "search"]


def picture(path, level, seed, size=(40, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(-15, 16, (size[1], size[0]))
    Image.fromarray((level + noise).astype(np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path):
    """Nine classes of two to ten images, in colour."""
    for number in range(9):
        for seed in range(2 + number):
            path = tmp_path / "own" / f"class {number}" / f"{seed}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng([number, seed]).integers(0, 256, (9, 9, 3), np.uint8)
            Image.fromarray(pixels).save(path)
    return tmp_path / "own"


@pytest.fixture
def ckpt(launch, tmp_path_factory):
    """The checkpoint of a tiny run, made for the first test that asks."""
    folder = tmp_path_factory.getbasetemp() / "scripts"
    if not (folder / "checkpoints" / "best.ckpt").is_file():
        launch("norm=none", out=folder)
    return folder / "checkpoints" / "best.ckpt"


@pytest.fixture
def shades(tmp_path):
    """Examples and queries of three classes that brightness tells apart; returns the level of each query."""
    for name, level in BRIGHT.items():
        for seed in range(1 + len(name) % 3):
            picture(tmp_path / "support" / name / f"{seed}.png", level, seed)
    rng = np.random.default_rng(0)
    queries = {f"{'deep/er/' * (n % 2)}{n:02}.png": list(BRIGHT)[rng.integers(3)] for n in range(20)}
    for number, (file, name) in enumerate(queries.items()):
        picture(tmp_path / "query" / file, BRIGHT[name], 100 + number)
    return queries


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# prepare


def test_prepare_builds_stores_that_training_finds(cache, tmp_path, capsys, composed):
    from metafew.data.store import store_folder
    from metafew.training.factory import make_source

    assert prepare.main(["dataset=glyphs", f"out={tmp_path}/deep/glyphs.png"]) == 0
    store = store_folder(make_source(composed("dataset=glyphs")[0]), cache)
    shown = capsys.readouterr().out
    assert store.is_dir() and str(store) in shown.replace("\n", "")
    assert "153" in shown and "28×28×1" in shown
    with Image.open(tmp_path / "deep" / "glyphs.png") as sheet:
        assert np.ptp(np.asarray(sheet.convert("L"))) == 255 and min(sheet.size) > 1000
    assert not GlobalHydra.instance().is_initialized()


@pytest.mark.parametrize("width", ["30", "80", "200"])
def test_prepare_counts_what_a_folder_holds(folder, tmp_path, capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", width)  # no number is cut off
    typed = ["dataset=folder", f"dataset.root={folder}", "dataset.image_size=9", "dataset.fractions=[0.8,0,0.2]"]
    assert prepare.main([*typed, f"cache_dir={tmp_path / 'c'}", f"out={tmp_path / 'own.png'}"]) == 0
    (store,) = (tmp_path / "c").glob("folder-*/")
    cells = {}
    for line in capsys.readouterr().out.splitlines():
        if line.startswith("│"):
            _, split, *numbers = [cell.strip() for cell in line.strip("│").split("│")]
            cells[split] = numbers
    assert list(cells) == ["train", "val", "test"] and cells["val"][:4] == ["0", "0", "0", "0"]
    for name in ("train", "test"):
        counts = [2 + int(each.split()[1]) for each in Split(store, name).names]
        assert cells[name][:5] == [*map(str, (len(counts), sum(counts), min(counts), max(counts))), "9×9×3"]
    assert (tmp_path / "own.png").stat().st_size


def test_prepare_says_when_a_store_has_changed(folder, tmp_path, capsys):
    typed = ["dataset=folder", f"dataset.root={folder}", f"cache_dir={tmp_path / 'c'}", f"out={tmp_path / 'o.png'}"]
    assert prepare.main(typed) == 0
    (file,) = (tmp_path / "c").glob("folder-*/train.npy")
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    assert prepare.main(typed) == 2
    assert "have changed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        (["dataset=glyph"], "got glyph (did you mean glyphs?): type dataset=glyphs"),
        (["dataset=glyphs", "dataset.sze=3"], "got dataset.sze"),
        (["glyphs"], "missing EQUAL"),
        (["dataset=folder"], "type dataset.root=DIR"),
        (["dataset=glyphs", "out=sheet.glyphs"], "sheet.glyphs"),
        (["dataset=glyphs,omniglot"], "got glyphs,omniglot: type dataset=glyphs\n"),
    ],
)
def test_prepare_explains_itself_in_one_line(typed, sentence, capsys):
    assert prepare.main(typed) == 2
    error = capsys.readouterr().err
    assert error.startswith("metafew: ") and error.count("\n") == 1 and sentence in error


# predict


def test_predict_labels_every_image(ckpt, shades, tmp_path, capsys):
    out = tmp_path / "new" / "labels.csv"
    typed = [f"ckpt={ckpt}", f"support={tmp_path / 'support'}", f"query={tmp_path / 'query'}", f"out={out}"]
    assert predict.main(typed) == 0
    rows = rows_of(out)
    columns = ["file", "predicted", "probability", "distance", "unknown"]
    assert list(rows[0]) == [*columns, *(f"p({name})" for name in sorted(BRIGHT))]
    assert {row["file"]: row["predicted"] for row in rows} == shades
    for row in rows:
        chances = {name: float(row[f"p({name})"]) for name in BRIGHT}
        assert sum(chances.values()) == pytest.approx(1, abs=1e-5)
        assert float(row["probability"]) == chances[row["predicted"]] == max(chances.values())
        assert row["unknown"] == str(float(row["distance"]) > 1).lower()
    shown = capsys.readouterr()
    assert "(dataset=glyphs), and the examples have a light one: images are inverted" in shown.err
    assert f"20 of 20 images are labelled in {out}\n" in shown.out and "accuracy" not in shown.out
    assert all(f"{out.with_suffix(suffix)}" in shown.out for suffix in queries.PICTURES)
    assert {file.name for file in out.parent.iterdir()} == {"labels.csv", "labels.png", "labels.html"}
    for name in BRIGHT:
        count = list(shades.values()).count(name)
        assert [name, str(1 + len(name) % 3), str(count)] in [
            [cell.strip() for cell in line.strip("│").split("│")] for line in shown.out.splitlines()
        ]


def test_predict_measures_accuracy_where_folders_are_named_after_classes(ckpt, shades, tmp_path, capsys):
    for name, level in {"dark": 30, "white": 235, "other": 130}.items():
        for seed in range(3):
            picture(tmp_path / "given" / name / f"{seed}.png", level, 50 + seed)
    shutil.copy(tmp_path / "given" / "dark" / "0.png", tmp_path / "given" / "white" / "wrong.png")
    out = tmp_path / "a.csv"
    typed = [f"ckpt={ckpt}", f"support={tmp_path / 'support'}", f"query={tmp_path / 'given'}", f"out={out}"]
    assert predict.main(typed) == 0
    shown = capsys.readouterr().out
    assert "accuracy 85.7 % (95 % interval 48.7 to 97.4 %): 6 of 7 images" in shown
    assert "confused: white as dark (1)" in shown and " of 3 others" in shown
    assert {row["file"]: row["truth"] for row in rows_of(out)} == {
        file: file.partition("/")[0].replace("other", "") for file in sorted(row["file"] for row in rows_of(out))
    }
    page = out.with_suffix(".html").read_text(encoding="utf-8")
    assert "accuracy 85.7 %" in page and f"out={out}" in page and page.count("<img") == 11


def test_predict_sorts_class_names_in_natural_order(ckpt, tmp_path):
    for name, level in {"c10": 30, "c2": 130, "c1": 235}.items():
        picture(tmp_path / "support" / name / "0.png", level, 1)
    typed = [f"ckpt={ckpt}", f"support={tmp_path / 'support'}", f"query={tmp_path / 'support'}"]
    assert predict.main([*typed, f"out={tmp_path / 'a.csv'}"]) == 0
    assert list(rows_of(tmp_path / "a.csv")[0])[-3:] == ["p(c1)", "p(c2)", "p(c10)"]


@pytest.mark.parametrize(
    ("printed", "typed"),
    [
        ("type dataset.fit=pad or dataset.invert=true", "type fit=pad or invert=true"),
        ("type dataset.root=DIR of the folder", "type support=DIR of the folder"),
        ("type trust=['my.Net', 'my.Norm'] with it", "type trust=my.Net,my.Norm with it"),
    ],
)
def test_predict_advises_in_its_own_words(printed, typed, capsys, caplog):
    with predict.warnings_as_typed_here():
        logging.getLogger("metafew.data").warning("expected %s", printed)
    assert capsys.readouterr().err == f"metafew: expected {typed}\n"
    assert not logging.getLogger("metafew").handlers


def test_predict_takes_what_other_commands_and_its_own_errors_advise(ckpt, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(predict, "predict", values := [].append)
    word = shlex.split(to_paste("ckpt", "o/head=svm (1)/best.ckpt"))[0]
    assert predict.main([word, "support=a (1)", "query='s"]) == 0
    (found,) = values.__self__
    assert [found[key] for key in ("ckpt", "support", "query")] == ["o/head=svm (1)/best.ckpt", "a (1)", "'s"]


def test_predict_trusts_a_list_or_names_with_commas(shades, tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(predict.metafew, "load", lambda *typed: asked.append(typed) or 1 / 0)
    typed = ["ckpt=a", f"support={tmp_path / 'support'}", f"query={tmp_path / 'query'}"]
    for trust in ("my.Net,torch.nn.ReLU", "['my.Net', 'torch.nn.ReLU']"):
        with pytest.raises(ZeroDivisionError):
            predict.main([*typed, f"trust={trust}", "chosen=lr1"])
    assert asked == [("a", ["my.Net", "torch.nn.ReLU"], "lr1")] * 2


def test_predict_refuses_a_folder_without_class_folders_in_its_own_words(tmp_path, capsys):
    picture(tmp_path / "0.png", 30, 0)
    assert predict.main(["ckpt=a", f"support={tmp_path}", f"query={tmp_path}"]) == 2
    assert "got no such folder: type support=DIR" in capsys.readouterr().err


@pytest.mark.parametrize("changes", [["invert=true"], ["invert=false", "fit=stretch"]])
def test_predict_brings_images_to_the_model_as_typed(ckpt, shades, tmp_path, monkeypatch, changes):
    seen = []
    original = predict.metafew.load

    def load(*typed):
        model = original(*typed)
        adapt = model.adapt
        model.adapt = lambda images, labels: seen.append((images, labels)) or adapt(images, labels)
        return model

    monkeypatch.setattr(predict.metafew, "load", load)
    typed = [f"ckpt={ckpt}", f"support={tmp_path / 'support'}", f"query={tmp_path / 'query'}"]
    assert predict.main([*typed, f"out={tmp_path / 'a.csv'}", *changes]) == 0
    ((images, labels),) = seen
    image = tmp_path / "support" / labels[0] / "0.png"
    fitted = Conversion(1, 28, "stretch" if "fit=stretch" in changes else "crop")(image)
    np.testing.assert_array_equal(images[0], 255 - fitted if "invert=true" in changes else fitted)
    assert not np.array_equal(images[0], Conversion(1, 28)(image))


def test_predict_inverts_ink_on_paper_for_a_model_of_drawings(tmp_path, capsys):
    model = SimpleNamespace(
        channels=1, image_size=8, conversion=Conversion(1, 8), trained_conversion=None, drawings=True,
        choices={"dataset": "glyphs"},
    )  # fmt: skip
    letter = np.full((8, 8), 0, np.uint8)
    letter[2:6, 3] = 255
    for name in "abc":
        (tmp_path / name).mkdir()
        Image.fromarray(255 - letter).save(tmp_path / name / "0.png")
        Image.fromarray(letter).save(tmp_path / name / "1.png")  # only the first of each class counts
    paper, empty = Tree(tmp_path), dict.fromkeys(CHOICES, "")
    assert choose_conversion(model, empty, paper).invert is True  # which json can write
    assert "and the examples have a light one: images are inverted; type invert=false" in capsys.readouterr().err
    for name in "ab":
        Image.fromarray(letter).save(tmp_path / name / "0.png")
    (tmp_path / "c" / "0.png").write_bytes(b"no image")
    assert choose_conversion(model, empty, paper).invert is False
    assert "have a dark one: images are not inverted; type invert=true" in capsys.readouterr().err
    assert not choose_conversion(model, empty).invert
    assert "images are not inverted; type invert=true for dark ink on paper" in capsys.readouterr().err
    assert choose_conversion(model, empty | {"invert": "true"}, paper).invert and not capsys.readouterr().err


@pytest.mark.parametrize(
    ("dataset", "reason"),
    [("folder", "files: type"), ("mixture", "files, whose datasets are converted in diff")],
)
def test_a_conversion_that_the_checkpoint_does_not_contain_is_stated(dataset, reason, capsys):
    model = SimpleNamespace(
        channels=1, image_size=8, conversion=Conversion(1, 8), trained_conversion=None, drawings=False,
        choices={"dataset": dataset},
    )  # fmt: skip
    empty = dict.fromkeys(CHOICES, "")
    assert choose_conversion(model, empty).options == Conversion(1, 8).options
    shown = capsys.readouterr().err
    assert shown.startswith("metafew: fit=crop and invert=false are used, as") and reason in shown
    choose_conversion(model, empty | {"fit": "pad", "invert": "true"})
    assert not capsys.readouterr().err


def test_differences_from_the_conversion_in_training_are_stated_in_words_of_the_command_line(capsys):
    trained = {"fit": "crop", "invert": True, "white": 255, "background": None}
    model = SimpleNamespace(
        channels=1, image_size=8, conversion=Conversion(1, 8, **trained), trained_conversion=trained, drawings=True
    )
    values = predict.parse(["invert=false", "white=null", "background=black"], ())
    conversion = choose_conversion(model, values)
    assert (conversion.invert, conversion.white, conversion.background) == (False, None, "black")
    lines = capsys.readouterr().err.splitlines()
    stated = [line.removeprefix("metafew: expected ").partition(": ")[0] for line in lines]
    assert stated == [
        "invert=true, as in training, got false",
        "white=255, as in training, got null",
        "background=null, as in training, got black",
    ]
    choose_conversion(model, predict.parse(["background=null"], ()))
    assert not capsys.readouterr().err


def test_predict_and_export_refuse_a_model_of_vectors(monkeypatch):
    model = SimpleNamespace(image_size=1, choices={"dataset": "features"})
    monkeypatch.setattr(predict.metafew, "load", lambda *_: model)
    with pytest.raises(UsageError, match=r"of images, got one of vectors \(dataset=features\): call metafew.load"):
        predict.load({"ckpt": "a.ckpt", "trust": "", "chosen": ""})


def test_predict_converts_images_as_the_model_was_trained(launch, folder, tmp_path, monkeypatch, capsys):
    for file in folder.rglob("*.png"):
        picture(file, 130, len(file.parent.name), (40, 30))
    words = [f"dataset.root={folder}", "dataset.image_size=16", "dataset.fit=stretch", "dataset.invert=true"]
    words += ["dataset.fractions=[0.5,0.25,0.25]", "train.query=1", "val.query=1", "test.query=1"]
    words += ["train.way=2", "val.way=2", "test.way=2"]
    launch("dataset=folder", *words, "stages=[fit]", "trainer.max_steps=1", "norm=none", out=tmp_path / "run")
    adapted, original = [], predict.metafew.load

    def load(*typed):
        model = original(*typed)
        model.adapt = lambda images, labels: adapted.append(images) or type(model).adapt(model, images, labels)
        return model

    monkeypatch.setattr(predict.metafew, "load", load)
    ckpt = tmp_path / "run" / "checkpoints" / "last.ckpt"
    typed = [f"ckpt={ckpt}", f"support={folder}", f"query={folder}", f"out={tmp_path / 'a.csv'}"]
    assert predict.main(typed) == 0
    assert "as in training" not in capsys.readouterr().err
    assert predict.main([*typed, "fit=crop", "invert=true"]) == 0
    assert "expected fit=stretch, as in training, got crop: leave it out" in capsys.readouterr().err
    files = sorted(folder.rglob("*.png"))
    for images, fit in zip(adapted, ("stretch", "crop"), strict=True):
        np.testing.assert_array_equal(images, np.stack([Conversion(3, 16, fit, invert=True)(file) for file in files]))


def test_predict_leaves_images_without_finite_logits_empty(ckpt, shades, tmp_path, monkeypatch, capsys):
    original = predict.metafew.load

    def load(*arguments):
        model = original(*arguments)
        logits = model.head.forward
        ill = torch.zeros(20, 3)
        ill[::2, 1] = torch.inf
        monkeypatch.setattr(model.head, "forward", lambda *inputs: logits(*inputs) + ill)
        return model

    monkeypatch.setattr(predict.metafew, "load", load)
    typed = [f"ckpt={ckpt}", f"support={tmp_path / 'support'}", f"query={tmp_path / 'query'}"]
    assert predict.main([*typed, f"out={tmp_path / 'a.csv'}"]) == 2
    shown = capsys.readouterr()
    assert "10 of 20 images are labelled" in shown.out
    assert "metafew: expected finite logits for every image, got NaN or infinity for 10" in shown.err.splitlines()[-1]
    rows = rows_of(tmp_path / "a.csv")
    assert len(rows) == 20 and all(set(list(row.values())[1:]) == {""} for row in rows[::2])
    assert all(row["predicted"] == shades[row["file"]] for row in rows[1::2])


def test_predict_gives_the_same_in_any_chunks(ckpt, shades, tmp_path, monkeypatch):
    typed = [f"ckpt={ckpt}", f"support={tmp_path / 'support'}", f"query={tmp_path / 'query'}"]
    assert predict.main([*typed, f"out={tmp_path / 'a.csv'}"]) == 0
    monkeypatch.setattr(queries, "CHUNK", 3)
    assert predict.main([*typed, f"out={tmp_path / 'b.csv'}"]) == 0
    for a, b in zip(rows_of(tmp_path / "a.csv"), rows_of(tmp_path / "b.csv"), strict=True):
        assert (a["file"], a["predicted"]) == (b["file"], b["predicted"])
        assert float(a["probability"]) == pytest.approx(float(b["probability"]), abs=2e-6)


def test_predict_labels_one_image_and_warns_of_a_transductive_norm(launch, shades, tmp_path, capsys):
    launch("norm=transductive", out=tmp_path / "run")
    file = next(iter(shades))
    typed = [f"ckpt={tmp_path / 'run/checkpoints/best.ckpt'}", f"support={tmp_path / 'support'}"]
    assert predict.main([*typed, f"query={tmp_path / 'query' / file}", f"out={tmp_path / 'a.csv'}"]) == 0
    assert [row["file"] for row in rows_of(tmp_path / "a.csv")] == [file]
    assert "a prediction depends on the other images of its chunk" in capsys.readouterr().err


def test_predict_warns_of_a_transductive_head(ckpt, shades, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Head, "transductive", True)
    typed = [f"ckpt={ckpt}", f"support={tmp_path / 'support'}", f"query={tmp_path / 'query'}"]
    assert predict.main([*typed, f"out={tmp_path / 'a.csv'}"]) == 0
    assert "the head of this model is transductive" in capsys.readouterr().err


def test_predict_refuses_examples_without_a_class_that_is_there(shades, tmp_path, capsys):
    typed = ["ckpt=none.ckpt", f"support={tmp_path / 'support'}", f"query={tmp_path / 'query'}"]
    (tmp_path / "support" / "walrus").mkdir()
    (tmp_path / "support" / "walrus" / "0.heic").touch()
    (tmp_path / "support" / "gone").symlink_to("nowhere")
    assert predict.main(typed) == 2
    assert "examples of every class in" in (said := capsys.readouterr().err) and ") in gone, walrus: convert" in said


def test_predict_follows_links_and_names_queries_that_it_cannot_read(tmp_path, caplog):
    for file in ("query/0.png", "query/a.heic", "elsewhere/1.png"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    (tmp_path / "query" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "query" / "dead.png").symlink_to("nowhere.png")
    (tmp_path / "query" / "predictions.png").touch()
    sheet = tmp_path / "query" / ".." / "query" / "predictions.png"
    assert list(queries.list_images(tmp_path / "query", sheet)) == ["0.png", "linked/1.png"]
    assert "*.heic in query (1), link to a missing file: dead.png (1)" in caplog.text


def test_predict_replaces_no_image_and_no_page_but_its_own(tmp_path):
    image, csv_file = tmp_path / "cat.png", tmp_path / "cat.csv"
    queries.check_beside(csv_file, tmp_path)
    image.touch()
    with pytest.raises(UsageError, match=r"cat.png beside it, which would be replaced: type out=FILE.csv"):
        queries.check_beside(csv_file, tmp_path)
    csv_file.touch()
    queries.check_beside(csv_file, tmp_path)
    with pytest.raises(UsageError, match=r"expected out=.*cat.csv to have a name of its own"):
        queries.check_beside(csv_file, image)


def test_out_has_the_name_of_a_file():
    with pytest.raises(UsageError, match=r"expected out to be a file, got \.: type out=FILE.csv"), written(Path()):
        pass


@pytest.mark.parametrize("name", [".png", ".html"])
def test_predict_names_a_picture_that_it_cannot_write(name, tmp_path, monkeypatch):
    (tmp_path / "a.png").touch()
    (tmp_path / f"a{name}").unlink(missing_ok=True)
    (tmp_path / f"a{name}").mkdir()
    monkeypatch.setattr(queries, "draw_labelled_images", lambda *given: given[-1].write_bytes(b""))
    monkeypatch.setattr(queries, "labelling_page", lambda *_: "")
    arguments = (Labelling({}, []), {}, {}, Conversion(1, 8), [], "", tmp_path / "a.csv")
    with pytest.raises(UsageError, match=rf"expected out=.*a.csv to be a file that can be written, got .*a\{name}"):
        queries.write_pictures(*arguments)


def test_predict_leaves_damaged_images_out(ckpt, shades, tmp_path, capsys):
    damaged = list(shades)[:2]
    for file in damaged:
        (tmp_path / "query" / file).write_bytes(b"no image")
    for file in (".hidden.png", "notes.txt", "__MACOSX/a.png"):
        (tmp_path / "query" / file).parent.mkdir(exist_ok=True)
        (tmp_path / "query" / file).write_bytes(b"no image")
    typed = [f"ckpt={ckpt}", f"support={tmp_path / 'support'}", f"out={tmp_path / 'a.csv'}"]
    assert predict.main([*typed, f"query={tmp_path / 'query'}"]) == 0
    shown = capsys.readouterr()
    assert {row["file"]: row["predicted"] for row in rows_of(tmp_path / "a.csv")} == {
        file: name for file, name in shades.items() if file not in damaged
    }
    assert "18 of 20 images" in shown.out and all(file in shown.err for file in damaged)
    before = (tmp_path / "a.csv").read_bytes()
    assert predict.main([*typed, f"query={tmp_path / 'query' / damaged[0]}"]) == 2
    assert "expected at least one query that can be read" in capsys.readouterr().err
    assert (tmp_path / "a.csv").read_bytes() == before and not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        (["support=a", "query=b"], "expected ckpt=... too, got support=a query=b: type metafew predict ckpt"),
        (["ckpt=a", "suport=b"], "got suport=b: type metafew predict"),
        (["ckpt"], "got ckpt: type"),
        (["ckpt=a", "support=b", "query=c", "out=a.html"], "expected out to be a CSV file, got a.html: type out=FILE"),
        (
            ["ckpt=a", "support=b", "query=c", "invert=yes"],
            "expected invert to be true or false, got yes: type invert=true",
        ),
        (
            ["ckpt=a", "support=b", "query=c", "fit=cut"],
            "expected fit to be crop or stretch or pad, got cut: type fit=crop",
        ),
        (
            ["ckpt={ckpt}", "support={}/support", "query={}/query", "white=bright"],
            "expected white to be a number, got bright: type white=65535",
        ),
        (
            ["ckpt={ckpt}", "support={}/support", "query={}/query", "white=-1"],
            "expected white to be a number above 0, or null, got -1.0: type white=65535",
        ),
        (["ckpt=a", "support=b", "query=nowhere"], "expected query to be an image or a folder of images (.png, .jpg"),
        (["ckpt=none.ckpt", "support={}/support", "query={}/query"], "there is no file none.ckpt"),
        (["ckpt=a", "support={}/none", "query={}/query"], "none is not a folder"),
        (["ckpt={ckpt}", "support={}/support", "query={}/query", "out={}/query/00.png/a.csv"], "to be a file that can"),
        (["ckpt={ckpt}", "support={}/support", "query={}/query", "out={}/query"], "to be a file that can be written"),
    ],
)
def test_predict_explains_itself(typed, sentence, ckpt, shades, tmp_path, capsys):
    assert predict.main([word.format(tmp_path, ckpt=ckpt) for word in typed]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "trained on drawings" not in line]
    assert len(lines) == 1 and lines[0].startswith("metafew: ") and sentence in lines[0]
    assert not list(tmp_path.rglob("*.tmp"))


# all of them


def test_every_command_has_a_script():
    modules = (SCRIPTS.parent / "metafew" / "commands").glob("*.py")
    assert {module.stem for module in modules if "\ndef main(" in module.read_text()} == set(COMMANDS)
    assert set(COMMANDS) < {script.stem for script in SCRIPTS.glob("*.py")}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_script_only_calls_its_command(name):
    lines = (SCRIPTS / f"{name}.py").read_text().splitlines()
    tree = ast.parse("\n".join(lines))
    assert len(lines) < 12 and not any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in ast.walk(tree))
    assert f"from metafew.commands.{name} import main" in lines


def test_scripts_print_their_usage_without_torch():
    code = (
        "import runpy, sys\n"
        "for script in sys.argv[1:]:\n"
        "    print('\\x1e')\n"
        "    sys.argv = [script, '--help']\n"
        "    try:\n        runpy.run_path(script, run_name='__main__')\n"
        "    except SystemExit as end:\n        assert end.code == 0, script\n"
        "    assert 'torch' not in sys.modules, script\n"
    )
    command = [sys.executable, "-c", code, *(str(SCRIPTS / f"{name}.py") for name in COMMANDS)]
    environment = os.environ | {"PYTHONPATH": str(SCRIPTS.parent)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    _, *shown = done.stdout.split("\x1e")
    for name, usage in zip(COMMANDS, shown, strict=True):
        assert (f"  metafew {name} " if name in __main__.COMMANDS else f"  python scripts/{name}.py ") in usage


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_print_their_usage_without_arguments(name, capsys):
    module = import_module(f"metafew.commands.{name}")
    assert module.main([]) == 0
    assert capsys.readouterr().out.strip() == module.__doc__.strip()


def test_commands_work_where_only_the_package_is_installed(tmp_path):
    """A wheel contains metafew/ with conf/ in it, and neither scripts/ nor docs/."""
    skipped = shutil.ignore_patterns("__pycache__")
    shutil.copytree(SCRIPTS.parent / "metafew", tmp_path / "site" / "metafew", ignore=skipped)
    shutil.copytree(SCRIPTS.parent / "conf", tmp_path / "site" / "metafew" / "conf")
    (tmp_path / "here").mkdir()
    code = (
        "import json, sys\n"
        "from importlib import import_module\n"
        "import metafew\n"
        "print(metafew.__file__)\n"
        "for name, arguments in json.loads(sys.argv[1]):\n"
        "    assert import_module(f'metafew.commands.{name}').main(arguments) == 0, name\n"
    )
    calls = [[name, ["--help"]] for name in COMMANDS]
    calls += [["dashboard", ["out=dashboard.json"]], ["reproduce", ["page"]]]
    calls += [["prepare", ["dataset=glyphs", "out=sheet.png"]]]
    command = [sys.executable, "-c", code, json.dumps(calls)]
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(command, cwd=tmp_path / "here", env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(tmp_path / "site"))
    written = {str(path.relative_to(tmp_path / "here")) for path in (tmp_path / "here").rglob("*") if path.is_file()}
    assert written == {"dashboard.json", "docs/reproduction.md", "sheet.png"}


@pytest.mark.parametrize(("name", "word"), [("report", "out="), ("prepare", "out="), ("search", "trials=")])
def test_an_empty_option_of_a_command_is_refused(name, word, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "table.md").write_text("mine")
    assert import_module(f"metafew.commands.{name}").main(["runs", word]) == 2
    assert f"to have a value, got {word}: leave it out, or type {word}VALUE" in capsys.readouterr().err
    assert (tmp_path / "table.md").read_text() == "mine"


def test_reproduce_refuses_the_folder_of_a_run(tmp_path, capsys):
    assert reproduce.main(["heads", f"hydra.run.dir={tmp_path}"], tmp_path / "docs") == 2
    assert capsys.readouterr().err.endswith(f"got hydra.run.dir={tmp_path}: type out=DIR instead\n")


def test_the_folder_of_finished_runs_can_be_chosen(monkeypatch, tmp_path):
    typed = []
    monkeypatch.setattr(reproduce, "run_subprocess", lambda words: typed.append(words) or reproduce.REFUSED)
    with pytest.raises(UsageError):
        reproduce.reproduce(["heads", "cells=kept", f"out={tmp_path}"], tmp_path / "docs")
    (words,) = typed
    assert [word for word in words if word.startswith("cells=")][-1] == "cells=kept"
