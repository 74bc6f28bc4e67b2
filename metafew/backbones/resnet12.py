"""ResNet-12, the residual network of MetaOptNet (Lee et al. 2019)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from metafew.backbones.backbone import Backbone
from metafew.backbones.convolution import check_network, convolution
from metafew.backbones.dropblock import DropBlock
from metafew.backbones.readout import Readout

MakeNorm = Callable[[int], nn.Module]


class Block(nn.Module):
    """Three 3x3 convolutions with norms, plus a 1x1 convolution with norm, then halving, LeakyReLU(0.1) and ``drop``.

    Pooling precedes the LeakyReLU of the sum, which gives the same values on a quarter of the positions.

    Args:
        inputs: input channels.
        outputs: output channels.
        norm: ``norm(channels)`` makes a normalization layer.
        drop: the last layer, a form of dropout.
    """

    def __init__(self, inputs: int, outputs: int, norm: MakeNorm, drop: nn.Module):
        super().__init__()

        def conv(before: int, kernel: int) -> list[nn.Module]:
            return [convolution(before, outputs, kernel), norm(outputs)]

        self.residual = nn.Sequential(
            *conv(inputs, 3), nn.LeakyReLU(0.1), *conv(outputs, 3), nn.LeakyReLU(0.1), *conv(outputs, 3)
        )
        self.shortcut = nn.Sequential(*conv(inputs, 1))
        self.end = nn.Sequential(nn.MaxPool2d(2), nn.LeakyReLU(0.1), drop)

    def forward(self, x: Tensor) -> Tensor:
        """Return maps with half the height and width."""
        return self.end(self.residual(x) + self.shortcut(x))


class ResNet12(Backbone):
    """Four residual blocks; dropout ends the first two, DropBlock the last two.

    With the defaults (64, 160, 320 and 640 channels), it has 16,000 features for 84x84 images and 2,560 for 32x32
    images: as in Lee et al. (2019), they are not averaged over positions. Convolutions have He initialization with
    fan-out.

    Args:
        channels: channels of the images.
        image_size: height and width of the images, at least 16.
        norm: ``norm(channels)`` makes a normalization layer.
        width: channels of the first block; the others have 2.5, 5 and 10 times as many.
        drop: rate of dropout, and final rate of DropBlock.
        block_size: width of the squares of DropBlock; Lee et al. use 5 for 84x84 images and 2 for 32x32 images.
        readout: ``flatten`` for the flattened last block (``map`` is the same), or ``mean`` for its mean over
            positions.
    """

    task_weights = True

    def __init__(
        self,
        channels: int,
        image_size: int,
        norm: MakeNorm,
        width: int = 64,
        drop: float = 0.1,
        block_size: int = 5,
        readout: str = "flatten",
    ):
        super().__init__(channels, image_size)
        check_network("resnet12", width, image_size)
        # DropBlock checks the rate for both.
        late = [DropBlock(drop, block_size) for _ in range(2)]
        drops = [nn.Dropout(drop), nn.Dropout(drop), *late]
        sizes = [channels, width, 5 * width // 2, 5 * width, 10 * width]
        self.blocks = nn.Sequential(*(Block(sizes[i], sizes[i + 1], norm, drops[i]) for i in range(4)))
        self.read = Readout(readout, sizes[-1], image_size // 16)
        self.features, self.map_shape = self.read.features, self.read.map_shape

    def forward(self, images: Tensor) -> Tensor:
        """Return features ``(b, d)`` of images ``(b, c, h, w)``."""
        return self.read(self.blocks(images))
