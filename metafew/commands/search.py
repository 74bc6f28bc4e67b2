"""Search for the settings with the highest validation accuracy, using Optuna.

  metafew search head=svm optimizer.lr=1e-4..1e-1,log head.scale=1..20 norm=batch,tasknorm trials=20 out=DIR

The overrides are those of train.py, in which LOW..HIGH is a range to search (of integers if both are integers; on a
logarithmic scale with ,log) and A,B,C a list. Ranges of way and shot keep their meaning in train.py. Every trial is a
run that trains without a test, in its own folder below DIR/trials. Repeating the command, also with more trials,
resumes the search in DIR. Defaults are trials=20 out=outputs/search.
"""

from __future__ import annotations

import math
import shlex
import subprocess
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from metafew.cli import data_fingerprints
from metafew.commands.command_line import check_out, own_options, run_command
from metafew.commands.search_space import Space
from metafew.config.command_line import readable
from metafew.config.compose import compose_overrides
from metafew.config.option_values import as_list
from metafew.config.quoting import to_paste
from metafew.distributed.subprocesses import forward_signals
from metafew.errors import UsageError
from metafew.evaluation.statistics import format_percent, score
from metafew.experiments.cells import print_plain, run_in_process
from metafew.experiments.plan import Command
from metafew.io import read_json

if TYPE_CHECKING:
    import optuna

