"""The conversion of images belongs to the model: checkpoints store it, and tests of a checkpoint follow it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from inspect import signature
from typing import Any

from omegaconf import DictConfig, OmegaConf

from metafew.config.overrides import key
from metafew.data.datamodule import FewShot
from metafew.data.sources import Source
from metafew.data.store import describe

log = logging.getLogger(__name__)


def follow_training(cfg: DictConfig, start: dict, overrides: Sequence[str]) -> None:
    """Set the dataset options that convert images to those of a checkpoint, unless they are on the command line.

    Checkpoints of earlier versions, and of datasets without image files, do not contain these options.

    Args:
        cfg: the composed configuration; its dataset is changed.
        start: the content of the checkpoint.
        overrides: the overrides.
    """
    model = start["metafew"]["model"]
    conversion, trained_on = model.get("conversion"), start["metafew"]["training"]["dataset"]
    if conversion is None or OmegaConf.to_container(cfg.dataset) == trained_on:  # the same dataset and store
        return
    typed = {key(override) for override in overrides}
    for option, value in {**model["images"], **conversion}.items():
        own = cfg.dataset.get(option, value)
        if value is None or own == value:
            continue
        if f"dataset.{option}" in typed:
            log.warning(
                "expected dataset.%s=%s, as in the training of %s, got %s: leave it out to follow the training",
                *(option, value, cfg.ckpt, own),
            )
        else:
            if own is not None:
                log.warning("dataset.%s=%s is taken from the training of %s, not %s", option, value, cfg.ckpt, own)
            cfg.dataset[option] = value


def warn_of_other_conversions(source: Source, start: dict, ckpt: str) -> None:
    """Warn of test images that are converted otherwise than in training, perhaps as their dataset has no option."""
    saved = start["metafew"]["model"].get("conversion") or {}
    for part in source.components("test"):
        own = part.conversion.options if part.conversion else {}
        for option in ("invert", "resample"):
            if option in saved and own.get(option, saved[option]) != saved[option]:
                lacks = option not in signature(type(part)).parameters
                log.warning(
                    "images of %s are converted with %s=%s, unlike those in the training of %s, with %s%s",
                    *(part.display_name, option, own[option], ckpt, saved[option]),
                    ": this dataset has no such option" if lacks else "",
                )


def images_of_training(data: FewShot) -> dict[str, Any]:
    """Return what checkpoints store about the training images.

    This is their ``conversion``, None if they have no files or the components do not share one, and whether all are
    ``drawings``.
    """
    sources = data.source.components("train")
    found = [describe(data.folder(source))["conversion"] for source in sources]
    shared = found[0] if all(each == found[0] for each in found) else None
    return {"conversion": shared, "drawings": all(source.drawings for source in sources)}
