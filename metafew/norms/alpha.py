"""TaskNorm's blend of two sets of moments, and its learned weight (Bronskill et al. 2020, Eqs. 9-11)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metafew.config.option_values import check_choice
from metafew.meta_parameters import HasMetaParameters
from metafew.norms.norm import Moments

FORMS = ("functional", "independent")


class Alpha(HasMetaParameters):
    """The weight of the context moments, ``sigmoid(scale * |D| + offset)`` for a context of ``|D|`` images.

    ``scale`` and ``offset`` start at 0, so alpha starts at 1/2. They are meta-parameters: no task adapts them, and they
    have no weight decay.

    Args:
        form: ``functional`` as above, or ``independent`` of the context size: ``sigmoid(offset)``, for tasks of a
            single size, where ``scale`` and ``offset`` are not identifiable.
        channels: None for one alpha per layer; a number for one per channel (tables E.3 and E.4 of the paper).
    """

    meta_parameters = ("scale", "offset")

    def __init__(self, form: str, channels: int | None):
        super().__init__()
        check_choice("norm.alpha", form, FORMS)
        shape = () if channels is None else (channels,)
        self.offset = nn.Parameter(torch.zeros(shape))
        self.scale = nn.Parameter(torch.zeros(shape)) if form == "functional" else None

    def forward(self, context: int) -> Tensor:
        """Return alpha, a scalar or ``(c,)``, for ``context`` images."""
        return torch.sigmoid(self.offset if self.scale is None else self.scale * context + self.offset)


def alphas(model: nn.Module) -> list[Alpha]:
    """Return all alphas of ``model``, from the first layer to the last."""
    return [module for module in model.modules() if isinstance(module, Alpha)]


def blend(alpha: Tensor | float, shared: Moments, own: Moments) -> Moments:
    """Return the moments of a mixture of two populations.

    ``mean = alpha mean_s + (1 - alpha) mean_o`` and
    ``var = alpha (var_s + (mean_s - mean)^2) + (1 - alpha) (var_o + (mean_o - mean)^2)``.

    Args:
        alpha: weight of ``shared``.
        shared: mean and variance of one population.
        own: mean and variance of the other.
    """
    (shared_mean, shared_var), (own_mean, own_var) = shared, own
    gap = shared_mean - own_mean
    # The two squares of the definition sum to alpha (1 - alpha) gap^2.
    var = own_var + alpha * (shared_var - own_var) + alpha * (1 - alpha) * gap.square()
    return own_mean + alpha * gap, var
