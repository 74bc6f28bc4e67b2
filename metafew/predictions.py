"""The one rule by which logits answer a query; whatever compares an answer with a label takes it from here."""

from __future__ import annotations

from torch import Tensor

NO_ANSWER = -1
"""The answer to a query whose logits are not all finite; no label equals it."""


def answers(logits: Tensor) -> Tensor:
    """Return the most probable class of each query, and :data:`NO_ANSWER` where a logit is NaN or infinite.

    ``argmax`` takes NaN for the largest value, so that a diverged model would always predict the first class and score
    ``1 / way`` or more.

    Args:
        logits: ``(..., w)``, or what :func:`probabilities` returns.

    Returns:
        ``(...)``, int64.
    """
    return logits.argmax(-1).where(logits.isfinite().all(-1), NO_ANSWER)


def probabilities(logits: Tensor) -> Tensor:
    """Return the softmax of ``logits`` over the classes, all NaN where a logit is NaN or infinite.

    Args:
        logits: ``(..., w)``.
    """
    return logits.softmax(-1).where(logits.isfinite().all(-1, keepdim=True), float("nan"))
