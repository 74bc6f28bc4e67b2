"""Random views of images, drawn per image on the CPU and applied to batches on the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from metafew.config.option_values import check_integer, check_range
from metafew.data.sources import LUMA, SPLITS, Category
from metafew.errors import UsageError


@runtime_checkable
class View(Protocol):
    """A random transformation of images.

    Attributes:
        size: number of parameters per image.
    """

    size: int

    def draw(self, rng: np.random.Generator, classes: np.ndarray) -> np.ndarray:
        """Draw the parameters ``(n, size)`` of images of ``classes`` ``(n,)``."""
        ...

    def apply(self, images: Tensor, parameters: Tensor) -> Tensor:
        """Return the views of ``images`` ``(n, c, h, w)`` in [0, 1]."""
        ...


class Affine:
    """Random affine maps: a rotation, a horizontal shear, a scale and a shift, each uniform and independent.

    The output at ``p`` (centred coordinates) is the input at ``A^-1 (p - shift)`` with
    ``A = scale * R(rotation) [[1, shear], [0, 1]]``, by bilinear interpolation; outside the image it is 0.

    Args:
        rotation: largest angle in either direction, degrees.
        shear: largest shear factor in either direction.
        scale: smallest and largest factor.
        shift: largest shift along each axis, in pixels of a 28 x 28 image; it scales with the image size.
    """

    size = 6

    def __init__(self, rotation: float, shear: float, scale: Sequence[float], shift: float):
        low, high = scale if isinstance(scale, Sequence) and len(scale) == 2 else (0, 0)
        if not 0 < low <= high < np.inf:
            raise UsageError(
                f"expected scale to be the smallest and the largest factor, got {scale}: type scale=[0.7,1.05]"
            )
        for name, value in {"rotation": rotation, "shear": shear, "shift": shift}.items():
            check_range(name, value, 0, np.inf)
        self.rotation, self.shear, self.scale, self.shift = rotation, shear, (low, high), shift

    def draw(self, rng: np.random.Generator, classes: np.ndarray) -> np.ndarray:
        """Return the 2 x 3 matrices, flattened, that map output to input coordinates, both in [-1, 1]."""
        count = len(classes)
        angle = np.deg2rad(rng.uniform(-self.rotation, self.rotation, count))
        shear = rng.uniform(-self.shear, self.shear, count)
        scale = rng.uniform(*self.scale, count)
        shift = rng.uniform(-self.shift, self.shift, (count, 2)) / 14  # half of 28 pixels is 1
        cos, sin, one, zero = np.cos(angle), np.sin(angle), np.ones(count), np.zeros(count)
        rotate = np.stack([cos, -sin, sin, cos], -1).reshape(-1, 2, 2)
        slant = np.stack([one, shear, zero, one], -1).reshape(-1, 2, 2)
        inverse = np.linalg.inv(scale[:, None, None] * rotate @ slant)
        return np.concatenate([inverse, -inverse @ shift[:, :, None]], -1).reshape(count, 6)

    def apply(self, images: Tensor, parameters: Tensor) -> Tensor:
        grid = F.affine_grid(parameters.view(-1, 2, 3).to(images.dtype), list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, align_corners=False)


class Crop:
    """A random crop of the zero-padded image to its original size, a shift by an integer number of pixels per axis.

    Args:
        padding: width of the padding, in pixels.
    """

    size = 2

    def __init__(self, padding: int):
        check_integer("augment.views.crop.padding", padding, 1, 8)
        self.padding = padding

    def draw(self, rng: np.random.Generator, classes: np.ndarray) -> np.ndarray:
        """Return the top and left edge of the crop, in pixels of the padded image."""
        return rng.integers(0, 2 * self.padding + 1, (len(classes), 2))

    def apply(self, images: Tensor, parameters: Tensor) -> Tensor:
        padded = F.pad(images, [self.padding] * 4)
        top, left = parameters.long().view(-1, 2, 1).unbind(1)
        rows = top + torch.arange(images.shape[2], device=images.device)
        columns = left + torch.arange(images.shape[3], device=images.device)
        image = torch.arange(len(images), device=images.device)
        # Indexing with tensors on both sides of a slice moves the sliced axis, the channels, to the end.
        return padded[image.view(-1, 1, 1), :, rows.unsqueeze(2), columns.unsqueeze(1)].movedim(-1, 1)


class Flip:
    """A horizontal flip with probability 1/2."""

    size = 1

    def draw(self, rng: np.random.Generator, classes: np.ndarray) -> np.ndarray:
        """Return 1 for images to flip and 0 for the others."""
        return rng.integers(0, 2, (len(classes), 1))

    def apply(self, images: Tensor, parameters: Tensor) -> Tensor:
        return torch.where(parameters.view(-1, 1, 1, 1) > 0, images.flip(-1), images)


class Colour:
    """Random brightness, then contrast, then saturation, each with a uniform factor in ``[1 - x, 1 + x]``.

    Brightness multiplies the image, contrast its difference from the mean of its grey image, and saturation its
    difference from its grey image. Values are clipped to [0, 1]. (Lee et al. 2019 apply the three in random order.)

    Args:
        brightness: ``x`` for brightness.
        contrast: ``x`` for contrast.
        saturation: ``x`` for saturation, which has no effect on grey images.
    """

    size = 3

    def __init__(self, brightness: float, contrast: float, saturation: float):
        self.strengths = np.array([brightness, contrast, saturation])
        if not (self.strengths >= 0).all() or not (self.strengths <= 1).all():
            raise UsageError(
                f"expected brightness, contrast and saturation to be between 0 and 1, got {brightness}, {contrast}, "
                f"{saturation}: type augment.views.colour.brightness=0.4"
            )

    def draw(self, rng: np.random.Generator, classes: np.ndarray) -> np.ndarray:
        return 1 + self.strengths * rng.uniform(-1, 1, (len(classes), 3))

    def apply(self, images: Tensor, parameters: Tensor) -> Tensor:
        brightness, contrast, saturation = parameters.to(images.dtype).view(-1, 3, 1, 1, 1).unbind(1)
        images = (images * brightness).clamp(0, 1)
        mean = grey(images).mean((2, 3), keepdim=True)
        images = torch.lerp(mean, images, contrast).clamp(0, 1)
        return torch.lerp(grey(images), images, saturation).clamp(0, 1)


class ClassTurn:
    """A random number of quarter turns for each class of a task, shared by its images (Finn et al. 2017)."""

    size = 1

    def draw(self, rng: np.random.Generator, classes: np.ndarray) -> np.ndarray:
        """Return the counter-clockwise quarter turns of each image."""
        distinct, which = np.unique(classes, return_inverse=True)
        return rng.integers(0, 4, len(distinct))[which][:, None]

    def apply(self, images: Tensor, parameters: Tensor) -> Tensor:
        rotated = images
        for turns in (1, 2, 3):
            rotated = torch.where(parameters.view(-1, 1, 1, 1) == turns, images.rot90(turns, (2, 3)), rotated)
        return rotated


class Chain:
    """A composition of views.

    Args:
        views: the views, in the order in which they are applied.
    """

    def __init__(self, views: Sequence[View]):
        self.views = list(views)

    def draw(self, rng: np.random.Generator, classes: np.ndarray) -> np.ndarray:
        """Return the parameters of all views, ``(n, k)`` float32."""
        return np.concatenate([view.draw(rng, classes) for view in self.views], 1, dtype=np.float32)

    def apply(self, images: Tensor, parameters: Tensor) -> Tensor:
        """Return the views of ``images`` ``(t, n, c, h, w)`` with ``parameters`` ``(t, n, k)``."""
        flat = images.flatten(0, 1)
        if not flat.numel():
            return images
        by_view = parameters.flatten(0, 1).split([view.size for view in self.views], 1)
        for view, own in zip(self.views, by_view, strict=True):
            flat = view.apply(flat, own)
        return flat.view_as(images)


class Augmentation:
    """Views of the images of some splits, in addition to the jitter that is part of a dataset.

    Args:
        splits: which of train, val and test are augmented.
        views: the views by name, in the order in which they are applied; None disables one.
    """

    def __init__(self, splits: str | Sequence[str], views: Mapping[str, View | None]):
        self.splits = [splits] if isinstance(splits, str) else splits or []
        if unknown := set(self.splits) - set(SPLITS):
            raise UsageError(
                f"expected augment.splits to be a list of train, val and test, got {', '.join(sorted(unknown))}: "
                "type augment.splits=[train]"
            )
        for name, view in views.items():
            if not isinstance(view, View | None):
                raise UsageError(
                    f"expected augment.views.{name} to be a view with its _target_, or null, got {view}: "
                    f"type augment.views.{name}=null"
                )
        self.views = [view for view in views.values() if view is not None]

    def check_applicable(self, split: str, image_size: int, categories: Sequence[Category]) -> None:
        """Raise UsageError if the views cannot be applied to the images of a split."""
        if split not in self.splits or not self.views:
            return
        if image_size == 1:
            raise UsageError("expected images to augment, but dataset=features has vectors: type augment=none")
        if any(isinstance(view, ClassTurn) for view in self.views) and any(c.turns for c in categories):
            raise UsageError(
                "augment=rotate_class rotates classes, but some classes of this split are rotations of others: "
                "type augment=none, or dataset.split=lake"
            )

    def chain(self, split: str, jitter: View | None) -> Chain | None:
        """Return all views of the images of a split, starting with the dataset's ``jitter``; None if there are none."""
        views = self.views if split in self.splits else []
        if jitter is not None:
            views = [jitter, *views]
        return Chain(views) if views else None


def grey(images: Tensor) -> Tensor:
    """Return grey images ``(n, 1, h, w)``, weighted as in ITU-R BT.601, from images of 1 or 3 channels."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.split(1, 1)
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue


def as_float(images: Tensor, dtype: torch.dtype) -> Tensor:
    """Return images in ``dtype``, with uint8 scaled to [0, 1] and other values unchanged."""
    return images.to(dtype).div_(255) if images.dtype == torch.uint8 else images.to(dtype)
