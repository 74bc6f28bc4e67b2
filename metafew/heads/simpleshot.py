"""SimpleShot (Wang et al. 2019)."""

from __future__ import annotations

from torch import Tensor

from metafew.config.option_values import check_choice
from metafew.heads.cosine import direction
from metafew.heads.head import FeatureHead, class_means, negative_distances


class SimpleShot(FeatureHead):
    """Nearest class mean of transformed features: ``logit_m = -||g(x) - p_m||^2`` with ``p_m`` the mean of ``g``.

    ``g(x) = (f(x) - b) / ||f(x) - b||`` with ``b`` the mean feature of training images. In training, ``b`` is the mean
    of the support features, as that of all images changes with each step; Wang et al. train by classification, as
    ``objective=classical`` does. Features shorter than 1e-8 have no direction, and become 0.

    Args:
        transform: ``cl2n``, as above; ``l2n``, with ``b = 0``; or ``un``, with ``g = f``, which is ``ProtoNet``.
    """

    def __init__(self, transform: str = "cl2n"):
        super().__init__()
        check_choice("head.transform", transform, ("cl2n", "l2n", "un"))
        self.transform = transform
        self.needs_base_mean = transform == "cl2n"

    def classify(self, support: Tensor, labels: Tensor, query: Tensor, way: int) -> Tensor:
        """Return negative squared distances ``(t, q, w)`` to the class means."""
        support, query = self.transformed(support, query)
        return negative_distances(query, class_means(support, labels, way))

    def transformed(self, support: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``g`` of the support features ``(t, s, d)`` and of those of the queries ``(t, q, d)``."""
        if self.transform == "cl2n":
            mean = support.mean(1, keepdim=True)
            support, query = (x - mean if self.training else self.centred(x) for x in (support, query))
        if self.transform != "un":
            support, query = direction(support), direction(query)
        return support, query
