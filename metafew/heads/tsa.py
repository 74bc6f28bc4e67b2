"""Task-specific adapters beside the convolutions of a frozen network (Li et al. 2022)."""

from __future__ import annotations

from math import inf
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metafew.backbones.backbone import Backbone
from metafew.config.option_values import check_choice, check_integer
from metafew.errors import UsageError
from metafew.heads.adapting import AdaptingHead, mean_cross_entropy
from metafew.heads.batching import Model
from metafew.heads.cosine import cosines
from metafew.heads.fast_weights import BACKBONE, SupportSet
from metafew.heads.head import class_means
from metafew.heads.inner import Adadelta, Rates, Shape, StepRates, Weights, for_each
from metafew.heads.output import Output
from metafew.precision import precise

ADAPTER = "adapter."
"""Prefix of the names of adapters, followed by that of the weight of their convolution."""
LINEAR = "linear"
"""Name of the linear map of features."""
START, SCALE = 1e-4, 10.0
"""The factors of the identity in initial adapters, and of cosines in logits."""
STATES = 6
"""Copies of each weight in a step: before and after it, its gradient and direction, and two states of Adadelta."""


class TSA(AdaptingHead):
    """Fit adapters beside the convolutions, and a linear map of features, to the support set of each task.

    A convolution ``y = W * x`` becomes ``y = W * x + A x``, where the adapter ``A`` is a 1x1 convolution of the same
    stride, and features become ``L f(x)``. The network itself does not change, frozen or not. Adapters start from the
    identity times 1e-4 (in grouped convolutions, of each group), and ``L`` from the identity. Steps of Adadelta
    minimize the mean cross-entropy of the support set under the nearest centroid by cosine, ``logit_m = 10 cos(L f(x),
    p_m)`` with ``p_m`` the mean of ``L f`` over the support images of class ``m``, and queries are labelled in the same
    way. This equals adding ``A`` to the central position of ``W``, which is how it is computed.

    Li et al. place adapters beside the 3x3 convolutions in the residual blocks of a ResNet-18; here, they are beside
    all 3x3 convolutions of any network. The default rates are theirs for domains that are new to the network; in those
    that it was trained on, they take a tenth, ``lr=0.05`` and ``linear_lr=0.1``. With ``adapt="linear"``, or in a
    network without 3x3 convolutions, only the map is fitted, on features that are computed once (URL, Li et al. 2021,
    with the same rates). The map has ``d^2`` entries for each task.

    The authors adapt only in evaluation, so that with the default ``steps=0`` the head trains as a nearest-centroid
    classifier by cosine.

    Args:
        backbone: the backbone whose convolutions get adapters.
        trained: whether the head is, or will be, trained.
        steps: steps in training.
        test_steps: steps in evaluation.
        lr: learning rate of the adapters.
        linear_lr: learning rate of the linear map.
        adapt: ``all``, or only the ``linear`` map.
        inner: ``auto``, ``loop``, ``batch``, ``chunk`` or ``vmap`` (:class:`~metafew.heads.batching.BatchingHead`).
        chunk: tasks in a chunk.
        memory: memory limit in MiB for tasks that are processed together, or ``auto``
            (:class:`~metafew.heads.batching.BatchingHead`).
    """

    evaluation_options = ("test_steps",)

    def __init__(
        self, backbone: Backbone, trained: bool, steps: int = 0, test_steps: int = 40, lr: float = 0.5,
        linear_lr: float = 1.0, adapt: str = "all", inner: str = "auto", chunk: int = 4, memory: int | str = "auto",
    ):  # fmt: skip
        check_choice("head.adapt", adapt, ("all", "linear"))
        for key, count in {"steps": steps, "test_steps": test_steps}.items():
            check_integer(f"head.{key}", count, 0, 40)
        for key, rate, default in (("lr", lr, 0.5), ("linear_lr", linear_lr, 1)):
            if not 0 < rate < inf:
                raise UsageError(f"expected head.{key} to be a positive number, got {rate}: type head.{key}={default}")
        names = convolution_weights(backbone) if adapt == "all" else []
        output = Output("prototype", "any", backbone.features, trained, adapts=False)
        super().__init__(backbone, output, names, steps, [lr], Adadelta(), inner=inner, chunk=chunk, memory=memory)
        sizes = {name: backbone.get_parameter(name).shape for name in names}
        adapters = [Shape(ADAPTER + name, torch.Size(size[:2])) for name, size in sizes.items() if len(size) == 4]
        shapes = [*adapters, Shape(LINEAR, torch.Size((backbone.features, backbone.features)))]
        self.rates, self.shapes, self.test_steps = TwoRates(lr, linear_lr, shapes), shapes, test_steps
        modules = {name: backbone.get_submodule(name.rpartition(".")[0]) for name in names}
        self.groups = {ADAPTER + name: cast(nn.Conv2d, module).groups for name, module in modules.items()}

    def weights_of_a_task(self, backbone: Backbone) -> int:
        """Return the number of values that adaptation holds for each task: the kernels, and the states of Adadelta."""
        adapting = sum(size.numel() for _, size in self.shapes)
        return super().weights_of_a_task(backbone) + STATES * adapting

    def start(self, model: Model, tasks: SupportSet) -> Weights:
        """Return the adapters ``(t, o, i)`` and the linear map ``(t, d, d)`` before adaptation."""
        dtype, device = torch.promote_types(tasks.images.dtype, torch.float32), tasks.images.device
        start = {}
        for name, size in self.shapes:
            groups = self.groups.get(name, 1)
            start[name] = START * torch.eye(size[0] // groups, size[1], dtype=dtype, device=device).repeat(groups, 1)
        start[LINEAR] = torch.eye(len(start[LINEAR]), dtype=dtype, device=device)
        return for_each(start, len(tasks.images))

    def of_network(self, model: Model, weights: Weights) -> Weights:
        """Return the kernels with the adapters added at their central positions, and the biases unchanged."""
        network = for_each(model.weights(self.names), len(weights[LINEAR]))
        for name, value in network.items():
            if value.ndim == 5:
                adapter = weights[ADAPTER + name.removeprefix(BACKBONE)]
                network[name] = value + F.pad(adapter[..., None, None], (1, 1, 1, 1))
        return network

    def embed(self, model: Model, weights: Weights, *images: Tensor, **options) -> tuple[Tensor, ...]:
        """Return the features ``(t, n, d)`` of context and targets, under the adapters and the linear map."""
        embedded = super().embed(model, weights, *images, **options)
        with torch.autocast(weights[LINEAR].device.type, enabled=False):
            return tuple(precise(features) @ weights[LINEAR].mT for features in embedded)

    def loss(self, model: Model, tasks: SupportSet, step: int, weights: Weights) -> Tensor:
        """Return the mean cross-entropy ``(t,)``, in nats, of the support rows under their own centroids."""
        features, _ = self.embed(model, weights, tasks.images, record=False)
        return mean_cross_entropy(nearest_centroid(features, tasks, features), tasks.labels)

    def label(
        self, model: Model, tasks: SupportSet, query: Tensor, weights: Weights, record: bool | dict = False
    ) -> Tensor:
        """Return the logits ``(t, q, w)`` of queries under adapted weights."""
        context, features = self.embed(model, weights, tasks.images, query, record=record)
        return nearest_centroid(context, tasks, features)


class TwoRates(Rates):
    """A learning rate for adapters and one for the linear map."""

    def __init__(self, lr: float, linear_lr: float, shapes: list[Shape]):
        super().__init__("fixed", lr, 0, shapes)
        self.linear_lr = linear_lr

    def at(self, step: int, lr: float) -> StepRates:
        """Return the rate of each weight."""
        return {**super().at(step, lr), LINEAR: self.linear_lr}


def convolution_weights(backbone: Backbone) -> list[str]:
    """Return the names of the parameters of the 3x3 convolutions, weights and biases."""
    found = []
    for prefix, module in backbone.named_modules():
        own = dict(module.named_parameters(recurse=False))
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3) and "weight" in own:
            found += [f"{prefix}.{name}" if prefix else name for name in own]
    return found


def nearest_centroid(context: Tensor, tasks: SupportSet, features: Tensor) -> Tensor:
    """Return scaled cosines ``(t, n, w)`` between features ``(t, n, d)`` and class means of a context ``(t, s, d)``."""
    with torch.autocast(features.device.type, enabled=False):
        centroids = class_means(context, tasks.labels, tasks.way)
        return SCALE * cosines(features, centroids)
