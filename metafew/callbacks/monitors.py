"""Check that what callbacks monitor is logged."""

from __future__ import annotations

from typing import cast

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, Checkpoint
from pytorch_lightning.trainer.states import TrainerFn

from metafew.errors import UsageError, did_you_mean, nearest
from metafew.evaluation.evaluator import Evaluator


class MonitorCheck(Callback):
    """Check at validations that what callbacks such as EarlyStopping monitor is logged.

    Any callback may log further names, so the complete list is only known at a validation.
    """

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check the ``monitor`` of each callback, unless its ``strict`` is false.

        Raises:
            UsageError: if it is not logged.
        """
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        names = sorted(trainer.callback_metrics)
        callbacks = trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it in its constructor
        for callback in callbacks:
            monitor = getattr(callback, "monitor", None)
            if isinstance(callback, Checkpoint) and monitor in ("epoch", "step"):
                continue
            if isinstance(monitor, str) and monitor not in names and getattr(callback, "strict", True):
                near = nearest(monitor, names)
                instead = near or f"val/{cast(Evaluator, pl_module).trained}/accuracy"
                raise UsageError(
                    f"expected the monitor of {type(callback).__name__} to be one of {', '.join(names)}, got "
                    f"{monitor}{did_you_mean(near)}: type monitor: {instead} in trainer.callbacks"
                )
