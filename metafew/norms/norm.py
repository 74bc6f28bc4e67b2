"""What all normalization schemes share: per-image moments, pooling, and one scale and shift."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from metafew.norms.convolved import PooledConvolution, filtering, has_less_to_do, output_moments
from metafew.norms.one_group import OneGroup
from metafew.norms.passes import GroupMoments, Normalize
from metafew.norms.pooling import bare, pooling
from metafew.norms.scope import current

Moments = tuple[Tensor, Tensor]


def pool(mean: Tensor, var: Tensor, dim: int = 1) -> Moments:
    """Return the moments of the union of equally large groups, by the law of total variance.

    ``mean = E[mean_i]`` and ``var = E[var_i] + E[(mean_i - mean)^2]``: a sum of non-negative terms, free of the
    cancellation in ``E[x^2] - E[x]^2``.

    Args:
        mean: means of the groups along ``dim``.
        var: their population variances.
        dim: the dimension to pool, kept with size 1.
    """
    if mean.shape[dim] == 1:
        return mean, var
    pooled = mean.mean(dim, keepdim=True)
    return pooled, (var + (mean - pooled).square()).mean(dim, keepdim=True)


def context_moments(own: Moments, context: int) -> Moments:
    """Return the moments ``(t, 1, c)`` of all context images of each task."""
    return pool(*(part[:, :context] for part in own))


def as_they_are(moments: Callable[..., Moments]) -> Callable[..., Moments]:
    """Mark a :meth:`Norm.moments` that returns those of a whole group unchanged, so that they need not be asked for.

    It is called all the same, for what it keeps; a method that overrides it is not marked.
    """
    moments.as_they_are = True
    return moments


class Norm(nn.Module):
    """Normalize each image and channel by a scheme's moments, then scale and shift.

    ``y = weight * (x - mean) / sqrt(var + eps) + bias``, with one weight and bias a channel. The moments come from
    :meth:`moments` and are never smaller than float32. Subclasses say only where the moments come from.

    Args:
        channels: number of channels ``c``.
        eps: added to the variance.
    """

    transductive = False
    """Whether, in eval mode, one target row may change the result of another."""
    alone = False
    """Whether no image changes the result of another, be it context or target."""
    couples_tasks = False
    """Whether, in training, the tasks of a meta-batch change one another's results."""

    def __init__(self, channels: int, eps: float = 1e-5):
        super().__init__()
        self.eps = float(eps)
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    @property
    def blind(self) -> bool:
        """Whether the moments do not depend on the activations."""
        return False

    @property
    def apart(self) -> bool:
        """Whether context and targets, as things stand, each use the moments of their own rows and no others."""
        return False

    def whole(self, context: int, rows: int) -> bool:
        """Tell whether the moments of all ``rows`` of a task together, ``context`` of them context, are enough."""
        return False

    def needs_running(self, fit: bool) -> bool:
        """Tell whether nothing can be done without running moments of an earlier training, be it to ``fit`` or not."""
        return False

    def moments(self, own: Moments | None, context: int) -> Moments:
        """Return the mean and variance that normalize each row.

        Args:
            own: mean and variance ``(t, n, c)`` of every image and channel, over positions, in float32 or better;
                None for a scheme that is :attr:`blind`. Those of any group of images follow by :func:`pool`.
            context: number of context rows; rows ``[:, :context]`` are context, the others target.

        Returns:
            Two tensors that broadcast to ``(t, n, c)``.
        """
        raise NotImplementedError

    def forward(
        self, x: Tensor, pool: Callable[[Tensor], Tensor] | None = None, conv: nn.Conv2d | None = None
    ) -> Tensor:
        """Normalize a flat batch ``(t * n, c, h, w)`` whose rows divide as the open scope says, and pool it.

        Args:
            x: the batch.
            pool: a max-pooling, or None. It commutes with functions that do not fall, and scale and shift are one where
                no weight is negative: there it comes before them, and they have fewer values to work on.
            conv: a convolution of ``x`` whose output is to be normalized, or None for ``x`` itself. It is carried out
                together with the pooling where its output is better never whole (:mod:`metafew.norms.convolved`).
        """
        tasks, context, *_ = current()
        rows = x.shape[0] // tasks
        early = never_negative(self.weight, self.bias, x, *((conv.weight,) if conv else ()))
        if early and tasks == 1 and self.whole(context, rows) and self._as_one_group(x, pool):
            y, *own, _, _ = OneGroup.apply(conv(x) if conv else x, self.weight, self.bias, self.eps, pooling(pool))
            self.moments(tuple(value.view(1, 1, -1) for value in own), 1)  # which may record them
            return y
        together, own = early and has_less_to_do(x, conv, pool), None
        if conv and not together:
            x = conv(x)
        if not self.blind:
            # A group that shares its moments is, to the scheme, like one context image.
            groups, context = (tasks, 1) if self.whole(context, rows) else (x.shape[0], context)
            if together:
                own = output_moments(x, conv, tasks, groups)
            else:
                x, mean, var = GroupMoments.apply(x, tasks, groups)
                own = mean, var
        mean, var = self.moments(own, context)
        if mean.shape != var.shape:
            mean, var = torch.broadcast_tensors(mean, var)
        if mean.shape[:-1].numel() > 1 and mean.shape[:-2] != (tasks,):  # rows are normalized alike in all tasks
            mean, var = mean.expand(tasks, -1, -1), var.expand(tasks, -1, -1)
        if together:
            x, _ = PooledConvolution.apply(x, conv.weight, filtering(conv), pooling(pool))
        elif pool and early:
            x = pool(x)
        y = Normalize.apply(x, mean, var, self.weight, self.bias, self.eps)
        return pool(y) if pool and not early else y

    def _as_one_group(self, x: Tensor, pool: Callable | None) -> bool:
        """Tell whether :class:`~metafew.norms.one_group.OneGroup` takes such tensors and such a pooling."""
        return (
            hasattr(self.moments, "as_they_are")
            and (pool is None or bare(pool, nn.MaxPool2d))
            and self.weight.dtype == self.bias.dtype == torch.promote_types(x.dtype, torch.float32)
        )


def never_negative(weight: Tensor, *others: Tensor) -> bool:
    """Tell whether no weight is negative, where that can be told without waiting: not on a GPU, nor under ``vmap``."""
    try:
        for other in others:
            other.data_ptr()  # under vmap the weights may be ordinary tensors, but something has no memory of its own
        return weight.device.type == "cpu" and weight.detach().amin().item() >= 0
    except RuntimeError:
        return False
