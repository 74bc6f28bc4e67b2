"""The networks to export: of features, and of a task."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from metafew.backbones.backbone import Backbone
from metafew.episode import Labelled
from metafew.errors import UsageError, reason
from metafew.export.layers import AdaptedHead, Divided, Features, Fitted, Modulated, keep_moments
from metafew.heads.adapting import AdaptingHead
from metafew.inference import Model, Task
from metafew.norms.fast import decelerate
from metafew.norms.film import FiLM, current_vectors
from metafew.norms.norm import Moments, Norm, as_maps, image_moments
from metafew.precision import precise

PROBES = 1024
"""Maximum number of features on which a head is measured at once, which bounds memory."""
LINEAR = 1e-6
"""Largest deviation of a head from linearity, in float64 and relative to its logits, at which it counts as linear."""


class Probed:
    """Replace ``embed`` of a backbone while a head adapts, and keep the network that embeds the queries.

    Args:
        backbone: the backbone, whose attribute ``embed`` is set.
    """

    def __init__(self, backbone: Backbone):
        self.backbone, self.original = backbone, backbone.embed
        self.probes = torch.empty(0)
        self.state: dict[str, Tensor] = {}
        self.vectors: list[tuple[Tensor, Tensor]] = []
        self.features = torch.empty(0)
        backbone.embed = self.embed  # type: ignore[method-assign]

    def embed(
        self, context: Tensor, targets: Tensor | None = None, record: bool | dict = True, targets_only: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Embed the context as the backbone does, and return the probes in place of features of targets.

        Raises:
            UsageError: if the network cannot compute in float64.
        """
        try:
            embedded, none = self.original(context, None, record)
        except RuntimeError as error:  # it has embedded the same images in float32
            raise UsageError(
                "expected a network that can compute in float64, in which the head adapts for an export, got one that "
                f"cannot ({reason(error)[:200]}): remove what fixes its dtype, such as x.float()"
            ) from error
        self.features = embedded.to(context.dtype)  # a network may fix the dtype of its features alone
        if targets is None:
            return self.features, none
        self.state = {name: tensor.detach().clone() for name, tensor in named_tensors(self.backbone).items()}
        vectors = current_vectors()
        self.vectors = [] if vectors is None else [vectors[layer] for layer in self.backbone.films]
        return self.features, self.probes


def feature_network(model: Model) -> nn.Module:
    """Return the network of features of a model, as :func:`save` takes it.

    Raises:
        UsageError: if its norms need a context, which only a task has.
    """
    backbone = copy.deepcopy(model.backbone)
    decelerate(backbone)
    if any(map(needs_context, backbone.norms)) or backbone.transductive:
        raise UsageError(
            "expected a norm that needs no context, as features have none without a task, got "
            f"norm={model.choices['norm']}: type support=DIR for the model that is adapted to a task"
        )
    return Features(backbone).eval()


@torch.no_grad()
def task_network(task: Task) -> nn.Module:
    """Return the network from images to the logits of a task, divided by the temperature, as :func:`save` takes it.

    The head adapts in float64, so that logits differ from those of :meth:`Task.predict` only by rounding.

    Raises:
        UsageError: if predictions depend on one another, or the network cannot compute in float64.
    """
    model = copy.deepcopy(task.model).cpu().double()
    if model.backbone.transductive or model.head.transductive:
        part = "norm" if model.backbone.transductive else "head"
        raise UsageError(
            f"expected predictions that do not depend on one another, which can be exported, got {part}="
            f"{model.choices[part]}, which is transductive: type ckpt=PATH of a training with another {part}"
        )
    if isinstance(model.head, AdaptingHead):
        model.head.inner = "loop"  # other ways of batching hide the adapted weights
    backbone = model.backbone
    decelerate(backbone)
    support = Labelled(task.support.images.cpu().double(), task.support.labels.cpu())
    way, probed = len(task.classes), Probed(backbone)

    def measure(features: Tensor) -> Tensor:
        probed.probes = features.unsqueeze(0)
        query = support.images[:, :1].expand(-1, len(features), -1, -1, -1)
        return model.head(backbone, support, query, way)[0]

    layer, head = linear_layer(measure, backbone.features), model.head
    del backbone.embed
    if layer is None and isinstance(head, AdaptingHead):
        ((_, weights),) = head.adaptation(backbone, support, way)
        head = Fitted(head, weights)
    classifier = layer or AdaptedHead(head, Labelled(probed.features, support.labels), way)
    load_tensors(backbone, probed.state)
    modulate(backbone, probed.vectors)
    keep_context(backbone, support.images)
    return nn.Sequential(Features(backbone), classifier, Divided(model.temperature)).float().eval()


def linear_layer(measure: Any, features: int) -> nn.Linear | None:
    """Return the linear layer that equals a function of features ``(n, d)``; None if it is not linear.

    Args:
        measure: the function, which returns logits ``(n, w)``.
        features: the dimension ``d``.
    """
    identity = torch.eye(features, dtype=torch.float64)
    bias = measure(identity[:1] * 0)[0]
    weight = torch.cat([measure(part) - bias for part in identity.split(PROBES)])
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(8, features, dtype=torch.float64, generator=generator)
    expected, found = measure(points), points @ weight + bias
    # Not ``>``, which is False for NaN, the logits of a diverged head.
    if not (expected - found).abs().max() <= LINEAR * expected.abs().max():
        return None
    layer = nn.Linear(features, len(bias), dtype=torch.float64)
    layer.weight.copy_(weight.T)
    layer.bias.copy_(bias)
    return layer


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers of a module by name."""
    return dict(module.named_parameters()) | dict(module.named_buffers())


def load_tensors(module: nn.Module, values: dict[str, Tensor]) -> None:
    """Set the parameters and buffers of a module."""
    for name, tensor in named_tensors(module).items():
        tensor.copy_(values[name])


def modulate(backbone: Backbone, vectors: list[tuple[Tensor, Tensor]]) -> None:
    """Replace the FiLM layers of a backbone by those of one task, if there is a scale and shift for each."""
    layers = [name for name, module in backbone.named_modules() if isinstance(module, FiLM)]
    for name, pair in zip(layers, vectors, strict=bool(vectors)):
        backbone.set_submodule(name, Modulated(*pair))


def keep_context(backbone: Backbone, images: Tensor) -> None:
    """Make norms of a backbone that need a context keep that of support images ``(1, s, ...)``.

    Raises:
        UsageError: if the network calls such a norm twice.
    """
    norms = [module for module in backbone.modules() if isinstance(module, Norm) and needs_context(module)]
    own: dict[Norm, Moments] = {}

    def keep(norm: Any, inputs: tuple) -> None:
        if norm in own:
            raise UsageError(
                "expected a network that calls each norm once, as an exported norm keeps the moments of one context, "
                "got one that calls a norm twice: give each place a layer of its own"
            )
        own[norm] = image_moments(as_maps(precise(inputs[0])).unsqueeze(0))

    hooks = [norm.register_forward_pre_hook(keep) for norm in norms]
    backbone.embed(images)
    for hook in hooks:
        hook.remove()
    for norm, moments in own.items():  # without those that the network only calls in training
        keep_moments(norm, moments)


def needs_context(norm: Norm) -> bool:
    """Return whether the context may change how a norm treats an image, in evaluation."""
    return not (norm.fixed_moments or norm.per_image)
