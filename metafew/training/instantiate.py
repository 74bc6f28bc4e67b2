"""Make an object from its options in a configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import nn

from metafew.backbones.backbone import Backbone
from metafew.errors import UsageError, reason
from metafew.heads.head import Head
from metafew.norms.fast import accelerate

REJECTIONS = (
    InstantiationException, TypeError, ValueError, ArithmeticError, LookupError, AttributeError,
    MisconfigurationException, RuntimeError,
)  # fmt: skip
"""What constructors raise for options that they do not accept."""


def make(node: DictConfig, **injected: Any) -> Any:
    """Instantiate ``node``.

    Raises:
        UsageError: if the constructor rejects the options.
    """
    return attempt(node._get_full_key(None), instantiate, node, **injected, _convert_="all")


def attempt(group: str, constructor: Callable, *args: Any, **kwargs: Any) -> Any:
    """Call ``constructor``, and raise a UsageError that names ``group`` if it fails."""
    try:
        return constructor(*args, **kwargs)
    except REJECTIONS as error:
        cause = error.__cause__ or error
        if isinstance(cause, UsageError):
            raise cause from None
        raise UsageError(
            f"{group} cannot be made with these options ({reason(cause)}): --cfg job shows every value of {group}"
        ) from error


def make_head(node: DictConfig, backbone: Backbone, trained: bool) -> Head:
    """Return a head; one with ``_partial_: true`` in its YAML file receives ``backbone`` and ``trained``."""
    head, group = make(node), node._get_full_key(None)
    if not isinstance(head, nn.Module):
        head = attempt(group, head, backbone=backbone, trained=trained)
    if not isinstance(head, Head):
        raise UsageError(
            f"expected {group} to make a metafew.heads.head.Head, got {type(head).__name__}: "
            f"type {group}=protonet, or derive its class from Head or FeatureHead"
        )
    if any(module is backbone for module in head.modules()):
        raise UsageError(
            f"expected {group} to use the backbone only when it is made, got {type(head).__name__}, which keeps it, so "
            "that its weights would count twice: keep what it needs, such as backbone.features"
        )
    accelerate(head)
    return head
