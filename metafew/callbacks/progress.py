"""The progress bar of a run."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import RichProgressBar

from metafew.evaluation.statistics import format_failed


class Progress(RichProgressBar):
    """Lightning's progress bar with steps instead of epochs and short names of measures."""

    def _get_train_description(self, _: int) -> str:
        return "Training"

    @property
    def sanity_check_description(self) -> str:
        """The name of the validation before the first step."""
        return "Validation before training"

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """Return training loss, and validation accuracy and failed tasks of the trained head."""
        names = {"train/loss": "loss", f"val/{pl_module.trained}/accuracy": "validation accuracy"}
        values = trainer.progress_bar_metrics
        shown = {short: f"{values[name]:.3f}" for name, short in names.items() if name in values}
        failed = format_failed(values.get(f"val/{pl_module.trained}/failed"))
        return {short: value + failed * (short != "loss") for short, value in shown.items()}
