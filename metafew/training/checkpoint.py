"""Read checkpoints and match their weights to the model of a run."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metafew.config.carried import training_options
from metafew.config.moved import update_record
from metafew.config.quoting import to_paste
from metafew.errors import UsageError
from metafew.norms.convert import LAYERS
from metafew.norms.norm import Norm
from metafew.training.learner import Learner

log = logging.getLogger(__name__)

EXPECTED = "expected ckpt to be the path of a checkpoint of metafew, such as outputs/.../checkpoints/best.ckpt"


def read(path: str | PathLike) -> dict:
    """Return the content of a checkpoint without executing any code in it.

    Raises:
        UsageError: if there is no such file, or it is not a checkpoint of this version of metafew.
    """
    if Path(path).is_dir():
        raise UsageError(f"{EXPECTED}, and {path} is a folder{checkpoint_of(Path(path))}")
    if not Path(path).is_file():
        raise UsageError(f"{EXPECTED}, and there is no file {path}")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch does not document the errors for other files
        reason = str(error).split("\n")[0].rstrip(".")
        raise UsageError(f"{EXPECTED}, and {path} cannot be read as one ({reason})") from error
    return checked(checkpoint, path)


def checkpoint_of(folder: Path) -> str:
    """Return the end of the error for a folder in place of a checkpoint: what to type, or why there is nothing."""
    for file in (folder / "checkpoints" / f"{name}.ckpt" for name in ("best", "last")):
        if file.is_file():
            return f": type {to_paste('ckpt', file)}"
    if (folder / "results.json").is_file():
        return " of a run that wrote none, as only training does (stages=[fit,test]): type ckpt=PATH of another run"
    return " without checkpoints: type ckpt=PATH of a file"


def checked(checkpoint: Any, path: str | PathLike) -> dict:
    """Return the content of a file, with the configuration of earlier versions updated.

    Raises:
        UsageError: if it is not a checkpoint of this version of metafew.
    """
    if not isinstance(checkpoint, dict) or not {"metafew", "state_dict", "global_step"} <= checkpoint.keys():
        raise UsageError(f"{EXPECTED}, and {path} is a different file")
    if "model" not in checkpoint["metafew"]:
        raise UsageError(
            f"{EXPECTED}, and {path} is of an earlier version, which built models in another way: train again"
        )
    saved = update_record(checkpoint["metafew"])
    saved = {"temperatures": {}, "base_mean": None} | saved  # earlier versions have none
    of_drawings = saved["choices"].get("dataset") == "glyphs"  # earlier versions do not record it
    saved["model"] = {"drawings": of_drawings} | saved["model"]
    if "config" in saved:  # checkpoints of earlier versions contain ``training`` itself
        saved["training"] = training_options(saved["config"])
    return checkpoint | {"metafew": saved}


def trained_head(checkpoint: dict) -> str | None:
    """Return the name of the head that was trained; None if the objective trained none."""
    saved = checkpoint["metafew"]
    return saved["choices"]["head"] if saved["model"]["trained"] else None


def trained_state(checkpoint: dict) -> dict[str, Tensor]:
    """Return the state of a checkpoint without heads that only evaluated, whose values come from their options."""
    trained, state = f"heads.{trained_head(checkpoint)}.", checkpoint["state_dict"].items()
    return {key: value for key, value in state if not key.startswith("heads.") or key.startswith(trained)}


@contextmanager
def explain_channels(learner: Learner, checkpoint: dict, path: str) -> Iterator[None]:
    """Raise an error about channels if a checkpoint does not fit and its images had a different number of them.

    Args:
        learner: the model of this run.
        checkpoint: the content of the checkpoint.
        path: the checkpoint.
    """
    try:
        yield
    except UsageError as error:
        saved = checkpoint["metafew"]
        channels = saved["model"]["images"]["channels"]
        if channels == learner.backbone.channels:
            raise
        raise other_channels(learner, channels, path, f"dataset={saved['choices']['dataset']}") from error


def other_channels(learner: Learner, channels: int, path: str, dataset: str) -> UsageError:
    """Return the error for weights that were trained on images with a different number of channels.

    Args:
        learner: the model of this run.
        channels: the number in training.
        path: the weights.
        dataset: what to type if the dataset of this run has no option ``channels``.
    """
    word = f"dataset.channels={channels}" if "channels" in learner.provenance["config"]["dataset"] else dataset
    return UsageError(
        f"expected images of {channels} channels, as {path} was trained on, got images of {learner.backbone.channels}: "
        f"type {word}"
    )


def complete_state(state: dict[str, Tensor], model: nn.Module, path: str, fit: bool) -> dict[str, Tensor]:
    """Return a complete state of ``model``: the values of a checkpoint, or the model's own where these may differ.

    The heads may differ from those of the checkpoint, and so may the norm, provided that the checkpoint contains all
    running moments that the norm needs. Any other difference means another architecture.

    Args:
        state: the saved state.
        model: the model to complete.
        path: the checkpoint.
        fit: whether the model will be trained, which can fit missing values.

    Raises:
        UsageError: if the checkpoint at ``path`` does not fit.
    """
    own = model.state_dict()
    layers = {f"{name}.": module for name, module in model.named_modules() if isinstance(module, (Norm, *LAYERS))}
    norms = tuple(layers)
    need_running = tuple(
        name
        for name, norm in layers.items()
        if (norm.requires_running_moments(fit) if isinstance(norm, Norm) else not fit)
    )
    complete, untrained = {}, []
    for key, value in own.items():
        if key in state and (not isinstance(value, Tensor) or state[key].shape == value.shape):
            complete[key] = state[key]
        elif key.startswith("objective.") and not fit:  # unused without training
            complete[key] = value
        elif key in state or not key.startswith(("heads.", "objective.", *norms)):
            raise misfit(key, value, state, path, norms)
        elif "running" in key and key.startswith(need_running):
            raise UsageError(
                f"expected a checkpoint with running moments for this norm, and {path} was trained with a norm that "
                "keeps none: train that with norm=batch, or use the norm of the checkpoint"
            )
        else:
            complete[key] = value
            untrained += [key] if key.startswith(norms) else []
    unknown = [key for key in state if key not in own and not key.startswith(("heads.", "objective.", *norms))]
    if unknown:
        raise UsageError(
            f"expected the architecture of this model, and the checkpoint {path} also holds {unknown[0]}: "
            "type backbone=... with the options of the checkpoint, or leave it out to use them"
        )
    if untrained:
        log.warning("%d values of the norm are not loaded from %s and start untrained", len(untrained), path)
    return complete


def misfit(key: str, value: Tensor, state: dict[str, Tensor], path: str, norms: tuple[str, ...]) -> UsageError:
    """Return the error for a value that is missing from a checkpoint or has another shape there."""
    got = f"shape {tuple(state[key].shape)}" if key in state else "nothing"
    groups = {"heads.": "head", "objective.": "objective"} | dict.fromkeys(norms, "norm")
    group = next((group for prefix, group in groups.items() if key.startswith(prefix)), "backbone")
    return UsageError(
        f"expected {key} of shape {tuple(value.shape)}, and the checkpoint {path} holds {got}: "
        f"type {group}=... with the options of the checkpoint, or leave it out to use them"
    )
