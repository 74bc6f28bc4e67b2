"""What every feature extractor shares: ``embed``, the only way in which heads see images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn

from metafew.norms.norm import Norm
from metafew.norms.scope import rows

_at_once: ContextVar[int | None] = ContextVar("at_once", default=None)


@contextmanager
def targets_at_once(count: int | None) -> Iterator[None]:
    """Let every ``embed`` inside pass at most ``count`` consecutive targets at once, each time with the context.

    A norm that lets targets influence each other then sees only these. None passes all together.
    """
    token = _at_once.set(count)
    try:
        yield
    finally:
        _at_once.reset(token)


class Backbone(nn.Module):
    """A feature extractor. Subclasses map flat images ``(b, c, h, w)`` to features ``(b, d)`` in ``forward``."""

    def embed(self, context: Tensor, targets: Tensor | None = None, record: bool = True) -> tuple[Tensor, Tensor]:
        """Embed the rows of ``t`` tasks in one pass, each norm knowing which rows are context.

        Args:
            context: ``(t, s, c, h, w)``, the rows that every norm may take moments from.
            targets: ``(t, q, c, h, w)``, rows that see the context and, unless the norm is transductive, themselves.
            record: whether running moments take part in this pass.

        Returns:
            Features ``(t, s, d)`` of the context and ``(t, q, d)`` of the targets (``q = 0`` without any).
        """
        if targets is None:
            return self._pass(context, context.shape[1], record)
        parts = [
            self._pass(torch.cat([context, part], 1), context.shape[1], record)
            for part in targets.split(_at_once.get() or targets.shape[1], 1)
        ]
        return parts[0][0], torch.cat([features for _, features in parts], 1)

    def _pass(self, images: Tensor, context: int, record: bool) -> tuple[Tensor, Tensor]:
        """Embed ``images`` ``(t, n, c, h, w)``, of which the first ``context`` rows are context."""
        with rows(images.shape[0], context, record):
            features = self(images.flatten(0, 1)).unflatten(0, images.shape[:2])
        return features[:, :context], features[:, context:]

    @property
    def transductive(self) -> bool:
        """Whether some norm lets a target influence another in evaluation."""
        return any(norm.transductive for norm in self.norms)

    @property
    def couples_tasks(self) -> bool:
        """Whether some norm lets the tasks of a meta-batch influence each other in training."""
        return any(norm.couples_tasks for norm in self.norms)

    @property
    def norms(self) -> list[Norm]:
        """The normalization layers, from input to output."""
        return [module for module in self.modules() if isinstance(module, Norm)]
