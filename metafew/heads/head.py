"""What heads on frozen features share: one embedding, then pure functions of the features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metafew.backbones.backbone import Backbone
from metafew.episode import Labelled


class FeatureHead(nn.Module):
    """A head that fits a classifier on the features of the support set and leaves the backbone as it is.

    Subclasses implement :meth:`classify`. A head never receives the labels of queries.
    """

    adapts_backbone = False
    """Whether the backbone's weights change from task to task."""
    fixed_way: int | None = None
    """The only number of classes that the head can tell apart, if there is one."""

    def classify(self, support: Tensor, labels: Tensor, query: Tensor, way: int) -> Tensor:
        """Return logits of the queries. Called with features in float32 or better, outside autocast.

        Args:
            support: features ``(t, s, d)``.
            labels: ``(t, s)`` in ``0..way-1``; classes may have unequal numbers of rows.
            query: features ``(t, q, d)``.
            way: number of classes ``w``.

        Returns:
            ``(t, q, w)``.
        """
        raise NotImplementedError

    def forward(self, backbone: Backbone, support: Labelled, query: Tensor, way: int) -> Tensor:
        """Return logits ``(t, q, w)`` of the images ``query`` ``(t, q, c, h, w)``."""
        context, targets = backbone.embed(support.images, query)
        precise = torch.promote_types(context.dtype, torch.float32)
        with torch.autocast(context.device.type, enabled=False):
            return self.classify(context.to(precise), support.labels, targets.to(precise), way)
