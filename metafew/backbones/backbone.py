"""The base class of feature extractors; heads only access images through ``embed``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Self

import torch
from torch import Tensor, nn

from metafew.norms.film import FiLM
from metafew.norms.norm import Norm
from metafew.norms.scope import rows

_chunk: ContextVar[int | None] = ContextVar("chunk", default=None)


@contextmanager
def target_chunks(count: int | None) -> Iterator[None]:
    """Limit every ``embed`` in this context to ``count`` consecutive targets per pass, with the same context in each.

    With a transductive norm, only targets of the same pass then influence one another. None means a single pass. The
    context has the features of the first pass, also where they depend on its targets
    (:attr:`Backbone.context_depends_on_targets`).
    """
    token = _chunk.set(count)
    try:
        yield
    finally:
        _chunk.reset(token)


def channels_last(images: Tensor) -> Tensor:
    """Return ``images`` ``(b, c, h, w)`` in channels-last memory format, where convolutions are fastest.

    ``Tensor.to(memory_format=...)`` does nothing for images of one channel, so that later layers would run in the slow
    format, and it fails under ``vmap``.
    """
    rows, channels, height, width = images.shape
    return images.movedim(1, -1).flatten().view(rows, height, width, channels).movedim(-1, 1)


class Backbone(nn.Module):
    """A feature extractor. Subclasses map flat images ``(b, c, h, w)`` to features ``(b, d)`` in ``forward``.

    Args:
        channels: channels of the images.
        image_size: height and width of the images.
    """

    features: int
    """Dimension ``d`` of the features."""
    map_shape: tuple[int, int, int] | None = None
    """The shape ``(c, h, w)`` of the maps that are flattened to features; None if features have no positions."""
    channels_last = True
    """Whether the weights are kept in channels-last memory format, that of the images."""
    own_norms = False
    """Whether the network has its own normalization layers, which ignore the context, instead of ``norm``."""
    task_weights = False
    """Whether passes may have weights per task: ``forward`` keeps the order of rows and uses weights only in layers."""
    prefix = ""
    """Prefix of parameter names that the names in options and weight files lack."""
    frozen: frozenset[str] = frozenset()
    """Names of parameters frozen by the constructor, which no head adapts."""
    in_eval: frozenset[str] = frozenset()
    """Names of modules that the constructor put in eval mode, in which :meth:`train` leaves them."""

    def __init__(self, channels: int, image_size: int):
        super().__init__()
        self.channels, self.image_size = channels, image_size

    def keep_frozen(self) -> None:
        """Record the parameters that the constructor froze and the modules in eval mode, before a run freezes more."""
        self.frozen = frozenset(name for name, p in self.named_parameters() if not p.requires_grad)
        self.in_eval = frozenset(name for name, module in self.named_modules() if not module.training)

    def train(self, mode: bool = True) -> Self:
        """Set the mode of every module except those in :attr:`in_eval`."""
        super().train(mode)
        for name in self.in_eval:  # by name, as trainer.sync_batchnorm replaces modules
            self.get_submodule(name).training = False
        return self

    def embed(
        self, context: Tensor, targets: Tensor | None = None, record: bool | dict = True, targets_only: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Embed the rows of ``t`` tasks, in a scope from which norms read which rows are context.

        Args:
            context: ``(t, s, c, h, w)``, the rows from which norms may take moments.
            targets: ``(t, q, c, h, w)``, rows that depend on the context but, unless a norm is transductive, not on
                other targets.
            record: whether norms record this pass for their running moments (see :class:`~metafew.norms.scope.Rows`).
            targets_only: in evaluation, leave out the features of a context that no target depends on (``s = 0``).

        Returns:
            Features ``(t, s, d)`` of the context and ``(t, q, d)`` of the targets (``q = 0`` if there are none).
        """
        size = context.shape[1]
        if targets is None:
            return self._pass(context, size, record)
        parts = targets.split(_chunk.get() or targets.shape[1], 1)
        skipped = targets_only and not self.training  # in training, running moments are those of the context too
        if targets.shape[1] and (self.context_and_targets_separate or (skipped and self.per_image)):
            share = size / (size + targets.shape[1])
            features = None if skipped else self._pass(context, size, record, share)[0]
            # Two passes are faster. In the second one, targets are normalized as its context.
            of_parts = [self._pass(part, part.shape[1], record, 1 - share)[0] for part in parts]
            of_targets = torch.cat(of_parts, 1)
            return of_targets[:, :0] if features is None else features, of_targets
        passed = [self._pass(torch.cat([context, part], 1), size, record) for part in parts]
        return passed[0][0], torch.cat([features for _, features in passed], 1)

    def _pass(self, images: Tensor, context: int, record: bool | dict, share: float = 1.0) -> tuple[Tensor, Tensor]:
        """Embed ``images`` ``(t, n, c, h, w)``, whose first ``context`` rows are context."""
        with rows(images.shape[0], context, record, share):
            features = self(channels_last(images.flatten(0, 1))).unflatten(0, images.shape[:2])
        return features[:, :context], features[:, context:]

    @property
    def transductive(self) -> bool:
        """Whether some norm lets one target influence another in evaluation."""
        return any(norm.transductive for norm in self.norms)

    @property
    def per_image(self) -> bool:
        """Whether no image changes the features of another, in the current mode."""
        return all(norm.fixed_moments or norm.per_image for norm in self.norms)

    @property
    def context_depends_on_targets(self) -> bool:
        """Whether targets change the features of the context, in the current mode, as with ``norm.over=joined``."""
        return any(norm.context_depends_on_targets for norm in self.norms)

    @property
    def context_and_targets_separate(self) -> bool:
        """Whether every norm uses moments of the context for the context, and of the targets for the targets."""
        separate = (norm.context_and_targets_separate for norm in self.norms)
        return not self.own_norms and bool(self.norms) and all(separate)

    @property
    def couples_tasks(self) -> bool:
        """Whether some norm lets the tasks of a meta-batch influence each other in training."""
        return any(norm.couples_tasks for norm in self.norms)

    @property
    def films(self) -> list[FiLM]:
        """The layers where a head can modulate channels, from input to output."""
        return [module for module in self.modules() if isinstance(module, FiLM)]

    @property
    def norms(self) -> list[Norm]:
        """The normalization layers, from input to output."""
        return [module for module in self.modules() if isinstance(module, Norm)]
