"""Random views of images: parameters drawn on the host, per image; applied on the device, whole batches at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


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

    def __init__(self, rotation: float, shear: float, scale: Sequence[float], shift: float):
        self.rotation, self.shear, self.scale, self.shift = rotation, shear, tuple(scale), shift

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Return ``(count, 2, 3)`` float32 maps from output to input coordinates, both in [-1, 1]."""
        angle = np.deg2rad(rng.uniform(-self.rotation, self.rotation, count))
        shear = rng.uniform(-self.shear, self.shear, count)
        scale = rng.uniform(*self.scale, count)
        shift = rng.uniform(-self.shift, self.shift, (count, 2)) / 14  # half of 28 pixels is one unit
        cos, sin, one, zero = np.cos(angle), np.sin(angle), np.ones(count), np.zeros(count)
        rotate = np.stack([cos, -sin, sin, cos], -1).reshape(-1, 2, 2)
        slant = np.stack([one, shear, zero, one], -1).reshape(-1, 2, 2)
        inverse = np.linalg.inv(scale[:, None, None] * rotate @ slant)
        return np.concatenate([inverse, -inverse @ shift[:, :, None]], -1).astype(np.float32)

    @staticmethod
    def apply(images: Tensor, maps: Tensor) -> Tensor:
        """Return the views of ``images`` ``(t, n, c, h, w)`` under ``maps`` ``(t, n, 2, 3)``."""
        if not images.numel():
            return images
        flat = images.flatten(0, 1)
        grid = F.affine_grid(maps.flatten(0, 1).to(flat.dtype), list(flat.shape), align_corners=False)
        return F.grid_sample(flat, grid, align_corners=False).view_as(images)


def as_float(images: Tensor, dtype: torch.dtype) -> Tensor:
    """Return uint8 images as floating point numbers in [0, 1]."""
    return images.to(dtype).div_(255)
