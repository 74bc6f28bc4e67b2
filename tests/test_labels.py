"""Labels are integers or strings; anything else is converted exactly, or refused."""

import logging

import numpy as np
import pytest
from image_folders import folder, names

from metafew.data.formats.labels import class_labels
from metafew.data.sources.features import Features
from metafew.errors import UsageError


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([2, 0, 1], [2, 0, 1]),
        ([2.0, -1.0], [2, -1]),
        (np.array([b"cat", "é".encode()]), ["cat", "é"]),
        (np.array(["cat", "dog"], object), ["cat", "dog"]),
        (np.array([1, 2.0, np.int8(3)], object), [1, 2, 3]),
        (np.array([True, False]), ["True", "False"]),
        (np.array([], float), []),
    ],
)
def test_labels_that_are_classes(labels, expected):
    assert class_labels(labels, "y").tolist() == expected


@pytest.mark.parametrize(
    ("labels", "got"),
    [
        ([0.0, np.nan, np.inf], "2 of 3 that are NaN or infinite: leave out"),
        ([0.0, 0.25], "numbers such as 0.25, as in regression, but this is classification"),
        ([1e300, 0.0], "numbers"),
        ([1j], "complex128"),
        (np.array([b"\xff"]), "bytes that are not UTF-8"),
        (np.array(["a", None], object), "objects of type NoneType, str"),
        (np.array(["a", 1], object), "objects of type int, str"),
        (np.eye(3), r"float64 of shape \(3, 3\)"),
        (np.array(["2020-01-01"], "datetime64[D]"), "datetime64"),
    ],
)
def test_other_labels_are_refused(labels, got):
    with pytest.raises(UsageError, match=rf"expected y to be .* integers or strings, got .*{got}"):
        class_labels(labels, "y")


def test_labels_of_vectors(tmp_path, caplog):
    file, x = tmp_path / "f.npz", np.zeros((4, 2))
    np.savez(file, x_test=x, y_test=[2.0, 10.0, 2.0, 1.0], x_valid=x, y_valid=[0] * 4, labels_train=x)
    with caplog.at_level(logging.WARNING):
        source = Features(str(file))
        assert [category.name for category in source.splits()["test"]] == ["1", "2", "10"]
    assert [len(category.keys) for category in source.splits()["test"]] == [1, 2, 1]
    assert source.ignored == {f"array {name} of f.npz": 1 for name in ("labels_train", "x_valid", "y_valid")}
    assert caplog.messages == [f"{file} has arrays that are not read: labels_train, x_valid, y_valid"]
    np.savez(file, x_test=x, y_test=np.array(["a10", "a9", "a10", "b"]))
    assert [category.name for category in Features(str(file)).splits()["test"]] == ["a9", "a10", "b"]
    np.savez(file, x_test=x, y_test=[0, 1, 2, np.nan])
    with pytest.raises(UsageError, match=r"expected y_test of .*f\.npz to be .*, got 1 of 4 that are NaN"):
        Features(str(file)).splits()
    np.savez(file, x_test=x, y_test=np.array(["a", "b", "c", "d"], object))
    with pytest.raises(UsageError, match=r"numbers or strings in y_test of .*, got Python objects"):
        Features(str(file)).splits()


def test_labels_of_images(tmp_path):
    file, x = tmp_path / "f.npz", np.zeros((4, 5, 5), np.uint8)
    np.savez(file, x=x, y=np.array(["a10", "a9", "a10", "b"]), more=x)
    source = folder(file, fractions=[0, 0, 1])
    assert names(source)["test"] == ["a9", "a10", "b"]
    assert source.ignored == {"array more of f.npz": 1}
    np.savez(file, x=x, y=[0, 0, 1, 1], names=np.array(["a", "b"], object))
    with pytest.raises(UsageError, match=r"numbers or strings in names of .*, got Python objects"):
        folder(file).splits()
    np.savez(file, x=x, y=["e\u0301", "\xe9", "a", "b"])
    with pytest.raises(UsageError, match=r"a different name for each label .* got 3 names of 4 labels"):
        folder(file).splits()
    np.savez(file, x=x, y=[0.1, 0.2, 0.3, 0.4])
    with pytest.raises(UsageError, match="as in regression"):
        folder(file).splits()