DEFAULTS = {"trials": "20", "out": "outputs/search"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(search, arguments, __doc__)


def search(arguments: Sequence[str]) -> None:
    """Run trials until there are enough, and print them."""
    if find_spec("optuna") is None:
        raise UsageError("expected the package optuna, got no such package: type pip install 'metafew[sweep]'")
    options, words = own_options(arguments, DEFAULTS)
    check_out(words)
    overrides = readable(words)
    if not options["trials"].isdecimal() or not int(options["trials"]):
        raise UsageError(f"expected trials to be an integer of at least 1, got {options['trials']}: type trials=20")
    if own := [word for word in overrides if word.startswith(("stages=", "experiment="))]:
        raise UsageError(f"expected no {own[0].partition('=')[0]}, as a search trains, got {own[0]}: leave it out")
    if start := next((word for word in overrides if word.startswith("ckpt=")), None):
        raise UsageError(
            f"expected no ckpt, as the trials of a search are new trainings, got {start}: leave it out, or type "
            "backbone.weights=PATH for the weights of a backbone"
        )
    space, out, trials = Space(overrides), Path(options["out"]), int(options["trials"])
    composed = [compose_overrides(each) for each in space.bounds()]  # refuses invalid values before the first run
    if not all(cfg.val.total for cfg in composed):
        raise UsageError(
            "expected validation tasks, on which a search compares its trials, got val.total=0: type val.total=200"
        )
    searches_data = any(key.split(".")[0] == "dataset" for key in space.distributions)
    data = {} if searches_data else data_fingerprints(composed[0])
    study, console = open_study(out, overrides, data), Console()
    try:
        while len(finished_trials(study)) < trials:
            run_trial(study, space, out, console)
    except KeyboardInterrupt:
        raise UsageError(f"interrupted; finished trials are kept in {out}: type the same command to resume") from None
    trains = all("fit" in as_list(cfg.stages) for cfg in composed)
    print_trials(study, space, out, console, [] if trains else ["stages=[fit,test]"])


def open_study(out: Path, overrides: list[str], data: dict[str, str]) -> optuna.Study:
    """Return the study in ``out``.

    Args:
        out: folder of the search.
        overrides: the overrides.
        data: the fingerprints of the data by name.

    Raises:
        UsageError: if it was started with other overrides, or on other data.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        out.mkdir(parents=True, exist_ok=True)
        storage = JournalStorage(JournalFileBackend(str(out / "study.log")))
    except OSError as error:
        raise UsageError(f"expected out={out} to be a folder that can be written, got {error}: type out=DIR") from error
    study = optuna.create_study(storage=storage, study_name="search", direction="maximize", load_if_exists=True)
    before = study.user_attrs.get("words", overrides)
    if sorted(before) != sorted(overrides):
        raise UsageError(
            f"expected the overrides with which the search in {out} was started ({shlex.join(before)}), got "
            f"{shlex.join(overrides)}: type {to_paste('out', f'{out}_2')}"
        )
    if study.user_attrs.get("data", data) != data:  # missing from searches of earlier versions
        raise UsageError(
            f"expected the images with which the search in {out} was started, got others of dataset="
            f"{' and '.join(data)}: bring those back, or type {to_paste('out', f'{out}_2')}"
        )
    study.set_user_attr("words", overrides)
    study.set_user_attr("data", data)
    # A resumed search with the same seed would repeat its first, random trials.
    study.sampler = optuna.samplers.TPESampler(seed=len(study.get_trials(deepcopy=False)))
    return study


def finished_trials(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """Return the trials that ended, including failed ones."""
    return [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]


def run_trial(study: optuna.Study, space: Space, out: Path, console: Console) -> None:
    """Run one trial, report its accuracy to the study and print it."""
    trial = study.ask(space.distributions)
    folder = out / "trials" / f"{trial.number:03d}"
    values = rounded(trial.params)
    print_plain(console, f"{folder}: {' '.join(f'{key}={value}' for key, value in values.items())}")
    children: list[subprocess.Popen] = []
    with forward_signals(children) as signals:
        run_in_process(Command(folder, (*space.overrides(values), "stages=[fit]")), children, signals)
    if signals:
        raise KeyboardInterrupt
    report = read_json(folder / "results.json")
    validation = {name.rpartition("/")[2]: value for name, value in report.get("validation", {}).items()}
    if not validation:
        error = report.get("error", "it was never validated")
        trial.set_user_attr("error", error)
        # The sampler ignores trials in the state FAIL, and would propose similar ones again.
        study.tell(trial, -math.inf)
        print_plain(console, f"  failed: {error}")
    else:
        failed = validation.get("failed", 0)
        trial.set_user_attr("validation", {"mean": validation["accuracy"], "ci95": None, "failed": failed})
        study.tell(trial, score(validation["accuracy"], failed))
        print_plain(console, f"  {format_percent(trial.user_attrs['validation'], ' %')}")


def rounded(values: dict[str, float | int | str]) -> dict[str, float | int | str]:
    """Round floats to four digits, as in the command line of a trial.

    >>> rounded({"optimizer.lr": 0.0012345678, "head.scale": 7, "norm": "batch"})
    {'optimizer.lr': 0.001235, 'head.scale': 7, 'norm': 'batch'}
    """
    return {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in values.items()}


def print_trials(study: optuna.Study, space: Space, out: Path, console: Console, stages: Sequence[str]) -> None:
    """Print all trials, the best first, and the command of the best, with an override of the stages if necessary.

    Raises:
        UsageError: if all trials failed.
    """
    failed = [trial for trial in finished_trials(study) if "error" in trial.user_attrs]
    ranked = sorted((t for t in finished_trials(study) if t not in failed), key=lambda trial: -(trial.value or 0))
    table = Table("trial", *map(escape, space.distributions))
    table.add_column("validation accuracy", justify="right")
    for trial in ranked + failed:
        values = rounded(trial.params)
        # In earlier versions, the value of a trial is its accuracy.
        accuracy = trial.user_attrs.get("validation", {"mean": trial.value, "ci95": None})
        cells = [escape(str(values[key])) for key in space.distributions]
        table.add_row(f"{trial.number:03d}", *cells, "failed" if trial in failed else format_percent(accuracy, " %"))
    console.print(table)
    for trial in failed:
        print_plain(console, f"trial {trial.number:03d} failed: {trial.user_attrs['error']}")
    if not ranked:
        raise UsageError(
            f"expected at least one trial to succeed, got {len(failed)} that failed: type other overrides and "
            f"{to_paste('out', f'{out}_2')}"
        )
    print_plain(console, "the best, to be trained and tested:")
    best = space.overrides(rounded(ranked[0].params))
    print_plain(console, "  " + shlex.join(["python", "train.py", *best, *stages]))
