"""Compose configurations from overrides, or from overrides on top of those in a checkpoint."""

from __future__ import annotations

import copy
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobRuntime
from hydra.errors import HydraException
from hydra.types import RunMode
from hydra.version import VersionBase
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from metafew.config.allowlist import called_paths, check_called_paths
from metafew.config.carried import MACHINE, Composition, carried, choose, differences, lay
from metafew.config.command_line import readable
from metafew.config.groups import (
    CONF,
    current_options,
    describe_groups,
    group_names,
    register_evaluation_heads,
    searched,
)
from metafew.config.mistakes import in_one_line
from metafew.config.moved import ADDED, add_options
from metafew.config.overrides import key, merge, verbatim
from metafew.config.paths import resolve_paths
from metafew.errors import UsageError, reason

MAIN = "train"
"""The main configuration, unless ``--config-name`` names another."""
CONFIG_NAME = "--config-name"
ON_CHECKPOINT = "on_checkpoint"
"""The main configuration of a run that starts from a checkpoint."""
DEFERRED: set[str] = set()
"""Keys of the overrides that :func:`defer_to_checkpoint` changed."""


def compose_overrides(overrides: Sequence[str], sweeps: bool = True) -> DictConfig:
    """Compose a configuration from overrides, outside of ``train.py``.

    Args:
        overrides: the overrides.
        sweeps: whether a sweep is advised for several values of an option.

    Raises:
        UsageError: if Hydra cannot parse an override, or rejects it.
    """
    register_evaluation_heads(overrides)
    words = readable(overrides)
    with in_one_line(words, sweeps), initialized_hydra():
        return resolve_paths(hydra.compose(MAIN, words, return_hydra_config=True))


@contextmanager
def initialized_hydra() -> Iterator[None]:
    """Initialize Hydra with metafew's configurations inside this context, also inside a Hydra application."""
    outer, job, base = GlobalHydra.instance().hydra, JobRuntime.instance().get("name"), VersionBase.instance().getbase()
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            yield
    finally:
        GlobalHydra.instance().hydra = outer
        JobRuntime.instance().set("name", job)
        VersionBase.instance().version_base = base


def compose_on_checkpoint(cfg: DictConfig, saved: dict) -> tuple[DictConfig, list[str]]:
    """Return the configuration of a run that starts from a checkpoint, and its overrides.

    The command line overrides the configuration of the checkpoint. A group whose option differs from that of the
    checkpoint starts from the defaults of the new option; re-selecting the same option changes nothing.

    Args:
        cfg: the composition of the command line without the checkpoint; ``cfg.ckpt`` is the path of the checkpoint.
        saved: the checkpoint's record of its run.

    Raises:
        UsageError: if the command line does not fit the choices of the checkpoint, or the checkpoint calls code named
            neither in metafew's own YAML files nor on the command line.
    """
    chosen = HydraConfig.get()
    given = main_words() + [undeferred(override) for override in verbatim(chosen.overrides.task)]
    try:
        before = carried_by(saved)
        start = choose_groups(before, given, saved["overrides"])
        ConfigStore.instance().store(name=ON_CHECKPOINT, node=OmegaConf.create(start.config))
        composed = load(ON_CHECKPOINT, options(given, saved["overrides"]))
        with open_dict(composed):
            composed.hydra = copy.deepcopy(chosen)
            OmegaConf.set_readonly(composed.hydra, False)
            composed.hydra.runtime.choices.update(start.choices)
            HydraConfig.instance().set_config(composed)
            del composed["hydra"]
        composed.ckpt = cfg.ckpt
        check_called_paths(composed, cfg.ckpt, called_paths(cfg).values(), type_targets)
    except (HydraException, OmegaConfBaseException) as error:
        raise UsageError(
            f"expected overrides that fit the choices in {cfg.ckpt}, got others ({reason(error)}): "
            "type options of those choices, or choose the group again"
        ) from error
    changed = [group for group in group_names() if before.chosen(group) != start.chosen(group)]
    return composed, merge(saved["overrides"], given, changed)


