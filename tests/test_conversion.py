"""How images become uint8 squares: one rule for a dataset, the same in its store, its model and predictions."""

import io
import logging
import re
import struct
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from metafew.commands import predict
from metafew.config.groups import CONF
from metafew.data import store
from metafew.data.formats.arrays import Arrays
from metafew.data.formats.conversion import Conversion
from metafew.data.formats.damage import UnreadableImages
from metafew.data.formats.remarks import remarks
from metafew.data.formats.tree import Tree
from metafew.data.sources.folder import Folder
from metafew.data.sources.omniglot import Omniglot
from metafew.data.summary import warnings
from metafew.errors import UsageError
from metafew.inference import Model
from metafew.training.conversion import follow_training, warn_of_other_conversions

SIZE = 12


def folder(root, **changes):
    settings = OmegaConf.to_container(OmegaConf.load(CONF / "dataset" / "folder.yaml").dataset)
    del settings["_target_"]
    return Folder(**settings | {"root": str(root), "image_size": SIZE} | changes)


def grey(values, dtype):
    return Image.fromarray(np.asarray(values, dtype))


def square(low, high, dtype=np.float32, size=4):
    """Return a square image of the values from ``low`` to ``high``."""
    return grey(np.linspace(low, high, size * size).reshape(size, size), dtype)


def convert(images, size=4, channels=1, **choices):
    """Return images converted as those of one dataset, and the conversion."""
    conversion = Conversion(channels, size, **choices)
    if any(map(conversion.depends_on_dataset, images)):
        conversion.decide(images)
    return [conversion(image) for image in images], conversion


# one white


@pytest.mark.parametrize(("largest", "white"), [(1, 1), (1.004, 1), (1.2, 1), (1.3, 255), (255, 255), (300, 255)])
def test_white_of_floating_point_is_that_of_all_images_in_any_order(largest, white):
    images = [square(0, 0.5), square(0, largest), square(0, 1)]
    for order in ([0, 1, 2], [2, 0, 1]):
        pixels, conversion = convert([images[number] for number in order])
        assert conversion.white == white
        for number, converted in zip(order, pixels, strict=True):
            expected = np.rint(np.asarray(images[number], float).clip(0, white) * 255 / white)
            np.testing.assert_array_equal(converted[0], expected)


def test_white_of_integers_is_65535_unless_it_is_given():
    pixels, conversion = convert([square(0, 4095, np.uint16)])
    assert conversion.white == 65535 and pixels[0].max() == 16
    pixels, conversion = convert([square(0, 4095, np.uint16)], white=4095)
    assert conversion.white == 4095 and (pixels[0].min(), pixels[0].max()) == (0, 255)


def test_integers_and_floating_point_have_one_white():
    pixels, conversion = convert([square(0, 65535, np.uint16), square(0, 40_000)])
    assert conversion.white == 65535 and [each.max() for each in pixels] == [255, 156]


def test_a_single_image_in_floating_point_is_refused_where_its_white_is_not_clear():
    for image in (square(0, 212), square(0, 1e6)):
        with pytest.raises(UsageError, match=r"got up to (212: type dataset.white=255|1e\+06: type dataset.white=1e)"):
            Conversion(1, 4)(image)
    assert Conversion(1, 4, white=212)(square(0, 212)).max() == 255


@pytest.mark.parametrize("white", [0, -1, True, "bright", float("nan")])
def test_white_is_a_positive_number(white):
    with pytest.raises(UsageError, match=r"expected dataset\.white to be a number above 0"):
        Conversion(1, 4, white=white)


def test_16_bit_colours_have_their_own_white():
    image = Image.open(io.BytesIO(deep_png(np.full((3, 3, 3), 4000))))
    image.info["upper bytes"] = True
    with pytest.raises(UsageError, match=r"convert the files to 8 bits, or type dataset\.white=null"):
        Conversion(3, 3, white=4095)(image)


# what is behind transparent pixels


def drawing(ink, size=4):
    """Return a transparent image with one opaque stroke of a grey level."""
    pixels = np.zeros((size, size, 4), np.uint8)
    pixels[1] = [ink, ink, ink, 255]
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    ("inks", "background"), [([255, 255, 0], "black"), ([240, 250], "black"), ([0, 20, 255], "white"), ([130], "white")]
)
def test_background_is_the_one_on_which_more_drawings_show(inks, background):
    for order in (inks, inks[::-1]):
        pixels, conversion = convert([drawing(ink) for ink in order])
        assert conversion.background == background
        assert [int(image[0, 1, 0]) for image in pixels] == order
        assert {int(image[0, 0, 0]) for image in pixels} == {255 if background == "white" else 0}


