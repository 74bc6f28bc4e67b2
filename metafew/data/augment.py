"""Random views of images: parameters drawn on the host, per image; applied on the device, whole batches at a time.

A view has a ``size``, the number of parameters of an image; ``draw(rng, classes)`` draws them for images of these
classes, ``(n, size)``; ``apply(images, parameters)`` shows images ``(n, c, h, w)`` in [0, 1] accordingly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from metafew.data.sources import LUMA, SPLITS, Category
from metafew.errors import UsageError


class Affine:
    """Random affine maps: a rotation, a horizontal shear, a scale and a shift, each uniform and independent.

    An output pixel at ``p`` (centred coordinates) shows the input at ``A^-1 (p - shift)`` with
    ``A = scale * R(rotation) [[1, shear], [0, 1]]``, by bilinear interpolation; outside the image is 0.

    Args:
        rotation: largest angle, degrees, either way.
        shear: largest shear factor, either way.
        scale: smallest and largest factor.
        shift: largest shift along each axis, pixels of a 28 x 28 image (it grows with the image).
    """

    size = 6

    def __init__(self, rotation: float, shear: float, scale: Sequence[float], shift: float):
        low, high = scale if isinstance(scale, Sequence) and len(scale) == 2 else (0, 0)
        if not 0 < low <= high < np.inf:
            raise UsageError(f"scale is the smallest and the largest factor, not {scale}: type scale=[0.7,1.05]")
        self.rotation, self.shear, self.scale, self.shift = rotation, shear, (low, high), shift

    def draw(self, rng: np.random.Generator, classes: np.ndarray) -> np.ndarray:
        """Return the 2 x 3 maps, row by row, from output to input coordinates, both in [-1, 1]."""
        count = len(classes)
        angle = np.deg2rad(rng.uniform(-self.rotation, self.rotation, count))
        shear = rng.uniform(-self.shear, self.shear, count)
        scale = rng.uniform(*self.scale, count)
        shift = rng.uniform(-self.shift, self.shift, (count, 2)) / 14  # half of 28 pixels is one unit
        cos, sin, one, zero = np.cos(angle), np.sin(angle), np.ones(count), np.zeros(count)
        rotate = np.stack([cos, -sin, sin, cos], -1).reshape(-1, 2, 2)
        slant = np.stack([one, shear, zero, one], -1).reshape(-1, 2, 2)
        inverse = np.linalg.inv(scale[:, None, None] * rotate @ slant)
        return np.concatenate([inverse, -inverse @ shift[:, :, None]], -1).reshape(count, 6)

    def apply(self, images: Tensor, parameters: Tensor) -> Tensor:
        """Return the images as their maps show them."""
        grid = F.affine_grid(parameters.view(-1, 2, 3).to(images.dtype), list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, align_corners=False)


class Crop:
    """A random crop of the image with a border of zeros: a shift by whole pixels along each axis.

    Args:
        padding: width of the border, pixels.
    """

    size = 2

    def __init__(self, padding: int):
        if not isinstance(padding, int) or padding < 1:
            raise UsageError(f"a crop wants a border of a number of pixels, not {padding}: type padding=8")
        self.padding = padding

    def draw(self, rng: np.random.Generator, classes: np.ndarray) -> np.ndarray:
        """Return the top and left edge of the crop, pixels of the padded image."""
        return rng.integers(0, 2 * self.padding + 1, (len(classes), 2))

    def apply(self, images: Tensor, parameters: Tensor) -> Tensor:
        """Return the crops."""
        padded = F.pad(images, [self.padding] * 4)
        top, left = parameters.long().view(-1, 2, 1).unbind(1)
        rows = top + torch.arange(images.shape[2], device=images.device)
        columns = left + torch.arange(images.shape[3], device=images.device)
        image = torch.arange(len(images), device=images.device)
        # Two indices with a slice between them put the channels last.
        return padded[image.view(-1, 1, 1), :, rows.unsqueeze(2), columns.unsqueeze(1)].movedim(-1, 1)


class Flip:
    """A mirror image, left to right, of every other image by chance."""

    size = 1

    def draw(self, rng: np.random.Generator, classes: np.ndarray) -> np.ndarray:
        """Return 1 for images to be flipped and 0 for others."""
        return rng.integers(0, 2, (len(classes), 1))

    def apply(self, images: Tensor, parameters: Tensor) -> Tensor:
        """Return the images, flipped or not."""
        return torch.where(parameters.view(-1, 1, 1, 1) > 0, images.flip(-1), images)


class Colour:
    """Random brightness, then contrast, then saturation, each a factor uniform in ``1 - x .. 1 + x``.

    Brightness multiplies the image; contrast its distance from the mean of its grey; saturation its distance from its
    grey. Values stay in [0, 1]. (Lee et al. 2019 apply the three in random order.)

    Args:
        brightness: ``x`` of the brightness.
        contrast: ``x`` of the contrast.
        saturation: ``x`` of the saturation, without effect on grey images.
    """

    size = 3

    def __init__(self, brightness: float, contrast: float, saturation: float):
        self.strengths = np.array([brightness, contrast, saturation])
        if not (self.strengths >= 0).all() or not (self.strengths <= 1).all():
            raise UsageError(
                f"brightness, contrast and saturation vary by 0 to 1, not by {brightness}, {contrast}, {saturation}: "
                "type augment.views.colour.brightness=0.4"
            )

    def draw(self, rng: np.random.Generator, classes: np.ndarray) -> np.ndarray:
        """Return the three factors."""
        return 1 + self.strengths * rng.uniform(-1, 1, (len(classes), 3))

    def apply(self, images: Tensor, parameters: Tensor) -> Tensor:
        """Return the images in these colours."""
        brightness, contrast, saturation = parameters.to(images.dtype).view(-1, 3, 1, 1, 1).unbind(1)
        images = (images * brightness).clamp(0, 1)
        mean = grey(images).mean((2, 3), keepdim=True)
        images = torch.lerp(mean, images, contrast).clamp(0, 1)
        return torch.lerp(grey(images), images, saturation).clamp(0, 1)


class ClassTurn:
    """A random number of quarter turns for each class of a task, the same for all its images (Finn et al. 2017)."""

    size = 1

    def draw(self, rng: np.random.Generator, classes: np.ndarray) -> np.ndarray:
        """Return the counter-clockwise quarter turns of each image."""
        found, which = np.unique(classes, return_inverse=True)
        return rng.integers(0, 4, len(found))[which][:, None]

    def apply(self, images: Tensor, parameters: Tensor) -> Tensor:
        """Return the images, turned."""
        turned = images
        for turns in (1, 2, 3):
            turned = torch.where(parameters.view(-1, 1, 1, 1) == turns, images.rot90(turns, (2, 3)), turned)
        return turned


class Chain:
    """Views one after the other.

    Args:
        views: the views, in their order.
    """

    def __init__(self, views: Sequence):
        self.views = list(views)

    def draw(self, rng: np.random.Generator, classes: np.ndarray) -> np.ndarray:
        """Return the parameters of all views, ``(n, k)`` float32."""
        return np.concatenate([view.draw(rng, classes) for view in self.views], 1, dtype=np.float32)

    def apply(self, images: Tensor, parameters: Tensor) -> Tensor:
        """Return the views of ``images`` ``(t, n, c, h, w)`` with ``parameters`` ``(t, n, k)``."""
        flat = images.flatten(0, 1)
        if not flat.numel():
            return images
        parts = parameters.flatten(0, 1).split([view.size for view in self.views], 1)
        for view, part in zip(self.views, parts, strict=True):
            flat = view.apply(flat, part)
        return flat.view_as(images)


class Augmentation:
    """Views of the images of some splits, beyond those that belong to the data.

    Args:
        splits: which of train, val and test are augmented.
        views: the views by name, in their order; one that is None is left out.
    """

    def __init__(self, splits: str | Sequence[str], views: Mapping[str, object]):
        self.splits = [splits] if isinstance(splits, str) else splits or []
        if unknown := set(self.splits) - set(SPLITS):
            raise UsageError(
                f"augment.splits is a list of train, val and test, and {', '.join(sorted(unknown))} is none of them: "
                "type augment.splits=[train]"
            )
        self.views = [view for view in views.values() if view is not None]

    def check(self, split: str, image_size: int, categories: Sequence[Category]) -> None:
        """Raise a sentence when the images of a split are not made for these views."""
        if split not in self.splits or not self.views:
            return
        if image_size == 1:
            raise UsageError("augment is for images, and dataset=features has vectors: type augment=none")
        if any(isinstance(view, ClassTurn) for view in self.views) and any(c.turns for c in categories):
            raise UsageError(
                "augment=rotate_class turns whole classes, and some classes of this split are turned ones of others: "
                "type augment=none, or dataset.split=lake"
            )

    def chain(self, split: str, jitter: object | None) -> Chain | None:
        """Return all views of a split's images, those that belong to the data first; None if there are none."""
        views = [jitter] * (jitter is not None) + self.views * (split in self.splits)
        return Chain(views) if views else None


def grey(images: Tensor) -> Tensor:
    """Return images ``(n, c, h, w)`` of 1 or 3 channels in grey, ``(n, 1, h, w)``, by the weights of ITU-R BT.601."""
    if images.shape[1] == 1:
        return images
    weights = torch.tensor(LUMA, dtype=images.dtype, device=images.device)
    return (images * weights.view(1, 3, 1, 1)).sum(1, keepdim=True)


def as_float(images: Tensor, dtype: torch.dtype) -> Tensor:
    """Return uint8 images as floating point numbers in [0, 1]; other numbers as they are."""
    return images.to(dtype).div_(255) if images.dtype == torch.uint8 else images.to(dtype)
