"""Conv4, the four-block network of most few-shot papers (Vinyals et al. 2016)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from metafew.backbones.backbone import Backbone
from metafew.backbones.convolution import check_network, convolution
from metafew.backbones.readout import Readout
from metafew.config.option_values import check_choice, check_truth
from metafew.norms.film import FiLM


class Conv4(Backbone):
    """Four blocks of 3x3 convolution, norm, downsampling by 2, and ReLU.

    With the defaults, it has 64 features for 28x28 images and 1,600 for 84x84 images (Conv4-64, Snell et al. 2017);
    ``width=32`` is the network of MAML for mini-ImageNet, ``downsample=stride readout=mean`` its network for Omniglot
    (Finn et al. 2017), both with ``bias=true``. Pooling precedes the ReLU, which gives the same values on a quarter of
    the positions.

    Norms with moments of the batch or the image subtract the biases of convolutions, whose gradients are then zero up
    to rounding. Where moments are fixed, as those of conventional batch norm in evaluation, or pooled over channels, as
    those of layer norm, biases matter to heads that adapt them.

    Args:
        channels: channels of the images.
        image_size: height and width of the images.
        norm: ``norm(channels)`` makes a normalization layer.
        width: channels of each block.
        downsample: ``pool``, 2x2 max-pooling, which drops an odd row (images of at least 16 pixels), or ``stride``,
            convolutions with stride 2, which keep it.
        readout: ``flatten`` for the flattened last block (``map`` is the same), or ``mean`` for its mean over
            positions.
        bias: whether convolutions have biases.
    """

    task_weights = True

    def __init__(
        self,
        channels: int,
        image_size: int,
        norm: Callable[[int], nn.Module],
        width: int = 64,
        downsample: str = "pool",
        readout: str = "flatten",
        bias: bool = False,
    ):
        super().__init__(channels, image_size)
        check_choice("backbone.downsample", downsample, ("pool", "stride"))
        check_network("conv4", width, image_size, least=16 if downsample == "pool" else 1)
        check_truth("backbone.bias", bias)
        strided = downsample == "stride"

        def block(inputs: int, stage: int) -> nn.Sequential:
            conv = convolution(inputs, width, stride=2 if strided else 1, bias=bias)
            pool = [] if strided else [nn.MaxPool2d(2)]
            return nn.Sequential(conv, norm(width), FiLM(width, stage), *pool, nn.ReLU())

        self.blocks = nn.Sequential(*(block(channels if stage == 0 else width, stage) for stage in range(4)))
        self.read = Readout(readout, width, -(-image_size // 16) if strided else image_size // 16)
        self.features, self.map_shape = self.read.features, self.read.map_shape

    def forward(self, images: Tensor) -> Tensor:
        """Return features ``(b, d)`` of images ``(b, c, h, w)``."""
        return self.read(self.blocks(images))
