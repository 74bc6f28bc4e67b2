"""Max-pooling as part of another operation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

aten = torch.ops.aten
Pooling = tuple | None
"""Kernel size, stride, padding, dilation and ceil mode; None for no pooling."""


def pooling(layer: nn.MaxPool2d | None) -> Pooling:
    """Return the arguments of a max-pooling."""
    return None if layer is None else (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.ceil_mode)


def is_plain_pooling(layer: nn.Module | None) -> bool:
    """Return whether a layer is PyTorch's max-pooling without hooks, so that a fused function can replace it."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return type(layer) is nn.MaxPool2d and not any(getattr(layer, name) for name in hooks)


def pooling_backward(grad: Tensor, x: Tensor, where: Tensor | None, pooling: Pooling) -> Tensor:
    """Return the gradient of ``x``, given that of its maxima, which are at ``where``."""
    return aten.max_pool2d_with_indices_backward(grad, x, *pooling, where) if pooling else grad


def at_maxima(x: Tensor, where: Tensor | None) -> Tensor:
    """Return ``x`` ``(b, c, h, w)`` at the positions ``where``, channels last in memory; ``x`` where that is None."""
    if where is None:
        return x
    images, places = (part.permute(0, 2, 3, 1).flatten(1, 2) for part in (x, where))
    return images.gather(1, places).unflatten(1, where.shape[2:]).permute(0, 3, 1, 2)
