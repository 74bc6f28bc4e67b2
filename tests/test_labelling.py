"""Accuracy, tables, contact sheet and page of the predictions for a folder of images."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from scipy.stats import binomtest

from metafew.analysis.labelling import labelled_images, labelling_page
from metafew.analysis.labelling.labelling import NONE, Labelling, Prediction, true_class

CLASSES = ["class 2", "class 10", "<b>"]


def prediction(number, truth, predicted, probability=0.9, distance=0.5):
    return Prediction(f"{truth or 'others'}/{number}.png", truth, predicted, probability, distance)


@pytest.fixture
def labelling():
    """Ten images: seven right, one confused, one without an answer, one of no class, which is marked as unknown."""
    truths = ["class 2"] * 4 + ["class 10"] * 5
    predicted = [*truths[:3], "class 10", *truths[4:8], None]
    rows = [prediction(k, *pair, 0.5 + k / 20) for k, pair in enumerate(zip(truths, predicted, strict=True))]
    return Labelling(dict.fromkeys(CLASSES, 2), [*rows, prediction(9, None, "<b>", 0.7, 1.5)])


@pytest.fixture
def examples():
    return {name: [np.full((8, 8, 3), 10 * k, np.uint8)] * 2 for k, name in enumerate(CLASSES)}


def picture(file):
    return np.full((8, 8, 3), int(re.search(r"(\d+)\.png", file)[1]) % 256, np.uint8)


def test_images_in_folders_named_after_classes_are_measured(labelling):
    low, high = binomtest(7, 9).proportion_ci(0.95, "wilson")
    assert labelling.lines() == [
        f"accuracy 77.8 % (95 % interval {100 * low:.1f} to {100 * high:.1f} %): 7 of 9 images",
        "confused: class 2 as class 10 (1), class 10 as none (1)",
        "unknown: 0 of 9 images in folders named after classes, 1 of 1 others",
    ]
    assert labelling.class_table().rows == [
        ["class 2", "2", "3", "4", "75.0 %"],
        ["class 10", "2", "5", "5", "80.0 %"],
        ["<b>", "2", "1", "0", "–"],
    ]
    table = labelling.confusion_table()
    assert table.columns == ["as class 2", "as class 10", f"as {NONE}"]
    assert table.rows == [["class 2", "3", "1", ""], ["class 10", "", "4", "1"]]


def test_a_class_called_none_is_a_class():
    rows = [prediction(1, "none", "none"), prediction(2, "none", None, distance=2), prediction(3, "a", "none")]
    labelling = Labelling(dict.fromkeys(["a", "none"], 1), rows)
    assert labelling.most_confused(5) == [(("none", None), 1), (("a", "none"), 1)]
    assert labelling.confusion_table().rows == [["a", "1", ""], ["none", "1", "1"]]
    assert not rows[1].unknown


def test_many_classes_are_confused_in_a_list():
    names = [f"c{k}" for k in range(30)]
    rows = [prediction(k, name, names[k - k % 2]) for k, name in enumerate(names)]
    table = Labelling(dict.fromkeys(names, 1), [*rows, rows[3]]).confusion_table()
    assert table.title == "Most frequent confusions" and len(table.rows) == 15 and table.rows[0] == ["c3", "c2", "2"]


def test_without_truth_nothing_is_measured():
    labelling = Labelling(dict.fromkeys(CLASSES, 1), [prediction(1, None, "<b>"), prediction(2, None, "<b>", 0.5, 2)])
    assert labelling.lines() == ["unknown: 1 of 2 images"]
    assert labelling.class_table().columns == ["examples", "predicted"]


@pytest.mark.parametrize(
    ("file", "truth"),
    [("a/1.png", "a"), ("a/images/1.png", "a"), ("a/b/1.png", "a/b"), ("b/1.png", None), ("1.png", None),
     ("a/e\u0301/1.png", "a/\u00e9")],
)  # fmt: skip
def test_the_innermost_folder_named_after_a_class_is_the_truth(file, truth):
    assert true_class(file, {"a", "a/b", "a/\u00e9"}) == truth


def test_the_contact_sheet_has_one_row_for_each_class(labelling, examples, tmp_path, monkeypatch):
    texts, original = [], labelled_images.draw_caption
    monkeypatch.setattr(
        labelled_images, "draw_caption", lambda axes, p, x, y: (original(axes, p, x, y), texts.append(axes.texts[-1]))
    )
    labelled_images.draw_labelled_images(labelling, examples, picture, tmp_path / "a.png")
    shown = [text.get_text() for text in texts]
    assert shown == ["60 %", "55 %", "50 %", "85 %", "80 %", "75 %", "70 %", "65 %\nclass 2", "70 %?"]
    colours = {text.get_text(): text.get_color() for text in texts}
    assert colours["65 %\nclass 2"] == labelled_images.ORANGE and colours["60 %"] == "black"
    with Image.open(tmp_path / "a.png") as sheet:
        assert np.asarray(sheet.convert("L")).std() > 10


def test_true_classes_of_wrong_images_differ_where_their_names_do(tmp_path):
    axes = Figure().subplots()
    for number in (5, 6):
        wrong = prediction(number, f"alphabet/character{number:02}", "other", 0.54)
        labelled_images.draw_caption(axes, wrong, 0, 0)
    assert [text.get_text() for text in axes.texts] == [f"54 %\n…character{number:02}" for number in (5, 6)]


def test_a_contact_sheet_of_many_classes_draws_those_with_most_predictions(tmp_path):
    names = [f"c{k}" for k in range(25)]
    rows = [prediction(k, None, names[k % 21 + 4]) for k in range(400)]
    drawn, images = [], {name: [np.zeros((8, 8, 3), np.uint8)] for name in names}
    labelled_images.draw_labelled_images(
        Labelling(dict.fromkeys(names, 1), rows), images, lambda f: drawn.append(f) or picture(f), tmp_path / "a.png"
    )
    assert len(drawn) == 20 * labelled_images.IMAGES


def test_the_contact_sheet_is_as_wide_as_the_longest_name_requires(tmp_path):
    widths, images = [], [np.zeros((8, 8, 3), np.uint8)]
    for name in ("I", "W" * 28):
        labelled = Labelling({name: 1}, [prediction(1, None, name)])
        labelled_images.draw_labelled_images(labelled, {name: images}, picture, tmp_path / "a.png")
        with Image.open(tmp_path / "a.png") as sheet:
            widths.append(sheet.width)
            left = np.asarray(sheet.convert("L"))[:, :10]
        assert left.min() == 255
    assert widths[1] > widths[0] + 100


@pytest.mark.parametrize(
    ("rows", "heading"),
    [
        ([prediction(1, None, "b")], "labelled images and their probability; ?: marked as unknown"),
        ([prediction(1, "a", "b")], "orange: wrong, with the true class"),
        ([prediction(k, None, "b") for k in range(11)], "at most 10 per class"),
    ],
)
def test_the_contact_sheet_says_what_it_shows(rows, heading):
    found = {"b": rows}
    assert labelled_images.heading({"b": rows[:10]}, found).endswith(heading)
    assert labelled_images.heading({"b": rows[:10]}, found | {"c": []}).endswith("; 1 of 2 classes")


def test_without_any_answer_the_contact_sheet_has_the_examples(examples, tmp_path):
    rows = [prediction(1, None, None)]
    labelled_images.draw_labelled_images(Labelling(dict.fromkeys(CLASSES, 2), rows), examples, None, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size


class Page(HTMLParser):
    """Collects what a page shows, and checks that its elements are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.images, self.links, self.ids, self.texts, self.broken = [], [], [], [], [], False
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.images += [values["src"]] if tag == "img" else []
        self.links += [values["href"]] if tag == "a" else []
        self.ids += [f"#{values['id']}"] if "id" in values else []
        self.open += [tag] if tag not in ("meta", "img", "br", "wbr") else []
        self.broken = tag == "wbr"

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(f"{self.texts.pop()}{data}" if self.broken else data)
        self.broken = False


def test_the_page_shows_first_what_needs_a_look(labelling, tmp_path):
    (tmp_path / "a.png").write_bytes(b"png")
    command = "predict 'out=<1>.csv'"
    page = Page(labelling_page.labelling_page(labelling, ["model: <x>"], picture, tmp_path / "a.png", command))
    assert page.links == page.ids == [f"#{k}" for k in range(5)]
    assert all(src.startswith("data:image/png;base64,") for src in page.images) and len(page.images) == 11
    for line in (command, "model: <x>", *labelling.lines(), "9 of 10 images are labelled"):
        assert line in page.texts
    order = [part for part in page.texts if part.endswith(".png")]
    assert order[:3] == ["class 10/8.png", "class 2/3.png", "others/9.png"]  # no answer, wrong, unknown
    assert {"✗ class 2", "distance 1.50, unknown", NONE} <= set(page.texts)


def test_a_page_of_many_images_says_how_many_it_shows(labelling, tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(b"png")
    monkeypatch.setattr(labelling_page, "IMAGES", 2)
    page = Page(labelling_page.labelling_page(labelling, [], picture, tmp_path / "a.png", "x"))
    assert len(page.images) == 3 and any(part.startswith("Images (2 of 10, ") for part in page.texts)
