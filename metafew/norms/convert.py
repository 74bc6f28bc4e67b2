"""Replace the normalization layers of any network by a scheme."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from inspect import Parameter, signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from metafew.config.option_values import as_list
from metafew.errors import UsageError, nearest
from metafew.norms.norm import Norm
from metafew.norms.running import RunningNorm

KINDS: dict[str, tuple[Any, ...]] = {
    "batch": (_BatchNorm,),
    "layer": (nn.LayerNorm,),
    "group": (nn.GroupNorm,),
    "instance": (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
}
"""Layers that can be replaced, by kind."""
LAYERS = tuple(kind for kinds in KINDS.values() for kind in kinds)
FORWARDS = {layer.forward for layer in (*LAYERS, nn.SyncBatchNorm)}
"""Their ``forward`` methods; a subclass with another ``forward`` may compute more."""
EPS, MOMENTUM = 1e-5, 0.1
"""Defaults of all schemes and of PyTorch."""


def convert(network: nn.Module, norm: Callable[[int], Norm], norms: str | Iterable[str] = "batch") -> nn.Module:
    """Replace normalization layers of any network by a scheme, in place, like ``SyncBatchNorm.convert_sync_batchnorm``.

    The new layers have the weight, bias, running moments and mode of those that they replace, and also their ``eps``
    and ``momentum`` unless ``norm`` sets values other than the defaults. They take rows, sequences, maps and volumes.
    Layers that are frozen or in eval mode are only replaced if ``norms`` names them::

        network = metafew.convert(torchvision.models.resnet18(), TaskNorm)
        with metafew.task_scope(n_tasks=4, n_context=25):
            features = network(images)  # (4 * 40, c, h, w): task by task, the 25 context images of each first

    Args:
        network: any network.
        norm: makes a layer from its number of channels: a class of :mod:`metafew.norms`, or a ``partial`` of one.
        norms: what to replace: ``batch``, ``layer``, ``group`` or ``instance`` norms, or the names of modules, such as
            ``layer4`` or ``layer4.0.bn1``, in which norms of all these kinds are replaced. A single one or a list.

    Returns:
        ``network``, or the new layer if ``network`` is a layer to be replaced.

    Raises:
        metafew.errors.UsageError: if there is nothing to replace, a name matches no such layer, or a layer cannot be
            replaced.
    """
    layers = {name: module for name, module in network.named_modules() if isinstance(module, LAYERS)}
    words = as_list(norms)
    chosen = choose_layers(layers, words)
    if not chosen and not any(isinstance(module, Norm) for module in network.modules()):
        raise nothing_to_replace(type(network).__name__, layers, words)
    like = next((p for p in network.parameters() if p.is_floating_point()), torch.empty(0))
    made = {layers[name]: replacement(name, layers[name], norm, like) for name in chosen}
    for path, module in [*network.named_modules(remove_duplicate=False)]:
        if path and module in made:
            owner, _, key = path.rpartition(".")
            setattr(network.get_submodule(owner), key, made[module])
    return made.get(network, network)


def construct(
    network: Callable[..., nn.Module],
    arguments: Mapping[str, Any],
    norm: Callable[[int], Norm],
    norms: str | Iterable[str],
) -> nn.Module:
    """Return ``network(**arguments)``, converted.

    If ``network`` has an argument ``norm_layer`` whose default makes batch norms (:func:`makes_batch_norms`), and
    ``norms`` names only kinds, including ``batch``, then ``norm_layer`` is ``norm`` unless ``arguments`` set it.

    Args:
        network: a class or function that makes the network.
        arguments: its keyword arguments.
        norm: as in :func:`convert`.
        norms: as in :func:`convert`.

    Raises:
        metafew.errors.UsageError: as in :func:`convert`.
    """
    words, parameter = as_list(norms), signature(network).parameters.get("norm_layer")
    given = parameter is not None and makes_batch_norms(parameter.default) and "batch" in words and {*words} <= {*KINDS}
    made = network(**({"norm_layer": norm} if given else {}) | dict(arguments))
    if not isinstance(made, nn.Module):
        return made
    in_eval = [module for module in made.modules() if not module.training]
    made.train(made.training)  # a network may freeze batch norms in its own train()
    for module in in_eval:
        module.training = False
    return convert(made, norm, norms)


def makes_batch_norms(default: Any) -> bool:
    """Return whether a default of ``norm_layer`` stands for batch norms: one of their classes, None, or no default.

    >>> [makes_batch_norms(default) for default in (None, nn.BatchNorm2d, nn.LayerNorm, partial(nn.LayerNorm, eps=1.0))]
    [True, True, False, False]
    """
    return default in (None, Parameter.empty) or (isinstance(default, type) and issubclass(default, _BatchNorm))


def choose_layers(layers: Mapping[str, nn.Module], norms: Iterable[str]) -> list[str]:
    """Return the names of the layers that ``norms`` chooses: trainable ones of a kind, and all in a named module.

    Raises:
        UsageError: if a name matches no such layer and no module that contains one.
    """
    kinds = tuple(kind for word in norms for kind in KINDS.get(word, ()))
    chosen = {name for name, layer in layers.items() if isinstance(layer, kinds) and trains(layer)}
    for word in norms:
        below = {name for name in layers if f"{name}.".startswith(f"{word}.")}
        if word not in KINDS and not below:
            raise UsageError(
                f"expected backbone.norms to hold {', '.join(KINDS)} or names of layers of these kinds, got {word}: "
                f"type backbone.norms={nearest(str(word), [*KINDS, *layers]) or 'batch'}"
            )
        chosen |= below if word not in KINDS else set()
    return [name for name in layers if name in chosen]


def trains(layer: nn.Module) -> bool:
    """Return whether a layer is in training mode and not frozen."""
    parameters = [*layer.parameters()]
    return layer.training and (not parameters or any(p.requires_grad for p in parameters))


def nothing_to_replace(network: str, layers: Mapping[str, nn.Module], norms: Iterable[str]) -> UsageError:
    """Return the error for a network of which ``norms`` chooses no layer."""
    kinds = {kind: [name for name in layers if isinstance(layers[name], KINDS[kind])] for kind in KINDS}
    found = {kind: names for kind, names in kinds.items() if names}
    asked = {kind: names for kind, names in found.items() if kind in norms}
    fixed = " (frozen or in eval mode)"
    got = [
        f"{len(names)} {kind} norm{'s' * (len(names) > 1)}{fixed * (kind in asked)}" for kind, names in found.items()
    ]
    if asked:
        words = dict.fromkeys(name.partition(".")[0] for names in asked.values() for name in names)
    else:
        words = dict.fromkeys(found)
    advice = f"backbone.norms=[{','.join(words)}]" if words else "norm=own, which keeps the network as it is"
    return UsageError(
        f"expected {network} to have {' or '.join(norms)} norms that train, for norm= to replace, got "
        f"{' and '.join(got) or 'none'}: type {advice}"
    )


def replacement(name: str, layer: Any, norm: Callable[[int], Norm], like: Tensor) -> Norm:
    """Return a layer of ``norm`` with the weight, bias, running moments, mode and settings of ``layer``.

    Args:
        name: its name in the network, for errors.
        layer: a layer of :data:`KINDS`.
        norm: makes the new one.
        like: a tensor with the device and precision of the new layer, if ``layer`` has neither weights nor buffers.

    Raises:
        UsageError: if ``layer`` does more than a layer of its kind.
    """
    check_replaceable(name, layer)
    scheme = norm(channels(layer)).train(layer.training)
    own = [value for value in (layer.weight, *layer.buffers()) if value is not None and value.is_floating_point()]
    scheme.to(own[0] if own else like)
    for key in ("weight", "bias"):
        value = getattr(layer, key)
        if value is None:  # it does not scale, or does not shift
            getattr(scheme, key).requires_grad_(False)
        else:
            setattr(scheme, key, value)
    if scheme.eps == EPS:
        scheme.eps = layer.eps
    if isinstance(scheme, RunningNorm) and isinstance(layer, _NormBase):
        if scheme.momentum == MOMENTUM and layer.momentum is not None:
            scheme.momentum = layer.momentum
        if layer.running_mean is not None and layer.running_var is not None:
            scheme.running_mean, scheme.running_var = layer.running_mean, layer.running_var
    if isinstance(layer, nn.LayerNorm):
        scheme.register_forward_pre_hook(channels_second)
        scheme.register_forward_hook(channels_last)
    followers = dict(layer.named_children())
    if followers:
        for key, follower in followers.items():
            scheme.add_module(key, follower)
        scheme.register_forward_hook(partial(follow, tuple(followers)))
    return scheme


def channels(layer: Any) -> int:
    """Return the number of channels of a layer."""
    if isinstance(layer, nn.LayerNorm):
        return layer.normalized_shape[0]
    return layer.num_channels if isinstance(layer, nn.GroupNorm) else layer.num_features


def check_replaceable(name: str, layer: Any) -> None:
    """Check that a layer computes what its kind does, over channels, followed by nothing but its child modules.

    Raises:
        UsageError: if not.
    """
    if isinstance(layer, nn.LayerNorm) and len(layer.normalized_shape) > 1:
        why = f"which has weights for each of {tuple(layer.normalized_shape)}, and not for channels"
    elif isinstance(layer, _NormBase) and not layer.num_features:
        why = "whose channels its first input sets"
    elif type(layer).forward not in FORWARDS and not is_followed_batch_norm(layer):
        why = "whose forward does more"
    else:
        return
    raise UsageError(
        f"expected layers that a norm can replace, got {name or 'a layer'}, a {type(layer).__name__} {why}: type "
        "norm=own, or the names of others, as in backbone.norms=[layer1,layer2]"
    )


@torch.no_grad()
def is_followed_batch_norm(layer: nn.Module) -> bool:
    """Return whether a layer of another class computes a batch norm and then the modules in it, in their order.

    Those of timm (``BatchNormAct2d``) end with dropout and an activation. The results are compared on sample inputs.
    """
    if not isinstance(layer, _BatchNorm):
        return False
    trial: Any = copy.deepcopy(layer).eval().float().cpu()
    x = torch.linspace(-3, 3, 8 * trial.num_features).sin().mul(3).view(2, -1, 2, 2)
    moments = (trial.running_mean, trial.running_var)
    y = F.batch_norm(x, *moments, trial.weight, trial.bias, training=moments[0] is None, eps=trial.eps)
    for follower in trial.children():
        y = follower(y)
    try:
        return torch.allclose(trial(x), y, atol=1e-5)
    except Exception:  # custom code may raise anything, such as when it expects rows but gets maps
        return False


def channels_second(layer: nn.Module, inputs: tuple) -> tuple:
    """Return the input ``(b, *, c)`` of an ``nn.LayerNorm`` as ``(b, c, *)``; a forward pre-hook."""
    return inputs[0].movedim(-1, 1), *inputs[1:]


def channels_last(layer: nn.Module, inputs: tuple, result: Tensor) -> Tensor:
    """Return the result ``(b, c, *)`` as ``(b, *, c)``; a forward hook."""
    return result.movedim(1, -1)


def follow(names: tuple[str, ...], layer: nn.Module, inputs: tuple, result: Tensor) -> Tensor:
    """Return the result of the modules ``names`` in a layer, one after the other; a forward hook."""
    for name in names:
        result = layer.get_submodule(name)(result)
    return result
