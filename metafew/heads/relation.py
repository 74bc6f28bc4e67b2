"""Relation networks (Sung et al. 2018)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from metafew.backbones.backbone import Backbone
from metafew.backbones.convolution import convolution
from metafew.config.option_values import check_integer
from metafew.heads.head import class_means
from metafew.heads.maps import MapHead


class Relation(MapHead):
    """A network scores each pair of a class and a query: ``logit_m = g([p_m, f(x)])``.

    ``p_m`` is the mean map of class ``m``, and ``[,]`` concatenates channels. ``g`` consists of two blocks of 3x3
    convolution, norm, ReLU and 2x2 max-pooling, and two dense layers with ReLU between them. Maps with a side of one
    position are not pooled further.

    Departures from Sung et al.: the objective is cross-entropy over classes instead of the squared error of a sigmoid
    of each score; class maps are means instead of sums, which differ if classes have different numbers of images; norms
    are layer normalization, as batch normalization would let queries influence one another; the last layer has no bias,
    which would be the same for all classes; convolutions are padded, also on photographs; dense layers start as in
    PyTorch; and backbones here halve images four times, where their embedding does so twice, so that conv4 leaves a
    single position of images of 28 pixels.

    Args:
        backbone: the backbone; only the shape of its maps is used.
        trained: not used; the head must be trained to be of use.
        width: channels of both blocks.
        hidden: units of the first dense layer.
    """

    requires_training = True
    exemptions: ClassVar = {"separable_classes": "its similarity is a network, which must be trained first"}

    def __init__(self, backbone: Backbone, trained: bool, width: int = 64, hidden: int = 8):
        super().__init__(backbone, "relation")
        for word, value in (("width", width), ("hidden", hidden)):
            check_integer(f"head.{word}", value, 1, example=8)
        channels, *sides = self.map_shape

        def end() -> list[nn.Module]:
            pooled = min(sides) > 1
            sides[:] = [side // 2 if pooled else side for side in sides]
            return [nn.GroupNorm(1, width), nn.ReLU(), *[nn.MaxPool2d(2)] * pooled]

        # A convolution of concatenated maps is the sum of separate convolutions of each.
        self.of_class, self.of_query = convolution(channels, width), convolution(channels, width)
        self.blocks = nn.Sequential(*end(), convolution(width, width), *end(), nn.Flatten())
        size = width * sides[0] * sides[1]
        self.score = nn.Sequential(nn.Linear(size, hidden), nn.ReLU(), nn.Linear(hidden, 1, bias=False))

    def classify(self, support: Tensor, labels: Tensor, query: Tensor, way: int) -> Tensor:
        """Return the scores ``(t, q, w)``."""
        means = class_means(support, labels, way)
        of_classes, of_queries = (
            layer(self.maps(x).flatten(0, 1)).unflatten(0, x.shape[:2])
            for layer, x in ((self.of_class, means), (self.of_query, query))
        )
        pairs = of_classes.unsqueeze(1) + of_queries.unsqueeze(2)  # (t, q, w, c, h, w)
        return self.score(self.blocks(pairs.flatten(0, 2))).view(pairs.shape[:3])
