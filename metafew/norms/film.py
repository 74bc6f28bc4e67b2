"""Feature-wise linear modulation (Perez et al. 2018): layers that scale and shift channels per task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor, nn

Vectors = Mapping["FiLM", tuple[Tensor, Tensor]]

_vectors: ContextVar[Vectors | None] = ContextVar("vectors", default=None)


@contextmanager
def modulated(vectors: Vectors) -> Iterator[None]:
    """Make all :class:`FiLM` layers in this context scale and shift the rows of each task by its vectors ``(t, c)``."""
    token = _vectors.set(vectors)
    try:
        yield
    finally:
        _vectors.reset(token)


def current_vectors() -> Vectors | None:
    """Return the vectors by which layers modulate, and None outside of :func:`modulated`."""
    return _vectors.get()


class FiLM(nn.Module):
    """Return ``gamma * x + beta`` inside :func:`modulated`, ``x`` everywhere else.

    The layer has no weights: a head generates ``gamma`` and ``beta`` for each task.

    Args:
        channels: number of channels ``c``.
        stage: index of the backbone stage of the layer.
    """

    def __init__(self, channels: int, stage: int):
        super().__init__()
        self.channels, self.stage = channels, stage

    @property
    def active(self) -> bool:
        """Whether the layer modulates, which it does inside :func:`modulated`."""
        return current_vectors() is not None

    def forward(self, x: Tensor) -> Tensor:
        """Modulate a flat batch ``(t * n, c, h, w)``, task by task."""
        vectors = current_vectors()
        if vectors is None:
            return x
        rows = x.shape[0] // vectors[self][0].shape[0]
        gamma, beta = (part.repeat_interleave(rows, 0)[..., None, None].to(x.dtype) for part in vectors[self])
        return gamma * x + beta
