"""The Lightning Trainer of a run."""

from __future__ import annotations

import logging
import sys
import threading
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import (
    Callback,
    GradientAccumulationScheduler,
    OnExceptionCheckpoint,
    ProgressBar,
    StochasticWeightAveraging,
)
from pytorch_lightning.loggers import Logger
from pytorch_lightning.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy, Strategy
from pytorch_lightning.strategies.launchers import _SubprocessScriptLauncher

from metafew.callbacks.checkpoints import AtomicCheckpointIO, Checkpoints
from metafew.callbacks.clustering_monitor import ClusteringMonitor
from metafew.callbacks.graceful_stop import GracefulStop
from metafew.callbacks.monitors import MonitorCheck
from metafew.callbacks.nan_guard import NanGuard
from metafew.callbacks.progress import Progress
from metafew.callbacks.validation_at_start import ValidationAtStart
from metafew.config.option_values import as_list
from metafew.distributed.launcher import cluster_environment
from metafew.errors import UsageError
from metafew.training.instantiate import attempt, make
from metafew.training.trainer_options import ADDED

log = logging.getLogger(__name__)

EXAMPLES = {
    "callbacks": "{_target_: pytorch_lightning.callbacks.EarlyStopping, monitor: val/protonet/accuracy, mode: max}",
    "logger": "{_target_: pytorch_lightning.loggers.CSVLogger, save_dir: logs}",
}
REFUSED: dict[type, tuple[str, str]] = {
    OnExceptionCheckpoint: (
        "from whose file Lightning resumes also without ckpt",
        "leave it out, and type save.every=10 for a last.ckpt every ten steps",
    ),
    StochasticWeightAveraging: (
        "which averages the weights of epochs, and a training is one",
        "type '+trainer.callbacks=[{_target_: pytorch_lightning.callbacks.EMAWeightAveraging}]'",
    ),
    GradientAccumulationScheduler: (
        "which changes with the epoch, and a training is one",
        "type trainer.accumulate_grad_batches=4",
    ),
}
"""Callbacks that do not work in a run: why, and what to do instead."""


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
    if cfg.val.at_start and "num_sanity_val_steps" in options:
        raise UsageError(
            "expected no trainer.num_sanity_val_steps, as val.at_start validates before the first step, got "
            f"{options['num_sanity_val_steps']}: type val.at_start=false"
        )
    if cfg.val.at_start:
        callbacks.append(ValidationAtStart())
    # The check comes before the user's callbacks, which act on what they monitor.
    callbacks += [MonitorCheck(), *make_added("callbacks", options.get("callbacks"), Callback)]
    if options.enable_progress_bar and not any(isinstance(callback, ProgressBar) for callback in callbacks):
        callbacks.append(Progress())
    # Solvers and metrics use float64, which Apple's GPUs do not support.
    no_float64 = options.accelerator == "auto" and torch.backends.mps.is_available()
    environment = cluster_environment(options.devices, options.num_nodes)
    strategy = make(options.strategy) if isinstance(options.strategy, DictConfig) else options.strategy
    check_strategy(strategy)
    plugins = make_each(options.get("plugins"))
    trainer = attempt(
        "trainer",
        instantiate,
        OmegaConf.masked_copy(options, [key for key in options if key not in (*ADDED, "strategy")]),
        logger=[*loggers, *make_added("logger", options.get("logger"), Logger)],
        accelerator="cpu" if no_float64 else options.accelerator,
        strategy=strategy,
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO(), *environment, *plugins],
        default_root_dir=str(out),
        val_check_interval=options.accumulate_grad_batches * min(cfg.val.every, options.max_steps),
        check_val_every_n_epoch=None,
        min_epochs=0,  # with min_steps, Lightning would make it 1, the whole training
        limit_val_batches=None if cfg.val.total else 0,
        num_sanity_val_steps=options.get("num_sanity_val_steps", -1 if cfg.val.at_start else 0),
        enable_model_summary=options.get("enable_model_summary", False),
        use_distributed_sampler=False,
        inference_mode=False,
        _convert_="all",
    )
    check_processes(trainer)
    if isinstance(options.get("profiler"), str):  # otherwise Lightning only logs the report
        trainer.profiler.dirpath, trainer.profiler.filename = out, "profile"
    if str(options.precision).startswith("16") and trainer.precision == "bf16-mixed":
        log.warning("a CPU does not train in float16: trainer.precision=%s is bf16-mixed here", options.precision)
    return trainer


def check_strategy(strategy: Any) -> None:
    """Check a strategy before a Trainer is made with it.

    Raises:
        UsageError: if it divides the weights between processes, or starts processes from a notebook.
    """
    if isinstance(strategy, Strategy) and (
        not isinstance(strategy, DDPStrategy | SingleDeviceStrategy) or isinstance(strategy, DeepSpeedStrategy)
    ):
        raise UsageError(
            "expected trainer.strategy to be a DDPStrategy, which keeps all weights in each process, got "
            f"{type(strategy).__name__}: type trainer.strategy=ddp"
        )
    if hasattr(sys, "ps1") and strategy != "auto" and not isinstance(strategy, SingleDeviceStrategy):
        raise UsageError(
            "expected trainer.strategy to be auto in a notebook, which has no command line that more processes could "
            f"repeat, got {strategy}: type trainer.devices=1 trainer.strategy=auto, or start the run as a command"
        )


def check_processes(trainer: pl.Trainer) -> None:
    """Check that the results of the processes that Lightning will start reach this one.

    Lightning starts them by repeating the command line of this process, or copies it, as it does in a notebook: there
    the results would stay in the copies.

    Raises:
        UsageError: if they are copies, or a thread would repeat the command line of the program that it belongs to.
    """
    launcher = trainer.strategy.launcher
    if launcher is None:
        return
    if not isinstance(launcher, _SubprocessScriptLauncher):
        raise UsageError(
            "expected processes that repeat the command line, got copies of this one, in which the results would stay: "
            "type trainer.strategy=ddp, or trainer.devices=1 trainer.strategy=auto in a notebook"
        )
    starts = trainer.num_devices > 1 and not launcher.cluster_environment.creates_processes_externally
    if starts and threading.current_thread() is not threading.main_thread():
        raise UsageError(
            f"expected the main thread, from which Lightning can start the {trainer.num_devices} processes of a run, "
            f"got {threading.current_thread().name}: type trainer.devices=1, or start the run as a command"
        )


def make_added(option: str, nodes: Any, kind: type) -> list:
    """Return the callbacks or loggers that the user adds.

    Args:
        option: ``callbacks`` or ``logger``.
        nodes: its value: a configuration with ``_target_``, a list of these, or None.
        kind: the required class of each.

    Raises:
        UsageError: if one of them is not, or is one of :data:`REFUSED`.
    """
    added = make_each(nodes)
    for each in added:
        for refused, (why, instead) in REFUSED.items():
            if isinstance(each, refused):
                raise UsageError(f"expected callbacks other than {refused.__name__}, {why}, got that: {instead}")
        if not isinstance(each, kind):
            raise UsageError(
                f"expected trainer.{option} to be a list of {kind.__name__}s, each with its _target_, got {nodes}: "
                f"type '+trainer.{option}=[{EXAMPLES[option]}]'"
            )
    return added


def make_each(nodes: Any) -> list:
    """Make what a configuration with ``_target_``, or each of a list of them, names; keep any other value."""
    return [make(node) if isinstance(node, DictConfig) else node for node in as_list(nodes) if node is not None]
