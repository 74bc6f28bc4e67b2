"""Turn the maps of a network into features."""

from __future__ import annotations

from torch import Tensor

from metafew.config.option_values import check_choice

READOUTS = ("flatten", "mean", "map")
"""What ``backbone.readout`` may be; ``map`` is ``flatten`` where the features must have positions."""


class Readout:
    """Flatten maps ``(b, c, h, w)``, or take their mean over positions.

    Args:
        readout: one of :data:`READOUTS`.
        channels: channels ``c`` of the maps.
        side: height and width of the maps.

    Attributes:
        features: dimension ``d`` of the features.
        map_shape: ``(c, h, w)``; None for the mean.

    Raises:
        UsageError: if ``readout`` is none of them.
    """

    def __init__(self, readout: str, channels: int, side: int):
        check_choice("backbone.readout", readout, READOUTS)
        self.map_shape = None if readout == "mean" else (channels, side, side)
        self.features = channels if self.map_shape is None else channels * side**2

    def __call__(self, maps: Tensor) -> Tensor:
        """Return features ``(b, d)`` of maps ``(b, c, h, w)``."""
        return maps.mean((2, 3)) if self.map_shape is None else maps.flatten(1)
