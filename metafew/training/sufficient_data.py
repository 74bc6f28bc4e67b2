"""Check that a dataset has enough classes and images for the tasks of a run; if not, suggest options."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple, NoReturn

from metafew.data.minibatches import Minibatches
from metafew.data.sources import SPLITS
from metafew.data.task_spec import Shortage, TaskSpec
from metafew.errors import UsageError
from metafew.training.parts import Parts

log = logging.getLogger(__name__)

SHARES: dict[int, list[float]] = {1: [1], 2: [0.5, 0.5], 3: [0.4, 0.3, 0.3]}
"""Fractions of classes for one to three splits; each gets at least two classes if there are two per split."""
PARTS = {"val": "validation", "test": "test", "analyze": "analysis"}
"""Optional parts of a run, in words."""


class Needed(NamedTuple):
    """Tasks that a run draws.

    Attributes:
        spec: the tasks.
        part: the stage that draws them, or ``val`` for validation during training and the selection of options.
    """

    spec: TaskSpec | Minibatches
    part: str


def check_tasks_can_be_drawn(parts: Parts) -> None:
    """Check the classes and images of each split that the run uses.

    Raises:
        UsageError: if there are too few; the message suggests options for all splits at once.
    """
    needs = list(needed_tasks(parts))
    drawn_from = [(need, component) for need in needs for component in parts.source.components(need.spec.split)]
    classes = {component: component.splits() for component in dict.fromkeys(c for _, c in drawn_from)}
    found: list[tuple[Needed, Shortage]] = []
    for need, component in drawn_from:
        spec, categories = need.spec, classes[component][need.spec.split]
        datasets = len(parts.source.components(spec.split))
        if need.part != "fit" and spec.total < datasets:  # training draws the dataset of each task at random
            option = "analyze.tasks" if need.part == "analyze" else f"{spec.split}.total"
            raise UsageError(
                f"expected {option} to be at least {datasets}, one task for each dataset of the mixture, got "
                f"{spec.total}: type {option}={100 * datasets}"
            )
        if isinstance(spec, TaskSpec):  # the options of the test specify the tasks to analyze
            lacks = spec.shortages(categories, component.title, "test" if need.part == "analyze" else None)
        else:
            lacks = spec.shortages(categories, component.title)
        found += [(need, shortage) for shortage in lacks]
    if found:
        raise_shortage(found, needs, parts)
    unused_classes: dict[tuple[int, int, str, str], int] = {}
    for need, component in drawn_from:
        categories = classes[component][need.spec.split]
        parts.data.augmentation.check_applicable(need.spec.split, component.image_size, categories)
        if isinstance(need.spec, TaskSpec) and (unused := need.spec.never_drawn(categories)):
            unused_classes[unused, len(categories), need.spec.split, component.title] = need.spec.bounds("way")[0]
    for counts, least in unused_classes.items():
        log.warning(
            "%d of %d classes of the %s split of dataset=%s are never drawn, as a task has the classes of one group, "
            "and their groups have fewer than %d",
            *(*counts, least),
        )


def needed_tasks(parts: Parts) -> Iterator[Needed]:
    """Yield the tasks of each split that the run uses."""
    data = parts.data
    if parts.fits:
        yield Needed(data.train, "fit")
    if (parts.fits and data.val.total) or parts.selects_on_validation:
        yield Needed(data.val, "val")
    if "test" in parts.stages:
        yield from (Needed(spec, "test") for spec in data.test)
    if "analyze" in parts.stages and data.analyzed is not None:
        yield Needed(data.analyzed, "analyze")


def raise_shortage(found: Sequence[tuple[Needed, Shortage]], needs: Sequence[Needed], parts: Parts) -> NoReturn:
    """Raise UsageError for the shortage, with option values that resolve it, or else with parts of the run to skip."""
    blocking = [(need, shortage) for need, shortage in found if not shortage.options]
    problems = "; ".join(dict.fromkeys(shortage.problem for _, shortage in blocking or found))
    if not blocking:
        options: dict[str, int | str] = {}
        for _, shortage in found:
            for option, value in shortage.options.items():
                options[option] = min(options[option], value, key=upper_bound) if option in options else value
        raise UsageError(f"{problems}: type {' '.join(f'{option}={value}' for option, value in options.items())}")
    lacking = dict.fromkeys("images" if shortage.images else "classes" for _, shortage in blocking)
    ways = [f"add {' and '.join(lacking)}"]
    ways += [f"type {words}" for words in words_without({need.part for need, _ in blocking}, parts)]
    if parts.source.drawn and "classes" in lacking:
        ways += [f"type {words}" for words in other_division(needs, parts)]
    raise UsageError(f"{problems}: {', or '.join(ways)}")


def upper_bound(value: int | str) -> int:
    """Return the largest number of an option's value, which may be a range."""
    return int(str(value).rpartition("..")[2])


def words_without(dropped: Collection[str], parts: Parts) -> list[str]:
    """Return, in a list, what to type for a run without some of its parts; empty if no part would remain."""
    stages = [stage for stage in parts.stages if stage not in dropped]
    if not stages or "fit" in dropped:
        return []
    words = []
    if "val" in dropped:
        words += ["val.total=0"] * parts.fits + parts.first_candidates * (stages != ["fit"])
    if stages != parts.stages:
        words.append(f"stages={stages[0]}" if len(stages) == 1 else f"stages=[{','.join(stages)}]")
    names = [name for part, name in PARTS.items() if part in dropped]
    return [f"{' '.join(words)} to do without {' and '.join(names)}"]


def other_division(needs: Sequence[Needed], parts: Parts) -> list[str]:
    """Return, in a list, what to type so that each required split has two classes; empty if that is impossible.

    Keeps as many parts of the run as possible.
    """
    count = sum(map(len, parts.source.splits().values()))
    for without in (set[str](), {"val"}, {"val", "test", "analyze"}):
        dropped = {need.part for need in needs if need.part in without}
        used = {need.spec.split for need in needs if need.part not in dropped}
        splits = [split for split in SPLITS if split in used]
        rest = words_without(dropped, parts) if dropped else [""]
        if splits and rest and count >= 2 * len(splits):
            shares = dict(zip(splits, SHARES[len(splits)], strict=True))
            fractions = ",".join(str(shares.get(split, 0)) for split in SPLITS)
            return [f"dataset.fractions=[{fractions}] {rest[0]}".rstrip()]
    return []
