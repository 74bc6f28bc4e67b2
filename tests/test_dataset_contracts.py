"""Contracts that every data set under conf/dataset keeps, where it can be made without a download."""

import numpy as np
import pytest
from conftest import REAL_DATA
from contracts import files
from contracts.datasets import DatasetContract
from PIL import Image


def folder_of_classes(path):
    """Write ten classes of six images each."""
    rng = np.random.default_rng(0)
    for number in range(10):
        (path / f"class{number}").mkdir(parents=True)
        for image in range(6):
            Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8)).save(path / f"class{number}/{image}.png")
    return {"root": str(path)}


def vectors(path):
    """Write ten classes of six vectors each, for testing."""
    x = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)
    np.savez(path.with_suffix(".npz"), x_test=x, y_test=np.repeat(np.arange(10), 6))
    return {"root": f"{path}.npz"}


@pytest.mark.parametrize("file", files("dataset"))
class TestContract(DatasetContract):
    @pytest.fixture
    def data_dir(self):
        return REAL_DATA

    @pytest.fixture
    def options(self, file, tmp_path):
        """What data sets without images of their own are made of."""
        if file.stem == "mixture":
            return {"sources": ["glyphs", {"dataset": "folder", **folder_of_classes(tmp_path / "classes")}]}
        made = {"folder": folder_of_classes, "features": vectors}.get(file.stem)
        return made(tmp_path / "classes") if made else {}
