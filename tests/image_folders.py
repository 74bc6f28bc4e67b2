"""Folders of small images, and what dataset=folder makes of them."""

import pytest
from omegaconf import OmegaConf
from PIL import Image

from metafew.config.groups import CONF
from metafew.data.sources.folder import Folder
from metafew.errors import UsageError


def folder(root, **changes):
    settings = OmegaConf.to_container(OmegaConf.load(CONF / "dataset" / "folder.yaml").dataset)
    del settings["_target_"]
    return Folder(**settings | {"root": root and str(root), "image_size": 6} | changes)


def paint(file, shade=0, size=(6, 6), mode="L"):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, shade).convert(mode).save(file)
    return file


def grow(root, classes, images=2):
    """Write classes whose images have the shade of their place, 10 * class + image."""
    for i, name in enumerate(classes):
        for j in range(images):
            paint(root / name / f"{j}.png", 10 * i + j)
    return root


def names(source):
    return {split: [category.name for category in found] for split, found in source.splits().items()}


def shades(source, split):
    return [[int(image.max()) for image in source.read(category.keys)] for category in source.splits()[split]]


def refused(source):
    with pytest.raises(UsageError) as error:
        source.splits()
    return str(error.value)