def carried_by(saved: dict) -> Composition:
    """Return the composition in a checkpoint, or for an earlier version, compose it from the overrides there.

    Options that were added since are filled in, so that they can be overridden.
    """
    if "config" in saved:
        before = Composition(carried(saved["config"]), carried(saved["choices"]))
        current = {group: current_options(group, before.chosen(group)) for group in (*ADDED, "evaluate")}
        return before._replace(config=add_options(before.config, current))
    # Overrides of Hydra itself are dropped: in an untrusted checkpoint they could name any config folder.
    overrides = [override for override in saved["overrides"] if not override.lstrip("+~").startswith("hydra")]
    composed = compose_plain(MAIN, overrides)
    return Composition(carried(composed.config), carried(composed.choices))


def choose_groups(start: Composition, given: Sequence[str], before: Sequence[str]) -> Composition:
    """Return the configuration of a checkpoint with the groups chosen on a command line, completed by defaults.

    Args:
        start: the composition in the checkpoint.
        given: the overrides of the command line.
        before: the overrides of the run that wrote the checkpoint.
    """
    main, words = str(HydraConfig.get().job.config_name), [override for override in given if is_choice(override)]
    new, groups = compose_plain(main, words), {choice_name(override) for override in words}
    stated: dict = {}
    if main != MAIN:  # differences of the main configuration count as overrides
        own, default = compose_plain(main, []), compose_plain(MAIN, [])
        set_before = {key(override) for override in before} if main_words()[0] in before else set()
        groups |= {group for group in group_names() if own.chosen(group) != default.chosen(group)} - set_before
        stated = differences(carried(own.config), default.config, set_before)
    groups -= {*MACHINE}
    changed = start
    if any(start.chosen(group) != new.chosen(group) for group in groups):
        try:
            old = compose_plain(
                main, [word for group in groups for word in as_typed(group, start.chosen(group), words)]
            )
        except HydraException:  # an option of the user's own, whose folder this command line does not name
            old = compose_plain(main, [])
        changed = choose(start, old, new, groups)
    unsuited = {group for group in group_names() if changed.chosen(group) != new.chosen(group)}
    stated = {key: value for key, value in stated.items() if key not in unsuited}
    rest = {key: value for key, value in new.config.items() if key in MACHINE or key not in group_names()}
    return Composition(lay(lay(rest, changed.config), stated), changed.choices)


def compose_plain(main: str, overrides: Sequence[str]) -> Composition:
    """Return the composition of overrides of a main configuration, with the search path of this command line."""
    composed = load(main, overrides)
    choices = chosen_options(composed.hydra.runtime.choices)
    with open_dict(composed):
        del composed["hydra"]
    config: Any = OmegaConf.to_container(composed, resolve=False)
    return Composition(config, choices)


def chosen_options(choices: Mapping[str, Any]) -> dict[str, Any]:
    """Return the option that Hydra has chosen for each group, metafew's groups first.

    >>> chosen = chosen_options({"preset": "mine", "hydra/launcher": "basic", "evaluate": "[]", "head": "svm"})
    >>> chosen["head"], chosen["preset"], len(chosen) - len(describe_groups())
    ('svm', 'mine', 1)
    """
    others = [name for name in choices if not name.startswith("hydra/") and name not in group_names()]
    return {name: choices.get(name) for name in (*describe_groups(), *others)}


def load(main: str, overrides: Sequence[str]) -> DictConfig:
    """Return Hydra's composition of overrides and a main configuration in this run."""
    # A search path applies only to the command line that contains it, and is not saved.
    of_hydra = verbatim(HydraConfig.get().overrides.hydra)
    loader = GlobalHydra.instance().config_loader()
    return loader.load_configuration(main, [*searched(of_hydra), *overrides], RunMode.RUN)


def main_words() -> list[str]:
    """Return, in a list, the word that names the user's own main configuration, if any."""
    name = HydraConfig.get().job.config_name
    return [] if name == MAIN else [f"{CONFIG_NAME}={name}"]


