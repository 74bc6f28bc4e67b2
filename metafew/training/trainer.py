"""The Lightning Trainer of a run: the options that the user can set, and those that metafew owns."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Callback, ProgressBar
from pytorch_lightning.loggers import Logger

from metafew.callbacks.checkpoints import AtomicCheckpointIO, Checkpoints
from metafew.callbacks.clustering_monitor import ClusteringMonitor
from metafew.callbacks.graceful_stop import GracefulStop
from metafew.callbacks.nan_guard import NanGuard
from metafew.callbacks.progress import Progress
from metafew.config.option_values import as_list
from metafew.distributed.launcher import cluster_environment
from metafew.errors import UsageError
from metafew.training.factory import attempt, make

log = logging.getLogger(__name__)


class Owned(NamedTuple):
    """An argument of the Trainer that the user cannot change.

    Attributes:
        value: the only accepted value besides null.
        reason: why.
        instead: what to type.
    """

    value: Any
    reason: str
    instead: str


STEPS = "a training is one epoch of trainer.max_steps steps"
LEAVE_OUT = "leave it out"
OWNED = {
    "max_epochs": Owned(None, STEPS, "type trainer.max_steps=600"),
    "min_epochs": Owned(None, STEPS, "type +trainer.min_steps=600"),
    "limit_train_batches": Owned(None, STEPS, "type trainer.max_steps=600"),
    "overfit_batches": Owned(0, "every step draws new tasks", LEAVE_OUT),
    "reload_dataloaders_every_n_epochs": Owned(0, STEPS, LEAVE_OUT),
    "fast_dev_run": Owned(
        False, "it turns off checkpoints and loggers", "type trainer.max_steps=1 val.total=4 test.total=4"
    ),
    "barebones": Owned(False, "it turns off checkpoints, loggers and validation", LEAVE_OUT),
    "limit_val_batches": Owned(
        None, "val.total sets the number of validation tasks", "type val.total=200, or 0 for none"
    ),
    "limit_test_batches": Owned(None, "test.total sets the number of test tasks", "type test.total=600"),
    "limit_predict_batches": Owned(None, "a run has no stage that predicts", "type test.total=600"),
    "val_check_interval": Owned(None, "val.every sets the steps between validations", "type val.every=100"),
    "check_val_every_n_epoch": Owned(None, "val.every sets the steps between validations", "type val.every=100"),
    "enable_checkpointing": Owned(True, "a run tests and resumes from its checkpoints", "type save.every=1000000"),
    "model_registry": Owned(None, "checkpoints are written to the folder of the run", "type logger=wandb"),
    "default_root_dir": Owned(None, "all outputs are written to the folder of the run", "type hydra.run.dir=DIR"),
    "enable_autolog_hparams": Owned(True, "loggers always receive the configuration", LEAVE_OUT),
    "inference_mode": Owned(False, "adapting heads compute gradients in evaluation", LEAVE_OUT),
    "use_distributed_sampler": Owned(False, "processes divide the tasks of each meta-batch", LEAVE_OUT),
    "sync_batchnorm": Owned(False, "each norm defines what it reduces over processes", "type norm=batch_shared"),
}
"""Arguments owned by metafew. The others have an effect, described in conf/trainer/default.yaml."""
EXAMPLES = {
    "callbacks": "{_target_: pytorch_lightning.callbacks.EarlyStopping, monitor: val/protonet/accuracy, mode: max}",
    "logger": "{_target_: pytorch_lightning.loggers.CSVLogger, save_dir: logs}",
}


def check_trainer_options(options: Mapping[str, Any]) -> None:
    """Check that no option of the Trainer is one of :data:`OWNED`, and check the format of ``max_time``.

    Raises:
        UsageError: if one of them has a different value, or ``max_time`` is a number.
    """
    for name, owned in OWNED.items():
        value = options.get(name)
        if value is not None and value != owned.value:
            raise UsageError(f"expected no trainer.{name}, as {owned.reason}, got {value}: {owned.instead}")
    time = options.get("max_time")
    if isinstance(time, int | float):
        raise UsageError(
            f"expected trainer.max_time to be days, hours, minutes and seconds, got {time}: "
            "type ++trainer.max_time=00:12:00:00"
        )


def make_trainer(cfg: DictConfig, trained: str, loggers: list[Logger], out: Path) -> pl.Trainer:
    """Return a Trainer that writes logs and checkpoints and shows progress.

    Args:
        cfg: the composed configuration.
        trained: the head whose validation accuracy selects the best checkpoint.
        loggers: the loggers; those of ``trainer.logger`` are appended.
        out: folder of the run.
    """
    options = cfg.trainer
    callbacks: list[Callback] = [
        Checkpoints(out / "checkpoints", trained, cfg.save.every, cfg.save.keep),
        NanGuard(),
        GracefulStop(),
    ]
    if cfg.analyze.every:
        callbacks.append(ClusteringMonitor(cfg.analyze.every, cfg.analyze.tasks))
    callbacks += make_added("callbacks", options.get("callbacks"), Callback)
    if options.enable_progress_bar and not any(isinstance(callback, ProgressBar) for callback in callbacks):
        callbacks.append(Progress())
    # Solvers and metrics use float64, which Apple's GPUs do not support.
    no_float64 = options.accelerator == "auto" and torch.backends.mps.is_available()
    environment = cluster_environment(options.devices, options.num_nodes)
    plugins = [make(node) for node in as_list(options.get("plugins")) if node is not None]
    added = ("callbacks", "logger", "plugins")
    trainer = attempt(
        "trainer",
        instantiate,
        OmegaConf.masked_copy(options, [key for key in options if key not in added]),
        logger=[*loggers, *make_added("logger", options.get("logger"), Logger)],
        accelerator="cpu" if no_float64 else options.accelerator,
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO(), *environment, *plugins],
        default_root_dir=str(out),
        val_check_interval=options.accumulate_grad_batches * min(cfg.val.every, options.max_steps),
        check_val_every_n_epoch=None,
        limit_val_batches=None if cfg.val.total else 0,
        num_sanity_val_steps=options.get("num_sanity_val_steps", 0),
        enable_model_summary=options.get("enable_model_summary", False),
        use_distributed_sampler=False,
        inference_mode=False,
        _convert_="all",
    )
    if isinstance(options.get("profiler"), str):  # otherwise Lightning only logs the report
        trainer.profiler.dirpath, trainer.profiler.filename = out, "profile"
    if str(options.precision).startswith("16") and trainer.precision == "bf16-mixed":
        log.warning("a CPU does not train in float16: trainer.precision=%s is bf16-mixed here", options.precision)
    return trainer


def make_added(option: str, nodes: Any, kind: type) -> list:
    """Return the callbacks or loggers that the user adds.

    Args:
        option: ``callbacks`` or ``logger``.
        nodes: its value: a configuration with ``_target_``, a list of these, or None.
        kind: the required class of each.

    Raises:
        UsageError: if one of them is not.
    """
    added = [make(node) if isinstance(node, DictConfig) else node for node in as_list(nodes) if node is not None]
    for each in added:
        if not isinstance(each, kind):
            raise UsageError(
                f"expected trainer.{option} to be a list of {kind.__name__}s, each with its _target_, got {nodes}: "
                f"type '+trainer.{option}=[{EXAMPLES[option]}]'"
            )
    return added
