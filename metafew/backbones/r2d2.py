"""The network of R2-D2 (Bertinetto et al. 2019), in MetaOptNet's version (Lee et al. 2019)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from metafew.backbones.backbone import Backbone
from metafew.backbones.convolution import check_network, convolution
from metafew.errors import UsageError


class R2D2(Backbone):
    """Four blocks of 3x3 convolution, norm, 2x2 max-pooling and LeakyReLU(0.1); features of the last two, concatenated.

    The last block has no activation. Blocks 3 and 4 end in dropout. With the defaults (96, 192, 384 and 512 channels),
    it has 51,200 features for 84x84 images and 8,192 for 32x32 images.

    The network of Bertinetto et al. differs: block 4 pools with stride 1 and also ends in LeakyReLU, the features of
    block 3 pass through another max-pooling with stride 1, and both dropouts have the same rate (0.1 on mini-ImageNet,
    0.4 on CIFAR-FS); it has 72,576 and 8,064 features. Here, convolutions have He initialization and no bias, which the
    shift of the norm replaces; Lee et al. use biases and PyTorch's default initialization.

    Args:
        channels: channels of the images.
        image_size: height and width of the images, at least 16.
        norm: ``norm(channels)`` makes a normalization layer.
        width: channels of the first block; the others have 2, 4 and 16/3 times as many.
        dropout: rates after blocks 3 and 4.
    """

    task_weights = True

    def __init__(
        self,
        channels: int,
        image_size: int,
        norm: Callable[[int], nn.Module],
        width: int = 96,
        dropout: Sequence[float] = (0.1, 0.3),
    ):
        super().__init__(channels, image_size)
        check_network("r2d2", width, image_size, example=96)
        if not isinstance(dropout, Sequence) or len(dropout) != 2 or not all(0 <= rate < 1 for rate in dropout):
            raise UsageError(
                f"expected backbone.dropout to be two rates from 0 to below 1, got {dropout}: "
                "type backbone.dropout=[0.1,0.3]"
            )

        def block(inputs: int, outputs: int, *end: nn.Module) -> nn.Sequential:
            return nn.Sequential(convolution(inputs, outputs), norm(outputs), nn.MaxPool2d(2), *end)

        last = round(16 * width / 3)
        self.early = nn.Sequential(
            block(channels, width, nn.LeakyReLU(0.1)),
            block(width, 2 * width, nn.LeakyReLU(0.1)),
            block(2 * width, 4 * width, nn.LeakyReLU(0.1), nn.Dropout(dropout[0])),
        )
        self.late = block(4 * width, last, nn.Dropout(dropout[1]))
        self.features = 4 * width * (image_size // 8) ** 2 + last * (image_size // 16) ** 2

    def forward(self, images: Tensor) -> Tensor:
        """Return features ``(b, d)`` of images ``(b, c, h, w)``: those of block 3, then those of block 4."""
        third = self.early(images)
        return torch.cat([third.flatten(1), self.late(third).flatten(1)], 1)
