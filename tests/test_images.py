import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from metafew.data.formats.conversion import Conversion
from metafew.data.formats.images import FORMATS, decode
from metafew.errors import UsageError

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (12, 12, 3), dtype=np.uint8)
GREYS = RNG.integers(0, 256, (12, 12), dtype=np.uint8)


def encode(image, kind="PNG", **options):
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(file := io.BytesIO(), kind, **options)
    return file.getvalue()


def read(content, channels=3, size=12, fit="crop", **choices):
    return Conversion(channels, size, fit, **choices)(decode(io.BytesIO(content), "the image"))


def forge_png(width, height, data=b"", depth=8, colour=2):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def refused(path):
    with pytest.raises(UsageError, match=r"replace it or take it out of the folder$") as error:
        decode(path, f"cats/{path.name}")
    assert str(error.value).startswith(f"cats/{path.name} cannot be read as an image (")
    return str(error.value)


# broken files


@pytest.mark.parametrize("kind", FORMATS)
def test_truncated(tmp_path, kind):
    path = tmp_path / "cut.img"
    content = encode(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8), kind)
    assert read(content).shape == (3, 12, 12)
    path.write_bytes(content[: len(content) // 2])
    assert "damaged" in refused(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"Notes: my cats are not in this file.\n", "not PNG, JPEG,"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "not PNG, JPEG,"),
        (b"\x89PNG\r\n\x1a\n", "damaged|not PNG"),
        (encode(COLOURS)[:20], "damaged|not PNG"),
        (forge_png(2**31 - 1, 2**31 - 1), r"more than 89,478,485 pixels"),
        (forge_png(12_000, 12_000), r"more than 89,478,485 pixels"),  # Pillow only warns
        (forge_png(0, 5), "not PNG"),
        (encode(Image.new("LAB", (3, 3)), "TIFF"), "CIELAB"),
    ],
)
def test_sentence_says_what_is_wrong(tmp_path, content, reason):
    path = tmp_path / "tom.png"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=reason):
        decode(path, "tom")
    refused(path)


def test_missing_file_and_folder(tmp_path):
    assert "No such file" in refused(tmp_path / "gone.png")
    (tmp_path / "folder.png").mkdir()
    assert "directory" in refused(tmp_path / "folder.png")


def test_a_corrupt_byte_is_noticed(tmp_path):
    path, content = tmp_path / "flipped.png", bytearray(encode(COLOURS))
    content[content.index(b"IDAT") + 20] ^= 0xFF
    path.write_bytes(content)
    assert "damaged" in refused(path)


@given(st.binary(max_size=200), st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"P6 9 "]))
def test_random_bytes(content, magic):
    with pytest.raises(UsageError):
        read(magic + content)


VALID = [
    encode(COLOURS),
    encode(Image.fromarray(COLOURS).quantize(20), transparency=bytes(range(20))),
    forge_png(2, 2, bytes(14)),
    encode(COLOURS, "JPEG", exif=Image.Exif()),
    encode(Image.fromarray(COLOURS).convert("CMYK"), "JPEG"),
]


@settings(max_examples=300)
@given(
    st.sampled_from(VALID),
    st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=4),
    st.integers(0, 3000),
    st.sampled_from([1, 3]),
    st.sampled_from(["crop", "stretch"]),
)
def test_random_corruption(content, changes, length, channels, fit):
    content = bytearray(content)
    for place, byte in changes:
        content[place % len(content)] = byte
    try:
        pixels = read(bytes(content[: 1 + length]), channels, 7, fit)
    except UsageError:
        return
    assert pixels.shape == (channels, 7, 7) and pixels.dtype == np.uint8


# modes


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM", "TIFF"])
def test_colours_are_kept(kind):
    np.testing.assert_array_equal(read(encode(COLOURS, kind)), COLOURS.transpose(2, 0, 1))
    luma = COLOURS @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(read(encode(COLOURS, kind), 1)[0], luma, atol=0.51)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM", "TIFF", "GIF"])
def test_greys_are_kept(kind):
    np.testing.assert_array_equal(read(encode(GREYS, kind), 1), GREYS[None])
    np.testing.assert_array_equal(read(encode(GREYS, kind), 3), np.stack([GREYS] * 3))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bits_are_scaled_not_clipped(kind):
    deep = RNG.integers(0, 65536, (12, 12), dtype=np.uint16)
    deep[0, :4] = 0, 257, 40_000, 65_535
    np.testing.assert_array_equal(read(encode(deep, kind), 1)[0], np.rint(deep / 257))
    # eight bits in sixteen are the same image
    np.testing.assert_array_equal(read(encode(GREYS.astype(np.uint16) * 257, kind), 1)[0], GREYS)


def test_16_bits_of_colour():
    row = np.array([[65535, 32768, 256]], ">u2")
    assert read(forge_png(1, 1, b"\0" + row.tobytes(), depth=16), size=1).ravel().tolist() == [255, 128, 1]


@pytest.mark.parametrize("white", [1, 255, 65535])
def test_floating_point_white(white):
    numbers = (GREYS / 255 * white).astype(np.float32)
    numbers[0, :2] = 0, white
    expected = np.rint(numbers / white * 255)
    np.testing.assert_allclose(read(encode(numbers, "TIFF"), 1, white=white)[0], expected, atol=1)
    numbers[5, :3] = np.nan, np.inf, -np.inf
    pixels = read(encode(numbers, "TIFF"), 1, white=white)[0]
    assert pixels[5, :3].tolist() == [0, 0, 0]
    np.testing.assert_allclose(pixels[6:], expected[6:], atol=1)


