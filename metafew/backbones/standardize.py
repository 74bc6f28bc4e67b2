"""Standardize pixels as a pretrained network expects them."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

import torch
from torch import Tensor, nn

from metafew.config.option_values import as_list
from metafew.errors import UsageError

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
"""Mean and standard deviation of ImageNet pixels in [0, 1] by channel, as torchvision and timm expect them."""


class Standardize(nn.Module):
    """Map images in [0, 1] to ``(x - mean) / std``.

    Args:
        channels: channels of the images.
        mean: a number, one per channel, or ``imagenet``; None for 0, or for ImageNet's if ``std`` is ``imagenet``.
        std: the same; None for 1.

    Raises:
        UsageError: if a value is none of these, a mean is not in [0, 1], or a deviation is 0 or more than 1.
    """

    def __init__(
        self,
        channels: int,
        mean: float | str | Sequence[float] | None = None,
        std: float | str | Sequence[float] | None = None,
    ):
        super().__init__()
        self.unchanged = mean is None and std is None
        plain = "imagenet" if "imagenet" in (mean, std) else None
        for name, given, default in (("mean", mean, 0.0), ("std", std, 1.0)):
            value = plain or default if given is None else given
            self.register_buffer(name, per_channel(name, value, channels), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return images ``(b, c, h, w)`` as the network expects them."""
        return images if self.unchanged else (images - self.get_buffer("mean")) / self.get_buffer("std")


def per_channel(name: str, value: float | str | Sequence[float], channels: int) -> Tensor:
    """Return the values of ``backbone.mean`` or ``backbone.std`` as ``(c, 1, 1)``."""
    numbers = list(IMAGENET[name]) if value == "imagenet" else as_list(value)
    if len(numbers) not in (1, channels) or not all(is_allowed(name, number) for number in numbers):
        allowed = "in [0, 1]" if name == "mean" else "of at most 1 and not 0"
        example = {"mean": 0.5, "std": 0.25}[name]
        raise UsageError(
            f"expected backbone.{name} to be a number {allowed}, as pixels are in [0, 1], or one for each of the "
            f"{channels} channels, or imagenet for 3, got {value}: type backbone.{name}={example}"
        )
    return torch.tensor(numbers).expand(channels).reshape(channels, 1, 1).clone()


def is_allowed(name: str, number: object) -> bool:
    """Return whether a number can be the mean of pixels in [0, 1], or what they are divided by."""
    if isinstance(number, bool) or not isinstance(number, int | float) or not isfinite(number):
        return False
    return 0 <= number <= 1 if name == "mean" else 0 < abs(number) <= 1  # negative: for inverted pixels
