"""Find the features in what a network returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from metafew.backbones.readout import READOUTS
from metafew.config.option_values import check_choice
from metafew.errors import UsageError


class NetworkOutput:
    """Call a network, and return one of its outputs as rows ``(b, d)``.

    Args:
        network: a network that returns a tensor, or a dictionary, an object or a tuple of tensors.
        output: a layer of the network, such as the pooling before its classifier; or a key, an attribute or a position
            of what it returns. None for a network that returns a tensor.
        readout: ``flatten`` what is found, or take its ``mean`` over positions of maps ``(b, d, h, w)``, or over tokens
            of sequences ``(b, n, d)``; ``map`` flattens too, but accepts only maps.

    Raises:
        UsageError: if ``readout`` is none of them.
    """

    def __init__(self, network: nn.Module, output: str | int | None = None, readout: str = "flatten"):
        check_choice("backbone.readout", readout, READOUTS)
        self.network, self.readout = network, readout
        self.output = None if output is None else str(output)
        self.latest: Any = None
        self.of_layer = self.output in dict(network.named_modules())
        if self.of_layer:
            network.get_submodule(str(output)).register_forward_hook(self.keep)

    def keep(self, _: nn.Module, __: Any, result: Any) -> None:
        """Keep the output of the layer, as a copy, since later layers may change it in place."""
        self.latest = result.clone() if isinstance(result, Tensor) else result

    def __call__(self, images: Tensor) -> Tensor:
        """Return features ``(b, d)`` of images ``(b, c, h, w)``."""
        return self.rows(self.find(images))

    def rows(self, result: Tensor) -> Tensor:
        """Return the features ``(b, d)`` of the output ``result``."""
        if self.readout == "mean" and result.ndim > 2:
            result = result.mean(1) if result.ndim == 3 else result.flatten(2).mean(2)
        return result.flatten(1)

    def map_shape(self, result: Tensor) -> tuple[int, int, int] | None:
        """Return the shape ``(c, h, w)`` of the maps that are flattened; None if the features have no positions.

        Raises:
            UsageError: if ``readout=map`` and the output ``result`` is not a batch of maps.
        """
        if self.readout != "mean" and result.ndim == 4:
            channels, height, width = result.shape[1:]
            return channels, height, width
        if self.readout == "map":
            raise UsageError(
                "expected maps (b, c, h, w) as features with backbone.readout=map, got an output of shape "
                f"{tuple(result.shape)}: type backbone.output=layer4, a layer that returns maps, or "
                "backbone.readout=flatten"
            )
        return None

    def find(self, images: Tensor) -> Tensor:
        """Return the output for images ``(b, c, h, w)``.

        Raises:
            UsageError: if the network returns several outputs, and ``output`` is none of them, or a layer that returns
                no tensor.
        """
        result = self.network(images)
        if self.of_layer:
            result = self.of_this_layer(result)
        elif self.output is not None or not isinstance(result, Tensor):
            result = self.choose(result)
        return result

    def of_this_layer(self, result: Any) -> Tensor:
        """Return the output of the layer in this call of the network, which returned ``result``."""
        latest, self.latest = self.latest, None
        if isinstance(latest, Tensor):
            return latest
        found = "the network does not call" if latest is None else f"returns a {type(latest).__name__}"
        instead = "null" if isinstance(result, Tensor) else next(iter(outputs(result)), "avgpool")
        raise UsageError(
            f"expected backbone.output to be a layer that returns a tensor, got {self.output}, which {found}: "
            f"type backbone.output={instead}"
        )

    def choose(self, result: Any) -> Tensor:
        """Return the output that is asked for.

        The first output is also the tensor that some networks return alone in evaluation.
        """
        if isinstance(result, Tensor) and self.output == "0":
            return result
        found = outputs(result)
        if self.output in found:
            return found[self.output]
        expected, instead = f"one of {', '.join(found)}, as the network returns them, or a layer", next(iter(found), "")
        if isinstance(result, Tensor):
            expected, instead = "null or a layer, as the network returns a tensor", "null"
        elif not found:
            expected, instead = f"a layer, as the network returns a {type(result).__name__} without tensors", "avgpool"
        raise UsageError(
            f"expected backbone.output to be {expected}, got {self.output or 'null'}: type backbone.output={instead}"
        )


def outputs(result: Any) -> dict[str, Tensor]:
    """Return the tensors in what a network returned, by key, position or attribute.

    >>> list(outputs(({"a": 1}, Tensor([1])))), list(outputs({"a": Tensor([1]), "b": 2}))
    (['1'], ['a'])
    """
    if isinstance(result, list | tuple):
        result = dict(enumerate(result))
    try:
        named = result if isinstance(result, Mapping) else vars(result)
    except TypeError:  # it has no attributes
        named = {}
    return {str(name): value for name, value in named.items() if isinstance(value, Tensor)}
