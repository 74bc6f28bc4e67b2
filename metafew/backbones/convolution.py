"""What the convolutional networks share: initialization, and the checks of their options."""

from __future__ import annotations

from torch import nn

from metafew.config.option_values import check_integer
from metafew.errors import UsageError


def convolution(
    inputs: int, outputs: int, kernel: int = 3, stride: int = 1, padding: int | None = None, bias: bool = False
) -> nn.Conv2d:
    """Return a convolution with He initialization for the fan-out, and biases of 0 if any.

    Without ``padding``, it pads half a kernel.
    """
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2 if padding is None else padding, bias=bias)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def check_network(name: str, width: int, image_size: int, least: int = 16, example: int = 64) -> None:
    """Check the width of a network, and the size of its images.

    Args:
        name: the option of ``backbone``.
        width: channels of its first block.
        image_size: height and width of the images, in pixels.
        least: the smallest images that it takes; the default leaves a pixel after they are halved four times.
        example: a usual width.

    Raises:
        UsageError: if one of them is too small.
    """
    check_integer("backbone.width", width, 1, example)
    if image_size < least:
        raise UsageError(
            f"expected images of at least {least} pixels for backbone={name}, got {image_size}: type "
            "dataset.image_size=28"
        )
