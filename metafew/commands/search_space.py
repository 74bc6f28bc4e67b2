"""The command line of a search: fixed overrides, and distributions for the others."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from hydra.errors import HydraException

from metafew.config.quoting import parser
from metafew.errors import UsageError, reason

if TYPE_CHECKING:
    import optuna

NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
RANGE = re.compile(rf"(?P<key>.+?)=(?P<low>{NUMBER})\.\.(?P<high>{NUMBER})(?P<log>,log)?")
TASK_RANGES = (".way", ".shot")  # options for which train.py itself accepts ranges


class Space:
    """The overrides of a search.

    Attributes:
        fixed: the overrides shared by all trials.
        distributions: the distribution of each other key.

    Raises:
        UsageError: if an override cannot be parsed, or none has a range or a list.
    """

    def __init__(self, overrides: Sequence[str]):
        self.fixed: list[str] = []
        self.distributions: dict[str, Any] = {}
        for override in overrides:
            found = distribution(override)
            if found is None:
                self.fixed.append(override)
            else:
                self.distributions[override.split("=")[0]] = found
        if not self.distributions:
            raise UsageError(
                f"expected a range or a list to search, got {' '.join(overrides)}: type optimizer.lr=1e-4..1e-1,log"
            )

    def overrides(self, values: dict[str, float | int | str]) -> list[str]:
        """Return the overrides of a run with these values."""
        return [*self.fixed, *(f"{key}={value}" for key, value in values.items())]

    def bounds(self) -> Iterable[list[str]]:
        """Yield overrides that together contain each value of the lists and both ends of the ranges."""
        ends = {key: list(getattr(d, "choices", ())) or [d.low, d.high] for key, d in self.distributions.items()}
        for number in range(max(map(len, ends.values()))):
            yield self.overrides({key: values[number % len(values)] for key, values in ends.items()})


def distribution(override: str) -> optuna.distributions.BaseDistribution | None:
    """Return the distribution of the key of an override; None if it is fixed.

    Raises:
        UsageError: if the range is empty or not of the form LOW..HIGH, or Hydra cannot parse the override.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found = RANGE.fullmatch(override)
    if found and not found["key"].endswith(TASK_RANGES):
        integers = all(re.fullmatch(r"[+-]?\d+", found[end]) for end in ("low", "high"))
        kinds: tuple[Any, Any] = (int, IntDistribution) if integers else (float, FloatDistribution)
        number, kind = kinds
        try:
            return kind(number(found["low"]), number(found["high"]), log=bool(found["log"]))
        except ValueError as error:
            raise UsageError(
                f"expected {found['key']} to have a range from low to high, above 0 on a logarithmic scale, got "
                f"{found['low']}..{found['high']}{found['log'] or ''} ({error}): type {found['key']}=1e-4..1e-1,log"
            ) from error
    try:
        parsed = parser().parse_override(override)
    except HydraException as error:
        raise UsageError(reason(error)) from error
    if not parsed.is_sweep_override():
        return None
    if not parsed.is_discrete_sweep():
        raise UsageError(f"expected a range LOW..HIGH, got {override}: type {parsed.key_or_group}=1e-4..1e-1,log")
    return CategoricalDistribution(list(parsed.sweep_string_iterator()))
