"""The conversion of image files for a trained model: as in training, with the options of the command line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from metafew.commands.command_line import print_message
from metafew.config.quoting import override
from metafew.data.formats.conversion import CHOICES, Conversion
from metafew.data.formats.damage import readable
from metafew.data.formats.tree import Tree
from metafew.errors import UsageError

if TYPE_CHECKING:
    from metafew.inference import Model


def choose_conversion(model: Model, values: Mapping[str, str], examples: Tree | None = None) -> Conversion:
    """Return the conversion of the model with the options of the command line.

    Print differences from training and, where training does not determine the conversion, which one is used.

    Args:
        model: the model.
        values: the command line; empty for what was not typed, and null for None.
        examples: the examples, whose background determines ``invert`` for models trained on drawings without files.
    """
    parsers = {"invert": "true".__eq__, "white": parse_number}
    given = {key: values[key] for key in CHOICES if values[key]}
    typed = {key: None if word == "null" else parsers.get(key, str)(word) for key, word in given.items()}
    for key, value in typed.items():
        trained = (model.trained_conversion or typed)[key]
        if value != trained:
            print_message(
                f"expected {override(key, trained)}, as in training, got {values[key]}: leave it out to follow the "
                "training"
            )
    conversion = Conversion(model.channels, model.image_size, **model.conversion.options | typed)
    if model.trained_conversion is None and model.drawings and "invert" not in typed:
        conversion.invert = is_inverted(model, conversion, examples)
    elif model.trained_conversion is None and not model.drawings and not {"fit", "invert"} <= typed.keys():
        dataset = model.choices["dataset"]
        used = f"{override('fit', conversion.fit)} and {override('invert', conversion.invert)}"
        unlike = ", whose datasets are converted in different ways" if dataset == "mixture" else ""
        print_message(
            f"{used} are used, as the checkpoint does not say how dataset={dataset} converts image files{unlike}: type "
            "fit= or invert= for others"
        )
    return conversion


def is_inverted(model: Model, conversion: Conversion, examples: Tree | None) -> bool:
    """Return whether to invert images for a model trained on drawings, and print the reason.

    Args:
        model: the model.
        conversion: a conversion that does not invert.
        examples: the examples; None if there are none.
    """
    trained = (
        f"the model was trained on drawings in bright ink on a dark background (dataset={model.choices['dataset']})"
    )
    if examples is None:
        print_message(f"{trained}: images are not inverted; type invert=true for dark ink on paper")
        return False
    light = has_light_background(examples, conversion)
    found, advice = ("a light", "false to keep them") if light else ("a dark", "true to invert them")
    print_message(
        f"{trained}, and the examples have {found} one: images are {'' if light else 'not '}inverted; type "
        f"invert={advice}"
    )
    return light


def has_light_background(examples: Tree, conversion: Conversion) -> bool:
    """Return whether more than half of the pixels are light in more than half of the first examples of each class."""
    again = Conversion(conversion.channels, conversion.size, **conversion.options)  # a copy: conversion keeps counts
    first = examples.open([keys[0] for keys in examples.classes.values()])
    light = [float(np.median(image)) > 127 for image in readable(map(again, first), [])]
    return sum(light) > len(light) / 2


def parse_number(word: str) -> float:
    """Return a word as a number; raises UsageError if it is not one."""
    try:
        return float(word)
    except ValueError:
        raise UsageError(f"expected white to be a number, got {word}: type white=65535") from None
