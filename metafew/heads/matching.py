"""Matching networks (Vinyals et al. 2016)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, inf, nn

from metafew.backbones.backbone import Backbone
from metafew.config.option_values import check_choice, check_integer
from metafew.heads.cosine import direction
from metafew.heads.head import FeatureHead


class Matching(FeatureHead):
    """Each support row votes for its class: ``logit_m = log sum_{i in m} a_i``, ``a = softmax_i(scale * cos(f, g_i))``.

    ``f`` and ``g_i`` are the features of a query and of the support rows. With ``context="full"``, each also depends on
    the complete support set (full context embeddings): a bidirectional LSTM reads the support features and adds its two
    outputs to them, which gives ``g``, and an LSTM with attention reads ``g`` to give ``f``, in steps ``k = 1..K``::

        r = sum_i softmax_i(h_{k-1} . g_i) g_i
        o, c_k = LSTM(f', [h_{k-1}, r], c_{k-1})
        h_k = o + f'

    with the feature ``f'`` of the query, ``h_0 = f'``, ``c_0 = 0`` and ``f = h_K``. The order of support rows then
    matters, and the head must be trained.

    Vinyals et al. do not scale the cosines; attention is then nearly uniform, even between opposite directions. Chen et
    al. (2019) use a scale of 100 and negative cosines set to 0; here the scale is learned. The paper does not give
    ``h_0`` and ``K``; the code of Chen et al. takes the same ``h_0``, and as many steps as there are support rows.

    Args:
        backbone: the backbone, of which only the dimension of features is used.
        trained: whether the head is, or will be, trained.
        scale: initial value of the learned scale of the cosines.
        context: ``none`` or ``full``.
        reads: steps ``K`` of the LSTM of queries.
    """

    def __init__(self, backbone: Backbone, trained: bool, scale: float = 10.0, context: str = "none", reads: int = 5):
        super().__init__()
        check_choice("head.context", context, ["none", "full"])
        check_integer("head.reads", reads, 1, example=5)
        self.scale = nn.Parameter(torch.tensor(float(scale)))
        self.embedding = FullContext(backbone.features, reads) if context == "full" else None
        self.requires_training = self.embedding is not None

    def classify(self, support: Tensor, labels: Tensor, query: Tensor, way: int) -> Tensor:
        """Return the logarithms ``(t, q, w)`` of the votes for each class."""
        if self.embedding is not None:
            support, query = self.embedding(support, query)
        votes = (self.scale * direction(query) @ direction(support).mT).log_softmax(-1)  # (t, q, s)
        others = F.one_hot(labels, way).unsqueeze(1) == 0
        return votes.unsqueeze(-1).masked_fill(others, -inf).logsumexp(2)


class FullContext(nn.Module):
    """Full context embeddings of support and query features.

    Args:
        features: dimension ``d`` of the features.
        reads: steps of the LSTM of queries.
    """

    def __init__(self, features: int, reads: int):
        super().__init__()
        self.reads = reads
        self.support = nn.LSTM(features, features, batch_first=True, bidirectional=True)
        self.query = nn.LSTMCell(2 * features, features)

    def forward(self, support: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """Return embeddings of the shapes of ``support`` ``(t, s, d)`` and ``query`` ``(t, q, d)``."""
        forwards, backwards = self.support(support)[0].chunk(2, -1)
        support = support + forwards + backwards
        hidden, cell = query, torch.zeros_like(query).flatten(0, 1)
        for _ in range(self.reads):
            read = (hidden @ support.mT).softmax(-1) @ support
            inputs = torch.cat([query, read], -1).flatten(0, 1)
            output, cell = self.query(inputs, (hidden.flatten(0, 1), cell))
            hidden = output.view_as(query) + query
        return support, hidden
