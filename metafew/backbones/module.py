"""Any PyTorch network as a backbone, with its own normalization layers or those of a scheme."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from metafew.backbones.backbone import Backbone
from metafew.backbones.network_output import NetworkOutput
from metafew.backbones.standardize import Standardize
from metafew.errors import UsageError, reason
from metafew.norms.convert import construct
from metafew.norms.norm import Norm
from metafew.norms.own import OwnNorms
from metafew.norms.scope import rows


class Wrapped(Backbone):
    """The network returned by ``target(**arguments)``, with its output flattened to ``(b, d)``.

    Its normalization layers are those of ``norm``, a scheme (:func:`~metafew.norms.convert.construct`), or its own. Its
    own layers ignore tasks: they receive support sets and queries of all tasks as one flat batch. In training, a batch
    norm of PyTorch therefore uses moments over all tasks, support and query rows together, and updates its running
    moments in every pass, unless the network put it in eval mode. Whatever the network froze stays frozen: parameters
    with ``requires_grad_(False)``, which no inner loop adapts, and modules in ``eval()`` mode.

    Args:
        channels: channels of the images.
        image_size: height and width of the images.
        norm: ``norm(channels)`` makes a normalization layer; ``OwnNorms`` keeps those of the network.
        target: dotted path of an importable class or function that returns an ``nn.Module``.
        arguments: its keyword arguments.
        mean: mean of the pixels that the network was trained on (:class:`~metafew.backbones.standardize.Standardize`).
        std: their standard deviation.
        output: which of its outputs are the features (:class:`~metafew.backbones.network_output.NetworkOutput`).
        readout: ``flatten`` them, or their ``mean`` over positions or tokens; ``map`` flattens too, but accepts only
            maps.
        norms: ``convert`` batch norms to layers of ``norm``, keep the network's ``own``, or names of norms to convert,
            as in :func:`~metafew.norms.convert.convert`.
    """

    channels_last = False
    prefix = "network."

    def __init__(
        self,
        channels: int,
        image_size: int,
        norm: Callable[[int], Norm],
        target: str | None = None,
        arguments: Mapping[str, Any] | None = None,
        mean: float | str | Sequence[float] | None = None,
        std: float | str | Sequence[float] | None = None,
        output: str | int | None = None,
        readout: str = "flatten",
        norms: str | Sequence[str] = "convert",
    ):
        super().__init__(channels, image_size)
        if not target:
            raise UsageError(
                f"expected backbone.target to be the dotted path of a network, got {target or 'null'}: "
                "type backbone.target=my_package.MyNetwork"
            )
        self.own_norms = norms == "own" or isinstance(norm, OwnNorms)
        if isinstance(norm, OwnNorms) and norms not in ("own", "convert"):
            raise UsageError(
                f"expected a norm for the layers of backbone.norms={norms}, got norm=own, which keeps them: "
                "type norm=tasknorm, or backbone.norms=own"
            )
        self.network = self._make(target, arguments or {}, norm, "batch" if norms == "convert" else norms)
        self.standardize = Standardize(channels, mean, std)
        self.read = NetworkOutput(self.network, output, readout)
        self.keep_frozen()
        self.train()  # a network may freeze batch norms in its own train()
        self.keep_frozen()
        try:
            self.features = self._dimension(channels)
        except UsageError:
            raise
        except Exception as error:  # custom code may raise anything
            raise UsageError(
                f"expected backbone.target to map each image to one row, got {target}, which does not for "
                f"{channels}x{image_size}x{image_size} images ({reason(error)}): type {self._instead()}"
            ) from error

    def _make(
        self, target: str, arguments: Mapping[str, Any], norm: Callable[[int], Norm], norms: str | Sequence[str]
    ) -> nn.Module:
        """Return the network."""
        try:
            maker = resolve_name(target)
            network = maker(**arguments) if self.own_norms else construct(maker, arguments, norm, norms)
            if not isinstance(network, nn.Module):
                raise TypeError(f"it returns a {type(network).__name__}")
        except UsageError:
            raise
        except Exception as error:  # custom code may raise anything
            module = target.partition(".")[0]
            if isinstance(error, ModuleNotFoundError) and error.name == module:
                raise UsageError(
                    f"expected backbone.target to be the dotted path of a network, got {target}, and there is no "
                    f"module {module} among the installed packages or in {' or '.join(own_folders())}: move it there, "
                    "set PYTHONPATH to its folder, or type backbone.target=my_package.MyNetwork of another module"
                ) from error
            raise UsageError(
                f"expected backbone.target to return an nn.Module, got {target} with backbone.arguments="
                f"{dict(arguments)}, which does not ({reason(error)}): type backbone.target="
                "my_package.MyNetwork backbone.arguments={name:value}"
            ) from error
        return network

    def _instead(self) -> str:
        """Return what to type for a network that does not take the images."""
        arguments, other = "backbone.arguments={name:value} to fit it", {1: 3, 3: 1}.get(self.channels, 0)
        try:
            self._dimension(other)
        except Exception:  # nor images of another number of channels
            return f"{arguments}, or dataset.image_size=84"
        return f"dataset.channels={other}, or {arguments}"

    @torch.no_grad()
    def _dimension(self, channels: int) -> int:
        """Return the number of features of a pass of two black images, and set the shape of their maps."""
        self.eval()
        images = torch.zeros(2, channels, self.image_size, self.image_size)
        with rows(1, 2, record=False):
            found = self.read.find(images)
        self.train()
        self.map_shape, features = self.read.map_shape(found), self.read.rows(found)
        if len(features) != 2:
            raise ValueError(f"2 images give {len(features)} rows")
        if not features.is_floating_point():
            raise TypeError(f"its features are {features.dtype}, and not floating point")
        return features.shape[1]

    def forward(self, images: Tensor) -> Tensor:
        """Return features ``(b, d)`` of images ``(b, c, h, w)``."""
        # Contiguous, as networks that call ``view`` require, and a copy, which they may change in place.
        features = self.read(self.standardize(images.clone(memory_format=torch.contiguous_format)))
        # Heads compute in the precision of the images.
        return features.to(images.dtype) if features.dtype == torch.float64 else features

    def _pass(self, images: Tensor, context: int, record: bool | dict, share: float = 1.0) -> tuple[Tensor, Tensor]:
        """Embed tasks; one by one in evaluation if a batch norm has no running moments, as none may affect another."""
        if self.training or len(images) == 1 or not self._without_running_moments:
            return super()._pass(images, context, record, share)
        passed = [super(Wrapped, self)._pass(task, context, record, share) for task in images.split(1)]
        return torch.cat([features for features, _ in passed]), torch.cat([features for _, features in passed])

    @property
    def per_image(self) -> bool:
        """Whether no image changes the features of another, through a scheme or through a batch norm of the network."""
        return super().per_image and not self._takes_moments

    @property
    def context_and_targets_separate(self) -> bool:
        """Whether every scheme separates context and targets, and no batch norm of the network takes moments."""
        return super().context_and_targets_separate and not self._takes_moments

    @property
    def transductive(self) -> bool:
        """Whether a batch norm without running moments lets images influence each other in evaluation."""
        return super().transductive or self._without_running_moments

    @property
    def context_depends_on_targets(self) -> bool:
        """Whether a scheme, or a batch norm of the network, takes moments of context and targets together."""
        return super().context_depends_on_targets or self._takes_moments

    @property
    def couples_tasks(self) -> bool:
        """Whether a batch norm lets all tasks of a meta-batch influence each other in training."""
        norms = self._batch_norms.items()
        coupling = any(name not in self.in_eval or norm.running_mean is None for name, norm in norms)
        return super().couples_tasks or coupling

    @property
    def _without_running_moments(self) -> bool:
        """Whether a batch norm of the network takes moments in evaluation, too."""
        return any(norm.running_mean is None for norm in self._batch_norms.values())

    @property
    def _takes_moments(self) -> bool:
        """Whether a batch norm takes moments of its batch in the current mode."""
        return self._without_running_moments or any(norm.training for norm in self._batch_norms.values())

    @property
    def _batch_norms(self) -> dict[str, _BatchNorm]:
        return {name: module for name, module in self.named_modules() if isinstance(module, _BatchNorm)}


def own_folders() -> list[str]:
    """Return the folders in which Python looks for modules, without those of Python itself and of packages."""
    prefixes = {Path(prefix).resolve() for prefix in (sys.prefix, sys.base_prefix)}
    folders = dict.fromkeys(Path(folder).resolve() for folder in sys.path)
    return [str(each) for each in folders if each.is_dir() and prefixes.isdisjoint([each, *each.parents])]
