"""Load weights from elsewhere into a backbone, and freeze it."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from metafew.backbones.backbone import Backbone
from metafew.config.option_values import as_list
from metafew.errors import UsageError, reason
from metafew.meta_parameters import meta_parameters
from metafew.norms.norm import Norm
from metafew.training import checkpoint
from metafew.training.learner import Learner

log = logging.getLogger(__name__)

EXPECTED = "expected backbone.weights to be a state_dict, a .safetensors file or a checkpoint of metafew"
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""Types of tensors in a .safetensors file."""
LISTED = 3
"""Number of names in a message."""


def freeze(backbone: Backbone, which: str | Sequence[str] = "all") -> None:
    """Freeze parts of a backbone, except its meta-parameters, such as TaskNorm's scalars.

    Inner loops still adapt frozen parameters to a task. Batch and instance norms of PyTorch in a frozen part stay in
    eval mode, as their running moments belong to the weights.

    Args:
        backbone: the backbone.
        which: ``all``, ``none``, or prefixes of names of parameters, such as ``[layer1, layer2.0]``.

    Raises:
        UsageError: if a prefix matches no name.
    """
    prefixes = {"all": [""], "none": []}.get(str(which), as_list(which))
    kept, parameters = meta_parameters(backbone), dict(backbone.named_parameters())
    for prefix in map(str, prefixes):
        starts = ("",) if prefix == "" else (f"{prefix}.", f"{backbone.prefix}{prefix}.")
        frozen = [name for name in parameters if f"{name}.".startswith(starts)]
        if prefix and not frozen:
            parts = dict.fromkeys(name.removeprefix(backbone.prefix).partition(".")[0] for name in parameters)
            raise UsageError(
                f"expected backbone.freeze to be all, none or a list of layers, such as {', '.join(parts)}, got "
                f"{prefix}: type backbone.freeze=[{next(iter(parts), '')}]"
            )
        for name in frozen:
            parameters[name].requires_grad_(name in kept)
        modules = (name for name, module in backbone.named_modules() if isinstance(module, _NormBase))
        backbone.in_eval |= {name for name in modules if f"{name}.".startswith(starts)}
    backbone.train(backbone.training)


def load_backbone(learner: Learner, path: str, fit: bool) -> None:
    """Load weights and running moments of the backbone, but not its meta-parameters.

    Args:
        learner: the model.
        path: a checkpoint of metafew, or the weights of the backbone's network in a file of PyTorch or safetensors.
        fit: whether the model will be trained.

    Raises:
        UsageError: if the file does not fit the backbone.
    """
    model, content = nn.ModuleDict({"backbone": learner.backbone}), read(path)
    if "metafew" not in content:
        state = matching(content, learner, path)
        model.load_state_dict(checkpoint.complete_state(state, model, path, fit))
        return
    saved = checkpoint.checked(content, path)
    kept = meta_parameters(model)
    state = {
        key: value for key, value in saved["state_dict"].items() if key.startswith("backbone.") and key not in kept
    }
    with checkpoint.explain_channels(learner, saved, path):
        model.load_state_dict(checkpoint.complete_state(state, model, path, fit))


