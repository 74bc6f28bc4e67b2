"""Checkpoints: what they say of themselves, and how their weights fit a model that was composed anew."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from metafew.errors import UsageError
from metafew.norms.norm import Norm

log = logging.getLogger(__name__)


def read(path: str | Path) -> dict:
    """Return the content of a checkpoint written by a run; code inside it is never executed."""
    wanted = "ckpt wants the path of a checkpoint that a metafew run wrote, such as outputs/.../checkpoints/best.ckpt"
    if not Path(path).is_file():
        raise UsageError(f"{wanted}, and there is no file {path}")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what a file of any other kind may raise is not for torch to say
        reason = str(error).split("\n")[0].rstrip(".")
        raise UsageError(f"{wanted}, and {path} cannot be read as one ({reason})") from error
    if not isinstance(checkpoint, dict) or not {"metafew", "state_dict", "global_step"} <= checkpoint.keys():
        raise UsageError(f"{wanted}, and {path} is something else")
    return checkpoint


def merge(saved: Iterable[str], typed: Iterable[str], groups: Iterable[str]) -> list[str]:
    """Return the overrides of a run that starts from the choices of a checkpoint and adds what is typed now.

    A typed value replaces the saved one; a newly typed group also drops the saved options below it.

    >>> merge(["norm=batch", "norm.eps=0.1", "seed=3", "head.c=1"], ["norm=layer", "ckpt=a.ckpt"], ["norm", "head"])
    ['seed=3', 'head.c=1', 'norm=layer', 'ckpt=a.ckpt']
    >>> merge(["+trainer.deterministic=true", "stages=[fit]"], ["ckpt=a.ckpt"], [])
    ['++trainer.deterministic=true', 'ckpt=a.ckpt']
    """

    def key(override: str) -> str:
        return override.lstrip("+~").split("=")[0].split("@")[0]

    typed = list(typed)
    replaced = {key(override) for override in typed}
    dropped = tuple(f"{group}." for group in replaced & set(groups))
    # A saved + added a key; where the key exists by now, ++ sets it.
    saved = [f"+{o}" if o.startswith("+") and not o.startswith("++") else o for o in saved]
    kept = [o for o in saved if key(o) not in replaced | {"ckpt", "stages"} and not key(o).startswith(dropped)]
    return kept + typed


def reconcile(state: dict[str, Tensor], model: nn.Module, path: str, fit: bool) -> dict[str, Tensor]:
    """Return a complete state of ``model``: the checkpoint's values, and the model's own where it may differ.

    A model may have other heads than the checkpoint, and another norm as long as the checkpoint holds every running
    moment that the norm needs. Anything else that differs is another architecture.

    Args:
        state: the state of the model that was saved.
        model: the model to complete.
        path: where the checkpoint comes from.
        fit: whether training will go on, which can fit what is missing.

    Raises:
        UsageError: the checkpoint at ``path`` does not fit.
    """
    own = model.state_dict()
    layers = {f"{name}.": module for name, module in model.named_modules() if isinstance(module, Norm)}
    norms, demanding = tuple(layers), tuple(n for n, m in layers.items() if getattr(m, "tests_by_running", False))
    fitted, fresh = {}, []
    for key, value in own.items():
        if key in state and state[key].shape == value.shape:
            fitted[key] = state[key]
        elif key in state or not key.startswith(("heads.", *norms)):
            came = f"shape {tuple(state[key].shape)}" if key in state else "nothing"
            group = "head" if key.startswith("heads.") else "norm" if key.startswith(norms) else "backbone"
            raise UsageError(
                f"the model wants {key} of shape {tuple(value.shape)} and the checkpoint {path} holds {came}: "
                f"type {group}=... with the options that it was trained with, or leave them out to use those"
            )
        elif "running" in key and key.startswith(demanding) and not fit:
            raise UsageError(
                f"this norm tests by running moments, and the checkpoint {path} was trained with a norm that keeps "
                "none: train with norm=batch, or test with the norm of the checkpoint"
            )
        else:
            fitted[key] = value
            fresh += [key] if key.startswith(norms) else []
    alien = [key for key in state if key not in own and not key.startswith(("heads.", *norms))]
    if alien:
        raise UsageError(
            f"the checkpoint {path} holds {alien[0]}, which this model has no place for: "
            "type backbone=... with the options that it was trained with, or leave them out to use those"
        )
    if fresh:
        log.warning("%d values of the norm are not in %s and start untrained", len(fresh), path)
    return fitted
