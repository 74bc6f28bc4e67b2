"""The linear output layer of heads that adapt by gradient steps."""

from __future__ import annotations

from math import inf

import torch
from torch import Tensor, nn

from metafew.errors import UsageError
from metafew.heads.head import class_means
from metafew.precision import precise

KINDS = ("auto", "linear", "shared", "zero", "prototype")


class Output(nn.Module):
    """The weight ``(w, d)`` and bias ``(w,)`` of an output layer before adaptation.

    Args:
        kind: ``linear``, a meta-learned layer for tasks with a fixed number of classes; ``shared``, one random row that
            all classes start from, which is as good as ``zero``: it changes the logits of all classes alike, so that
            neither probabilities nor other gradients depend on it, and its own is 0; ``zero``; ``prototype``, the layer
            that classifies by the nearest class mean of the support set, ``weight_m = 2 p_m`` and ``bias_m =
            -||p_m||^2`` (Proto-MAML, Triantafillou et al. 2020); or ``auto``: ``zero`` in a head that was not trained,
            else ``linear`` if all tasks have the same way, else ``shared``; for a layer that does not adapt, ``linear``
            in a trained head if all tasks have the same way, else ``prototype``. All but ``linear`` take any way.
        way: number of classes of the training tasks, or a range.
        features: dimension of the features.
        trained: whether the head is, or will be, trained.
        std: standard deviation of the normal distribution that initializes a meta-learned weight; None initializes it
            as :class:`torch.nn.Linear`, uniformly within ``1 / sqrt(features)``.
        adapts: whether the layer adapts to a task. If not, classes need rows that differ: the gradient of the loss with
            respect to the features is zero if all rows are equal.
    """

    def __init__(
        self,
        kind: str,
        way: int | str,
        features: int,
        trained: bool,
        std: float | None = None,
        adapts: bool = True,
    ):
        super().__init__()
        if kind not in KINDS:
            raise UsageError(f"expected head.output to be one of {', '.join(KINDS)}, got {kind}: type head.output=auto")
        if std is not None and not (isinstance(std, int | float) and 0 < std < inf):
            raise UsageError(f"expected head.output_std to be a positive number, got {std}: type head.output_std=1")
        if not adapts and kind in ("zero", "shared"):
            raise UsageError(
                "expected an output layer whose rows differ, so that gradients reach the features, for "
                f"head.adapt=body, got head.output={kind}: type head.output=prototype"
            )
        typed = kind
        if kind == "auto" and not adapts:
            kind = "linear" if trained and isinstance(way, int) else "prototype"
        if kind == "auto":
            kind = "zero" if not trained else "linear" if isinstance(way, int) else "shared"
        if std is not None and kind in ("zero", "prototype") and (trained or kind == typed):
            raise UsageError(
                f"expected no head.output_std for head.output={kind}, whose initial values are not random, got {std}: "
                "type head.output_std=null"
            )
        if kind == "linear" and not isinstance(way, int):
            raise UsageError(
                "expected one number of classes, as a linear output layer has, "
                f"got train.way={way}: type head.output=shared"
            )
        self.kind, self.features, self.adapts = kind, features, adapts
        self.way = way if kind == "linear" and isinstance(way, int) else None
        if kind in ("linear", "shared"):
            rows = self.way or 1
            self.weight = nn.Parameter(torch.empty(rows, features))
            if std is None:
                nn.init.kaiming_uniform_(self.weight, a=5**0.5)
            else:
                nn.init.normal_(self.weight, std=std)
            self.bias = nn.Parameter(torch.zeros(rows))

    def start(self, way: int, like: Tensor) -> dict[str, Tensor]:
        """Return ``weight`` and ``bias`` for ``way`` classes; zeros are as ``like``, but in float32 or better."""
        if self.way not in (None, way):
            raise UsageError(
                f"expected {self.way} classes, for which this output layer was made, got a task of {way}: "
                "type head.output=shared"
            )
        if self.kind == "linear":
            return {"weight": self.weight, "bias": self.bias}
        if self.kind == "shared":
            # Gradients of 0 are rounding errors otherwise, along which Adam takes whole steps.
            weight, bias = (value.detach() + 0 * value for value in (self.weight, self.bias))
            return {"weight": weight.expand(way, -1), "bias": bias.expand(way)}
        dtype = torch.promote_types(like.dtype, torch.float32)  # features are in a shorter one under autocast
        shapes = {"weight": (way, self.features), "bias": (way,)}
        return {name: like.new_zeros(shape, dtype=dtype) for name, shape in shapes.items()}


def prototypes(features: Tensor, labels: Tensor, way: int) -> dict[str, Tensor]:
    """Return the linear layer that classifies by the nearest class mean.

    Args:
        features: ``(..., s, d)``.
        labels: ``(..., s)``.
        way: number of classes.
    """
    with torch.autocast(features.device.type, enabled=False):
        means = class_means(precise(features), labels, way)
    return {"weight": 2 * means, "bias": -means.square().sum(-1)}


def classify(features: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """Return the logits ``(t, n, w)`` of ``features`` ``(t, n, d)`` in float32 or better, also under autocast."""
    with torch.autocast(features.device.type, enabled=False):
        bias = precise(weights["bias"]).unsqueeze(-2)
        return torch.baddbmm(bias, precise(features), precise(weights["weight"]).mT)
