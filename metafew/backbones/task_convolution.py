"""Convolutions with weights of their own for each task, and derivatives of all orders.

:class:`Convolve` has three bilinear kernels, each the derivative of the others: a convolution, and its gradients with
respect to the input and the weights. A kernel loops over the tasks where their maps are large, and is a single matrix
product over patches where they are small (:data:`SMALL`). Weights that all tasks share, as before the first inner step,
are those of an ordinary convolution; they are recognized by a stride of 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

aten = torch.ops.aten
_summed: ContextVar[bool] = ContextVar("summed", default=False)
SMALL = 100
"""Largest number of output positions per task for which a matrix product is used; above it, a loop is faster."""


class Geometry(NamedTuple):
    """Stride, padding and dilation of a convolution, and its number of groups."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


@contextmanager
def summed_gradients() -> Iterator[None]:
    """Declare that passes in this context use gradients of weights ``(t, ...)`` only as sums over tasks.

    This holds where the weights of a task are shared weights plus constants, as in first-order MAML. A convolution then
    returns the mean over tasks as the gradient of each, which is a single convolution of all rows.
    """
    token = _summed.set(True)
    try:
        yield
    finally:
        _summed.reset(token)


class Convolve(Function):
    """The convolution of rows ``(t * n, i, h, w)`` with weights ``(t, o, i, kh, kw)``."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
        """Return the maps ``(t * n, o, ...)``."""
        ctx.save_for_backward(x, weight)
        ctx.geometry, ctx.summed = geometry, _summed.get()
        return convolution(x, weight, geometry)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of ``x`` and ``weight``."""
        x, weight = ctx.saved_tensors
        of_x, of_weight, _ = ctx.needs_input_grad
        if not torch.is_grad_enabled():
            x_grad, weight_grad = gradients(grad, x, weight, ctx.geometry, of_x, of_weight and not ctx.summed)
            if of_weight and ctx.summed:
                total = _gradients(grad, x, weight[0].to(x.dtype), ctx.geometry, (False, True))[1]
                weight_grad = (total.to(weight.dtype) / len(weight)).expand_as(weight)
            return x_grad, weight_grad, None
        return (
            InputGradient.apply(grad, weight, x.detach(), ctx.geometry) if of_x else None,
            WeightGradient.apply(grad, x, weight.detach(), ctx.geometry) if of_weight else None,
            None,
        )


