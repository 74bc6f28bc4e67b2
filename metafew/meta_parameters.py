"""Meta-parameters: learned across tasks, exempt from adaptation to a task and from weight decay.

The optimizer groups of ``training.learner`` and the fast weights of ``heads.fast_weights`` leave them out; they stay
trainable when a checkpoint's backbone is frozen.
"""

from __future__ import annotations

from torch import nn


class HasMetaParameters(nn.Module):
    """A module that declares which of its own parameters are meta-parameters."""

    meta_parameters: tuple[str, ...] = ()
    """Names of parameters of this module itself. A name whose parameter is None or not registered is ignored."""


def meta_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the meta-parameters that the modules of ``model`` declare, by their names in ``model``."""
    return {
        f"{prefix}.{name}" if prefix else name: parameter
        for prefix, module in model.named_modules()
        if isinstance(module, HasMetaParameters)
        for name, parameter in module.named_parameters(recurse=False)
        if name in module.meta_parameters
    }