def test_background_may_be_given_and_is_inverted_too():
    (pixels,), _ = convert([drawing(200)], background="black", invert=True)
    assert (pixels[0, 1] == 55).all() and (pixels[0, 0] == 255).all()


def test_a_transparent_value_of_16_bits_is_transparent():
    values = np.array([[0, 65535], [30_000, 65535]], np.uint16)
    grey(values, np.uint16).save(file := io.BytesIO(), "PNG", transparency=30_000)
    (pixels,), _ = convert([Image.open(file)], size=2, background="black")
    assert pixels[0].tolist() == [[0, 255], [0, 255]]


# the square


@pytest.mark.parametrize(("shape", "rows", "columns"), [((6, 12), (3, 9), (0, 12)), ((24, 8), (0, 12), (4, 8))])
@pytest.mark.parametrize(("background", "level"), [("white", 255), ("black", 0)])
def test_pad_keeps_the_image_between_margins_of_the_background(shape, rows, columns, background, level):
    image = np.random.default_rng(0).integers(50, 200, shape, dtype=np.uint8)
    (pixels,), _ = convert([Image.fromarray(image)], size=12, fit="pad", background=background)
    inner = pixels[0, slice(*rows), slice(*columns)]
    expected = Image.fromarray(image).resize(inner.shape[::-1], Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(inner, np.asarray(expected))
    assert pixels[0].sum() - inner.sum(dtype=np.uint32) == level * (144 - inner.size)


def test_pad_keeps_proportions_in_averages_over_areas_too():
    image = Image.fromarray(np.full((2, 4), 60, np.uint8))
    (pixels,), _ = convert([image], size=2, resample="area", fit="pad", background="black")
    assert pixels[0].tolist() == [[30, 30], [30, 30]]  # two of four rows are margins


def test_areas_are_averaged():
    image = Image.fromarray(np.arange(36, dtype=np.uint8).reshape(6, 6))
    (pixels,), _ = convert([image], size=2, resample="area")
    assert pixels[0].tolist() == [[7, 10], [25, 28]]


def test_an_array_that_is_no_image_is_refused():
    for array in (np.zeros((3, 8, 8), np.uint8), np.zeros((8, 8, 3), np.float32), np.zeros(5)):
        with pytest.raises(UsageError, match=r"expected an image \(h, w\), or uint8"):
            Conversion(3, 8)(array)
    assert Conversion(1, 8)(np.ones((8, 8))).max() == 255


# what was seen


def test_what_is_usual_is_not_worth_a_remark():
    images = [Image.fromarray(np.random.default_rng(0).integers(0, 256, (h, 12, 3), np.uint8)) for h in (12, 10)]
    _, conversion = convert(images)
    assert conversion.seen == {"images": 2, "cropped": 1, "cut_away": 0.0833, "most_cut_away": 0.1667}
    assert remarks(conversion.seen) == []
    _, conversion = convert([square(0, 65535, np.uint16), square(0, 50_000, np.uint16)])
    assert conversion.seen == {"images": 2, "deep": 2, "smallest": 0, "largest": 65535, "white": 65535}
    assert remarks(conversion.seen) == []


@pytest.mark.parametrize(
    ("shapes", "shares"), [([(10, 40)] * 2 + [(40, 10)], "75% .* 75%"), ([(20, 20)] * 9 + [(10, 40)], "8% .* 75%")]
)
def test_a_crop_that_cuts_much_away_is_remarked(shapes, shares):
    images = [Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, np.uint8)) for shape in shapes]
    ((remark),) = remarks(convert(images)[1].seen)
    assert "type dataset.fit=stretch or dataset.fit=pad" in remark
    assert [word for word in remark.split() if "%" in word] == [f"{word}" for word in shares.split(" .* ")]
    for fit in ("stretch", "pad"):
        assert not remarks(convert(images, fit=fit)[1].seen)


