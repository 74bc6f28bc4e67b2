"""Fast weights: calling a backbone with the weights of a task, and the gradient of a loss in them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from metafew.backbones.backbone import Backbone
from metafew.errors import UsageError
from metafew.heads.inner import Weights
from metafew.norms.alpha import Alpha
from metafew.norms.norm import Norm

BACKBONE = "backbone."
"""What names of a backbone's weights begin with, where weights of an output layer stand beside them."""
NORMS = (Norm, nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
Loss = Callable[[Weights], Tensor]
Differentiate = Callable[[Loss, Weights, bool], tuple[Weights, Tensor]]


class Bound(nn.Module):
    """A backbone's ``embed`` as a ``forward``, so that it can be called with other weights."""

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.backbone = backbone
        # To look for weights of several names takes long, and is done once instead of in every call.
        self.tied = len([*self.parameters()]) < len([*self.named_parameters(remove_duplicate=False)])

    def forward(self, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Embed as the backbone does."""
        return self.backbone.embed(*args, **kwargs)


class Known(nn.Module):
    """Stands for a :class:`Bound` backbone where features are known already: they pass as they are."""

    tied = False

    def forward(self, context: Tensor, targets: Tensor | None = None, record: bool | dict = True):
        """Return both as they came."""
        return context, targets


class Task(NamedTuple):
    """A task, or under ``vmap`` a stack that looks like one: images ``(s, c, h, w)`` (or features), labels, way.

    ``index`` is its number among the tasks of training, where that matters.
    """

    images: Tensor
    labels: Tensor
    way: int
    index: int | None = None


def adaptable(backbone: Backbone, adapt: str, freeze: Iterable[str]) -> list[str]:
    """Return the names of the weights that adapt to a task; TaskNorm's scalars never do."""
    kept = {"all": Alpha, "no_norm": NORMS, "output": nn.Module}[adapt]
    spared = {id(p) for module in backbone.modules() if isinstance(module, kept) for p in module.parameters()}
    names = [name for name, p in backbone.named_parameters() if id(p) not in spared]
    for beginning in freeze:
        rest = [name for name in names if not f"{name}.".startswith(f"{beginning}.")]
        if rest == names:
            wanted = f"one of {', '.join(names)}" if names else "head.freeze=[]"
            raise UsageError(f"head.freeze={beginning} begins no name of an adapting weight: type {wanted}")
        names = rest
    return names


def embed(bound: Bound, weights: Weights, *images: Tensor, **options) -> tuple[Tensor, Tensor]:
    """Embed the images of one task ``(n, c, h, w)`` with other weights; the features are ``(1, n, d)``."""
    named = {name: value for name, value in weights.items() if name.startswith(BACKBONE)}
    args = tuple(part.unsqueeze(0) for part in images)
    return torch.func.functional_call(bound, named, args, options, tie_weights=bound.tied)


def detached(weights: Weights) -> Weights:
    """Return the same values, cut off from where they came from."""
    return {name: value.detach() for name, value in weights.items()}


def inner_scale(weights: Weights) -> float:
    """Return what an inner loss is multiplied by while its gradient is taken, and the gradient divided by afterwards.

    Where autocast computes in float16, gradients pass through it too, and below 6e-8 they are 0. A power of two that
    depends on nothing keeps adaptation the same in training and evaluation, which no scaler watches.
    """
    device = next(iter(weights.values())).device.type
    half = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16
    return 1024.0 if half else 1.0


def by_autograd(loss: Loss, weights: Weights, graph: bool) -> tuple[Weights, Tensor]:
    """Return the gradient of ``loss(weights)``, which can be differentiated again if ``graph``, and the loss."""
    # Views, since one weight may have been computed from another, and is differentiated as if it had not.
    weights = {name: w.view_as(w) if w.requires_grad else w.detach().requires_grad_() for name, w in weights.items()}
    scale, targets = inner_scale(weights), list(weights.values())
    with torch.enable_grad():
        value = loss(weights)
        grads = torch.autograd.grad(value * scale, targets, create_graph=graph, materialize_grads=True)
        return unscaled(dict(zip(weights, grads, strict=True)), scale), value.detach()


def by_function(loss: Loss, weights: Weights, graph: bool) -> tuple[Weights, Tensor]:
    """Return the same as :func:`by_autograd`, under ``vmap`` too."""
    scale = inner_scale(weights)
    grads, value = torch.func.grad_and_value(lambda weights: loss(weights) * scale)(weights)
    grads = unscaled(grads, scale)
    return grads if graph else {name: grad.detach() for name, grad in grads.items()}, value.detach() / scale


def unscaled(grads: Weights, scale: float) -> Weights:
    """Return ``grads`` divided by ``scale``."""
    return {name: grad / scale for name, grad in grads.items()} if scale != 1 else grads
