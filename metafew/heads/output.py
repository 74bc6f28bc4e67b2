"""The linear output layer of heads that adapt by gradient descent: what it starts from."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metafew.errors import UsageError
from metafew.heads.head import class_means
from metafew.heads.inner import Weights
from metafew.precision import precise

KINDS = ("auto", "linear", "shared", "zero", "prototype")


class Output(nn.Module):
    """The weight ``(w, d)`` and bias ``(w,)`` of an output layer before adaptation.

    Args:
        kind: ``linear``, a meta-learned layer for tasks of one way; ``shared``, one meta-learned row that all classes
            start from; ``zero``; ``prototype``, the layer that classifies by the nearest class mean of the support
            set, ``weight_m = 2 p_m`` and ``bias_m = -||p_m||^2`` (Proto-MAML, Triantafillou et al. 2020); or ``auto``:
            ``zero`` in a head that was not trained, else ``linear`` if tasks have one way, else ``shared``. All but
            ``linear`` take any way.
        way: number of classes of the tasks of training, or a range of them.
        features: dimension of the features.
        trained: whether the head is, or will be, trained.
    """

    def __init__(self, kind: str, way: int | str, features: int, trained: bool):
        super().__init__()
        if kind not in KINDS:
            raise UsageError(f"head.output is one of {', '.join(KINDS)}, not {kind}: type head.output=auto")
        if kind == "auto":
            kind = "zero" if not trained else "linear" if isinstance(way, int) else "shared"
        if kind == "linear" and not isinstance(way, int):
            raise UsageError(
                f"a linear output layer wants one number of classes, not train.way={way}: type head.output=shared"
            )
        self.kind, self.features = kind, features
        self.way = way if kind == "linear" else None
        if kind in ("linear", "shared"):
            size = way if kind == "linear" else 1
            self.weight = nn.Parameter(torch.empty(size, features))
            nn.init.kaiming_uniform_(self.weight, a=5**0.5)
            self.bias = nn.Parameter(torch.zeros(size))

    def start(self, way: int, like: Tensor) -> Weights:
        """Return ``weight`` and ``bias`` for ``way`` classes; zeros have the dtype and device of ``like``."""
        if self.way not in (None, way):
            raise UsageError(
                f"this output layer was made for {self.way} classes and a task has {way}: type head.output=shared"
            )
        if self.kind in ("linear", "shared"):
            return {"weight": self.weight.expand(way, -1), "bias": self.bias.expand(way)}
        return {"weight": like.new_zeros(way, self.features), "bias": like.new_zeros(way)}


def prototypes(features: Tensor, labels: Tensor, way: int) -> Weights:
    """Return the linear layer that is nearest class mean: ``features`` ``(..., s, d)`` and ``labels`` ``(..., s)``."""
    with torch.autocast(features.device.type, enabled=False):
        means = class_means(precise(features), labels, way)
    return {"weight": 2 * means, "bias": -means.square().sum(-1)}


def classify(features: Tensor, weights: Weights) -> Tensor:
    """Return the logits of ``features`` ``(..., d)`` in float32 or better, whatever is cast around it."""
    with torch.autocast(features.device.type, enabled=False):
        return F.linear(precise(features), precise(weights["weight"]), precise(weights["bias"]))
