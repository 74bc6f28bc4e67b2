"""Share the cores among the cells of a sweep, skip finished cells, and report failed cells at its end."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from metafew.config.carried import TRAINING
from metafew.config.groups import ALL
from metafew.config.moved import add_options, update_record
from metafew.config.overrides import key
from metafew.config.quoting import to_paste
from metafew.distributed.threads import share_cores
from metafew.errors import UsageError
from metafew.io import is_own, read_json


class ReportFailedCells(Callback):
    """Hydra callback that lists the failed cells of a sweep, and then exits with 1."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Record the cells of an earlier sweep in the same folder, and divide the cores among concurrent cells."""
        if config.hydra.runtime.choices["hydra/launcher"] == "joblib":
            share_cores(config.hydra.launcher.n_jobs)
        self.before = start_times(Path(config.hydra.sweep.dir), config.hydra.output_subdir)
        subdir = cast(dict, OmegaConf.to_container(config.hydra.sweep)).get("subdir")
        if config.get("ckpt") == "last" and "hydra.job.num" in str(subdir):
            if config.hydra.runtime.choices["hydra/sweeper"] != "basic":  # another sweeper chooses values as it goes
                return
            try:
                check_numbers(Path(config.hydra.sweep.dir), runs_of(config.hydra))
            except UsageError as error:
                print(f"metafew: {error}", file=sys.stderr)
                sys.exit(2)

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Read the results of every cell of this sweep."""
        times = start_times(Path(config.hydra.sweep.dir), config.hydra.output_subdir)
        cells = [cell for cell, time in times.items() if self.before.get(cell) != time]
        failed = {cell: error for cell in cells if (error := error_of(cell))}
        if failed:
            print(f"{len(failed)} of {len(cells)} runs failed:", file=sys.stderr)
            for cell, error in failed.items():
                print(f"  {cell}: {error}", file=sys.stderr)
            sys.exit(1)


def check_numbers(folder: Path, runs: list[list[str]]) -> None:
    """Check that the runs of an earlier sweep in a folder, which ``ckpt=last`` resumes, keep their numbers and options.

    Args:
        folder: the folder of the sweep.
        runs: the :func:`runs_of` this sweep.

    Raises:
        UsageError: if they do not.
    """
    try:
        before = runs_of(cast(DictConfig, OmegaConf.load(folder / "multirun.yaml")).hydra)
    except (OSError, YAMLError, OmegaConfBaseException):  # there was no earlier sweep, or its file is damaged
        return
    if before != runs[: len(before)]:
        raise UsageError(
            f"expected the training options with which the sweep in {folder} was started, and more values only at the "
            f"end of the first one that it sweeps, so that ckpt=last finds its runs, got others: type "
            f"{to_paste('hydra.sweep.dir', f'{folder}_2')} for the new ones"
        )


def runs_of(hydra: Any) -> list[list[str]]:
    """Return the overrides of each run of a sweep that are swept or affect training, sorted, given Hydra's options."""
    given = OmegaConf.select(hydra, "sweeper.params") or {}
    overrides = [*(f"{name}={values}" for name, values in given.items()), *hydra.overrides.task]
    parsed = OverridesParser.create(GlobalHydra.instance().config_loader()).parse_overrides(overrides)
    kept = {key(override) for override in overrides if affects_training(key(override))}
    kept |= {each.get_key_element() for each in parsed if each.is_sweep_override()}
    (runs,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    return [sorted(override for override in run if key(override) in kept) for run in runs]


def affects_training(name: str) -> bool:
    """Return whether a key affects training in all cases, unlike options of heads for evaluation, and paths of images.

    >>> [affects_training(name) for name in ("norm", "head", "head.test_steps", "dataset.root", "test.shot")]
    [True, True, False, False, False]
    """
    group, _, option = name.partition(".")
    return group in TRAINING and not (option and group in ("head", "dataset"))


def error_of(cell: Path) -> str | None:
    """Return the error of a cell, if any; Hydra turns exceptions in a callback into warnings."""
    try:
        report = read_json(cell / "results.json")
    except (OSError, UsageError) as error:
        return str(error)
    return report.get("error") if report else "it wrote no results"


def start_times(sweep: Path, subdir: str | None) -> dict[Path, int]:
    """Return the start times of the runs of a sweep, in nanoseconds, by the clock of their file system.

    ``subdir`` is ``hydra.output_subdir``; without it, these are the times of the runs' results or errors.
    """
    # Hydra writes overrides.yaml when a cell starts, in any process and on any machine.
    name = f"{subdir}/overrides.yaml" if subdir else "results.json"
    depth = name.count("/")
    return {file.parents[depth]: file.stat().st_mtime_ns for file in sorted(sweep.glob(f"**/{name}"))}


def finished(out: Path, config: dict, fingerprints: Callable[[], dict[str, str]]) -> bool:
    """Return whether ``out`` contains the results of this configuration, possibly after interruptions.

    Those of a test must be newer than the weights that it tests.

    Args:
        out: folder of the run.
        config: the composed configuration, as plain values.
        fingerprints: returns the fingerprints of the data by name. It is called only if the configurations are equal,
            and not for results of earlier versions, which contain no fingerprints.
    """
    report = out / "results.json"
    saved, written = read_json(report), report.stat().st_mtime_ns if report.is_file() else 0
    if "config" not in saved or not saved.get("finished", True):  # missing from results of earlier versions
        return False
    before = add_options(update_record(saved)["config"], config)
    if without_own_ckpt(before, out) != without_own_ckpt(without_left_out(config, before), out):
        return False
    rewritten = any(file.is_file() and file.stat().st_mtime_ns > written for file in weights_of(config, out))
    if rewritten and "fit" not in config.get("stages", ()):  # a training would resume, and keep its weights
        return False
    data = {title: summary["fingerprint"] for title, summary in saved.get("data", {}).items()}
    return not data or data == fingerprints()


def without_left_out(config: dict, before: dict) -> dict:
    """Return ``config``, with ``evaluate=all`` restricted to the heads that a run with ``before`` did not leave out.

    Heads that are named with ``all`` stay, as that run did not evaluate them.

    >>> heads = {"svm": {"c": 1}, "maml": {}, "tsa": {}, "all": ["tsa"]}
    >>> without_left_out({"evaluate": heads}, {"evaluate": {"svm": {"c": 2}}})
    {'evaluate': {'svm': {'c': 1}, 'tsa': {}}}
    """
    evaluated, kept = config.get("evaluate") or {}, before.get("evaluate") or {}
    if ALL not in evaluated:
        return config
    kept = {*kept, *evaluated[ALL]}
    return config | {"evaluate": {name: head for name, head in evaluated.items() if name in kept}}


def weights_of(config: dict, out: Path) -> list[Path]:
    """Return the files of the weights of a run, without its own checkpoints."""
    names = (without_own_ckpt(config, out)["ckpt"], (config.get("backbone") or {}).get("weights"))
    return [Path(name) for name in names if name is not None]


def without_own_ckpt(config: dict, out: Path) -> dict:
    """Return ``config`` without a ``ckpt`` inside ``out``, which only means that the run was resumed."""
    return config | {"ckpt": None} if is_own(config["ckpt"], out) else config