def read(path: str) -> Mapping[str, Any]:
    """Return the content of a file of weights without executing any code in it.

    Raises:
        UsageError: if there is no such file, or it cannot be read in this way.
    """
    if not Path(path).is_file():
        raise UsageError(f"{EXPECTED}, and there is no file {path}: type backbone.weights=FILE")
    try:
        if Path(path).suffix == ".safetensors":
            return read_safetensors(Path(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch does not document the errors for other files
        first = str(error).split(". ")[0] if "weights_only" in str(error) else reason(error)
        raise UsageError(
            f"{EXPECTED}, and {path} cannot be read as one ({first}): save it again with torch.save("
            "network.state_dict(), FILE), and type backbone.weights=FILE"
        ) from error
    return content if isinstance(content, Mapping) else {}


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors file: the length of a JSON header, the header, and the values."""
    content = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        dtype, shape, begin = DTYPES[entry["dtype"]], entry["shape"], start + entry["data_offsets"][0]
        count = math.prod(shape)
        values = torch.frombuffer(content, dtype=dtype, count=count, offset=begin) if count else torch.empty(0)
        tensors[name] = values.reshape(shape)
    return tensors


def matching(content: Mapping[str, Any], learner: Learner, path: str) -> dict[str, Tensor]:
    """Return the weights in a file under the names that they have in the model.

    Tensors are looked for in all nested dictionaries, as under ``state_dict`` or ``model``. The prefix that most names
    of the network have there, such as ``module.encoder.``, is removed. Values that a norm of metafew has and the file
    lacks are left out; :func:`~metafew.training.checkpoint.complete_state` decides about them.

    Args:
        content: what the file contains.
        learner: the model.
        path: the file.

    Raises:
        UsageError: if a value of the network is missing there or has another shape.
    """
    backbone = learner.backbone
    own = {name.removeprefix(backbone.prefix): value for name, value in backbone.state_dict().items()}
    norms = tuple(f"{name}." for name, module in backbone.named_modules() if isinstance(module, Norm))
    optional = [name for name in own if name.endswith("num_batches_tracked")]  # absent in old files
    optional += [name for name in own if f"{backbone.prefix}{name}".startswith(norms)]
    state = without_prefix(dict(tensors(content)), own)
    missing = [name for name in own.keys() - optional if name not in state]
    shapes = [name for name, value in own.items() if name in state and state[name].shape != value.shape]
    unused = [name for name in state if name not in own and not f"{backbone.prefix}{name}".startswith(norms)]
    if missing or shapes:
        raise misfit(learner, missing, [(name, state[name], own[name]) for name in shapes], unused, path)
    if unused:
        log.warning("the network has no %s, which are in %s and not used", listed(unused), path)
    tracked = {name: own[name] for name in optional if name.endswith("num_batches_tracked")}
    found = tracked | {name: value for name, value in state.items() if name not in unused}
    return {f"backbone.{backbone.prefix}{name}": value for name, value in found.items()}


def tensors(content: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of nested dictionaries, with their keys joined by dots.

    >>> [name for name, _ in tensors({"epoch": 3, "model": {"a.weight": torch.ones(1)}})]
    ['model.a.weight']
    """
    for key, value in content.items():
        if isinstance(value, Tensor):
            yield f"{above}{key}", value
        elif isinstance(value, Mapping):
            yield from tensors(value, f"{above}{key}.")


def without_prefix(state: Mapping[str, Tensor], own: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the values under the prefix with which most names of ``own`` are in ``state``; the first in a tie.

    >>> list(without_prefix({"module.a": torch.ones(1), "fc": torch.ones(1)}, {"a": torch.ones(1)}))
    ['a']
    """
    ends = (name[: place + 1] for name in state for place, letter in enumerate(name) if letter == ".")
    prefix = max(dict.fromkeys(["", *ends]), key=lambda each: sum(f"{each}{name}" in state for name in own))
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def misfit(
    learner: Learner, missing: list[str], shapes: list[tuple[str, Tensor, Tensor]], unused: list[str], path: str
) -> UsageError:
    """Return the error for a file that lacks values of the network, or has them in other shapes."""
    for _, got, own in shapes:
        if got.ndim == own.ndim == 4 and own.shape[1] == learner.backbone.channels != got.shape[1] in (1, 3):
            return checkpoint.other_channels(learner, got.shape[1], path, "dataset=NAME of such images")
    faults = [f"without {listed(missing)}"] if missing else []
    faults += [f"with {name} of shape {tuple(got.shape)} and not {tuple(own.shape)}" for name, got, own in shapes[:1]]
    faults += [f"with {listed(unused)} instead"] if unused and missing else []
    return UsageError(
        f"expected {path} to hold all weights of the network, got a file {', '.join(faults)}: type backbone.target=... "
        "and backbone.arguments={name:value} of the network that was saved"
    )


def listed(names: Sequence[str]) -> str:
    """Return the first names, and the number of the others.

    >>> listed(["a", "b"]), listed(["a", "b", "c", "d", "e"])
    ('a and b', 'a, b, c and 2 more')
    """
    shown = [*names[:LISTED]] + [f"{len(names) - LISTED} more"] * (len(names) > LISTED)
    return " and ".join(filter(None, [", ".join(shown[:-1]), shown[-1]]))
