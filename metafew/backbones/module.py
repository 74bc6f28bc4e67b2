"""Any network of PyTorch as a backbone, with the norms it brings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pkgutil import resolve_name
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from metafew.backbones.backbone import Backbone
from metafew.errors import UsageError


class Wrapped(Backbone):
    """What ``target(**arguments)`` makes, its output flattened to ``(b, d)``.

    Its norms are its own and know nothing of tasks: they see support sets and queries of all tasks as one flat batch.
    A batch norm of PyTorch therefore normalizes, in training, each task by all others and a support set by the queries,
    and updates its running moments in every pass.

    Args:
        channels: channels of the images.
        image_size: height and width of the images.
        norm: not used.
        target: dotted path of a class or function that makes an ``nn.Module``, on Python's path.
        arguments: what it is called with.
    """

    own_norms = True
    """The network is normalized by layers of its own, whatever ``norm`` says."""

    def __init__(
        self,
        channels: int,
        image_size: int,
        norm: Callable[[int], nn.Module],
        target: str | None = None,
        arguments: Mapping[str, Any] | None = None,
    ):
        super().__init__(channels, image_size)
        if not target:
            raise UsageError(
                f"backbone=module wants the dotted path of a network, and backbone.target is {target or 'null'}: "
                "type backbone.target=my_package.MyNetwork"
            )
        try:
            self.network = resolve_name(target)(**(arguments or {}))
            if not isinstance(self.network, nn.Module):
                raise TypeError(f"it makes a {type(self.network).__name__}")
        except Exception as error:  # what the code of others may raise is not for us to say
            raise UsageError(
                f"backbone=module wants a path that makes an nn.Module, and backbone.target={target} with "
                f"backbone.arguments={dict(arguments or {})} does not ({reason(error)}): type backbone.target="
                "my_package.MyNetwork backbone.arguments={name:value}"
            ) from error
        try:
            self.features = self._dimension()
        except Exception as error:  # likewise
            raise UsageError(
                f"backbone=module wants a network that maps images to one row each, and backbone.target={target} does "
                f"not for {channels}x{image_size}x{image_size} images ({reason(error)}): type backbone.arguments="
                "{name:value} to fit it, or dataset.image_size=84"
            ) from error

    @torch.no_grad()
    def _dimension(self) -> int:
        """Return the number of features, by a pass of two black images."""
        training = self.network.training
        self.network.eval()
        features = self(torch.zeros(2, self.channels, self.image_size, self.image_size))
        self.network.train(training)
        if len(features) != 2:
            raise ValueError(f"2 images give {len(features)} rows")
        return features.shape[1]

    def forward(self, images: Tensor) -> Tensor:
        """Return features ``(b, d)`` of images ``(b, c, h, w)``."""
        # In the usual memory format: a network that calls ``view`` takes no other.
        return self.network(images.contiguous()).flatten(1)

    @property
    def transductive(self) -> bool:
        """Whether a batch norm without running moments lets images influence each other in evaluation."""
        return super().transductive or any(norm.running_mean is None for norm in self._batch_norms)

    @property
    def couples_tasks(self) -> bool:
        """Whether a batch norm lets all tasks of a meta-batch influence each other in training."""
        return super().couples_tasks or bool(self._batch_norms)

    @property
    def _batch_norms(self) -> list[_BatchNorm]:
        return [module for module in self.network.modules() if isinstance(module, _BatchNorm)]


def reason(error: Exception) -> str:
    """Return what ``error`` says, to stand inside a sentence."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
