"""Work on a few rows at a time, so that temporary tensors stay in the processor's cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from metafew.norms.kernels import native
from metafew.precision import precise

CACHED = 2**19
"""Values in a piece: 2 MiB of float32."""
SUMMED = 2**13
"""Values of a channel that are added up one by one, so that sums in float32 stay precise."""
LARGE = 2**14
"""Values in a group of rows from which the kernels of :mod:`metafew.norms.kernels.native` are the fastest."""
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


def pieces(x: Tensor, of_channel: int = CACHED) -> list[slice]:
    """Return slices of rows of ``x`` that fit in a processor's cache; one slice of all rows on other devices.

    Args:
        x: the rows.
        of_channel: the largest number of values of a channel in a slice of several rows.
    """
    rows, values = x.shape[0], min(CACHED, of_channel * x.shape[1])
    size = max(1, values * rows // max(1, x.numel())) if on_cpu(x) else max(1, rows)
    return [slice(start, start + size) for start in range(0, rows, size)]


def concatenate(results: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Concatenate each of the results that were computed for parts of the rows."""
    return results[0] if len(results) == 1 else tuple(torch.cat(parts) for parts in zip(*results, strict=True))


def by_piece(
    function: Callable[..., tuple[Tensor, ...]], *rows: Tensor, of_channel: int = CACHED
) -> tuple[Tensor, ...]:
    """Apply ``function`` to :func:`pieces` of ``rows`` and concatenate each of its results."""
    return concatenate([function(*(r[piece] for r in rows)) for piece in pieces(rows[0], of_channel)])


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
    return value.unsqueeze(1).expand(-1, rows // groups, -1, 1, 1).reshape(rows, -1, 1, 1)


def suits_native(x: Tensor, groups: int, *values: Tensor) -> bool:
    """Return whether ``x`` is dense, of half precision, on a CPU, in large groups, and ``values`` are of float32."""
    if not (on_cpu(x) and has_memory(x, *values)) or x.dtype not in (torch.bfloat16, torch.float16):
        return False
    return x.numel() >= groups * LARGE and native.dense(x) and all(value.dtype == torch.float32 for value in values)


def group_sums(v: Tensor, x: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums of ``v x`` and of ``v`` over positions and groups of rows, in the shape of ``like``."""
    groups = like.numel() // x.shape[1]
    if suits_native(x, groups) and has_memory(v) and (v.dtype, v.stride()) == (x.dtype, x.stride()):
        of_groups = zip(v.chunk(groups), x.chunk(groups), strict=True)
        parts = [by_piece(native.sums, *rows, of_channel=SUMMED) for rows in of_groups]
        dots, sums = (torch.stack([part.sum(0) for part in each]) for each in zip(*parts, strict=True))
    elif groups == 1 and len(pieces(x)) == 1:
        dots, sums = _sums(v, x, (0, *POSITIONS))
    else:
        dots, sums = by_piece(_sums, v, x)
        if groups < x.shape[0]:
            dots, sums = (each.view(groups, -1, x.shape[1]).sum(1) for each in (dots, sums))
    return dots.view_as(like), sums.view_as(like)


def _sums(v: Tensor, x: Tensor, dims: tuple[int, ...] = POSITIONS) -> tuple[Tensor, Tensor]:
    v, x = precise(v), precise(x)
    return (v * x).sum(dims), v.sum(dims)


def pieces_of_groups(x: Tensor, *values: Tensor) -> Iterator[tuple[slice, list[Tensor]]]:
    """Yield slices of rows that fit in a processor's cache, and the entries of ``values``, see :func:`to_rows`.

    All values have one shape. The rows of a slice share one entry, ``(1, c, 1, 1)``, if all rows do or if
    :func:`suits_native`, and have one each otherwise.
    """
    groups = values[0].numel() // x.shape[1]
    if not suits_native(x, groups, *values):
        of_rows = [to_rows(value, x) for value in values]
        for piece in pieces(x):
            yield piece, [each if each.shape[0] == 1 else each[piece] for each in of_rows]
        return
    rows = x.shape[0] // groups
    for group, start in enumerate(range(0, x.shape[0], rows)):
        entries = [value.reshape(groups, -1, 1, 1)[group : group + 1] for value in values]
        for piece in pieces(x[:rows]):
            yield slice(start + piece.start, start + min(piece.stop, rows)), entries


def add_affine(grad: Tensor, x: Tensor, slope: Tensor, level: Tensor) -> None:
    """Add ``slope x + level`` to a few rows of ``grad`` in place; both have one entry per row, or one for all rows."""
    if grad.dtype == slope.dtype or not on_cpu(x):
        grad.addcmul_(x, slope).add_(level)
    elif slope.shape[0] == 1 and suits_native(x, 1, slope, level) and has_memory(grad):
        grad.add_(native.affine(x, slope, level))
    else:
        grad.copy_(precise(grad).addcmul_(precise(x), slope).add_(level))


def scale_shift(x: Tensor, scale: Tensor, shift: Tensor | None = None) -> Tensor:
    """Return ``scale * x + shift`` in the precision of ``x``, computed in that of ``scale``; see :func:`to_rows`."""
    parts = (scale,) if shift is None else torch.broadcast_tensors(scale, shift)
    if x.dtype == scale.dtype or not (on_cpu(x) and has_memory(x, *parts)):
        return _scale_shift(x, *(to_rows(part, x) for part in parts)).to(x.dtype)
    y = torch.empty_like(x)
    for piece, entries in pieces_of_groups(x, *parts):
        rows = x[piece]
        if entries[0].shape[0] == 1 and suits_native(rows, 1, *entries):
            y[piece] = native.affine(rows, *entries)
        else:  # a CPU is slow at operations on two precisions, and fast at converting a piece in its cache
            y[piece] = _scale_shift(precise(rows), *entries)
    return y


def _scale_shift(x: Tensor, scale: Tensor, shift: Tensor | None = None) -> Tensor:
    return x * scale if shift is None else torch.addcmul(shift, x, scale)
