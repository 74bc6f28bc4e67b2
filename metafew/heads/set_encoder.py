"""The set encoder of CNAPs: a task as one vector (Requeima et al. 2019; Zaheer et al. 2017)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from metafew.errors import UsageError
from metafew.norms.running import RunningNorm
from metafew.norms.scope import rows


class SetEncoder(nn.Module):
    """Encode the support set as ``z = mean_i phi(x_i)``, with five convolutional blocks ``phi``.

    A block is a 3x3 convolution, norm, ReLU and 2x2 max-pooling; the last is averaged over positions. Labels are
    not used, and the norms take every image as context, in training and evaluation. Maps of a single pixel, which
    28x28 images reach in the fourth block, are not pooled further. Convolutions have no bias, unlike the published
    ones, whose norm cancels it.

    Args:
        channels: channels of the images.
        image_size: height and width of the images.
        norm: ``norm(channels)`` makes a normalization layer without running moments.
        width: channels of each block, and dimension of ``z``.
    """

    def __init__(self, channels: int, image_size: int, norm: Callable[[int], nn.Module], width: int):
        super().__init__()
        self.blocks = nn.Sequential()
        for inputs in (channels, *[width] * 4):
            self.blocks.extend([nn.Conv2d(inputs, width, 3, padding=1, bias=False), norm(width), nn.ReLU()])
            if image_size > 1:
                self.blocks.append(nn.MaxPool2d(2))
                image_size //= 2
        for module in self.blocks:
            if isinstance(module, RunningNorm):
                raise UsageError(
                    "expected a norm of the set encoder without running moments, which it would not update, got "
                    f"{type(module).__name__}: type head.norm._target_=metafew.norms.meta_batch.MetaBatchNorm"
                )

    def forward(self, images: Tensor) -> Tensor:
        """Return ``z`` ``(t, width)`` of the support images ``(t, s, c, h, w)``."""
        tasks, context = images.shape[:2]
        with rows(tasks, context):
            maps = self.blocks(images.flatten(0, 1))
        return maps.mean((2, 3)).unflatten(0, (tasks, context)).mean(1)
