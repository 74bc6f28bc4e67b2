"""The networks of CNAPs that generate the scale and shift of FiLM layers (Requeima et al. 2019)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Residual(nn.Linear):
    """A dense layer and a skip connection: ``x + W x + b``."""

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of ``x``, ``(..., c)``."""
        return x + super().forward(x)


class Modulation(nn.Module):
    """The scale and shift of one FiLM layer: ``gamma = 1 + v_1 * g(h)`` and ``beta = v_2 * b(h)``.

    ``g`` and ``b`` are three residual dense layers each, with ReLU between them. The learned vectors ``v`` are
    initialized near 0, so that modulation starts near the identity.

    Args:
        channels: number of channels ``c`` of the FiLM layer.
        init_std: standard deviation of the initial values of the vectors.
    """

    def __init__(self, channels: int, init_std: float):
        super().__init__()

        def layer() -> Residual:
            return Residual(channels, channels)

        self.nets = nn.ModuleList(nn.Sequential(layer(), nn.ReLU(), layer(), nn.ReLU(), layer()) for _ in range(2))
        self.vectors = nn.Parameter(init_std * torch.randn(2, channels))

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return gamma and beta, each of the shape of ``hidden``, ``(t, c)``."""
        scale, shift = (vector * net(hidden) for vector, net in zip(self.vectors, self.nets, strict=True))
        return 1 + scale, shift
