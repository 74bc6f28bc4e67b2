"""Compose configurations from overrides, or from overrides on top of those in a checkpoint."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from metafew.config.allowlist import called_paths, check_called_paths
from metafew.config.groups import CONF, describe_groups, group_names, register_evaluation_heads
from metafew.config.overrides import merge, verbatim
from metafew.errors import UsageError

DEFERRED: dict[str, str] = {}
"""Overrides that :func:`defer_to_checkpoint` changed, each with its form on the command line."""


def compose_overrides(overrides: Sequence[str]) -> DictConfig:
    """Return the configuration of these overrides, for programs other than ``train.py``.

    Raises:
        UsageError: if Hydra rejects an override.
    """
    register_evaluation_heads()
    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            return hydra.compose("train", list(overrides), return_hydra_config=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise UsageError(" ".join(str(error).split())) from error


def compose_on_checkpoint(cfg: DictConfig, saved: Sequence[str]) -> tuple[DictConfig, list[str]]:
    """Return the configuration of a run that starts from a checkpoint, and its overrides.

    The overrides of the command line are applied to those of the checkpoint.

    Args:
        cfg: what the command line composes without the checkpoint; ``cfg.ckpt`` is the path of the checkpoint.
        saved: the overrides that the checkpoint carries.

    Raises:
        UsageError: if the two sets of overrides do not compose, or those of the checkpoint call code that neither
            metafew's own YAML files nor the command line name.
    """
    chosen = HydraConfig.get()
    # Overrides of Hydra itself are never saved: in a checkpoint from elsewhere they could name any config folder.
    saved = [override for override in saved if not override.lstrip("+~").startswith("hydra")]
    given = [DEFERRED.get(override, override) for override in verbatim(chosen.overrides.task)]
    overrides = merge(saved, given, group_names())
    # A search path holds for the command line that gives it, and is not saved either.
    of_hydra = verbatim(chosen.overrides.hydra)
    search_path = [override for override in of_hydra if override.lstrip("+").startswith("hydra.searchpath=")]
    engine = GlobalHydra.instance().hydra
    assert engine is not None  # a run is a Hydra job
    try:
        composed = engine.compose_config(
            config_name="train", overrides=search_path + overrides, run_mode=RunMode.RUN, with_log_configuration=False
        )
    except HydraException as error:
        reason = " ".join(str(error).split())
        raise UsageError(
            f"expected overrides that fit the choices that {cfg.ckpt} carries, got others ({reason}): "
            "type options of those choices, or choose the group again"
        ) from error
    with open_dict(composed):
        choices = composed.hydra.runtime.choices
        composed.hydra = copy.deepcopy(chosen)
        OmegaConf.set_readonly(composed.hydra, False)
        composed.hydra.runtime.choices = choices
        HydraConfig.instance().set_config(composed)
        del composed["hydra"]
    check_called_paths(composed, cfg.ckpt, called_paths(cfg), "type it with its group in addition to ckpt")
    composed.ckpt = cfg.ckpt
    return composed, overrides


def defer_to_checkpoint(overrides: Sequence[str]) -> list[str]:
    """Return the overrides with ``++`` in front of options whose group only the checkpoint chooses.

    Hydra composes before the checkpoint is read, and would reject an option that the default choice does not have.
    :func:`compose_on_checkpoint` checks them against the choice of the checkpoint.

    >>> defer_to_checkpoint(["ckpt=a.ckpt", "head.each_step=true", "norm=tasknorm", "norm.alpha=independent", "seed=1"])
    ['ckpt=a.ckpt', '++head.each_step=true', 'norm=tasknorm', 'norm.alpha=independent', 'seed=1']
    """
    chosen = dict(override.split("=", 1) for override in overrides if "=" in override)
    if chosen.get("ckpt") in (None, "null", "last"):  # ckpt=last needs all overrides of its run again
        return list(overrides)
    undecided = tuple(f"{group}." for group in describe_groups() if group not in chosen)
    DEFERRED.update({f"++{each}": each for each in overrides if each.startswith(undecided) and "=" in each})
    return [f"++{each}" if f"++{each}" in DEFERRED else each for each in overrides]
