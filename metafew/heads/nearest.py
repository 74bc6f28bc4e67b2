"""The nearest support rows vote (Fix and Hodges 1951; Cover and Hart 1967)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, inf

from metafew.config.option_values import check_choice, check_integer
from metafew.heads.cosine import direction
from metafew.heads.head import FeatureHead, negative_distances


class Nearest(FeatureHead):
    """Count the classes of the ``k`` nearest support rows: ``logit_m = log(votes_m + p_m)``.

    ``p`` is the softmax, over classes, of minus the squared distance to the nearest row of a class. It is one more vote
    that the classes share: among classes of equally many votes, including none, the one with the nearest row comes
    first. It also has the gradient that votes lack. Probabilities are ``(votes_m + p_m) / (k + 1)``, and with ``k=1``
    the most probable class is that of the nearest row. Rows as near as the ``k``-th vote too. Each row has one vote, so
    among several neighbours, classes with more support rows have an advantage.

    Args:
        k: number of neighbours; in a task with fewer rows, all of them vote.
        metric: ``euclidean``; or ``cosine``, the Euclidean distance of features of unit length.
    """

    def __init__(self, k: int = 1, metric: str = "euclidean"):
        super().__init__()
        check_integer("head.k", k, 1)
        check_choice("head.metric", metric, ["euclidean", "cosine"])
        self.k, self.metric = k, metric

    def classify(self, support: Tensor, labels: Tensor, query: Tensor, way: int) -> Tensor:
        """Return the logarithms ``(t, q, w)`` of the votes for each class."""
        if self.metric == "cosine":
            support, query = direction(support), direction(query)
        closeness = negative_distances(query, support)  # (t, q, s)
        members = F.one_hot(labels, way)
        nearest = closeness.unsqueeze(-1).masked_fill(members.unsqueeze(1) == 0, -inf).amax(2)
        last = closeness.topk(min(self.k, labels.shape[1])).values[..., -1:]
        votes = (closeness >= last).to(query.dtype) @ members.to(query.dtype)
        return votes.log().logaddexp(nearest.log_softmax(-1))
