"""Share one embedding of an episode between feature heads, regularizers and figures."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from metafew.backbones.backbone import Backbone
from metafew.episode import Episode


class SharedFeatures:
    """Wrap a backbone so that the images of one episode are embedded only once.

    ``embed`` caches the features of the episode's own tensors: the support images, with or without the queries. Other
    calls and attributes are forwarded to the backbone.

    Args:
        backbone: the feature extractor.
        episode: the episode whose images are embedded once.
        features: cached features ``(t, s, d)`` and ``(t, q, d)``, if any; otherwise the first call computes them.
    """

    def __init__(self, backbone: Backbone, episode: Episode, features: tuple[Tensor, Tensor] | None = None):
        self._backbone = backbone
        self._support, self._query = episode.support.images, episode.query.images
        self._features = {} if features is None else {"both": features}

    def embed(
        self, context: Tensor, targets: Tensor | None = None, record: bool | dict = True
    ) -> tuple[Tensor, Tensor]:
        """Embed as :meth:`metafew.backbones.backbone.Backbone.embed`, but the images of the episode only once."""
        if context is not self._support or not (targets is None or targets is self._query):
            return self._backbone.embed(context, targets, record)
        key = "support" if targets is None else "both"
        if key not in self._features:
            self._features[key] = self._backbone.embed(context, targets, record)
        return self._features[key]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backbone, name)
