"""Export a trained model to programs that run without metafew: ``torch.export`` and ONNX.

A network of features is exported as it stands. A task is exported as one network from images to logits, and no longer
contains its support set: every norm keeps the moments of the support images, and a head that is linear in the features,
as are all that fit a classifier or adapt by gradient steps, becomes a linear layer with the weights that it found.
"""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metafew.backbones.backbone import Backbone
from metafew.episode import Labelled
from metafew.errors import UsageError, reason
from metafew.heads.adapting import AdaptingHead
from metafew.heads.head import Head
from metafew.inference import Model, Task
from metafew.norms.fast import decelerate
from metafew.norms.film import FiLM, current_vectors
from metafew.norms.norm import Moments, Norm
from metafew.norms.scope import rows
from metafew.precision import precise

FORMATS = {".pt2": "torch.export", ".onnx": "ONNX"}
PROBES = 1024
"""Most features of a head that are measured at once, which bounds memory."""
LINEAR = 1e-6
"""Largest deviation of a head, in float64 and relative to its logits, that counts as linear."""
METADATA = "metafew.json"
"""The name of the description in a file of ``torch.export``; in ONNX, its keys are metadata of the model."""


class ContextNorm(nn.Module):
    """A normalization layer whose context is the one of a task, for which it keeps the moments of each image.

    Args:
        norm: the layer.
        own: mean and variance ``(1, s, c)`` of the context images.
    """

    mean: Tensor
    var: Tensor

    def __init__(self, norm: Norm, own: Moments):
        super().__init__()
        self.norm = norm
        for name, moment in zip(("mean", "var"), own, strict=True):
            self.register_buffer(name, moment)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize images ``(n, c, h, w)``, all of which are targets."""
        context = self.mean.shape[1]
        wide = precise(x)
        pairs = zip((self.mean, self.var), moments_of(wide.unsqueeze(0)), strict=True)
        own = [torch.cat([kept, new], 1) for kept, new in pairs]
        mean, var = (
            moment.expand(1, context + x.shape[0], -1)[0, context:]
            for moment in self.norm.moments((own[0], own[1]), context)
        )
        scale = self.norm.weight * torch.rsqrt(var + self.norm.eps)
        shift = self.norm.bias - mean * scale
        return (wide * scale[..., None, None] + shift[..., None, None]).to(x.dtype)


class Modulated(nn.Module):
    """A FiLM layer with the scale and shift of one task.

    Args:
        gamma: the scale ``(1, c)``.
        beta: the shift ``(1, c)``.
    """

    gamma: Tensor
    beta: Tensor

    def __init__(self, gamma: Tensor, beta: Tensor):
        super().__init__()
        self.register_buffer("gamma", gamma)
        self.register_buffer("beta", beta)

    def forward(self, x: Tensor) -> Tensor:
        """Modulate images ``(n, c, h, w)``."""
        return self.gamma[..., None, None] * x + self.beta[..., None, None]


class Features(nn.Module):
    """Features ``(n, d)`` of images ``(n, c, h, w)`` in [0, 1].

    Args:
        backbone: a network whose norms take no context from the scope.
    """

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        """Return the features of each image."""
        with rows(1, images.shape[0], record=False):
            return precise(self.backbone(images))


class Divided(nn.Module):
    """Logits divided by a temperature, as :meth:`metafew.inference.Task.predict` divides them."""

    def __init__(self, temperature: float):
        super().__init__()
        self.temperature = temperature

    def forward(self, logits: Tensor) -> Tensor:
        """Divide logits ``(n, w)``."""
        return logits if self.temperature == 1 else logits / self.temperature


class AdaptedHead(nn.Module):
    """A head with the support set of one task, that computes logits from the features of queries.

    Args:
        head: the head.
        support: features ``(1, s, d)`` and labels ``(1, s)`` of the support set.
        way: number of classes.
    """

    features: Tensor
    labels: Tensor

    def __init__(self, head: Head, support: Labelled, way: int):
        super().__init__()
        self.head, self.way = head, way
        self.register_buffer("features", support.images)
        self.register_buffer("labels", support.labels)

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits ``(n, w)`` of features ``(n, d)``."""
        query = features.unsqueeze(0)
        given: Any = Given(self.features, query)
        return self.head(given, Labelled(self.features, self.labels), query, self.way)[0]


