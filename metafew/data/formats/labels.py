"""Check class labels."""

from __future__ import annotations

from typing import Any

import numpy as np

from metafew.errors import UsageError


def class_labels(values: Any, where: str) -> np.ndarray:
    """Return labels as integers or strings; integral floats become integers, bytes and booleans become strings.

    Args:
        values: ``(n,)`` labels.
        where: their name in error messages.

    Raises:
        UsageError: if labels are anything else, such as regression targets, or one is missing.
    """
    labels = _uniform(np.asarray(values))
    kind = labels.dtype.kind if labels.ndim == 1 else None
    advice = "write a class for each image, as an integer or a string"
    got = f"{labels.dtype} of shape {labels.shape}"
    if kind in ("i", "u", "U"):
        return labels
    if kind == "b":
        return labels.astype(str)
    if kind == "S":
        try:
            return np.char.decode(labels, "utf-8")
        except UnicodeDecodeError:
            got = "bytes that are not UTF-8"
    elif kind == "f":
        missing = ~np.isfinite(labels)
        if not missing.any() and (labels == np.rint(labels)).all() and np.abs(labels).max(initial=0) < 2**53:
            return labels.astype(np.int64)
        example = labels[np.argmax(labels != np.rint(labels))]
        got = f"numbers such as {example}, as in regression, but this is classification"
        if missing.any():
            got = f"{missing.sum()} of {len(labels)} that are NaN or infinite"
            advice = "leave out what has no class"
    elif kind == "O":
        got = f"objects of type {', '.join(sorted({type(value).__name__ for value in labels.tolist()}))}"
    raise UsageError(f"expected {where} to be one class for each row, as integers or strings, got {got}: {advice}")


def _uniform(labels: np.ndarray) -> np.ndarray:
    """Convert an array of objects of one type to an array of that type; return other arrays unchanged."""
    if labels.dtype.kind == "O" and labels.ndim == 1:
        for types in ((str, np.str_), (bytes,), (bool, np.bool_), (int, float, np.integer, np.floating)):
            if all(isinstance(value, types) for value in labels.tolist()):
                return np.asarray(labels.tolist())
    return labels
