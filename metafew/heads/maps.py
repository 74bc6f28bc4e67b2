"""The base class of heads that compare positions of images."""

from __future__ import annotations

from torch import Tensor

from metafew.backbones.backbone import Backbone
from metafew.errors import UsageError
from metafew.heads.head import FeatureHead


class MapHead(FeatureHead):
    """A head on features with positions, which are the flattened maps of the last block of a backbone.

    Args:
        backbone: the backbone; only the shape of its maps is used here.
        word: the name of the head on the command line.

    Raises:
        UsageError: if features of the backbone have no positions.
    """

    needs_map = True

    def __init__(self, backbone: Backbone, word: str):
        super().__init__()
        if backbone.map_shape is None:
            raise UsageError(
                f"expected a backbone whose features have positions for head={word}, got {type(backbone).__name__} "
                "without: type backbone.readout=map, or backbone=conv4 if it has no such option"
            )
        self.map_shape = backbone.map_shape

    def maps(self, features: Tensor) -> Tensor:
        """Return the maps ``(..., c, h, w)`` of features ``(..., d)``."""
        return features.unflatten(-1, self.map_shape)
