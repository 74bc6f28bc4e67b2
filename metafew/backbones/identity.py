"""No network: the input is the features."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from metafew.backbones.backbone import Backbone


class Identity(Backbone):
    """The input itself, flattened to ``(b, c h w)``: for precomputed features, or for pixels.

    Args:
        channels: channels of the images, or entries of the vectors.
        image_size: height and width of the images.
        norm: not used.
    """

    def __init__(self, channels: int, image_size: int, norm: Callable[[int], nn.Module]):
        super().__init__(channels, image_size)
        self.features = channels * image_size**2

    def forward(self, images: Tensor) -> Tensor:
        """Return features ``(b, d)`` of images ``(b, c, h, w)``."""
        return images.flatten(1)
