"""Start a run from the words of a command line, in a command or from Python. Imports torch only when a run starts."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from metafew.allocator import collection_paused
from metafew.config.command_line import readable
from metafew.config.compose import (
    MAIN,
    chosen_options,
    compose_on_checkpoint,
    defer_to_checkpoint,
    initialized_hydra,
    main_words,
)
from metafew.config.groups import ALL, named_with_all, register_evaluation_heads
from metafew.config.mistakes import in_one_line
from metafew.config.option_values import as_list
from metafew.config.overrides import key, verbatim
from metafew.config.paths import resolve_paths
from metafew.config.quoting import overrides
from metafew.distributed.launcher import is_one_process, is_restarted
from metafew.errors import UsageError


class Run(NamedTuple):
    """A finished run, returned by :func:`metafew.train`.

    Attributes:
        folder: its output folder, with results.json, tasks.csv, figures and checkpoints.
        results: the content of results.json.
    """

    folder: Path
    results: dict[str, Any]

    @property
    def metrics(self) -> dict[str, dict[str, Any]]:
        """Mean, ``ci95``, number of tasks and of failed ones by measure, such as ``test/svm/accuracy``."""
        return self.results["metrics"]

    @property
    def checkpoint(self) -> Path:
        """The best checkpoint, for :func:`metafew.load`; only a run that trains writes one."""
        return self.folder / "checkpoints" / "best.ckpt"

    def __repr__(self) -> str:
        from metafew.evaluation.statistics import format_percent

        shown = {name: value for name, value in self.metrics.items() if name.endswith("/accuracy")}
        lines = [f"{name}: {format_percent(value, ' %')}" for name, value in shown.items()]
        return "\n".join([f"run in {self.folder}", *lines])


class ComposedRun(NamedTuple):
    """A run that can be started.

    Attributes:
        cfg: the composed configuration.
        overrides: the overrides, which are stored in checkpoints.
    """

    cfg: DictConfig
    overrides: list[str]

    def start(self, out: Path) -> dict[str, Any]:
        """Run it in the folder ``out``, and return the content of results.json."""
        with collection_paused():
            from metafew.training.run import run

        chosen = chosen_options(HydraConfig.get().runtime.choices)
        choices = {group: option for group, option in chosen.items() if isinstance(option, str)}
        return run(self.cfg, choices, self.overrides, out)


def train(words: Sequence[str], options: Mapping[str, Any]) -> Run:
    """Run one configuration in this process, as :func:`metafew.train` describes.

    Args:
        words: words of the command line.
        options: further overrides by key, with Python values.
    """
    typed = [*words, *overrides(options)]
    several = [word for word in typed if word.startswith("-") or key(word) == "hydra.mode"]
    if several:
        raise UsageError(
            f"expected the overrides of one run, such as head=svm, got {several[0]}: call metafew.train "
            "once for each run"
        )
    register_evaluation_heads(typed)
    with in_one_line(typed, sweeps=False), initialized_hydra(), unchanged_logging(), warnings.catch_warnings():
        hydra: Any = GlobalHydra.instance().hydra
        try:
            outcome = hydra.run(MAIN, run_here, defer_to_checkpoint(readable(typed))).return_value
        except SystemExit as end:  # a callback of Hydra cannot raise anything else
            if isinstance(end.__cause__, UsageError):
                raise end.__cause__ from None
            raise
    if isinstance(outcome, UsageError):
        raise outcome
    return outcome


def run_here(cfg: DictConfig) -> Run | UsageError:
    """Run a configuration that Hydra has composed, and return its results, or the error that the user can correct.

    Hydra would print an error in addition to raising it.
    """
    out = Path(HydraConfig.get().runtime.output_dir)
    try:
        if "experiment" in cfg:
            raise UsageError(
                "expected one run, got an experiment, which consists of many: type python train.py "
                f"experiment={HydraConfig.get().runtime.choices['experiment']}"
            )
        composed = compose_run(cfg)
        trainer = composed.cfg.trainer
        if not is_one_process(trainer.devices, trainer.num_nodes):
            raise UsageError(
                f"expected one process, got trainer.devices={trainer.devices}: pass trainer.devices=1, or type "
                f"python train.py trainer.devices={trainer.devices}"
            )
        return Run(out, composed.start(out))
    except UsageError as error:
        return error


@contextmanager
def unchanged_logging() -> Iterator[None]:
    """Restore the handlers and the level of the root logger, which Hydra replaces, and close those of the run."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        yield
    finally:
        for handler in root.handlers:
            if handler not in handlers and isinstance(handler, logging.FileHandler):
                handler.close()
        root.handlers[:] = handlers
        root.setLevel(level)


def compose_run(cfg: DictConfig) -> ComposedRun:
    """Return the configuration and overrides of this run; with ``ckpt``, on top of those of the checkpoint."""
    overrides = main_words() + verbatim(HydraConfig.get().overrides.task)
    with in_one_line(overrides):
        resolve_paths(cfg)
        if cfg.ckpt == "last":
            from metafew.training.resume import newest_of_this_run

            cfg.ckpt = newest_of_this_run()
        elif is_restarted() and (cfg.ckpt is None or "fit" in as_list(cfg.stages)):
            from metafew.training.resume import newest_of_this_job

            # Further than the checkpoint from which the job started, if any.
            cfg.ckpt = newest_of_this_job(Path(HydraConfig.get().runtime.output_dir)) or cfg.ckpt
        if cfg.ckpt is not None:
            with collection_paused():
                from metafew.training.checkpoint import read
                from metafew.training.conversion import follow_training

            start = read(cfg.ckpt)
            cfg, overrides = compose_on_checkpoint(cfg, start["metafew"])
            resolve_paths(cfg)
            if "fit" not in as_list(cfg.stages):
                follow_training(cfg, start, overrides)
        if ALL in (cfg.get("evaluate") or {}):
            cfg.evaluate[ALL] = named_with_all(overrides)
        OmegaConf.to_container(cfg, resolve=True)  # refuses unknown ${name}s
    return ComposedRun(cfg, overrides)