def is_choice(override: str) -> bool:
    """Return whether an override chooses an option of a group, which may be one of the user's own."""
    group = key(override)
    if group in group_names() or not GlobalHydra.instance().is_initialized():
        return group in group_names()
    return "." not in group and bool(GlobalHydra.instance().config_loader().get_group_options(group))


def choice_name(override: str) -> str:
    """Return the name of a choice, as Hydra lists it.

    >>> choice_name("head=svm"), choice_name("+head@evaluate.second=ridge")
    ('head', 'head@evaluate.second')
    """
    return override.lstrip("+~").partition("=")[0]


def options(given: Sequence[str], before: Sequence[str]) -> list[str]:
    """Return the overrides of a command line that set options, in the form for the configuration of a checkpoint.

    Args:
        given: the overrides of the command line.
        before: the overrides of the run that wrote the checkpoint, which may be the same.

    >>> options(["head=svm", "ckpt=a.ckpt", "+trainer.benchmark=true", "~augment.views.flip"], ["~augment.views.flip"])
    ['++trainer.benchmark=true']
    """
    set_here = [
        override for override in given if not is_choice(override) and key(override) not in ("ckpt", CONFIG_NAME)
    ]
    set_here = [override for override in set_here if not (override.startswith("~") and override in before)]
    return [f"+{each}" if each.startswith("+") and not each.startswith("++") else each for each in set_here]


def as_typed(name: str, choice: Any, words: Sequence[str]) -> list[str]:
    """Return the override that makes a choice; none for a group of the user's own without a chosen option.

    Args:
        name: the group.
        choice: an option, a list of options, or None.
        words: the overrides of the command line, one of which chooses an option of this group.

    >>> as_typed("evaluate", ["svm"], ["evaluate=[]"]), as_typed("preset", "mine", ["+preset=other"])
    (['evaluate=[svm]'], ['+preset=mine'])
    """
    if name in group_names():
        return [f"{name}=[{','.join(choice)}]" if isinstance(choice, list) else f"{name}={choice or 'null'}"]
    added = f"+{name}" in {word.partition("=")[0] for word in words}
    return [f"{'+' * added}{name}={choice}"] if choice else []


def type_targets(targets: Mapping[str, str]) -> str:
    """Return the advice to name the code that a checkpoint calls, quoted for the shell."""
    prefixes = {path: "" if path.partition(".")[0] in group_names() else "++" for path in targets}
    words = [f"{prefixes[path]}{path}={target}" for path, target in targets.items()]
    return f"type {shlex.join(words)} in addition to ckpt"


def defer_to_checkpoint(overrides: Sequence[str]) -> list[str]:
    """Return the overrides with ``++`` in front of options whose group is chosen by the checkpoint only.

    Hydra composes before the checkpoint is read, and would reject an option that the default choice does not have.
    :func:`compose_on_checkpoint` checks them against the choice of the checkpoint.

    >>> defer_to_checkpoint(["ckpt=a.ckpt", "head.each_step=true", "norm=tasknorm", "norm.alpha=independent", "seed=1"])
    ['ckpt=a.ckpt', '++head.each_step=true', 'norm=tasknorm', 'norm.alpha=independent', 'seed=1']
    """
    DEFERRED.clear()  # of an earlier run of this process
    chosen = dict(override.split("=", 1) for override in overrides if "=" in override)
    if chosen.get("ckpt") in (None, "null", "last"):  # ckpt=last repeats all overrides of its run
        return list(overrides)
    undecided = tuple(f"{group}." for group in group_names() if group not in chosen)
    DEFERRED.update(key(each) for each in overrides if each.startswith(undecided) and "=" in each)
    return [f"++{each}" if key(each) in DEFERRED and each.startswith(undecided) else each for each in overrides]


def undeferred(override: str) -> str:
    """Return an override as it was before :func:`defer_to_checkpoint`."""
    return override.removeprefix("++") if key(override) in DEFERRED else override
