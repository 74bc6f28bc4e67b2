"""Fast weights: a backbone called with weights for each task, and the gradients of losses with respect to them.

Weights are ``(t, ...)``, one for each task of a stack. A stack of one task can go through any network; a stack of
several needs layers that take weights for each task (:mod:`metafew.backbones.task_weights`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from metafew.backbones.backbone import Backbone
from metafew.errors import UsageError
from metafew.heads.inner import Weights
from metafew.meta_parameters import meta_parameters
from metafew.norms.norm import Norm

BACKBONE = "backbone."
"""Prefix of the names of a backbone's weights, as opposed to those of an output layer."""
NORMS = (Norm, nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
Loss = Callable[[Weights], Tensor]
Gradient = Callable[[Loss, Weights, bool], tuple[Weights, Tensor]]


class SupportSet(NamedTuple):
    """The support sets of a stack of tasks.

    Attributes:
        images: ``(t, s, c, h, w)``, or features ``(t, s, d)`` where the backbone does not adapt.
        labels: ``(t, s)``.
        way: number of classes.
        numbers: indices of the training tasks; None in evaluation.
        queries: images or features of the queries, for transductive heads; None where only the support set counts.
    """

    images: Tensor
    labels: Tensor
    way: int
    numbers: Sequence[int] | None = None
    queries: Tensor | None = None


class FunctionalBackbone(nn.Module):
    """A backbone that embeds the images of each task with that task's weights."""

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.backbone = backbone
        # Finding tied weights is slow, so it is done once here instead of in every call.
        self.tied = len([*self.parameters()]) < len([*self.named_parameters(remove_duplicate=False)])
        self.of_norms = {
            f"{name}.{key}"
            for name, module in self.named_modules()
            if isinstance(module, Norm)
            for key, _ in module.named_parameters()
        }

    def forward(self, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Embed as the backbone does."""
        return self.backbone.embed(*args, **kwargs)

    def embed(self, weights: Weights, *images: Tensor, **options) -> tuple[Tensor, Tensor]:
        """Return the features ``(t, n, d)`` of context and targets ``(t, n, c, h, w)``; ignore other weights."""
        named = {name: value for name, value in weights.items() if name.startswith(BACKBONE)}
        if len(images[0]) == 1:
            named = {name: value.squeeze(0) for name, value in named.items()}
        else:  # (t, 1, c) broadcasts to the moments (t, n, c) of a norm
            named |= {name: named[name].unsqueeze(1) for name in self.of_norms & named.keys()}
        return torch.func.functional_call(self, named, images, options, tie_weights=self.tied)

    def weights(self, names: Sequence[str]) -> Weights:
        """Return the backbone's weights ``names``, without a task dimension, with the prefix :data:`BACKBONE`."""
        values = dict(self.backbone.named_parameters())
        return {BACKBONE + name: values[name] for name in names}


class PrecomputedFeatures:
    """Replace a :class:`FunctionalBackbone` where no weight of the backbone adapts: images are features already."""

    def embed(self, weights: Weights, *features: Tensor, **options) -> tuple[Tensor, ...]:
        """Return ``features`` ``(t, n, d)`` of context and targets."""
        return features if len(features) == 2 else (*features, features[0][:, :0])

    def weights(self, names: Sequence[str]) -> Weights:
        """Return no weights."""
        return {}


def adapting_names(backbone: Backbone, adapt: str = "all", freeze: Iterable[str] = ()) -> list[str]:
    """Return the names of the weights that adapt to a task, except meta-parameters and those the backbone froze.

    Args:
        backbone: the feature extractor.
        adapt: ``all`` or ``body``, all weights; ``no_norm``, all but those of norms; ``output``, none, as only the
            output layer adapts.
        freeze: prefixes of further names that do not adapt, such as ``blocks.0``.

    Raises:
        UsageError: if a prefix matches no name.
    """
    kinds: tuple[type[nn.Module], ...] = {"no_norm": NORMS, "output": (nn.Module,)}.get(adapt, ())
    fixed = {id(p) for module in backbone.modules() if isinstance(module, kinds) for p in module.parameters()}
    fixed |= {id(p) for p in meta_parameters(backbone).values()}
    names = [name for name, p in backbone.named_parameters() if id(p) not in fixed and name not in backbone.frozen]
    for prefix in freeze:
        starts = (f"{prefix}.", f"{backbone.prefix}{prefix}.")  # as backbone.freeze
        rest = [name for name in names if not f"{name}.".startswith(starts)]
        if rest == names:
            shown = [name.removeprefix(backbone.prefix) for name in names]
            instead = f"one of {', '.join(shown)}" if names else "head.freeze=[]"
            raise UsageError(
                f"expected head.freeze to hold prefixes of names of adapting weights, got {prefix}: type {instead}"
            )
        names = rest
    return names


def detached(weights: Weights) -> Weights:
    """Return the same values without their history."""
    return {name: value.detach() for name, value in weights.items()}


def inner_scale(weights: Weights) -> float:
    """Return the factor that scales an inner loss while its gradient is computed, and then divides the gradient.

    Where autocast computes in float16, gradients below 6e-8 underflow to 0. With a fixed power of two, adaptation is
    the same in training and in evaluation, where there is no gradient scaler.
    """
    device = next(iter(weights.values())).device.type
    half = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16
    return 1024.0 if half else 1.0


def autograd_gradient(loss: Loss, weights: Weights, graph: bool) -> tuple[Weights, Tensor]:
    """Return the gradients of the losses ``loss(weights)`` ``(t,)`` of independent tasks, and the losses.

    The gradients are themselves differentiable if ``graph`` is true.
    """
    # Views, since one weight may be computed from another and must be differentiated independently of it.
    weights = {name: w.view_as(w) if w.requires_grad else w.detach().requires_grad_() for name, w in weights.items()}
    scale, targets = inner_scale(weights), list(weights.values())
    with torch.enable_grad():
        with differentiable_twice() if graph else nullcontext():
            value = loss(weights)
        with torch.autocast(value.device.type, enabled=False):  # where the loss is computed in float32, so is this
            grads = torch.autograd.grad(value.sum() * scale, targets, create_graph=graph, materialize_grads=True)
        return unscaled(dict(zip(weights, grads, strict=True)), scale), value.detach()


def vmap_safe_gradient(loss: Loss, weights: Weights, graph: bool) -> tuple[Weights, Tensor]:
    """Return the same as :func:`autograd_gradient`, inside ``vmap`` too."""
    scale = inner_scale(weights)
    device = next(iter(weights.values())).device.type
    mixed = torch.is_autocast_enabled(device)

    def total(weights: Weights) -> tuple[Tensor, Tensor]:
        with (
            torch.autocast(device, torch.get_autocast_dtype(device)) if mixed else nullcontext(),
            differentiable_twice() if graph else nullcontext(),
        ):
            value = loss(weights)
        return value.sum() * scale, value

    with torch.autocast(device, enabled=False):  # of the gradients, as in autograd_gradient
        grads, (_, value) = torch.func.grad_and_value(total, has_aux=True)(weights)
    grads = unscaled(grads, scale)
    return grads if graph else detached(grads), value.detach()


def differentiable_twice() -> AbstractContextManager:
    """Return a context in which attention is computed by operations that have second derivatives."""
    return sdpa_kernel(SDPBackend.MATH)


def unscaled(grads: Weights, scale: float) -> Weights:
    """Return ``grads`` divided by ``scale``."""
    return {name: grad / scale for name, grad in grads.items()} if scale != 1 else grads
