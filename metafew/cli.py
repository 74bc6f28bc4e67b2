"""The command line of experiments: ``python train.py`` and ``metafew train``. Imports torch only when a run starts."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import partial, partialmethod
from pathlib import Path
from typing import Any

import hydra
from hydra._internal import utils
from hydra._internal.hydra import Hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

import metafew
from metafew.allocator import use_huge_pages
from metafew.config.command_line import readable
from metafew.config.compose import defer_to_checkpoint
from metafew.config.groups import CONF, group_names, register_evaluation_heads
from metafew.config.help import folders, help_on, help_text
from metafew.config.hydra_parser import accept_any_help
from metafew.config.mistakes import in_one_line
from metafew.config.paths import resolve_paths
from metafew.distributed.launcher import is_one_process, is_rank_zero, launched_world_size
from metafew.distributed.output_folder import named_by_clock, require_named
from metafew.distributed.report_once import (
    already_reported,
    end_other_ranks,
    first_to_report,
    global_rank,
    print_on_rank_zero,
)
from metafew.distributed.subprocesses import run_cell
from metafew.distributed.sweep import finished
from metafew.errors import Diverged, UsageError
from metafew.io import has_results, print_any_character, write_error
from metafew.training.start import compose_run

log = logging.getLogger(__name__)
sanitize = Hydra.get_sanitized_cfg


def main(program: str = "python train.py", commands: Mapping[str, str] | None = None) -> None:
    """Parse the command line of this process and run it.

    Args:
        program: how the program was started, for ``--help``.
        commands: the other commands of ``program``, each with its description.
    """
    print_any_character()
    if "--version" in sys.argv[1:]:
        print(f"metafew {metafew.__version__}")
        return
    use_huge_pages()  # under torchrun, a callback of Hydra imports torch before job() is called
    accept_any_help()
    Hydra.get_sanitized_cfg = show_configuration  # type: ignore[assignment, method-assign]
    Hydra.app_help = partialmethod(show_help, program, commands or {})  # type: ignore[assignment, method-assign]
    try:
        register_evaluation_heads(sys.argv[1:])
        with in_one_line(sys.argv[1:]):
            sys.argv[1:] = defer_to_checkpoint(readable(sys.argv[1:]))
            utils.is_under_debugger = lambda: True  # Hydra raises its errors, instead of printing them over many lines
            job()
    except UsageError as error:
        if is_rank_zero():
            print(f"metafew: {error}", file=sys.stderr)
        sys.exit(2)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
def job(cfg: DictConfig) -> None:
    """Run one configuration: an experiment, a single run, or a cell of a sweep."""
    use_huge_pages()  # joblib's worker processes do not call main()
    print_any_character()
    print_on_rank_zero()
    if "experiment" in cfg:
        launch_experiment(cfg)
    elif HydraConfig.get().mode == RunMode.RUN:
        run_single(cfg, Path(HydraConfig.get().runtime.output_dir))
    else:
        run_sweep_cell(cfg, Path(HydraConfig.get().runtime.output_dir))


def show_help(hydra: Hydra, program: str, commands: Mapping[str, str], config_name: str, args: Any, **_: Any) -> None:
    """Print what ``--help`` shows: the values of the options that are chosen on the same command line, or all groups.

    Args:
        hydra: the Hydra object, which knows the config search path.
        program: how the run was started.
        commands: the other commands of ``program``, each with its description.
        config_name: the main configuration.
        args: the command line as Hydra has parsed it.
    """
    composed = hydra.compose_config(config_name, args.overrides, RunMode.RUN, with_log_configuration=False)
    found = folders(composed.hydra.runtime.config_sources)
    print(help_on(args.overrides, found) or help_text(program, commands, found, group_names()))


def show_configuration(hydra: Hydra, cfg: DictConfig, cfg_type: str) -> DictConfig:
    """Return what ``--cfg`` shows: the run's configuration; with ``ckpt``, composed on top of the checkpoint's."""
    if OmegaConf.is_readonly(cfg.hydra):  # the configuration of a started run, logged with hydra.verbose
        return sanitize(hydra, cfg, cfg_type)
    with open_dict(cfg):
        cfg.hydra.mode, cfg.hydra.runtime.output_dir = RunMode.RUN, cfg.hydra.run.dir
        HydraConfig.instance().set_config(cfg)
    try:
        require_named("hydra.run.dir", named_by_clock(cfg, "hydra.run.dir"), cfg.get("ckpt"))
        with open_dict(cfg):
            of_hydra = cfg.pop("hydra")
        if "experiment" not in cfg:
            cfg = compose_run(cfg).cfg
            of_hydra = HydraConfig.get()
    except UsageError as error:
        print(f"metafew: {error}", file=sys.stderr)
        sys.exit(2)
    with open_dict(cfg):
        cfg.hydra = of_hydra
    OmegaConf.set_readonly(cfg.hydra, False)  # --resolve resolves it in place
    return sanitize(hydra, cfg, cfg_type)


def launch_experiment(cfg: DictConfig) -> None:
    """Run all cells of an experiment, and exit with a non-zero code if one of them failed."""
    from metafew.experiments.start import start_experiment

    try:
        code = start_experiment(resolve_paths(cfg))
    except UsageError as error:  # not report_error, which would overwrite results in its folder
        print(f"metafew: {error}", file=sys.stderr)
        code = 2
    if code:
        sys.exit(code)


def run_single(cfg: DictConfig, out: Path) -> None:
    """Run one configuration, and exit with code 2 after an error that the user can correct."""
    try:
        compose_run(cfg).start(out)
    except UsageError as error:
        report_error(out, str(error), diverged=isinstance(error, Diverged), refused=not error.in_stages)
        sys.exit(2)
    except Exception:
        if already_reported():  # another rank failed, and this rank lost the connection to it
            sys.exit(2)
        end_other_ranks()
        raise


def run_sweep_cell(cfg: DictConfig, out: Path) -> None:
    """Run one cell of a sweep; an error is written to its folder, and the sweep continues."""
    try:
        composed = compose_run(cfg)
        cfg = composed.cfg
        config: Any = OmegaConf.to_container(cfg, resolve=True)
        if finished(out, config, partial(data_fingerprints, cfg)):
            print(f"{out} was finished before: delete it to run it again")
        elif not is_one_process(cfg.trainer.devices, cfg.trainer.num_nodes) and launched_world_size() < 2:
            run_cell(out)
        else:
            composed.start(out)
    except UsageError as error:
        report_error(out, str(error), diverged=isinstance(error, Diverged))
    except Exception as error:
        log.exception("this run ended unexpectedly")  # the log file is in its folder
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        report_error(out, f"{reason}: see {out / HydraConfig.get().job.name}.log for the traceback")


def data_fingerprints(cfg: DictConfig) -> dict[str, str]:
    """Return the fingerprints of the data of a configuration by name, and build the stores if necessary."""
    from metafew.data.store import build, describe, store_root
    from metafew.training.factory import make_source

    root = store_root(cfg.cache_dir)
    return {each.title: describe(build(each, root))["fingerprint"] for each in make_source(cfg).all_components()}


def report_error(out: Path, message: str, diverged: bool = False, refused: bool = False) -> None:
    """Print an error and write it to results.json, once for all ranks.

    Results of an earlier run in the folder are renamed to results-1.json, or the first free number.

    Args:
        out: folder of the run.
        message: the error.
        diverged: whether training diverged.
        refused: whether nothing was run, so that results of an earlier run stay, and the error is only printed.
    """
    with first_to_report() as reports:
        if reports:
            message = f"process {global_rank()}: {message}" if global_rank() else message
            with suppress(OSError):  # the error may be that nothing can be written
                if not (refused and has_results(out)):
                    write_error(out, {"error": message} | ({"diverged": True} if diverged else {}))
            print(f"metafew: {message}", file=sys.stderr)
