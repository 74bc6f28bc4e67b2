"""Log a validation before the first training step."""

from __future__ import annotations

import time

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback


class ValidationAtStart(Callback):
    """Log what Lightning's validation before training measures, which by itself is only a check for errors.

    Lightning restores the random state after it, does not repeat it when a training is resumed, and does not count it
    as a validation. Like all rows of metrics.csv, the row contains the index of the last step, here -1.

    Attributes:
        seconds: the duration of this validation, which does not count as training time.
    """

    def __init__(self):
        self.seconds = 0.0
        self._begin = 0.0

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._begin = time.perf_counter()

    def on_sanity_check_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Send the measures to the loggers, and stop the clock."""
        measures = {name: value.item() for name, value in trainer.callback_metrics.items()}
        for logger in trainer.loggers:
            logger.log_metrics(measures, step=-1)
        self.seconds = time.perf_counter() - self._begin
