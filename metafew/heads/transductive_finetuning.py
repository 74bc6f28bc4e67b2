"""Fine-tune the network to the support set and to confident predictions on the queries (Dhillon et al. 2020)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from metafew.backbones.backbone import Backbone
from metafew.config.option_values import check_choice, check_integer, check_range
from metafew.heads.adapting import AdaptingHead
from metafew.heads.batching import Model
from metafew.heads.cosine import direction
from metafew.heads.fast_weights import SupportSet, adapting_names
from metafew.heads.head import class_means
from metafew.heads.inner import Adam, Weights, for_each
from metafew.heads.output import Output, classify
from metafew.precision import precise


class TransductiveFinetuning(AdaptingHead):
    """Fine-tune all weights, alternating between the cross-entropy of the support set and the entropy of the queries.

    The logits are ``w f / ||f|| + b``, with ``f`` the features after a ReLU. ``w`` starts at the class means of ``f``,
    scaled to unit length, and ``b`` at 0 (Equations 6 and 7). Each epoch takes two steps of Adam: one descends the mean
    cross-entropy of the support set, the other the mean Shannon entropy of the predictions on the queries (Equation 8).
    Balanced classes are not assumed.

    Departures: ``f`` are the features of the backbone, whereas Dhillon et al. append their layer to its logits over the
    pre-training classes; the support set, not each batch, provides the moments of norms; images are not augmented, so
    that all epochs are alike. In training, which Dhillon et al. do without tasks, the outer gradient is first-order.

    Args:
        backbone: the backbone to adapt; only the names and shapes of its weights are used here.
        trained: whether the head is, or will be, trained.
        steps: steps in training, two for each epoch.
        test_steps: steps in evaluation; the 25 epochs of Dhillon et al. are 50.
        lr: learning rate of Adam.
        adapt: ``all`` weights; ``no_norm``, all but scales and shifts of norms; or only the ``output`` layer.
        inner: ``auto``, ``loop``, ``batch``, ``chunk`` or ``vmap`` (:class:`~metafew.heads.batching.BatchingHead`).
        chunk: tasks in a chunk.
        memory: memory limit in MiB for tasks that are processed together, or ``auto``.
    """

    transductive = True
    evaluation_options = ("test_steps",)

    def __init__(
        self,
        backbone: Backbone,
        trained: bool,
        steps: int = 2,
        test_steps: int = 50,
        lr: float = 5e-5,
        adapt: str = "all",
        inner: str = "auto",
        chunk: int = 4,
        memory: int | str = "auto",
    ):
        check_choice("head.adapt", adapt, ("all", "no_norm", "output"))
        for name, value in {"steps": steps, "test_steps": test_steps}.items():
            check_integer(f"head.{name}", value, 0)
        check_range("head.lr", lr, 0, math.inf)
        output, names = Output("zero", "any", backbone.features, trained), adapting_names(backbone, adapt)
        super().__init__(
            backbone, output, names, steps, [lr], Adam(beta1=0.9), first_order=True, inner=inner, chunk=chunk,
            memory=memory,
        )  # fmt: skip
        self.test_steps = test_steps

    def start(self, model: Model, tasks: SupportSet) -> Weights:
        """Return the weights ``(t, ...)`` before adaptation; the layer is that of the directions of class means."""
        fast = for_each(model.weights(self.names), len(tasks.images))
        features, _ = model.embed(fast, tasks.images, record=False)
        with torch.autocast(features.device.type, enabled=False):
            means = direction(class_means(precise(features).relu(), tasks.labels, tasks.way))
        return fast | {"weight": means, "bias": torch.zeros_like(means[..., 0])}

    def logits(self, features: Tensor, weights: Weights) -> Tensor:
        """Return the logits ``(t, n, w)`` of ``features`` ``(t, n, d)``, after a ReLU and at unit length."""
        return classify(direction(precise(features).relu()), weights)

    def loss(self, model: Model, tasks: SupportSet, step: int, weights: Weights) -> Tensor:
        """Return the mean cross-entropy ``(t,)`` of the support set in even steps, else the queries' mean entropy."""
        if step % 2 == 0:
            return super().loss(model, tasks, step, weights)
        assert tasks.queries is not None  # for the type checker; a head in evaluation has queries
        _, features = model.embed(weights, tasks.images, tasks.queries, record=False, targets_only=True)
        log_p = self.logits(features, weights).log_softmax(-1)
        return -(log_p.exp() * log_p).sum(-1).mean(1)