@pytest.mark.parametrize(
    ("images", "remark"),
    [
        (
            [square(0, 4095, np.uint16)],
            "got only 0 to 4095, of which 17 of 256 grey levels are left: type dataset.white=4095$",
        ),
        ([square(0, 1000, np.uint16)], "type dataset.white=1023"),
        (
            [square(0, 4095, np.uint16)] * 2 + [square(0, 65535, np.uint16)],
            "got 2 of 3 that stay below 1/8 of it: type dataset.white=NUMBER",
        ),
        ([square(0, 255, np.int32)], "type dataset.white=255"),
        ([square(40_000, 44_000, np.uint16)], "got only 40000 to 44000, .*: convert the files to 8 bits"),
        ([square(0, 1.5)], "got only 0 to 1.5, .*: type dataset.white=1.5"),
        ([grey([[0, np.nan], [1, np.inf]], np.float32)], "got 1 of 1 images with pixels that are not finite"),
        ([square(-1, 1), square(0, 1)], "got 1 of 2 images with pixels below 0, down to -1, .*: rescale the files"),
        ([square(0, 1.2)], "got 1 of 1 images with pixels above white, up to 1.2, .*: type dataset.white=NUMBER"),
        ([grey(np.full((4, 4), 9), np.uint8)] * 2, "got 2 of 2 of a single colour"),
        (
            [drawing(255), drawing(0)],
            "expected 2 transparent .* got 1 images of a single colour: type dataset.back",
        ),
    ],
)
def test_remarks(images, remark):
    (found,) = remarks(convert(images)[1].seen)
    assert re.search(remark, found), found


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "PNG"])
def test_further_frames_are_remarked(tmp_path, kind):
    frames = [square(0, 255, np.uint8).convert("RGB"), square(255, 0, np.uint8).convert("RGB")]
    frames[0].save(tmp_path / "a", kind, save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "b", kind)
    _, conversion = convert([])
    for name in "ab":
        conversion(tmp_path / name)
    (remark,) = remarks(conversion.seen)
    assert conversion.seen["further_frames"] == 1 and "got 1 of 2 with further pages or frames" in remark


def test_remarks_are_made_on_own_images_and_from_the_store(tmp_path):
    for name in "abc":
        (tmp_path / "d" / name).mkdir(parents=True)
        square(0, 4095, np.uint16).save(tmp_path / "d" / name / "0.png")
    built = store.build(folder(tmp_path / "d"), tmp_path / "cache")
    again = folder(tmp_path / "d")
    again.duplicates = None  # of which there are some
    assert store.build(again, tmp_path / "cache") == built
    (remark,) = warnings(again, store.describe(built)["summary"])
    assert remark.startswith("dataset=folder: expected") and "type dataset.white=4095" in remark
    assert store.describe(built)["conversion"]["white"] == 65535
    again.label = "photos"  # a part of a mixture
    (remark,) = warnings(again, store.describe(built)["summary"])
    assert remark.startswith("dataset=photos: expected") and "type white:4095 for photos" in remark
    again.own_images = False
    assert warnings(again, store.describe(built)["summary"]) == []


# damaged images


def test_damaged_images_of_all_splits_are_listed_at_once(tmp_path):
    for name in "abcdef":
        (tmp_path / "d" / name).mkdir(parents=True)
        for number in range(2):
            square(0, 255, np.uint8).save(tmp_path / "d" / name / f"{number}.png")
    damaged = [tmp_path / "d" / name for name in ("a/0.png", "b/1.png", "c/0.png", "d/0.png", "e/1.png", "f/0.png")]
    for number, file in enumerate(damaged):
        file.write_bytes(b"x" * (number % 2))
    with pytest.raises(UnreadableImages, match=r"^6 images cannot be read: .*: replace them or take") as error:
        store.build(folder(tmp_path / "d"), tmp_path / "cache")
    assert all(str(file) in str(error.value) for file in damaged) and "(it is empty)" in str(error.value)
    assert not [*(tmp_path / "cache").rglob("*.json"), *(tmp_path / "cache").rglob("*.npy")]


def test_a_long_list_of_damaged_images_is_cut():
    message = str(UnreadableImages([(f"{number}.png", "it is empty") for number in range(33)]))
    assert message.count("(it is empty)") == 20 and "33 images" in message and "and 13 more" in message


