"""Write checkpoints during training, and resume from them with identical results."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_lightning.callbacks.early_stopping import EarlyStoppingReason
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities.exceptions import SIGTERMException

from metafew.distributed.collective import gather_objects
from metafew.evaluation.statistics import score
from metafew.io import atomic_write
from metafew.solvers.unsolved import so_far


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write checkpoints atomically. Lightning's own writer moves them from a temporary folder, perhaps on another disk.

    The content is serialized in memory first, as torch fails with an internal error when it writes to a full disk.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write ``checkpoint`` to ``path``."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        torch.save(checkpoint, content)
        with atomic_write(path, "wb") as file:
            file.write(content.getbuffer())


class Checkpoints(ModelCheckpoint):
    """Write best.ckpt and last.ckpt, from which a run resumes as if it had never been interrupted.

    Lightning would skip an interrupted validation, lose the best score in a different folder, and draw different random
    numbers. A run that is stopped by a signal writes last.ckpt. Where ``trainer.max_time`` ends a training, Lightning
    validates once more, and this validation counts.

    Args:
        folder: the folder of the checkpoints.
        head: the head whose :func:`~metafew.evaluation.statistics.score` on validation tasks selects the best
            checkpoint.
        every: steps between writes of last.ckpt, which is also written after each validation.
        keep: whether to keep the checkpoint of each of these steps.
    """

    def __init__(self, folder: Path, head: str, every: int, keep: bool):
        monitor = f"val/{head}/accuracy"
        super().__init__(folder, filename="best", monitor=monitor, mode="max", enable_version_counter=False)
        self.every, self.keep = every, keep
        self.comparable = True  # whether the validations of a checkpoint count when a training resumes
        self.failed = 0  # failed tasks of the best validation
        self.saved = self.validated = 0  # steps after which this last happened
        self.begun = -1  # steps before the current one
        self.random: dict[str, torch.Tensor] = {}  # the random state then

    @property
    def folder(self) -> Path:
        """The folder of the checkpoints, the same in all processes once a run has started."""
        assert self.dirpath is not None  # the constructor sets it
        return Path(self.dirpath)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore the random state of the checkpoint after everything has been set up, and an early end."""
        super().on_train_start(trainer, pl_module)
        stopping = trainer.early_stopping_callbacks
        trainer.should_stop |= any(each.stopping_reason != EarlyStoppingReason.NOT_STOPPED for each in stopping)
        if self.random:
            torch.set_rng_state(self.random["cpu"])
        if "cuda" in self.random and torch.cuda.is_available():
            torch.cuda.set_rng_state(self.random["cuda"])

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, index: int) -> None:
        """Write a checkpoint every ``every`` steps, when metrics.csv contains the row of the last step."""
        step, within = divmod(index, trainer.accumulate_grad_batches)
        if within:
            return
        self.begun, self.random = step, random_state()
        if step and step % self.every == 0:
            self.write(trainer)
            if self.keep:
                trainer.save_checkpoint(self.folder / f"step-{step:06d}.ckpt")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write best.ckpt if this is the best validation, and last.ckpt; not before the first step."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self.validated = trainer.global_step
            super().on_validation_end(trainer, pl_module)
            self.write(trainer)

    def check_monitor_top_k(self, trainer: pl.Trainer, current: torch.Tensor | None = None) -> bool:
        """Return whether this validation is the best: it has fewer failed tasks, or as many and a higher accuracy."""
        if current is None:
            return False
        failed = int(trainer.callback_metrics[f"{str(self.monitor).rpartition('/')[0]}/failed"])
        best = self.best_model_score
        better = best is None or score(current.item(), failed) > score(best.item(), self.failed)
        self.failed = failed if better else self.failed
        return better

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the last weights, which without validation are also the best."""
        if not trainer.enable_validation:
            trainer.save_checkpoint(self.folder / "best.ckpt")
        self.write(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Write last.ckpt when a signal ends the run."""
        # Lightning does not resume a training that only lacks its last validation.
        over = trainer.validating and trainer.global_step >= trainer.max_steps
        if isinstance(exception, SIGTERMException) and trainer.state.fn == TrainerFn.FITTING and not over:
            self.write(trainer)

    def write(self, trainer: pl.Trainer) -> None:
        """Write last.ckpt, unless it has already been written at this step."""
        if self.saved != trainer.global_step:
            trainer.save_checkpoint(self.folder / "last.ckpt")
            self.saved = trainer.global_step

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict) -> None:
        """Add the random state before the next step, the last validation, and the counts of unsolved tasks."""
        random = self.random if self.begun == trainer.global_step else random_state()
        unsolved = dict(sum(gather_objects(so_far()), Counter()))
        checkpoint["resume"] = {"random": random, "validated": self.validated, "unsolved": unsolved}

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict) -> None:
        """Set Lightning's loops to a state after a complete step, and after or before its validation."""
        checkpoint["callbacks"].pop("Timer", None)  # trainer.max_time limits each command, not all together
        for stopping in trainer.early_stopping_callbacks:
            saved = checkpoint["callbacks"].get(stopping.state_key, {})
            saved["patience"] = stopping.patience  # as typed now
            exhausted = saved.get("stopping_reason") == EarlyStoppingReason.PATIENCE_EXHAUSTED.value
            if exhausted and saved["wait_count"] < stopping.patience:
                saved["stopping_reason"] = EarlyStoppingReason.NOT_STOPPED.value
        if not self.comparable:
            for key in [key for key in checkpoint["callbacks"] if key.startswith(EarlyStopping.__name__)]:
                del checkpoint["callbacks"][key]
        self.random, self.validated = checkpoint["resume"]["random"], checkpoint["resume"]["validated"]
        if trainer.is_global_zero:
            so_far().update(checkpoint["resume"]["unsolved"])
        step = checkpoint["global_step"]
        batches = step * trainer.accumulate_grad_batches
        due = trainer.enable_validation and batches % trainer.val_check_interval == 0
        missing = int(due and self.validated != step)
        loops = checkpoint["loops"]["fit_loop"]
        for part in ("total", "current"):
            loops["epoch_progress"][part] = progress(ready=1, started=1)
            loops["epoch_loop.batch_progress"][part] = dict.fromkeys(progress(), batches)
            loops["epoch_loop.val_loop.batch_progress"][part] = progress()
        loops["epoch_loop.batch_progress"]["is_last_batch"] = False
        loops["epoch_loop.val_loop.batch_progress"]["total"] = progress(ready=missing, started=missing)
        loops["epoch_loop.state_dict"]["_batches_that_stepped"] = step - due

    def state_dict(self) -> dict[str, Any]:
        """Return Lightning's state and the failed tasks of the best validation."""
        return super().state_dict() | {"failed": self.failed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best score and checkpoint, with paths in this folder, if they count in this run."""

        def here(path: str) -> str:
            return path and str(self.folder / Path(path).name)

        if self.comparable and (self.folder / "best.ckpt").exists():
            scores = {here(path): score for path, score in state_dict["best_k_models"].items()}
            paths = {key: here(state_dict[key]) for key in ("best_model_path", "kth_best_model_path")}
            super().load_state_dict(state_dict | paths | {"dirpath": self.dirpath, "best_k_models": scores})
            self.failed = state_dict.get("failed", 0)  # missing from checkpoints of earlier versions


def progress(ready: int = 0, started: int = 0) -> dict[str, int]:
    """Return the progress of one of Lightning's loops."""
    return {"ready": ready, "completed": 0, "started": started, "processed": 0}


def random_state() -> dict[str, torch.Tensor]:
    """Return the state of torch's generators, which dropout uses; tasks have their own."""
    state = {"cpu": torch.get_rng_state()}
    return state | {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else state
