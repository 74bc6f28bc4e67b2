"""What objectives share: a regularizer, label smoothing, and a say in what is trained."""

from __future__ import annotations

import logging

import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from metafew.backbones.backbone import Backbone
from metafew.episode import Episode
from metafew.errors import UsageError

log = logging.getLogger(__name__)


class Objective(nn.Module):
    """A loss of a meta-batch, a scalar whose ``.backward()`` gives the meta-gradient.

    Args:
        regularizer: a term of the loss (:mod:`metafew.objectives.regularizers`).
    """

    minibatches = False
    """Whether it trains on images of all classes (:mod:`metafew.data.minibatches`) instead of tasks."""
    trains_head = True
    """Whether the head takes part in training."""
    needs_queries = True
    """Whether the tasks of training have queries."""
    loss_scale: float | Tensor = 1.0
    """What losses are multiplied by before gradients are taken within the objective, against underflow in float16."""

    def __init__(self, regularizer: nn.Module):
        super().__init__()
        self.regularizer = regularizer
        self.latest: list[Tensor] = []
        """Losses of the tasks of the latest meta-batch, in its order and in pieces ``(t,)``, without gradient."""

    def noted(self, losses: Tensor) -> Tensor:
        """Return the losses ``(t,)`` of some tasks, having noted them in :attr:`latest`."""
        self.latest.append(losses.detach())
        return losses

    def prepare(self, backbone: Backbone, head: nn.Module) -> None:
        """Freeze what the loss cannot reach; raise a sentence where it cannot train as it was put together."""
        if self.trains_head:
            one_rate(head)
        if self.regularizer.on_weights:
            raise UsageError(
                "regularizer=weight_clustering draws together the weights of tasks in objective=reptile: "
                "type head=reptile, or regularizer=feature_clustering"
            )

    def advise(self, optimizer: Optimizer) -> None:
        """Warn where ``optimizer`` does not suit this objective."""
        group = optimizer.param_groups[0]
        if type(optimizer) is SGD and not group["momentum"] and group["lr"] >= 1:
            log.warning(
                "plain SGD with a learning rate of %g is the outer step of objective=reptile, and this one descends a "
                "loss: type optimizer=adam",
                group["lr"],
            )

    def forward(self, backbone: Backbone, head: nn.Module, batch: list[Episode]) -> Tensor:
        """Return the loss of a meta-batch."""
        raise NotImplementedError


def one_rate(head: nn.Module) -> None:
    """Raise a sentence where a head that is to be trained has several inner learning rates to choose from."""
    if len(lrs := getattr(head, "lrs", ())) > 1:
        raise UsageError(f"a list of head.lr is for evaluation, and this head trains: type head.lr={lrs[0]}")


def checked(label_smoothing: float) -> float:
    """Return ``label_smoothing``, or raise a sentence."""
    if not 0 <= label_smoothing < 0.5:
        raise UsageError(
            f"objective.label_smoothing is from 0 to less than 0.5, not {label_smoothing}: "
            "type objective.label_smoothing=0.1"
        )
    return label_smoothing


def cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
    """Return the cross-entropy of each row, in nats.

    Smoothing takes a probability mass from the true class and spreads it over the others (Lee et al. 2019); torch
    spreads it over all classes, the true one included.

    Args:
        logits: ``(t, n, w)``.
        labels: ``(t, n)``.
        label_smoothing: the mass.
    """
    way = logits.shape[-1]
    return F.cross_entropy(logits.mT, labels, reduction="none", label_smoothing=label_smoothing * way / (way - 1))
