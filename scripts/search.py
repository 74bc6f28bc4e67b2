"""Search for the settings of highest validation accuracy, with Optuna.

  python scripts/search.py head=svm optimizer.lr=1e-4..1e-1,log head.scale=1..20 norm=batch,tasknorm trials=20 out=DIR

What is typed is what train.py takes, where LOW..HIGH is a range to search (of whole numbers if both are whole; on a
logarithmic scale with ,log) and A,B,C a list. The ranges of way and shot remain those of train.py. Every trial is a run
that trains and does not test, in a folder of its own below DIR/trials. Typed again, or with more trials, the search in
DIR goes on. Defaults are trials=20 out=outputs/search.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from metafew.cli import configuration
from metafew.distributed.launch import left_to
from metafew.errors import UsageError, carry_out
from metafew.experiments.cells import say, succeeded
from metafew.experiments.plan import Command
from metafew.io import read_json

if TYPE_CHECKING:
    import optuna

DEFAULTS = {"trials": "20", "out": "outputs/search"}
NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
RANGE = re.compile(rf"(?P<key>.+?)=(?P<low>{NUMBER})\.\.(?P<high>{NUMBER})(?P<log>,log)?")
DRAWN = (".way", ".shot")  # where train.py itself takes a range


class Space:
    """The words of a search.

    Attributes:
        fixed: the words of every trial.
        spaces: the range or list of each word that is searched.
    """

    def __init__(self, typed: Sequence[str]):
        self.fixed: list[str] = []
        self.spaces: dict[str, optuna.distributions.BaseDistribution] = {}
        for word in typed:
            space = distribution(word)
            if space is None:
                self.fixed.append(word)
            else:
                self.spaces[word.split("=")[0]] = space
        if not self.spaces:
            raise UsageError(
                "nothing is to be searched, since no word has a range or a list: type optimizer.lr=1e-4..1e-1,log"
            )

    def words(self, values: dict[str, float | int | str]) -> list[str]:
        """Return the words of a run with these values."""
        return [*self.fixed, *(f"{key}={value}" for key, value in values.items())]

    def bounds(self) -> Iterable[list[str]]:
        """Yield words that have every value of the lists, and the ends of the ranges, once."""
        ends = {key: list(getattr(s, "choices", ())) or [s.low, s.high] for key, s in self.spaces.items()}
        for number in range(max(map(len, ends.values()))):
            yield self.words({key: values[number % len(values)] for key, values in ends.items()})


def distribution(word: str) -> optuna.distributions.BaseDistribution | None:
    """Return what a word is searched in; None where it is fixed."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found = RANGE.fullmatch(word)
    if found and not found["key"].endswith(DRAWN):
        whole = all(re.fullmatch(r"[+-]?\d+", found[end]) for end in ("low", "high"))
        number, kind = (int, IntDistribution) if whole else (float, FloatDistribution)
        try:
            return kind(number(found["low"]), number(found["high"]), log=bool(found["log"]))
        except ValueError as error:
            raise UsageError(
                f"{found['key']} wants a range from low to high, above 0 if on a logarithmic scale, not "
                f"{found['low']}..{found['high']}{found['log'] or ''} ({error}): type {found['key']}=1e-4..1e-1,log"
            ) from error
    try:
        override = OverridesParser.create().parse_override(word)
    except HydraException as error:
        raise UsageError(" ".join(str(error).split())) from error
    if not override.is_sweep_override():
        return None
    if not override.is_discrete_sweep():
        raise UsageError(f"a range is typed LOW..HIGH, not as in {word}: type {override.key_or_group}=1e-4..1e-1,log")
    return CategoricalDistribution(list(override.sweep_string_iterator()))


