"""Make the heads of ``evaluate``, which are not trained."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from hydra.utils import get_object
from omegaconf import OmegaConf, open_dict

from metafew.backbones.backbone import Backbone
from metafew.config.groups import ALL, current_options
from metafew.config.quoting import to_paste
from metafew.errors import UsageError
from metafew.heads.head import FeatureHead, Head
from metafew.training.instantiate import make_head

log = logging.getLogger(__name__)


def make_evaluated_heads(evaluated: Any, trained: str, backbone: Backbone, base: bool = True) -> dict[str, Head]:
    """Return the heads of ``evaluate`` by name; an entry that names the trained head adds no second head.

    With ``evaluate=all``, heads that do not fit are left out, also of the configuration; ``evaluate=[all,maml]`` keeps
    those that it names.

    Args:
        evaluated: the configuration of ``evaluate``.
        trained: the name of the trained head.
        backbone: the backbone.
        base: whether the mean feature of training images is available.
    """
    check_no_options_of_trained_head(trained, evaluated)
    with (
        open_dict(evaluated),
        torch.random.fork_rng(devices=[]),
    ):  # initial values here change no later draw of training
        named = evaluated.pop(ALL, evaluated.keys())
        nodes = {name: node for name, node in evaluated.items() if name != trained}
        heads = {name: make_head(node, backbone, False) for name, node in nodes.items() if name in named}
        others = {name: node for name, node in nodes.items() if name not in named}
        rest, left_out = fitting_heads(others, backbone, base)
        heads |= rest
        for name in nodes.keys() - heads.keys():
            del evaluated[name]
    if left_out:
        log.info("evaluate=all leaves out heads: %s", left_out)
    return heads


def fitting_heads(nodes: Mapping[str, Any], backbone: Backbone, base: bool = True) -> tuple[dict[str, Head], str]:
    """Return the untrained heads that evaluate features as they are, and a line on the others.

    Args:
        nodes: the configuration of each head.
        backbone: the backbone.
        base: whether the mean feature of training images is available.
    """
    heads, reasons = {}, {}
    for name, node in nodes.items():
        reason = None
        with suppress(ImportError):  # which make_head reports
            target = get_object(node["_target_"])
            reason = misfit(target, base) if isinstance(target, type) and issubclass(target, Head) else None
        if reason is None:
            try:
                heads[name] = make_head(node, backbone, trained=False)
                reason = misfit(heads[name], base)  # an option may change it
            except UsageError as error:
                if "_partial_" not in node:  # it does not depend on the backbone
                    raise
                lacking = str(error).partition(", got ")[0].replace(f" for head={name}", "")
                reason = f"fits no such backbone ({lacking})"
        if reason is not None:
            heads.pop(name, None)
            reasons[name] = reason
    return heads, list_misfits(reasons)


def misfit(head: Head | type[Head], base: bool = True) -> str | None:
    """Return why ``evaluate=all`` leaves out a head, or all heads of a class; None if it evaluates features as it is.

    Args:
        head: the head, or the class.
        base: whether the mean feature of training images is available.
    """
    if head.requires_training:
        return "must be trained"
    if head.needs_base_mean and not base:
        return "uses the mean feature of training images"
    on_features = issubclass(head if isinstance(head, type) else type(head), FeatureHead)
    return None if on_features else "takes images, not features"


def list_misfits(reasons: Mapping[str, str]) -> str:
    """Format the reasons of :func:`misfit`, with the heads that share each.

    >>> list_misfits(dict.fromkeys(["anil", "boil", "maml"], "takes images") | {"feat": "must be trained"})
    'anil, boil and maml take images; feat must be trained'
    """
    heads: dict[str, list[str]] = {}
    for head, reason in reasons.items():
        heads.setdefault(reason, []).append(head)
    parts = []
    for reason, (*names, last) in heads.items():
        subject = f"{', '.join(names)} and {last}" if names else last
        verb, _, rest = reason.partition(" ")
        parts.append(f"{subject} {verb.removesuffix('s') if names else verb} {rest}")
    return "; ".join(parts)


def check_no_options_of_trained_head(name: str, evaluated: Mapping[str, Any]) -> None:
    """Check that ``evaluate`` does not set options of the head ``name``, which is evaluated as trained.

    Raises:
        UsageError: if it does.
    """
    default = current_options("head", name)
    if name not in evaluated or not default:
        return
    typed: Any = OmegaConf.to_container(evaluated[name])
    changed = {key: value for key, value in typed.items() if value != default.get(key)}
    if changed:
        raise UsageError(
            f"expected no options of head={name} below evaluate, where it is the head that the run trains, got "
            f"{', '.join(f'evaluate.{name}.{key}' for key in changed)}: "
            f"type {' '.join(to_paste(f'head.{key}', value) for key, value in changed.items())}, and evaluate=[] or "
            f"others than {name}"
        )
