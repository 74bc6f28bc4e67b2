"""Max-pooling that a norm carries out in place of the layer behind it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

aten = torch.ops.aten
Pooling = tuple | None
"""Kernel size, stride, padding, dilation and whether an incomplete window counts; None for no pooling."""


def pooling(layer: nn.MaxPool2d | None) -> Pooling:
    """Return what must be known of a max-pooling."""
    return layer and (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.ceil_mode)


def bare(layer: Callable | None, kind: type[nn.Module]) -> bool:
    """Tell whether a layer is of this very kind, without hooks, so that something else may do its work."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return type(layer) is kind and not any(getattr(layer, name) for name in hooks)


def unpooled(grad: Tensor, x: Tensor, where: Tensor | None, pooling: Pooling) -> Tensor:
    """Return the gradient of ``x``, given that of what pooling returns."""
    return aten.max_pool2d_with_indices_backward(grad, x, *pooling, where) if pooling else grad


def read(x: Tensor, where: Tensor | None) -> Tensor:
    """Return ``x`` ``(b, c, h, w)`` at the maxima, in the layout of images whose channels come last."""
    if where is None:
        return x
    images, places = (part.permute(0, 2, 3, 1).flatten(1, 2) for part in (x, where))
    return images.gather(1, places).unflatten(1, where.shape[2:]).permute(0, 3, 1, 2)
