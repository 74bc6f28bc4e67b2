"""ResNet-18 (He et al. 2016) as CNAPs uses it (Requeima et al. 2019)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from metafew.backbones.backbone import Backbone
from metafew.backbones.convolution import check_network, convolution
from metafew.backbones.readout import Readout
from metafew.norms.film import FiLM

MakeNorm = Callable[[int], nn.Module]


class Block(nn.Module):
    """Two 3x3 convolutions, each with norm and FiLM layer, plus a shortcut; ReLU between them and after the sum.

    Args:
        inputs: input channels.
        outputs: output channels. If they differ from ``inputs``, the image is halved and the shortcut is a 1x1
            convolution with norm.
        stage: number of the stage, from 0.
        norm: ``norm(channels)`` makes a normalization layer.
    """

    def __init__(self, inputs: int, outputs: int, stage: int, norm: MakeNorm):
        super().__init__()
        wider = inputs != outputs
        stride = 2 if wider else 1
        self.residual = nn.Sequential(
            convolution(inputs, outputs, 3, stride),
            norm(outputs),
            FiLM(outputs, stage),
            nn.ReLU(),
            convolution(outputs, outputs),
            norm(outputs),
            FiLM(outputs, stage),
        )
        self.shortcut = (
            nn.Sequential(convolution(inputs, outputs, 1, stride), norm(outputs)) if wider else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the maps of the block."""
        return torch.relu(self.residual(x) + self.shortcut(x))


class ResNet18(Backbone):
    """A 5x5 convolution with stride 2, four stages of two residual blocks, and the mean over positions.

    There is no max-pooling, so 84x84 images result in 6x6 maps. With the default width, the stages have 64, 128, 256
    and 512 channels, and there are 512 features. FiLM layers modulate the residual branches, but not the first
    convolution and the shortcuts (Requeima et al. 2019).

    Args:
        channels: channels of the images.
        image_size: height and width of the images, at least 3.
        norm: ``norm(channels)`` makes a normalization layer.
        width: channels of the first stage; each stage doubles them.
        readout: the ``mean`` of the last stage over positions, or its ``map``, flattened (``flatten`` is the same).
    """

    task_weights = True

    def __init__(self, channels: int, image_size: int, norm: MakeNorm, width: int = 64, readout: str = "mean"):
        super().__init__(channels, image_size)
        check_network("resnet18", width, image_size, least=3)
        self.stem = nn.Sequential(convolution(channels, width, 5, 2, padding=1), norm(width), nn.ReLU())
        sizes = [width, width, 2 * width, 4 * width, 8 * width]
        self.blocks = nn.Sequential(
            *(Block(sizes[stage + second], sizes[stage + 1], stage, norm) for stage in range(4) for second in range(2))
        )
        self.read = Readout(readout, sizes[-1], -(-(image_size - 2) // 16))
        self.features, self.map_shape = self.read.features, self.read.map_shape

    def forward(self, images: Tensor) -> Tensor:
        """Return features ``(b, d)`` of images ``(b, c, h, w)``."""
        return self.read(self.blocks(self.stem(images)))
