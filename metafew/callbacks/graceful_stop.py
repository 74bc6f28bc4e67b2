"""The end of a run in order, all processes after the same step, where a signal asks any of them to end."""

from __future__ import annotations

import logging
import signal
import threading
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities.exceptions import SIGTERMException

log = logging.getLogger(__name__)


class GracefulStop(Callback):
    """Takes note of SIGTERM, which clusters send before they kill, and of Ctrl-C, and ends all processes together.

    Lightning's own handler talks to the other processes from wherever the signal found its own. Two processes that
    are asked at once, as all those of a cluster are, would then wait for different things, and for ever.
    """

    def __init__(self):
        self.asked = False

    def listen(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the place of Lightning's handlers, which puts back in the end what was there before it."""
        if not self.asked and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self.note)

    on_train_start = on_validation_start = on_test_start = listen

    def note(self, number: int, _: Any) -> None:
        """Do no more than remember the signal, and let a second Ctrl-C end the process at once."""
        self.asked = True
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            log.warning("ending after this step; Ctrl-C again ends at once, without a checkpoint")

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, index: int) -> None:
        """End between two steps."""
        if index % trainer.accumulate_grad_batches == 0:
            self.end(trainer)

    def on_validation_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """End between two batches, of which all processes have as many."""
        self.end(trainer)

    def on_test_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """End between two batches."""
        self.end(trainer)

    def end(self, trainer: pl.Trainer) -> None:
        """Raise in all processes where one of them has been asked to end."""
        asked = self.asked
        if trainer.world_size > 1:
            flag = torch.tensor(float(asked), device=trainer.strategy.root_device)
            asked = bool(trainer.strategy.reduce(flag, reduce_op="max"))
        if asked:
            raise SIGTERMException