def test_reading_goes_on_after_a_damaged_image_in_an_array():
    square(0, 255, np.uint8).save(file := io.BytesIO(), "PNG")
    images, read = Arrays([b"x", file.getvalue(), b"", file.getvalue()], [0, 1, 1, 0], None, []).open([0, 1, 2, 3]), []
    for _ in range(4):
        try:
            read.append(next(images).size)
        except UnreadableImages as error:
            read += [name for name, _ in error.faults]
    assert read == ["image 0 of the array", (4, 4), "image 2 of the array", (4, 4)]


# choices belong to the model


@pytest.mark.parametrize(
    ("typed", "expected", "logged"),
    [
        ([], {"fit": "stretch", "invert": True, "white": 4095, "background": None, "image_size": 28}, "is taken from"),
        (
            ["dataset.fit=pad"],
            {"fit": "pad", "invert": True},
            "dataset.fit=stretch, as in the training of a.ckpt, got pad",
        ),
    ],
)
def test_a_test_follows_the_training(typed, expected, logged, caplog):
    model = {
        "images": {"channels": 3, "image_size": 28},
        "conversion": {"fit": "stretch", "invert": True, "white": 4095, "background": None, "resample": "lanczos"},
    }
    options = {"root": "d", "channels": 3, "image_size": 84, "fit": "crop", "invert": False}
    options |= {"white": None, "background": None} | dict(word.removeprefix("dataset.").split("=") for word in typed)
    cfg = OmegaConf.create({"ckpt": "a.ckpt", "dataset": options})
    with caplog.at_level(logging.WARNING):
        follow_training(cfg, {"metafew": {"model": model, "training": {"dataset": {}}}}, ["dataset=folder", *typed])
    assert {key: cfg.dataset[key] for key in expected} == expected and "resample" not in cfg.dataset
    assert logged in caplog.text
    followed = cfg.copy()
    for saved, trained_on in (({"images": model["images"]}, {}), (model, {**options})):
        cfg = OmegaConf.create({"ckpt": "a.ckpt", "dataset": options})
        follow_training(cfg, {"metafew": {"model": saved, "training": {"dataset": trained_on}}}, [])
        assert cfg.dataset == options != followed.dataset  # of an earlier version, or the dataset of training


def test_a_test_without_an_option_of_the_training_warns(tmp_path, caplog):
    drawn = Omniglot(str(tmp_path), "lake", 28, False)
    start = {"metafew": {"model": {"conversion": drawn.conversion.options}}}
    warn_of_other_conversions(drawn, start, "a.ckpt")
    assert not caplog.text
    warn_of_other_conversions(folder(tmp_path, invert=True), start, "a.ckpt")
    assert "converted with resample=lanczos, unlike those in the training of a.ckpt, with area" in caplog.text
    assert "invert" not in caplog.text
    assert caplog.text.rstrip().endswith("with area: this dataset has no such option")
    warn_of_other_conversions(folder(tmp_path, invert=False), start, "a.ckpt")
    messages = [message for message in caplog.messages if "invert=False" in message]
    assert messages and not [message for message in messages if "no such option" in message]


# store, predictions and the loaded model have the same pixels