def test_dark_integers_stay_dark():
    numbers = np.array([[0, 1], [128, 255]], np.int32)
    assert read(encode(numbers, "TIFF"), 1, 2).ravel().tolist() == [0, 0, 0, 1]


def test_32_bit_integers_saturate():
    numbers = np.array([[-5, 0], [65535, 2**31 - 1]], np.int32)
    assert read(encode(numbers, "TIFF"), 1, 2).ravel().tolist() == [0, 0, 255, 255]


def test_one_bit():
    paper = GREYS > 127
    np.testing.assert_array_equal(read(encode(paper), 1)[0], 255 * paper)
    np.testing.assert_array_equal(read(encode(paper), 3)[2], 255 * paper)


def test_transparency_is_white():
    alpha = RNG.integers(0, 256, (12, 12), dtype=np.uint8)
    alpha[:2], alpha[2:4] = 0, 255
    weight = alpha[..., None] / 255
    colours = read(encode(np.dstack([COLOURS, alpha]))).transpose(1, 2, 0)
    np.testing.assert_allclose(colours, COLOURS * weight + 255 * (1 - weight), atol=1)
    assert (colours[:2] == 255).all() and (colours[2:4] == COLOURS[2:4]).all()
    greys = read(encode(np.dstack([GREYS, alpha])), 1)[0]  # LA
    np.testing.assert_allclose(greys, GREYS * weight[..., 0] + 255 * (1 - weight[..., 0]), atol=1)


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_palettes(kind):
    image = Image.new("P", (2, 2))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([0, 1, 1, 0])
    red, blue, white = [255, 0, 0], [0, 0, 255], [255, 255, 255]
    assert read(encode(image, kind), size=2).transpose(1, 2, 0).tolist() == [[red, blue], [blue, red]]
    clear = read(encode(image, kind, transparency=1), size=2).transpose(1, 2, 0)
    assert clear.tolist() == [[red, white], [white, red]]


def test_palette_of_partly_transparent_colours():
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([0, 1])
    pixels = read(encode(image, transparency=bytes([255, 51])), size=2, fit="stretch")
    assert pixels[:, 0].T.tolist() == [[255, 0, 0], [204, 204, 255]]


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (200, 30, 60)])
def test_cmyk(colour):
    image = Image.new("RGB", (16, 16), colour).convert("CMYK")
    assert np.abs(read(encode(image, "JPEG", quality=100), size=16) - np.reshape(colour, (3, 1, 1))).max() <= 3


# frames and orientation


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "PNG"])
def test_first_frame_of_an_animation(kind):
    red, blue = (Image.new("RGB", (12, 12), word) for word in ("red", "blue"))
    options = {"lossless": True} if kind == "WEBP" else {}
    pixels = read(encode(red, kind, save_all=True, append_images=[blue], **options))
    assert (pixels == np.reshape([255, 0, 0], (3, 1, 1))).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = {
        1: GREYS,
        2: GREYS[:, ::-1],
        3: GREYS[::-1, ::-1],
        4: GREYS[::-1],
        5: GREYS.T,
        6: np.rot90(GREYS, -1),
        7: GREYS[::-1, ::-1].T,
        8: np.rot90(GREYS),
    }
    np.testing.assert_array_equal(read(encode(GREYS, exif=exif), 1)[0], upright[orientation])


@pytest.mark.parametrize("exif", [b"Exif\0\0nonsense", b"Exif\0\0MM\0*", b"Exif\0\0II*\0\xff\xff\xff\x7f"])
def test_orientation_that_cannot_be_read_is_none(exif):
    np.testing.assert_array_equal(read(encode(COLOURS, exif=exif)), COLOURS.transpose(2, 0, 1))


# sizes


def test_one_pixel_fills_the_square():
    for fit in ("crop", "stretch"):
        assert (read(encode(np.full((1, 1, 3), 77, np.uint8)), size=84, fit=fit) == 77).all()


def test_extreme_proportions():
    row = np.zeros((10, 20_000), np.uint8)
    row[:, 10_000:] = 255
    row[:, 9_995:10_005] = 100  # the square in the middle
    for image, turned in ((row, False), (row.T, True)):
        assert (read(encode(image), 1, 84, "crop") == 100).all()
        stretched = read(encode(image), 1, 84, "stretch")[0]
        stretched = stretched.T if turned else stretched
        assert (stretched[:, :38] == 0).all() and (stretched[:, 46:] == 255).all()


@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (13, 12), (12, 13)])
def test_crop_is_the_middle_and_is_not_resampled(shape):
    image = RNG.integers(0, 256, shape, dtype=np.uint8)
    top, left = (shape[0] - 12) // 2, (shape[1] - 12) // 2
    np.testing.assert_array_equal(read(encode(image), 1)[0], image[top : top + 12, left : left + 12])


def test_stretch_takes_all_by_lanczos():
    image = RNG.integers(0, 256, (40, 30, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(image).resize((12, 12), Image.Resampling.LANCZOS)).transpose(2, 0, 1)
    np.testing.assert_array_equal(read(encode(image), fit="stretch"), expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_arrays_are_images(channels):
    for array in (COLOURS, GREYS, GREYS[..., None], COLOURS[::2, ::-1]):
        expected = Conversion(channels, 6)(Image.fromarray(np.ascontiguousarray(array.squeeze())))
        np.testing.assert_array_equal(Conversion(channels, 6)(array), expected)
