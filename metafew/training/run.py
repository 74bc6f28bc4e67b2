"""One run, from its configuration to its results."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omegaconf import DictConfig
from pytorch_lightning.utilities.exceptions import MisconfigurationException, SIGTERMException

from metafew.config.option_values import as_list
from metafew.errors import UsageError, reason
from metafew.loggers import wandb
from metafew.solvers.unsolved import counted
from metafew.training import resume
from metafew.training.checks import check_options, check_parts
from metafew.training.full_disk import writable
from metafew.training.outputs import make_report, write_outputs
from metafew.training.parts import Parts, make_parts
from metafew.training.stages import prepare, run_stages


def run(cfg: DictConfig, choices: dict[str, str], overrides: list[str], out: Path) -> dict:
    """Run the stages of a configuration and return the content of results.json.

    Args:
        cfg: the composed configuration.
        choices: the option chosen for each group.
        overrides: the overrides, which are stored in checkpoints.
        out: output folder of the run.

    Raises:
        UsageError: if the configuration cannot be run (raised before images are read where possible), or the disk is
            full.
    """
    silence_lightning()
    with wandb.closing():
        try:
            with suitable_options(), writable(out):
                check_options(cfg)
                parts = make_parts(cfg, choices, overrides, out)
                check_parts(parts)
                log_configuration(parts)
                fingerprints = prepare(parts)
            with counted() as unsolved, in_stages(), suitable_options(), writable(out):
                report = make_report(parts, run_stages(parts, fingerprints), unsolved)
                if parts.trainer.is_global_zero:
                    write_outputs(report, parts)
                return report
        except SIGTERMException:
            resume.exit_after_signal(out, "fit" in as_list(cfg.stages))


@contextmanager
def suitable_options() -> Iterator[None]:
    """Raise UsageError if Lightning refuses options."""
    try:
        yield
    except MisconfigurationException as error:
        raise UsageError(
            f"expected options that Lightning can run, got others ({reason(error)}): --cfg job shows every value of "
            "trainer"
        ) from error


@contextmanager
def in_stages() -> Iterator[None]:
    """Mark errors as those of a run whose stages have begun, so that earlier results in its folder no longer hold."""
    try:
        yield
    except UsageError as error:
        error.in_stages = True
        raise


def log_configuration(parts: Parts) -> None:
    """Send the configuration and the option chosen for each group to the loggers."""
    for logger in parts.trainer.loggers:
        logger.log_hyperparams({"choices": parts.choices, **parts.config})


def silence_lightning() -> None:
    """Silence messages of Lightning and torch that the user cannot act on."""
    for package in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(package).setLevel(logging.WARNING)
    # The user requested what callbacks print: a model summary, early stopping with verbose=True.
    logging.getLogger("pytorch_lightning.callbacks").setLevel(logging.INFO)
    for message in (
        ".*does not have many workers.*",
        ".*exists and is not empty.*",
        ".*smaller than the logging interval.*",
        ".*your dataloader is not resumable.*",  # ours starts at the step of the checkpoint
        ".*Grad strides do not match bucket view strides.*",  # with one channel, both layouts are the same
        ".*isinstance.treespec, LeafSpec.*",
        ".*AMP with fp16 is not supported on CPU.*",  # make_trainer warns of it
        ".*lr_scheduler.step.*before.*optimizer.step.*",
        ".*in eval mode at the start of training.*",  # where the network put them
        ".*`srun` command is available.*",  # on every machine of a cluster, for runs of one process too
    ):
        warnings.filterwarnings("ignore", message)
