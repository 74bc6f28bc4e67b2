"""Work on a few rows at a time, so that temporary tensors stay in the processor's cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from metafew.precision import precise

CACHED = 2**19
"""Values in a piece: 2 MiB of float32."""
POSITIONS = (2, 3)


def on_cpu(x: Tensor) -> bool:
    """Return whether ``x`` is on a CPU, for which the fast paths of this package are written."""
    return x.device.type == "cpu"


def has_memory(*tensors: Tensor) -> bool:
    """Return whether tensors have storage, unlike tensors inside transforms of ``torch.func``."""
    try:
        return all(tensor.data_ptr() is not None for tensor in tensors)
    except RuntimeError:
        return False


def pieces(x: Tensor) -> list[slice]:
    """Return slices of rows of ``x`` that fit in a processor's cache; one slice of all rows on other devices."""
    rows = x.shape[0]
    size = max(1, CACHED * rows // max(1, x.numel())) if on_cpu(x) else max(1, rows)
    return [slice(start, start + size) for start in range(0, rows, size)]


def concatenate(results: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Concatenate each of the results that were computed for parts of the rows."""
    return results[0] if len(results) == 1 else tuple(torch.cat(parts) for parts in zip(*results, strict=True))


def by_piece(function: Callable[..., tuple[Tensor, ...]], *rows: Tensor) -> tuple[Tensor, ...]:
    """Apply ``function`` to pieces of ``rows`` and concatenate each of its results."""
    return concatenate([function(*(r[piece] for r in rows)) for piece in pieces(rows[0])])


def group_size(x: Tensor, moments: Tensor) -> int:
    """Return how many values of ``x`` each entry of ``moments`` summarizes."""
    return x.numel() // moments.numel()


def to_rows(value: Tensor, x: Tensor) -> Tensor:
    """Broadcast ``value``, ``(c,)`` or ``(t, n, c)``, to the rows of ``x``.

    Returns:
        ``(b, c, 1, 1)``, with ``b = 1`` where all rows share one value.
    """
    groups, rows = value.numel() // x.shape[1], x.shape[0]
    value = value.reshape(groups, -1, 1, 1)
    if groups in (1, rows):
        return value
    return value.unsqueeze(1).expand(-1, rows // groups, -1, 1, 1).flatten(0, 1)


def group_sums(v: Tensor, x: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums of ``v x`` and of ``v`` over positions and groups of rows, in the shape of ``like``."""
    groups = like.numel() // x.shape[1]
    if groups == 1 and len(pieces(x)) == 1:
        dots, sums = _sums(v, x, (0, *POSITIONS))
    else:
        dots, sums = by_piece(_sums, v, x)
        if groups < x.shape[0]:
            dots, sums = (each.view(groups, -1, x.shape[1]).sum(1) for each in (dots, sums))
    return dots.view_as(like), sums.view_as(like)


def _sums(v: Tensor, x: Tensor, dims: tuple[int, ...] = POSITIONS) -> tuple[Tensor, Tensor]:
    v, x = precise(v), precise(x)
    return (v * x).sum(dims), v.sum(dims)


def add_affine(grad: Tensor, x: Tensor, slope: Tensor, level: Tensor) -> Tensor:
    """Add ``slope x + level`` to ``grad`` in place, by pieces; both have one entry per row, or one for all rows."""
    mixed = on_cpu(x) and grad.dtype != slope.dtype  # see scale_shift
    for piece in pieces(x):
        total, values = (precise(each[piece]) if mixed else each[piece] for each in (grad, x))
        total.addcmul_(values, piece_of(slope, piece)).add_(piece_of(level, piece))
        if mixed:
            grad[piece] = total
    return grad


def piece_of(value: Tensor, piece: slice) -> Tensor:
    """Return the entries of a piece; ``value`` has one entry per row, or one for all rows."""
    return value if value.shape[0] == 1 else value[piece]


def scale_shift(x: Tensor, scale: Tensor, shift: Tensor | None = None) -> Tensor:
    """Return ``scale * x + shift`` in the precision of ``x``, computed in that of ``scale``."""
    parts = (scale,) if shift is None else (scale, shift)
    if x.dtype == scale.dtype or not (on_cpu(x) and has_memory(x, *parts)):
        return _scale_shift(x, *parts).to(x.dtype)
    # A CPU is slow at operations on two precisions, and fast at converting a piece in its cache.
    y = torch.empty_like(x)
    for piece in pieces(x):
        y[piece] = _scale_shift(precise(x[piece]), *(piece_of(part, piece) for part in parts))
    return y


def _scale_shift(x: Tensor, scale: Tensor, shift: Tensor | None = None) -> Tensor:
    return x * scale if shift is None else torch.addcmul(shift, x, scale)
