"""A row of layers in which a norm and the max-pooling after it work together."""

from __future__ import annotations

from torch import Tensor, nn

from metafew.backbones.film import FiLM
from metafew.norms.norm import Norm


class Block(nn.Sequential):
    """Layers one after the other; a norm is told of a max-pooling behind it, which it may carry out early."""

    def forward(self, x: Tensor) -> Tensor:
        """Return what the last layer makes of ``x`` ``(b, c, h, w)``."""
        layers = [layer for layer in self if not isinstance(layer, FiLM) or layer.active]
        while layers:
            layer, *layers = layers
            if isinstance(layer, Norm) and layers and isinstance(layers[0], nn.MaxPool2d):
                x = layer(x, layers.pop(0))
            else:
                x = layer(x)
        return x
