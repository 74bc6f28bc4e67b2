"""The rule that turns logits into answers, used wherever an answer is compared with a label."""

from __future__ import annotations

from torch import Tensor

NO_ANSWER = -1
"""The answer to a query whose logits are not all finite; no label equals it."""


def answers(logits: Tensor) -> Tensor:
    """Return the most probable class of each query, and :data:`NO_ANSWER` where a logit is NaN or infinite.

    ``argmax`` treats NaN as the largest value, so a diverged model would always predict the first class and score ``1 /
    way`` or more.

    Args:
        logits: ``(..., w)``, or the result of :func:`probabilities`.

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
