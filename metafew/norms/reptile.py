"""Reptile's normalization, RN (Nichol et al. 2018; Bronskill et al. 2020, Section 3.3)."""

from __future__ import annotations

import torch

from metafew.norms.alpha import blend
from metafew.norms.norm import Moments, context_moments
from metafew.norms.running import GroupedNorm


class ReptileNorm(GroupedNorm):
    """Batch moments in training; in evaluation, a target is normalized by the context and itself.

    Training equals that of :class:`~metafew.norms.transductive.Transductive`. In evaluation, context rows use the
    moments of the context, and each target uses those of the ``N`` context images and itself: a blend with ``alpha = N
    / (N + 1)``, layer by layer. (The authors pass each target through the network together with the context, so that
    the activations of the context depend on the target, too; here they do not.)

    Args:
        channels: number of channels.
        eps: added to the variance.
        momentum: weight of the newest step in the running moments.
        over: ``apart`` or ``joined``, as in :class:`~metafew.norms.batch.BatchNorm`.
    """

    evaluates_with_running = False

    @property
    def uses_batch_moments(self) -> bool:
        """Whether rows are normalized by the moments of their group, as in training."""
        return self.training

    def moments(self, own: Moments, context: int) -> Moments:
        """Return the moments of the groups in training, of the context and each target in evaluation."""
        if self.training:
            return super().moments(own, context)
        shared = context_moments(own, context)
        mean, var = (part[:, context:] for part in own)
        targets = blend(context / (context + 1), shared, (mean, var))
        mean, var = (torch.cat([s.expand(-1, context, -1), t], 1) for s, t in zip(shared, targets, strict=True))
        return mean, var
