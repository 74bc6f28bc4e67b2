"""The TensorBoard logger."""

from __future__ import annotations

from argparse import Namespace
from importlib.util import find_spec
from typing import Any

import yaml
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only

from metafew.errors import UsageError


class TensorBoard(TensorBoardLogger):
    """Log to TensorBoard, in ``save_dir/tensorboard``.

    Args:
        save_dir: folder of the run.

    Raises:
        UsageError: if TensorBoard is not installed.
    """

    def __init__(self, save_dir: str):
        if find_spec("tensorboard") is None:
            raise UsageError(
                "expected the package tensorboard for logger=tensorboard, which is not installed: "
                "type pip install 'metafew[tensorboard]'"
            )
        super().__init__(save_dir, name="tensorboard", version="", default_hp_metric=False)

    @rank_zero_only
    def log_hyperparams(
        self, params: dict[str, Any] | Namespace, metrics: dict[str, Any] | None = None, step: int | None = None
    ) -> None:
        """Log the configuration as text first, and together with ``metrics`` as hyperparameters at the end."""
        if metrics is None:  # TensorBoard renders Markdown, where indented text is code
            lines = yaml.safe_dump(params, sort_keys=False).splitlines()
            self.experiment.add_text("config", "\n".join(f"    {line}" for line in lines))
        super().log_hyperparams(params, metrics, step)