def deep_png(values):
    """Return a PNG file of 16-bit colours ``(h, w, 3)``, which Pillow cannot write."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.tobytes() for row in values.astype(">u2"))
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def write(file, form, rng, h=31, w=22):
    """Write an image and return what the documentation says of its colours in 0..255, ``(h, w, 3)`` in float64."""
    deep, colours = rng.integers(0, 65536, (h, w)), rng.integers(0, 256, (h, w, 3), np.uint8)
    alone = np.ones(3)
    if form == "grey16":
        grey(deep, np.uint16).save(file.with_suffix(".png"))
        return deep[..., None] / 65535 * 255 * alone
    if form == "rgb16":
        values = rng.integers(0, 65536, (h, w, 3))
        file.with_suffix(".png").write_bytes(deep_png(values))
        return values // 256
    if form == "bits12":
        grey(deep // 16, np.uint16).save(file.with_suffix(".png"))
        return (deep // 16)[..., None] / 4095 * 255 * alone
    if form == "float":
        values = (deep / 65535 * rng.uniform(0.3, 1.004)).astype(np.float32)
        grey(values, np.float32).save(file.with_suffix(".tif"))
        return values.astype(float).clip(0, 1)[..., None] * 255 * alone
    if form == "alpha":
        alpha = rng.integers(0, 256, (h, w, 1), np.uint8)
        Image.fromarray(np.concatenate([colours, alpha], 2)).save(file.with_suffix(".png"))
        return colours * (alpha / 255) + 255 * (1 - alpha / 255)
    if form == "exif":
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(np.ascontiguousarray(np.rot90(colours))).save(file.with_suffix(".png"), exif=exif)
        return colours
    if form == "cmyk":
        ink = rng.integers(0, 256, (h, w, 4), np.uint8)
        Image.fromarray(ink, "CMYK").save(file.with_suffix(".tif"))
        return 255 * (1 - ink[..., :3] / 255) * (1 - ink[..., 3:] / 255)
    if form == "palette":
        palette, alphas = rng.integers(0, 256, (16, 3), np.uint8), rng.integers(0, 256, 16, np.uint8)
        indices = rng.integers(0, 16, (h, w), np.uint8)
        image = Image.fromarray(indices, "P")
        image.putpalette(palette.ravel().tolist())
        image.save(file.with_suffix(".png"), transparency=alphas.tobytes())
        alpha = alphas[indices][..., None] / 255
        return palette[indices] * alpha + 255 * (1 - alpha)
    first, second = Image.fromarray(colours), Image.fromarray(255 - colours)
    first.save(file.with_suffix(".tif"), save_all=True, append_images=[second])
    return colours


def lanczos(length, size):
    """Return the ``(size, length)`` matrix of the Lanczos filter of three lobes, widened to reduce images."""
    scale = max(1, length / size)
    distance = (np.arange(length) + 0.5 - (np.arange(size)[:, None] + 0.5) * length / size) / scale
    weights = np.where(np.abs(distance) < 3, np.sinc(distance) * np.sinc(distance / 3), 0)
    return weights / weights.sum(1, keepdims=True)


def reference(colours, fit):
    """Return the documented conversion of colours in 0..255, in float64: uint8 levels ``(3, SIZE, SIZE)``."""
    levels = np.rint(colours)
    height, width, _ = levels.shape
    if fit == "crop":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        levels = levels[top : top + side, left : left + side]
    levels = np.einsum("hwc,xw->chx", levels, lanczos(levels.shape[1], SIZE))
    levels = np.rint(levels).clip(0, 255)
    return np.rint(lanczos(levels.shape[1], SIZE) @ levels).clip(0, 255)


FORMS = ["grey16", "rgb16", "bits12", "float", "alpha", "exif", "cmyk", "palette", "pages"]


@pytest.mark.parametrize("count", [6, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("fit", ["crop", "stretch"])
@pytest.mark.parametrize("form", FORMS)
def test_store_predictions_and_model_have_the_pixels_of_the_documentation(tmp_path, form, fit, count):
    rng, documented = np.random.default_rng(0), {}
    for number in range(count):
        file = tmp_path / "d" / "abc"[number % 3] / f"{number:03}"
        file.parent.mkdir(parents=True, exist_ok=True)
        documented[file.relative_to(tmp_path / "d").as_posix()] = reference(write(file, form, rng), fit)
    choices = {"fit": fit} | ({"white": 4095} if form == "bits12" else {})
    source = folder(tmp_path / "d", **choices)
    built = store.build(source, tmp_path / "cache")
    network = SimpleNamespace(channels=3, image_size=SIZE)
    model = Model(network, None, {}, store.describe(built)["conversion"])
    typed = predict.parse(["ckpt=a", "support=b", "query=c"])
    tree, seen = Tree(tmp_path / "d"), 0
    for split, categories in source.splits().items():
        stored = store.Split(built, split)
        for category, rows in zip(categories, stored.rows, strict=True):
            predicted = map(predict.choose_conversion(model, typed), tree.open([key for _, key in category.keys]))
            for (_, key), row, pixels in zip(category.keys, rows, predicted, strict=True):
                np.testing.assert_array_equal(stored.images[row], pixels)
                np.testing.assert_array_equal(model.conversion(tmp_path / "d" / key), pixels)
                with Image.open(tmp_path / "d" / key) as image:
                    np.testing.assert_array_equal(model.conversion(image), pixels)
                expected = documented[key.rpartition(".")[0]]
                assert np.abs(pixels - expected).max() <= 1, key
                seen += 1
    assert seen == count
