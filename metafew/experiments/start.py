"""Start the runs of an experiment from the command line. Imports no torch."""

from __future__ import annotations

import re
import sys
from contextlib import chdir
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf

from metafew.config.compose import main_words
from metafew.config.groups import group_names
from metafew.config.overrides import key, verbatim
from metafew.config.paths import typed_in
from metafew.distributed.launcher import require_one_process
from metafew.distributed.subprocesses import options_of_launch
from metafew.errors import UsageError
from metafew.experiments.cells import run_experiment
from metafew.experiments.plan import EXPERIMENT_KEYS, plan_cells
from metafew.training.full_disk import writable

PLACES = re.compile(r"(cells|jobs|data_dir|cache_dir)=")
"""Overrides that set where and how an experiment runs, and do not affect results."""
SPEED = re.compile(
    r"\+*(cuda_graph|data\.num_workers|optimizer\.fused|save\.\w+|val\.every|"
    r"trainer\.(benchmark|log_every_n_steps|enable_progress_bar))="
)
"""Overrides of runs that only affect their speed and how often they log; titles leave them out."""


def start_experiment(cfg: DictConfig) -> int:
    """Run all cells of an experiment with the overrides of the command line, and return the exit code."""
    chosen = HydraConfig.get()
    check_experiment_options(cfg, chosen.mode)
    seeds = list(cfg.seeds) if isinstance(cfg.seeds, ListConfig) else [cfg.seeds]
    overrides = verbatim(chosen.overrides.task)
    shown = [override for override in overrides if not PLACES.match(override)]
    experiment: Any = OmegaConf.to_container(cfg.experiment, resolve=True)
    experiment |= {
        "name": chosen.runtime.choices["experiment"],
        "budget": cfg.budget,
        "command": " ".join(["python train.py", *shown]),
        "flags": options_of_launch(),
    }
    of_runs = [override for override in overrides if key(override) not in EXPERIMENT_KEYS]
    # The table differs from that of the YAML.
    if changed := [override for override in of_runs if override in shown and not SPEED.match(override)]:
        experiment["title"] += f", with {' '.join(changed)}"
    cells = plan_cells(experiment, of_runs, cfg.budget, seeds, Path(cfg.cells), group_names())
    out = Path(chosen.run.dir)
    try:
        with chdir(typed_in()), writable(Path(cfg.cells), out, option="cells=DIR hydra.run.dir=DIR"):
            return run_experiment(experiment, cells, out, cfg.jobs)
    except UsageError as error:
        print(f"metafew: {error}", file=sys.stderr)
        return 1


def check_experiment_options(cfg: DictConfig, mode: RunMode | None) -> None:
    """Check the options of an experiment itself.

    Raises:
        UsageError: if one of them is invalid, or the experiment is started with options for single runs.
    """
    if mode == RunMode.MULTIRUN:
        raise UsageError("expected one experiment, which is a command for many runs, got -m: leave out -m")
    if cfg.ckpt is not None:
        raise UsageError(
            f"expected no ckpt, as every cell of an experiment trains, got ckpt={cfg.ckpt}: leave out ckpt"
        )
    if main := main_words():
        raise UsageError(
            f"expected conf/train.yaml, to which the cells of an experiment add their options, got {main[0]}: "
            "type the options that it sets"
        )
    require_one_process("an experiment")
    if type(cfg.jobs) is not int or cfg.jobs < 1:
        raise UsageError(f"expected jobs, the number of runs at a time, to be at least 1, got {cfg.jobs}: type jobs=2")
    if not isinstance(cfg.cells, str):
        raise UsageError(f"expected cells to be the folder of all runs, got {cfg.cells}: type cells=outputs/cells")
