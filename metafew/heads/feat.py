"""FEAT: prototypes adapted to the task by self-attention (Ye et al. 2020)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from metafew.backbones.backbone import Backbone
from metafew.config.option_values import check_positive, check_range
from metafew.heads.head import FeatureHead, class_means, negative_distances


class FEAT(FeatureHead):
    """Nearest transformed class mean: ``logit_m = -||f(x) - psi_m||^2 / temperature``.

    A transformer with one head maps the set of class means ``p`` to ``psi``; with rows ``p_m`` in a matrix ``P``,
    ``psi = LayerNorm(P + softmax(P W_q (P W_k)' / sqrt(d)) P W_v W_o + b)``. It has no position encoding, so classes
    are exchangeable, and takes any number of them. In training, dropout applies to the attention and to what is added
    to ``P``. Ye et al. start from a backbone pretrained by classification, and train the transformer at ten times its
    learning rate.

    Their contrastive regularizer is left out: it transforms all support and query rows of a class together, and a
    head does not receive the labels of queries.

    Args:
        backbone: the backbone, of which only the dimension ``d`` of features is used.
        trained: whether the head is, or will be, trained.
        temperature: divisor of the squared distances: 64 in the authors' one-shot runs, and 32 or 64 in those with
            five shots, with 64 or 640 features. ``psi`` has a squared length of about ``d``, so that more features,
            such as the 1,600 of conv4 for images of 84 pixels, need a larger one, or ``backbone.readout=mean``.
        dropout: rate of dropout of what is added; 0.5 as in the authors' code.
        attention_dropout: rate of dropout of the attention; 0.1 as in the authors' code.
    """

    requires_training = True
    exemptions: ClassVar = {"separable_classes": "its transformer must be trained first"}

    def __init__(
        self,
        backbone: Backbone,
        trained: bool,
        temperature: float = 64.0,
        dropout: float = 0.5,
        attention_dropout: float = 0.1,
    ):
        super().__init__()
        check_positive("head.temperature", temperature, example=64)
        check_range("head.dropout", dropout, 0, 1)
        check_range("head.attention_dropout", attention_dropout, 0, 1)
        self.temperature = temperature
        self.transformer = SetTransformer(backbone.features, dropout, attention_dropout)

    def classify(self, support: Tensor, labels: Tensor, query: Tensor, way: int) -> Tensor:
        """Return negative squared distances ``(t, q, w)`` to the transformed class means over the temperature."""
        prototypes = self.transformer(class_means(support, labels, way))
        return negative_distances(query, prototypes) / self.temperature


class SetTransformer(nn.Module):
    """Self-attention with one head, a residual connection and layer normalization, initialized as published.

    Args:
        features: dimension ``d`` of the vectors.
        dropout: rate of dropout of what is added to the vectors.
        attention_dropout: rate of dropout of the attention.
    """

    def __init__(self, features: int, dropout: float, attention_dropout: float):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(features, features, bias=False) for _ in range(3))
        self.output = nn.Linear(features, features)
        for layer in (self.query, self.key, self.value, self.output):
            nn.init.xavier_normal_(layer.weight)
        self.dropout, self.attention_dropout = nn.Dropout(dropout), nn.Dropout(attention_dropout)
        self.norm = nn.LayerNorm(features)

    def forward(self, vectors: Tensor) -> Tensor:
        """Return transformed vectors of the shape of ``vectors``, ``(t, n, d)``."""
        scores = self.query(vectors) @ self.key(vectors).mT / vectors.shape[-1] ** 0.5
        mixed = self.attention_dropout(scores.softmax(-1)) @ self.value(vectors)
        return self.norm(vectors + self.dropout(self.output(mixed)))