def open_study(out: Path, typed: list[str]) -> optuna.Study:
    """Return the study in ``out``, which goes on with the words that it began with and no others."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    out.mkdir(parents=True, exist_ok=True)
    storage = JournalStorage(JournalFileBackend(str(out / "study.log")))
    study = optuna.create_study(storage=storage, study_name="search", direction="maximize", load_if_exists=True)
    before = study.user_attrs.get("words", typed)
    if sorted(before) != sorted(typed):
        raise UsageError(f"{out} holds a search of other words ({shlex.join(before)}): type out={out}_2")
    study.set_user_attr("words", typed)
    # The same seed once more would repeat the first random trials.
    study.sampler = optuna.samplers.TPESampler(seed=len(study.get_trials(deepcopy=False)))
    return study


def ended(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """Return the trials that ended, well or not."""
    return [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]


def attempt(study: optuna.Study, space: Space, out: Path, console: Console) -> None:
    """Carry out one trial, and tell the study and the user what came of it."""
    trial = study.ask(space.spaces)
    folder = out / "trials" / f"{trial.number:03d}"
    values = rounded(trial.params)
    say(console, f"{folder}: {' '.join(f'{key}={value}' for key, value in values.items())}")
    children = []
    with left_to(children) as signals:
        succeeded(Command(folder, (*space.words(values), "stages=[fit]")), children, signals)
    if signals:
        raise KeyboardInterrupt
    report = read_json(folder / "results.json")
    accuracy = next(iter(report.get("validation", {}).values()), None)
    if accuracy is None:
        error = report.get("error", "no validation took place")
        trial.set_user_attr("error", error)
        study.tell(trial, 0.0)  # Optuna learns nothing from its own state of failure, and would try the like again
        say(console, f"  failed: {error}")
    else:
        study.tell(trial, accuracy)
        say(console, f"  {100 * accuracy:.2f} %")


def rounded(values: dict[str, float | int | str]) -> dict[str, float | int | str]:
    """Return the values with four digits, as they are typed.

    >>> rounded({"optimizer.lr": 0.0012345678, "head.scale": 7, "norm": "batch"})
    {'optimizer.lr': 0.001235, 'head.scale': 7, 'norm': 'batch'}
    """
    return {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in values.items()}


def show(study: optuna.Study, space: Space, out: Path) -> None:
    """Print every trial, the best first, and the command of the best."""
    bad = [trial for trial in ended(study) if "error" in trial.user_attrs]
    good = sorted((trial for trial in ended(study) if trial not in bad), key=lambda trial: -trial.value)
    table = Table("trial", *map(escape, space.spaces))
    table.add_column("validation accuracy", justify="right")
    for trial in good + bad:
        values = (escape(str(value)) for value in rounded(trial.params).values())
        table.add_row(f"{trial.number:03d}", *values, "failed" if trial in bad else f"{100 * trial.value:.2f} %")
    console = Console()
    console.print(table)
    for trial in bad:
        say(console, f"trial {trial.number:03d} failed: {trial.user_attrs['error']}")
    if not good:
        raise UsageError(f"none of the {len(bad)} trials ended well: type other words, and out={out}_2")
    say(console, "the best, to be trained and tested:")
    say(console, "  " + shlex.join(["python", "train.py", *space.words(rounded(good[0].params))]))


def search(typed: Sequence[str]) -> None:
    """Do what the command line says."""
    if find_spec("optuna") is None:
        raise UsageError("a search wants the package optuna, which is not installed: type pip install 'metafew[sweep]'")
    values = DEFAULTS | dict(word.split("=", 1) for word in typed if word.split("=")[0] in DEFAULTS)
    words = [word for word in typed if word.split("=")[0] not in DEFAULTS]
    if not values["trials"].isdecimal() or not int(values["trials"]):
        raise UsageError(f"trials is a whole number of at least 1, not {values['trials']}: type trials=20")
    space, out, trials = Space(words), Path(values["out"]), int(values["trials"])
    for each in space.bounds():
        configuration(each)
    study, console = open_study(out, words), Console()
    try:
        while len(ended(study)) < trials:
            attempt(study, space, out, console)
    except KeyboardInterrupt:
        raise UsageError(f"interrupted, and {out} keeps what is finished: type the same command to go on") from None
    show(study, space, out)


def main(typed: Sequence[str]) -> int:
    """Carry out what is typed, and return the exit code."""
    return carry_out(search, typed, __doc__)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
