"""Meta-curvature: learned matrices that transform the directions of inner steps (Park and Oliva 2019)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from metafew.heads.inner import Shape, Weights, entry, stepped
from metafew.meta_parameters import HasMetaParameters


class Curvature(HasMetaParameters):
    """Transform the direction of each weight by learned matrices before a step: ``w <- w - lr * MC(g)``.

    The direction of a convolution with ``o`` output channels, ``i`` input channels and ``k`` positions in its kernel is
    a tensor ``(o, i, k)``, and ``MC(g)[a, b, c] = sum_xyz M_o[a, x] M_i[b, y] M_f[c, z] g[x, y, z]``. This is a product
    with the Kronecker product of the three matrices, which is never formed. Linear layers have no ``M_f``. Directions
    of vectors, such as biases and the scales of norms, are multiplied by a learned vector.

    Matrices start from the identity and vectors from ones, so that steps initially equal those of ``rates=fixed``. They
    are unconstrained, shared by all inner steps, and exempt from weight decay. ``M_i`` of an output layer has ``d^2``
    entries, as many as 2.6 million on the 1,600 features that conv4 has for 84-pixel images. For an output layer for
    any number of classes, ``M_o`` is a scalar, and so is the vector of its biases.

    Args:
        shapes: the weights that adapt.
    """

    kind = "curvature"

    def __init__(self, shapes: Sequence[Shape]):
        super().__init__()
        self.names = [shape.name for shape in shapes]
        for name, size in shapes:
            if len(size) == 1:
                self.register_parameter(entry(name), nn.Parameter(torch.ones(size)))
                continue
            lengths = {"output": size[0], "input": size[1], "kernel": size[2:].numel()}
            for mode in lengths if len(size) > 2 else ("output", "input"):
                self.register_parameter(f"{entry(name)}/{mode}", nn.Parameter(torch.eye(lengths[mode])))
        self.meta_parameters = tuple(name for name, _ in self.named_parameters())

    def descend(self, weights: Weights, directions: Weights, step: int, lr: float) -> Weights:
        """Return ``weight - lr * MC(direction)`` for each weight ``(t, ...)``."""
        learned: Weights = {**dict(self.named_parameters())}
        device = next(iter(directions.values())).device.type
        with torch.autocast(device, enabled=False):
            return {n: stepped(weights[n], lr, transformed(g, learned, entry(n))) for n, g in directions.items()}


def transformed(direction: Tensor, learned: Weights, name: str) -> Tensor:
    """Return the transformed direction ``(t, ...)`` of the weight whose matrices have this name."""
    if direction.ndim == 2:
        return learned[name] * direction
    y = direction.unsqueeze(-1).flatten(3)  # (t, o, i, k)
    y = product(learned[f"{name}/input"], y)
    if direction.ndim > 3:
        y = product(learned[f"{name}/kernel"], y.mT).mT
    return product(learned[f"{name}/output"], y.flatten(2)).view_as(direction)


def product(matrix: Tensor, y: Tensor) -> Tensor:
    """Return ``matrix @ y``; a matrix with a single entry acts as a scalar on any number of rows."""
    return matrix * y if matrix.numel() == 1 else matrix @ y
