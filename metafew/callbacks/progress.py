"""The progress bar of a run."""

from __future__ import annotations

import pytorch_lightning as pl
from pytorch_lightning.callbacks import RichProgressBar


class Progress(RichProgressBar):
    """Lightning's bar with steps instead of epochs and short names of measures."""

    def _get_train_description(self, _: int) -> str:
        return "Training"

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, str]:
        """Return the training loss and the validation accuracy of the trained head."""
        names = {"train/loss": "loss", f"val/{pl_module.trained}/accuracy": "validation accuracy"}
        values = super().get_metrics(trainer, pl_module)
        return {short: f"{float(values[name]):.3f}" for name, short in names.items() if name in values}
