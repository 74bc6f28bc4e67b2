"""Checkpoints: what they say of themselves, and how their weights fit a model that was composed anew."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import Tensor, nn

from metafew.backbones.backbone import Backbone
from metafew.config.moved import current
from metafew.errors import UsageError
from metafew.meta_parameters import meta_parameters
from metafew.norms.norm import Norm

log = logging.getLogger(__name__)


def read(path: str | Path) -> dict:
    """Return the content of a checkpoint written by a run; code inside it is never executed."""
    wanted = "ckpt wants the path of a checkpoint that a metafew run wrote, such as outputs/.../checkpoints/best.ckpt"
    if not Path(path).is_file():
        found = Path(path, "checkpoints", "best.ckpt")
        advice = f": type ckpt={found}" if found.is_file() else ""
        raise UsageError(f"{wanted}, and there is no file {path}{advice}")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what a file of any other kind may raise is not for torch to say
        reason = str(error).split("\n")[0].rstrip(".")
        raise UsageError(f"{wanted}, and {path} cannot be read as one ({reason})") from error
    if not isinstance(checkpoint, dict) or not {"metafew", "state_dict", "global_step"} <= checkpoint.keys():
        raise UsageError(f"{wanted}, and {path} is something else")
    if "model" not in checkpoint["metafew"]:
        raise UsageError(f"{wanted}, and {path} is of an earlier metafew, whose models were made otherwise: train anew")
    return checkpoint | {"metafew": current(checkpoint["metafew"])}


def trained(checkpoint: dict) -> dict[str, Tensor]:
    """Return the state of a checkpoint without the heads that only measured: they have the values of their YAML."""
    saved = checkpoint["metafew"]
    own = f"heads.{saved['choices']['head']}." if saved["model"]["trained"] else "heads.none."
    state = checkpoint["state_dict"].items()
    return {key: value for key, value in state if not key.startswith("heads.") or key.startswith(own)}


def install(backbone: Backbone, path: str) -> None:
    """Give ``backbone`` the weights and running moments of the backbone of a checkpoint; meta-parameters stay.

    Raises:
        UsageError: the checkpoint at ``path`` holds another backbone.
    """
    whole = nn.ModuleDict({"backbone": backbone})
    kept, saved = meta_parameters(whole), read(path)["state_dict"].items()
    state = {key: value for key, value in saved if key.startswith("backbone.") and key not in kept}
    whole.load_state_dict(reconcile(state, whole, path, fit=True))


def freeze(backbone: Backbone) -> None:
    """Freeze all of ``backbone`` but its meta-parameters, such as TaskNorm's scalars."""
    backbone.requires_grad_(False)
    for parameter in meta_parameters(backbone).values():
        parameter.requires_grad_(True)


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
    norms, demanding = tuple(layers), tuple(n for n, m in layers.items() if m.requires_running_moments(fit))
    fitted, fresh = {}, []
    for key, value in own.items():
        if key in state and (not isinstance(value, Tensor) or state[key].shape == value.shape):
            fitted[key] = state[key]
        elif key.startswith("objective.") and not fit:  # of no use in a test
            fitted[key] = value
        elif key in state or not key.startswith(("heads.", "objective.", *norms)):
            came = f"shape {tuple(state[key].shape)}" if key in state else "nothing"
            groups = {"heads.": "head", "objective.": "objective"} | dict.fromkeys(norms, "norm")
            group = next((group for start, group in groups.items() if key.startswith(start)), "backbone")
            raise UsageError(
                f"the model wants {key} of shape {tuple(value.shape)} and the checkpoint {path} holds {came}: "
                f"type {group}=... with the options that it was trained with, or leave them out to use those"
            )
        elif "running" in key and key.startswith(demanding):
            raise UsageError(
                f"this norm rests on running moments, and the checkpoint {path} was trained with a norm that keeps "
                "none: train that with norm=batch, or use the norm of the checkpoint"
            )
        else:
            fitted[key] = value
            fresh += [key] if key.startswith(norms) else []
    alien = [key for key in state if key not in own and not key.startswith(("heads.", "objective.", *norms))]
    if alien:
        raise UsageError(
            f"the checkpoint {path} holds {alien[0]}, which this model has no place for: "
            "type backbone=... with the options that it was trained with, or leave them out to use those"
        )
    if fresh:
        log.warning("%d values of the norm are not in %s and start untrained", len(fresh), path)
    return fitted