class Given:
    """A stand-in for a backbone that returns features which are computed already.

    Args:
        context: features ``(1, s, d)`` of the support set.
        targets: features ``(1, n, d)`` of the queries.
    """

    def __init__(self, context: Tensor, targets: Tensor):
        self.features = context, targets

    def embed(self, *images: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        """Return the features."""
        return self.features


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
        """Embed the context as the backbone does, and return the probes in place of features of targets."""
        embedded = self.original(context, None, record)
        if targets is None:
            return embedded
        self.state = {name: tensor.detach().clone() for name, tensor in named_tensors(self.backbone).items()}
        vectors = current_vectors()
        self.vectors = [] if vectors is None else [vectors[layer] for layer in self.backbone.films]
        self.features = embedded[0]
        return self.features, self.probes


def feature_network(model: Model) -> nn.Module:
    """Return the network of features of a model, as :func:`save` takes it.

    Raises:
        UsageError: if its norms need a context, which only a task has.
    """
    backbone = copy.deepcopy(model.backbone)
    decelerate(backbone)
    if not (backbone.own_norms or all(not needs_context(norm) for norm in backbone.norms)) or backbone.transductive:
        raise UsageError(
            "expected a norm that needs no context, as features have none without a task, got "
            f"norm={model.choices['norm']}: type support=DIR for the model that is adapted to a task"
        )
    return Features(backbone).eval()


@torch.no_grad()
def task_network(task: Task) -> nn.Module:
    """Return the network from images to the logits of a task, divided by the temperature, as :func:`save` takes it.

    The head adapts in float64, so that logits differ from those of :meth:`Task.predict` by rounding.

    Raises:
        UsageError: if predictions depend on one another.
    """
    model = copy.deepcopy(task.model).cpu().double()
    if model.backbone.transductive or model.head.transductive:
        part = "norm" if model.backbone.transductive else "head"
        raise UsageError(
            f"expected predictions that do not depend on one another, which can be exported, got {part}="
            f"{model.choices[part]}, which is transductive: type ckpt=PATH of a training with another {part}"
        )
    if isinstance(model.head, AdaptingHead):
        model.head.inner = "loop"  # the others hide the adapted weights
    backbone = model.backbone
    decelerate(backbone)
    support = Labelled(task.support.images.cpu().double(), task.support.labels.cpu())
    way, probed = len(task.classes), Probed(backbone)

    def measure(features: Tensor) -> Tensor:
        probed.probes = features.unsqueeze(0)
        query = support.images[:, :1].expand(-1, len(features), -1, -1, -1)
        return model.head(backbone, support, query, way)[0]

    layer = linear_layer(measure, backbone.features)
    classifier = layer or AdaptedHead(model.head, Labelled(probed.features, support.labels), way)
    del backbone.embed
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
    # Not "greater": logits of a diverged head are NaN, which no layer computes.
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
    """Replace the norms of a backbone that need a context by ones that keep that of support images ``(1, s, ...)``."""
    names = [name for name, module in backbone.named_modules() if isinstance(module, Norm) and needs_context(module)]
    own: dict[str, Moments] = {}

    def keep(name: str) -> Any:
        return lambda _, inputs: own.update({name: moments_of(precise(inputs[0]).unsqueeze(0))})

    hooks = [backbone.get_submodule(name).register_forward_pre_hook(keep(name)) for name in names]
    backbone.embed(images)
    for name, hook in zip(names, hooks, strict=True):
        hook.remove()
        norm: Any = backbone.get_submodule(name)
        backbone.set_submodule(name, ContextNorm(norm, own[name]))


def needs_context(norm: Norm) -> bool:
    """Return whether the context may change how a norm treats an image, in evaluation."""
    return not (norm.fixed_moments or norm.per_image)


def moments_of(images: Tensor) -> Moments:
    """Return mean and variance ``(t, n, c)`` of every image and channel of ``(t, n, c, h, w)``."""
    return images.mean((3, 4)), images.var((3, 4), correction=0)


def save(network: nn.Module, path: Path, model: Model, description: dict[str, Any]) -> None:
    """Write a network of images to a file, in the format of its suffix, for any number of images.

    Args:
        network: from images ``(n, c, h, w)`` in float32 to one row for each.
        path: a file of :data:`FORMATS`.
        model: the model whose network it is.
        description: plain values that the file contains as metadata.

    Raises:
        UsageError: if the packages for ONNX are not installed, or the network cannot be exported.
    """
    example = torch.rand(3, model.channels, model.image_size, model.image_size)
    shapes = ({0: torch.export.Dim("images", min=1)},)
    try:
        with quiet():
            program = torch.export.export(network.cpu(), (example,), dynamic_shapes=shapes, strict=False)
            if path.suffix == ".onnx":
                save_onnx(program, path, description)
            else:
                torch.export.save(program, path, extra_files={METADATA: json.dumps(description)})
    except ImportError as error:
        raise UsageError(
            f"expected the packages for ONNX, got none ({reason(error)}): type pip install 'metafew[export]', or "
            "out=model.pt2"
        ) from error
    except OSError as error:
        raise UsageError(
            f"expected out={path} to be a file that can be written, got {error}: type out=FILE.pt2"
        ) from error
    except Exception as error:  # torch documents no class of errors for what it cannot export
        raise UsageError(
            f"expected operations that {FORMATS[path.suffix]} has, got others of head={model.choices['head']} "
            f"({reason(error)[:200]}): type out=model.pt2, or ckpt=PATH of a training with another head"
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Ignore what torch warns of while it exports, on which the user cannot act."""
    log = logging.getLogger("torch.onnx")
    before = log.level
    log.setLevel(logging.ERROR)  # torchvision is not installed
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)


def save_onnx(program: torch.export.ExportedProgram, path: Path, description: dict[str, Any]) -> None:
    """Write a program as ONNX, with a description in its metadata, whose values are JSON."""
    exported: Any = torch.onnx.export(
        program, dynamo=True, input_names=["images"], output_names=[description["output"]], verbose=False
    )
    exported.model.metadata_props.update({key: json.dumps(value) for key, value in description.items()})
    exported.save(path, external_data=False)
