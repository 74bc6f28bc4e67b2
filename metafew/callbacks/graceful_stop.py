"""End all processes of a run after the same step on SIGTERM, Ctrl-C or a signal of ``sbatch --signal``."""

from __future__ import annotations

import logging
import signal
import threading
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities.exceptions import SIGTERMException

from metafew.signals import OF_SCHEDULERS

log = logging.getLogger(__name__)


class GracefulStop(Callback):
    """End all processes together on Ctrl-C, SIGUSR1, SIGUSR2 or SIGTERM, which clusters send before SIGKILL.

    Lightning's handler runs a collective operation wherever the signal interrupts its process. Two processes that
    receive a signal at the same time, as in a cluster, could then wait for different operations forever.
    """

    def __init__(self):
        self.asked = False

    def listen(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Replace Lightning's signal handlers. Lightning restores the original ones at the end."""
        if not self.asked and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self.note)
            for number in OF_SCHEDULERS:
                if signal.getsignal(number) == signal.SIG_DFL:  # submitit has a handler, which requeues its job
                    signal.signal(number, self.note)

    on_train_start = on_validation_start = on_test_start = on_predict_start = listen

    def note(self, number: int, _: Any) -> None:
        """Record the signal; a second Ctrl-C ends the process at once."""
        self.asked = True
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            log.warning("ending after this step; Ctrl-C again ends at once, without a checkpoint")

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, index: int) -> None:
        """End between two steps."""
        if index % trainer.accumulate_grad_batches == 0:
            self.end(trainer)

    def end(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        """Raise SIGTERMException in all processes, which have the same number of batches, if one received a signal."""
        asked = self.asked
        if trainer.world_size > 1:
            flag = torch.tensor(float(asked), device=trainer.strategy.root_device)
            asked = bool(trainer.strategy.reduce(flag, reduce_op="max"))
        if asked:
            raise SIGTERMException

    on_validation_batch_start = on_test_batch_start = on_predict_batch_start = end
