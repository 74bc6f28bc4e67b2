"""Conv4, the four-block network of most few-shot papers (Vinyals et al. 2016)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from metafew.backbones.backbone import Backbone
from metafew.errors import UsageError


class Block(nn.Sequential):
    """3x3 convolution without bias, norm, 2x2 max-pooling, ReLU.

    Pooling before the ReLU gives the same values as the customary order, on a quarter of the positions.
    """

    def __init__(self, inputs: int, outputs: int, norm: Callable[[int], nn.Module]):
        conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        super().__init__(conv, norm(outputs), nn.MaxPool2d(2), nn.ReLU())


class Conv4(Backbone):
    """Four blocks of ``width`` channels, flattened: 64 features for 28x28 images, 1,600 for 84x84 at width 64.

    Args:
        channels: channels of the images.
        image_size: height and width of the images, at least 16.
        norm: ``norm(channels)`` makes a normalization layer.
        width: channels of each block.
    """

    def __init__(self, channels: int, image_size: int, norm: Callable[[int], nn.Module], width: int = 64):
        super().__init__()
        if image_size < 16:
            raise UsageError(
                f"backbone=conv4 halves the image four times and needs 16 pixels, not {image_size}: "
                "type dataset.image_size=28"
            )
        if width < 1:
            raise UsageError(f"backbone.width is at least 1, not {width}: type backbone.width=64")
        self.features = width * (image_size // 16) ** 2
        self.blocks = nn.Sequential(*(Block(c, width, norm) for c in (channels, width, width, width)))

    def forward(self, images: Tensor) -> Tensor:
        """Return features ``(b, d)`` of images ``(b, c, h, w)``."""
        return self.blocks(images.contiguous(memory_format=torch.channels_last)).flatten(1)
