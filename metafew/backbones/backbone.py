"""What every feature extractor shares: ``embed``, the only way in which heads see images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metafew.norms.norm import Norm
from metafew.norms.scope import rows


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
        images = context if targets is None else torch.cat([context, targets], 1)
        tasks, size = context.shape[:2]
        with rows(tasks, size, record):
            features = self(images.flatten(0, 1)).unflatten(0, images.shape[:2])
        return features[:, :size], features[:, size:]

    @property
    def transductive(self) -> bool:
        """Whether some norm lets a target influence another in evaluation."""
        return any(module.transductive for module in self.modules() if isinstance(module, Norm))
