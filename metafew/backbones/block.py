"""A row of layers in which a convolution, a norm and the max-pooling after it work together."""

from __future__ import annotations

from torch import Tensor, nn

from metafew.backbones.film import FiLM
from metafew.norms.norm import Norm


class Block(nn.Sequential):
    """Layers one after the other; a norm is told of a convolution before and a max-pooling behind it.

    It may carry out both together, and early.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return what the last layer makes of ``x`` ``(b, c, h, w)``."""
        layers = [layer for layer in self if not isinstance(layer, FiLM) or layer.active]
        while layers:
            match layers:
                case [nn.Conv2d() as conv, Norm() as norm, nn.MaxPool2d() as pool, *layers]:
                    x = norm(x, pool, conv)
                case [Norm() as norm, nn.MaxPool2d() as pool, *layers]:
                    x = norm(x, pool)
                case [layer, *layers]:
                    x = layer(x)
        return x