class InputGradient(Function):
    """The gradient of :class:`Convolve` with respect to its rows."""

    @staticmethod
    def forward(ctx, grad: Tensor, weight: Tensor, x: Tensor, geometry: Geometry) -> Tensor:
        """Return the gradient ``(t * n, i, h, w)``; of ``x`` only the shape matters."""
        ctx.save_for_backward(grad, weight)
        ctx.geometry = geometry
        return gradients(grad, x, weight, geometry, True, False)[0]

    @staticmethod
    def backward(ctx, v: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of ``grad`` and ``weight``."""
        grad, weight = ctx.saved_tensors
        of_grad, of_weight, *_ = ctx.needs_input_grad
        return (
            Convolve.apply(v, weight, ctx.geometry) if of_grad else None,
            WeightGradient.apply(grad, v, weight.detach(), ctx.geometry) if of_weight else None,
            None,
            None,
        )


class WeightGradient(Function):
    """The gradient of :class:`Convolve` with respect to its weights."""

    @staticmethod
    def forward(ctx, grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
        """Return the gradient ``(t, o, i, kh, kw)``; of ``weight`` only the shape matters."""
        ctx.save_for_backward(grad, x)
        ctx.geometry = geometry
        return gradients(grad, x, weight, geometry, False, True)[1]

    @staticmethod
    def backward(ctx, v: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of ``grad`` and ``x``."""
        grad, x = ctx.saved_tensors
        of_grad, of_x, *_ = ctx.needs_input_grad
        return (
            Convolve.apply(x, v, ctx.geometry) if of_grad else None,
            InputGradient.apply(grad, v, x.detach(), ctx.geometry) if of_x else None,
            None,
            None,
        )


def convolution(x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Return the result of :class:`Convolve`, in the precision of ``x``."""
    weight = in_precision_of(x, weight)
    if weight.stride(0) == 0:
        return _convolution(x, weight[0], geometry)
    tasks = len(weight)
    if in_patches(x, weight, geometry):
        rows, size = patches(x, weight, geometry)
        maps = rows @ channels_last_rows(weight).mT
        return maps.view(len(x), *size, -1).permute(0, 3, 1, 2)
    return torch.cat([_convolution(*task, geometry) for task in zip(x.chunk(tasks), weight, strict=True)])


def gradients(
    grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, of_x: bool, of_weight: bool
) -> tuple[Any, Any]:
    """Return the results of :class:`InputGradient` and :class:`WeightGradient`; None where they are not needed."""
    tasks, dtype = len(weight), weight.dtype
    weight = in_precision_of(x, weight)
    x_grad = weight_grad = None
    if of_x and weight.stride(0) == 0:
        x_grad, of_x = _gradients(grad, x, weight[0], geometry, (True, False))[0], False
    if in_patches(x, weight, geometry):
        by_position = grad.permute(0, 2, 3, 1).reshape(tasks, -1, grad.shape[1])
        if of_x:
            x_grad = add_patches(by_position @ channels_last_rows(weight), grad, x, weight, geometry)
        if of_weight:
            products = by_position.mT @ patches(x, weight, geometry)[0]
            weight_grad = products.view(weight.permute(0, 1, 3, 4, 2).shape).movedim(-1, 2)
    elif of_x or of_weight:
        parts = zip(grad.chunk(tasks), x.chunk(tasks), weight, strict=True)
        x_grads, weight_grads, _ = zip(*(_gradients(*part, geometry, (of_x, of_weight)) for part in parts), strict=True)
        x_grad = torch.cat(x_grads) if of_x else x_grad
        if of_weight:  # stacked in channels-last memory, in which convolutions return them
            weight_grad = torch.stack([part.movedim(1, -1) for part in weight_grads]).movedim(-1, 2)
    return x_grad, None if weight_grad is None else weight_grad.to(dtype)


def in_precision_of(x: Tensor, weight: Tensor) -> Tensor:
    """Return ``weight`` in the precision of ``x``; weights that tasks share stay shared."""
    return weight[0].to(x.dtype).expand_as(weight) if weight.stride(0) == 0 else weight.to(x.dtype)


def _convolution(x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Return the convolution of rows with one weight."""
    stride, padding, dilation, groups = geometry
    return F.conv2d(x, weight, None, stride, padding, dilation, groups)


def _gradients(
    grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, which: tuple[bool, bool]
) -> tuple[Any, Any, Any]:
    """Return the gradients of rows and of one weight; None where ``which`` is False."""
    stride, padding, dilation, groups = geometry
    return aten.convolution_backward(
        grad, x, weight, None, stride, padding, dilation, False, (0, 0), groups, (*which, False)
    )


def in_patches(x: Tensor, weight: Tensor, geometry: Geometry) -> bool:
    """Return whether a matrix product over patches is the fastest way."""
    height, width = output_size(x, weight, geometry)
    small = x.shape[0] // weight.shape[0] * height * width <= SMALL
    return small and geometry.groups == 1 and geometry.dilation == (1, 1)


def output_size(x: Tensor, weight: Tensor, geometry: Geometry) -> tuple[int, int]:
    """Return height and width of the maps of a convolution without dilation."""
    sizes = zip(x.shape[2:], geometry.padding, weight.shape[3:], geometry.stride, strict=True)
    height, width = ((size + 2 * padding - kernel) // stride + 1 for size, padding, kernel, stride in sizes)
    return height, width


def channels_last_rows(weight: Tensor) -> Tensor:
    """Return weights ``(t, o, i, kh, kw)`` as rows ``(t, o, kh * kw * i)``."""
    return weight.permute(0, 1, 3, 4, 2).flatten(2)


def patches(x: Tensor, weight: Tensor, geometry: Geometry) -> tuple[Tensor, tuple[int, int]]:
    """Return the patches of ``x`` as rows ``(t, n * positions, kh * kw * i)``, and the size of the maps."""
    height, width = output_size(x, weight, geometry)
    padded = _padded(x, geometry)
    rows, down, across, step = padded.stride()
    shape = (len(x), height, width, *weight.shape[3:], x.shape[1])
    strides = (rows, down * geometry.stride[0], across * geometry.stride[1], down, across, step)
    return padded.as_strided(shape, strides).reshape(len(weight), -1, weight[0, 0].numel()), (height, width)


def _padded(x: Tensor, geometry: Geometry) -> Tensor:
    """Return ``x`` as ``(b, h, w, c)`` with zeros around each image."""
    down, across = geometry.padding
    return F.pad(x.permute(0, 2, 3, 1), (0, 0, across, across, down, down))


def add_patches(rows: Tensor, grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Return the sums ``(b, i, h, w)`` of patches at their positions: the transpose of :func:`patches`."""
    batch, _, height, width = grad.shape
    kernel = weight.shape[3:]
    rows = rows.view(batch, height, width, *kernel, -1)
    total = torch.zeros_like(_padded(x, geometry))
    (down, across), (top, left) = geometry.stride, geometry.padding
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            total[:, i : i + down * height : down, j : j + across * width : across] += rows[:, :, :, i, j]
    return total[:, top : top + x.shape[2], left : left + x.shape[3]].permute(0, 3, 1, 2)
