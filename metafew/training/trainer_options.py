"""The options of the Trainer: which of them belong to metafew, and which values the others have."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

import pytorch_lightning as pl
from omegaconf import OmegaConf
from pytorch_lightning.accelerators import AcceleratorRegistry, CPUAccelerator, CUDAAccelerator
from pytorch_lightning.strategies import StrategyRegistry
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from metafew.config.groups import current_options
from metafew.config.option_types import KINDS
from metafew.config.quoting import to_paste
from metafew.errors import SIMILAR_OPTION, UsageError, did_you_mean, nearest


class Owned(NamedTuple):
    """An argument of the Trainer that the user cannot change.

    Attributes:
        value: the only value that is accepted besides null.
        reason: why.
        instead: what to type.
    """

    value: Any
    reason: str
    instead: str


STEPS = "a training is one epoch of trainer.max_steps steps"
LEAVE_OUT = "leave it out"
OWNED = {
    "max_epochs": Owned(None, STEPS, "type trainer.max_steps=600"),
    "min_epochs": Owned(None, STEPS, "type +trainer.min_steps=600"),
    "limit_train_batches": Owned(None, STEPS, "type trainer.max_steps=600"),
    "overfit_batches": Owned(0, "every step draws new tasks", LEAVE_OUT),
    "reload_dataloaders_every_n_epochs": Owned(0, STEPS, LEAVE_OUT),
    "fast_dev_run": Owned(
        False, "it turns off checkpoints and loggers", "type trainer.max_steps=1 val.total=4 test.total=4"
    ),
    "barebones": Owned(False, "it turns off checkpoints, loggers and validation", LEAVE_OUT),
    "limit_val_batches": Owned(
        None, "val.total sets the number of validation tasks", "type val.total=200, or 0 for none"
    ),
    "limit_test_batches": Owned(None, "test.total sets the number of test tasks", "type test.total=600"),
    "limit_predict_batches": Owned(None, "analyze.tasks sets the number of analyzed tasks", "type analyze.tasks=200"),
    "val_check_interval": Owned(None, "val.every sets the steps between validations", "type val.every=100"),
    "check_val_every_n_epoch": Owned(None, "val.every sets the steps between validations", "type val.every=100"),
    "enable_checkpointing": Owned(True, "a run tests and resumes from its checkpoints", "type save.every=1000000"),
    "model_registry": Owned(None, "checkpoints are written to the folder of the run", "type logger=wandb"),
    "default_root_dir": Owned(None, "all outputs are written to the folder of the run", "type hydra.run.dir=DIR"),
    "enable_autolog_hparams": Owned(True, "loggers always receive the configuration", LEAVE_OUT),
    "inference_mode": Owned(False, "adapting heads compute gradients in evaluation", LEAVE_OUT),
    "use_distributed_sampler": Owned(False, "processes divide the tasks of each meta-batch", LEAVE_OUT),
    "sync_batchnorm": Owned(False, "each norm defines what it reduces over processes", "type norm=batch_shared"),
}
"""Arguments owned by metafew. The others have an effect, described in conf/trainer/default.yaml."""


class Words(NamedTuple):
    """The words that an option of the Trainer accepts.

    Attributes:
        values: these words; the first is suggested unless another is close to what was typed.
        refused: further words that Lightning accepts.
        reason: why they are refused.
    """

    values: tuple[str | int, ...]
    refused: tuple[str, ...] = ()
    reason: str = ""


WORDS = {
    "strategy": Words(
        ("ddp", "auto", "ddp_find_unused_parameters_true", "ddp_find_unused_parameters_false"),
        tuple(StrategyRegistry.available_strategies()),
        "others keep the results in their processes, divide the weights between them, or are for one device",
    ),
    "accelerator": Words(
        ("cpu", "auto", "gpu", "cuda"),
        tuple(AcceleratorRegistry.available_accelerators()),
        "solvers and metrics use float64",
    ),
    "gradient_clip_algorithm": Words(("norm", "value")),
    "precision": Words(
        ("32-true", "bf16-mixed", "16-mixed", "64-true", "32", "64", "bf16", "16", 32, 64, 16),
        ("bf16-true", "16-true", "transformer-engine", "transformer-engine-float16"),
        "moments and heads are computed in float32 at least",
    ),
    "profiler": Words(("simple", "advanced", "pytorch")),
}
"""Options that Lightning annotates as any string, and its precisions, of which some do not work with all heads."""
ADDED = ("callbacks", "logger", "plugins")
"""Options that are checked where they are made."""


def check_trainer_options(options: Mapping[str, Any]) -> None:
    """Check the name and the value of each option of the Trainer, and that the machine has the devices.

    Raises:
        UsageError: if the Trainer has no such option or it is one of :data:`OWNED`, its value has the wrong type or is
            not one of :data:`WORDS`, or the machine has fewer devices.
    """
    arguments = inspect.signature(pl.Trainer).parameters
    defaults = current_options("trainer", "default")
    for name, value in options.items():
        if name in OWNED:
            check_owned(name, value)
        elif name == "max_time":
            check_time(value)
        elif name in arguments and name not in ADDED:
            check_value(name, value, arguments[name].annotation, defaults.get(name))
        elif name not in arguments and options.get("_target_") == f"{pl.__name__}.Trainer" and name != "_target_":
            near = nearest(name, [option for option in arguments if option not in OWNED])
            advice = f"type {typed(near, value)}" if near else f"leave out trainer.{name}"
            raise UsageError(
                f"expected an argument of Lightning's Trainer, got trainer.{name}{did_you_mean(near)}: {advice}"
            )
    check_devices(options.get("accelerator", "auto"), options.get("devices", "auto"))


def typed(name: str, value: Any) -> str:
    """Return an option of the Trainer as it is typed: with ``++`` if conf/trainer does not have it."""
    known = name in current_options("trainer", "default")
    return to_paste(f"trainer.{name}" if known else f"++trainer.{name}", value)


def check_owned(name: str, value: Any) -> None:
    """Check that one of :data:`OWNED` has its own value."""
    owned = OWNED[name]
    if value is not None and value != owned.value:
        raise UsageError(f"expected no trainer.{name}, as {owned.reason}, got {value}: {owned.instead}")


def check_clipping(value: Any, algorithm: str) -> None:
    """Check that the largest norm or value of gradients is a number of at least 0, or null."""
    if value is None and algorithm == "value":
        raise UsageError(
            f"expected trainer.gradient_clip_val with trainer.gradient_clip_algorithm={algorithm}, got null: "
            "type trainer.gradient_clip_val=1.0"
        )
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is not None and not (number and 0 <= value < math.inf):
        raise UsageError(
            f"expected trainer.gradient_clip_val to be a number of at least 0, or null for no clipping, got {value}: "
            "type trainer.gradient_clip_val=null"
        )


def check_time(value: Any) -> None:
    """Check the form of ``max_time``."""
    if isinstance(value, int | float) or (isinstance(value, str) and not re.fullmatch(r"\d+(:\d\d){3}", value.strip())):
        raise UsageError(
            f"expected trainer.max_time to be days, hours, minutes and seconds, got {value}: "
            "type ++trainer.max_time=00:12:00:00"
        )


def check_value(name: str, value: Any, annotation: Any, default: Any) -> None:
    """Check the value of an option against the annotation of its argument, and against :data:`WORDS`.

    Args:
        name: the option.
        value: its value. Lists and configurations with ``_target_`` are checked by Lightning.
        annotation: that of the argument.
        default: the default of conf/trainer, None if it has none.
    """
    parts = list(members(annotation))
    allowed = WORDS.get(
        name, Words(tuple(word for part in parts if get_origin(part) is Literal for word in get_args(part)))
    )
    names = {part.__name__.removesuffix("Type") for part in parts if isinstance(part, type)}
    # In the order of KINDS: typing caches unions, so their order depends on equal unions created before.
    kinds = [KINDS[kind] for kind in KINDS if kind in names and (kind, name in WORDS) != ("str", True)]
    if OmegaConf.is_config(value) or value in allowed.values or any(kind.accepts(value) for kind in kinds):
        return
    expected = " or ".join(dict.fromkeys(map(str, [*allowed.values, *(kind.name for kind in kinds)])))
    refused = value in allowed.refused
    near = None if refused else nearest(str(value), [*map(str, allowed.values)], SIMILAR_OPTION)
    instead = near or (allowed.values[0] if name in WORDS else default)
    reason = f" ({allowed.reason})" if refused else did_you_mean(near)
    advice = f"leave out trainer.{name}" if instead is None else f"type {typed(name, instead)}"
    raise UsageError(f"expected trainer.{name} to be {expected}, got {value}{reason}: {advice}")


def members(annotation: Any) -> Iterator[Any]:
    """Yield the members of a union, and any other annotation itself."""
    if get_origin(annotation) in (Union, UnionType):
        for part in get_args(annotation):
            yield from members(part)
    else:
        yield annotation


def check_devices(accelerator: Any, devices: Any) -> None:
    """Check that the machine has the devices.

    Args:
        accelerator: ``trainer.accelerator``, which Lightning checks if it is a configuration with ``_target_``.
        devices: ``trainer.devices``.
    """
    if not isinstance(accelerator, str):
        return
    gpus = 0 if accelerator == "cpu" else CUDAAccelerator.auto_device_count()
    if not gpus and accelerator in ("gpu", "cuda"):
        raise UsageError(
            f"expected a GPU that CUDA can use for trainer.accelerator={accelerator}, got none: "
            "type trainer.accelerator=cpu"
        )
    count = len(devices) if OmegaConf.is_list(devices) else gpus or 1
    devices = list(devices) if OmegaConf.is_list(devices) else devices
    kind: Any = CUDAAccelerator if gpus else CPUAccelerator
    try:
        found = devices == "auto" or kind.parse_devices(devices)
    except (MisconfigurationException, TypeError, ValueError):
        found = None
    if not found:
        expected = f"some of the {gpus} GPUs of this machine" if gpus else "a number of processes"
        raise UsageError(f"expected trainer.devices to be {expected}, got {devices}: type trainer.devices={count}")
