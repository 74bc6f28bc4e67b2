"""Convolutions and linear layers with weights of their own for each task, all tasks in one pass.

An inner loop gives every task its own weights. A layer prepared by :func:`accept_task_weights` may be called with
weights ``(t, ...)`` for the tasks of a flat batch ``(t * n, ...)``, task ``i`` owning the ``i``-th block of rows, so
that everything between the layers runs once for all tasks. A layer of :class:`~metafew.norms.norm.Norm` needs no
preparation: its weights ``(t, 1, c)`` broadcast.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from metafew.backbones.backbone import Backbone
from metafew.backbones.task_convolution import Convolve, Geometry
from metafew.norms.fast import FastForward
from metafew.norms.norm import Norm


def accept_task_weights(network: nn.Module) -> nn.Module:
    """Let the convolutions and linear layers of ``network`` be called with weights ``(t, ...)``.

    Subclasses of these layers are not changed, nor are convolutions whose padding is not an explicit number of zeros.

    Args:
        network: changed in place, as by :func:`~metafew.norms.fast.accelerate`.

    Returns:
        ``network``.
    """
    for module in network.modules():
        if type(module) is nn.Linear:
            FastForward.install(transform, module)
        elif type(module) is nn.Conv2d and module.padding_mode == "zeros" and isinstance(module.padding, tuple):
            FastForward.install(convolve, module)
    return network


def obstacles(backbone: Backbone, names: Iterable[str]) -> list[str]:
    """Return the names of the classes, for error messages, that do not allow weights for each task; empty if all do.

    Args:
        backbone: the feature extractor.
        names: names of the weights that adapt.
    """
    adapting: dict[str, set[str]] = {}
    for name in names:
        owner, _, key = name.rpartition(".")
        adapting.setdefault(owner, set()).add(key)
    if not adapting:
        return []
    if not backbone.task_weights or backbone.couples_tasks:
        return [type(backbone).__name__]
    found = [backbone.get_submodule(owner) for owner in adapting]
    others = [module for module, keys in zip(found, adapting.values(), strict=True) if not takes(module, keys)]
    others += [module for module in backbone.modules() if isinstance(module, _BatchNorm)]  # mixes rows of all tasks
    return sorted({type(module).__name__ for module in others})


def takes(module: nn.Module, keys: set[str]) -> bool:
    """Return whether the parameters ``keys`` of ``module`` may have values per task; they must be all that it has."""
    if keys != dict(module.named_parameters(recurse=False)).keys() or not keys <= {"weight", "bias"}:
        return False
    if isinstance(module, Norm):
        return type(module).forward is Norm.forward
    forward = vars(module).get("forward")
    return isinstance(forward, FastForward) and forward.function in (convolve, transform)


def transform(layer: nn.Linear, x: Tensor) -> Tensor:
    """Return the product of a linear layer with weights ``(o, i)``, or ``(t, o, i)`` for the rows of ``t`` tasks."""
    if layer.weight.ndim == 2:
        return F.linear(x, layer.weight, layer.bias)
    tasks = len(layer.weight)
    y = x.reshape(tasks, -1, x.shape[-1]) @ layer.weight.mT
    y = y if layer.bias is None else y + layer.bias.unsqueeze(1).to(y.dtype)
    return y.view(*x.shape[:-1], -1)


def convolve(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """Return the convolution of ``x`` with weights ``(o, i, h, w)``, or ``(t, o, i, h, w)`` for rows of ``t`` tasks."""
    weight, bias = layer.weight, layer.bias
    if weight.ndim == 4:
        return nn.Conv2d.forward(layer, x)
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    y = Convolve.apply(x, weight, Geometry(layer.stride, cast(tuple, layer.padding), layer.dilation, layer.groups))
    return y if bias is None else y + bias.repeat_interleave(len(x) // len(bias), 0)[..., None, None].to(y.dtype)
