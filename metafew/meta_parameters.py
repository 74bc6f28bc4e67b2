"""Meta-parameters: learned across tasks, exempt from adaptation to a task and from weight decay.

The decayed optimizer group of ``training.learner`` and the fast weights of ``heads.fast_weights`` exclude them. They
stay trainable when the backbone of a checkpoint is frozen.
"""

from __future__ import annotations

from torch import nn


class HasMetaParameters(nn.Module):
    """A module that declares which of its parameters are meta-parameters."""

    meta_parameters: tuple[str, ...] = ()
    """Names of this module's own parameters. Names of missing or None parameters are ignored."""


def meta_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the meta-parameters declared by the modules of ``model``, by their names in ``model``."""
    return {
        f"{prefix}.{name}" if prefix else name: parameter
        for prefix, module in model.named_modules()
        if isinstance(module, HasMetaParameters)
        for name, parameter in module.named_parameters(recurse=False)
        if name in module.meta_parameters
    }
