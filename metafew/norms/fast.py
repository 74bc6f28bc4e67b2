"""Fast execution of normalization layers: the results of :meth:`Norm.forward` in less time and memory.

:func:`accelerate` installs it in the backbones and heads that a run or :func:`metafew.load` builds; all other layers
run their definition, and :func:`decelerate` restores it for a comparison. The first applicable path is used, and each
can pool first:

- Tasks whose rows share their moments, as with batch norm: moments per group in one pass, instead of moments per image.
- Everything else: moments per image and :class:`~metafew.norms.kernels.normalize.Normalize`, a few rows at a time on a
  CPU, with hand-written first and second derivatives.

On a CPU in half precision, large groups use torch's kernels of batch normalization
(:mod:`metafew.norms.kernels.native`).

On a CPU, a max-pooling directly after a norm without negative weights runs before it, in the pass that computes the
moments (:mod:`metafew.norms.kernels.pooled_moments`), so that fewer values are normalized, a quarter for 2 x 2. If one
of the two layers has hooks, the norm runs first. (On a GPU, checking the weights would synchronize with the host.)

With one thread, a step of ``scripts/benchmark.py steps`` takes 1.8 (ProtoNet, TaskNorm) and 1.5 (MAML, batch norm)
times as long with the definition, and 1.00 (CNAPs) to 1.15 (ProtoNet, TaskNorm) times as long without pooling first.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from metafew.norms.film import FiLM
from metafew.norms.kernels.group_moments import GroupMoments
from metafew.norms.kernels.normalize import Normalize
from metafew.norms.kernels.pieces import has_memory, on_cpu
from metafew.norms.kernels.pooled_moments import PooledMoments, Pooling
from metafew.norms.norm import Moments, Norm
from metafew.norms.scope import current


def accelerate(network: nn.Module) -> nn.Module:
    """Replace ``forward`` of every :class:`Norm` in ``network``, and of every ``nn.Sequential``, by a fast one.

    Layers whose class overrides ``forward`` are not changed.

    Args:
        network: changed in place: the attribute ``forward`` of its layers is set.

    Returns:
        ``network``.
    """
    for module in network.modules():
        if isinstance(module, Norm) and type(module).forward is Norm.forward:
            FastForward.install(normalize, module)
        elif isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
            FastForward.install(run_in_order, module)
    return network


def decelerate(network: nn.Module) -> nn.Module:
    """Undo :func:`accelerate`, so that every layer runs its definition, and return ``network``."""
    for module in network.modules():
        forward = vars(module).get("forward")
        if isinstance(forward, FastForward) and forward.function in (normalize, run_in_order):
            del module.forward
    return network


class FastForward:
    """A ``forward`` that calls a function with its layer. Holds a weakref; ``deepcopy`` rebinds it to the copied layer.

    Args:
        function: called with the layer and the arguments of ``forward``.
        layer: the layer.
    """

    def __init__(self, function: Callable[..., Tensor], layer: nn.Module):
        self.function, self.layer = function, weakref.ref(layer)

    @classmethod
    def install(cls, function: Callable[..., Tensor], layer: nn.Module) -> None:
        """Replace ``forward`` of this one layer."""
        layer.forward = cls(function, layer)

    def __call__(self, input: Tensor, *args: Any) -> Tensor:
        return self.function(self.layer(), input, *args)

    def __deepcopy__(self, memo: dict) -> FastForward:
        return FastForward(self.function, memo[id(self.layer())])

    def __reduce__(self) -> tuple:
        return FastForward, (self.function, self.layer())


def run_in_order(layers: nn.Sequential, x: Tensor) -> Tensor:
    """Apply layers in order, and pass an accelerated norm the max-pooling that follows it."""
    rest = [layer for layer in layers if not isinstance(layer, FiLM) or layer.active]
    while rest:
        match rest:
            case [Norm() as norm, nn.MaxPool2d() as pool, *rest] if "forward" in vars(norm) and _joinable(norm, pool):
                x = norm(x, pool)
            case [layer, *rest]:
                x = layer(x)
    return x


def _joinable(norm: Norm, pool: nn.MaxPool2d) -> bool:
    """Return whether both layers do nothing but their definitions, so that the pooling may come first."""
    hooked = any(hooks for layer in (norm, pool) for name, hooks in vars(layer).items() if name.endswith("_hooks"))
    plain = type(pool).forward is nn.MaxPool2d.forward and "forward" not in vars(pool)
    return plain and not (hooked or pool.return_indices)


def normalize(norm: Norm, x: Tensor, pool: nn.MaxPool2d | None = None) -> Tensor:
    """Return ``pool(norm(x))``.

    Args:
        norm: the layer.
        x: a flat batch ``(t * n, c, *)``, divided into tasks by the open scope.
        pool: a max-pooling, or None.
    """
    if (maps := norm.as_maps(x)) is not x:
        y = normalize(norm, maps).view(x.shape)
        return y if pool is None else pool(y)
    tasks, context, *_ = current()
    one_moment = norm.pooled_moments(context, x.shape[0] // tasks)
    own: Any = None
    before = pool if pool is not None and _monotone(norm, x) else None
    if norm.fixed_moments:
        x = x if before is None else before(x)
    else:
        # The scheme treats a group that shares its moments as one context image.
        groups, context = (tasks, 1) if one_moment else (x.shape[0], context)
        if before is None:
            x, *own = GroupMoments.apply(x, tasks, groups)
        else:
            x, *own, _ = PooledMoments.apply(x, tasks, groups, Pooling.of(before))
    y = Normalize.apply(x, *_per_task(*norm.moments(own, context), tasks), norm.weight, norm.bias, norm.eps)
    return y if pool is None or before is not None else pool(y)


def _per_task(mean: Tensor, var: Tensor, tasks: int) -> Moments:
    """Broadcast moments to one shape, with one row per task unless all tasks share them."""
    if mean.shape != var.shape:
        mean, var = torch.broadcast_tensors(mean, var)
    if mean.shape[:-1].numel() > 1 and mean.shape[:-2] != (tasks,):
        mean, var = mean.expand(tasks, -1, -1), var.expand(tasks, -1, -1)
    return mean, var


def _monotone(norm: Norm, x: Tensor) -> bool:
    """Return whether no weight is negative; False where reading it would block on a device or fail under ``vmap``."""
    tensors = norm.weight, norm.bias, x
    return on_cpu(norm.weight) and has_memory(*tensors) and norm.weight.detach().amin().item() >= 0
