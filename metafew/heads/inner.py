"""Steps of the inner loop: the update directions of the weights, and their learning rates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from metafew.backbones.backbone import Backbone
from metafew.errors import UsageError
from metafew.heads.output import Output
from metafew.meta_parameters import HasMetaParameters

Weights = dict[str, Tensor]
"""Weights that adapt to a task, by name."""
StepRates = Mapping[str, Tensor | float]
"""The learning rate of each weight in one step."""


def for_each(weights: Weights, tasks: int) -> Weights:
    """Return weights that ``tasks`` tasks share, expanded by a task dimension without copying."""
    return {name: value.expand(tasks, *value.shape) for name, value in weights.items()}


def of_first_task(weights: Weights) -> Weights:
    """Return the weights of the first task of a stack."""
    return {name: value[0] for name, value in weights.items()}


class SGD:
    """Gradient descent without state: the direction is the gradient."""

    def start(self, weights: Weights) -> Weights:
        """Return the state before the first step: none."""
        return {}

    def __call__(self, grads: Weights, state: Weights) -> tuple[Weights, Weights]:
        """Return the directions of a step, and the state after it."""
        return grads, state


class Adam:
    """Adam (Kingma and Ba 2015); without momentum, ``beta1 = 0``, the inner optimizer of Nichol et al. (2018).

    ``v <- beta2 v + (1 - beta2) g^2``, and the direction is ``g / sqrt(v / (1 - beta2^n) + eps^2)`` after ``n`` steps;
    with momentum, ``m / (1 - beta1^n)`` takes the place of ``g``, with ``m <- beta1 m + (1 - beta1) g``. Kingma and Ba
    add ``eps`` outside the root; ``eps^2`` inside it keeps second derivatives finite where ``g = 0``. The state holds
    ``v`` and, under ``name + "/steps"``, ``n`` for every weight, and ``m`` under ``name + "/mean"``.

    Args:
        beta1: decay of the mean of gradients.
    """

    beta2, eps = 0.999, 1e-8

    def __init__(self, beta1: float = 0.0):
        self.beta1 = beta1

    def start(self, weights: Weights) -> Weights:
        """Return the state before the first step."""
        zeros = {name: torch.zeros_like(value) for name, value in weights.items()}
        means = {f"{name}/mean": value for name, value in zeros.items()} if self.beta1 else {}
        return zeros | {f"{name}/steps": value.new_zeros(()) for name, value in weights.items()} | means

    def __call__(self, grads: Weights, state: Weights) -> tuple[Weights, Weights]:
        """Return the directions of a step, and the state after it."""
        directions: Weights = {}
        after: Weights = {}
        for name, grad in grads.items():
            steps = state[f"{name}/steps"] + 1
            square = self.beta2 * state[name] + (1 - self.beta2) * grad.square()
            after |= {name: square, f"{name}/steps": steps}
            if self.beta1:
                mean = self.beta1 * state[f"{name}/mean"] + (1 - self.beta1) * grad
                after[f"{name}/mean"], grad = mean, mean / (1 - self.beta1**steps)
            directions[name] = grad / (square / (1 - self.beta2**steps) + self.eps**2).sqrt()
        return directions, after


class Adadelta:
    """Adadelta (Zeiler 2012), with the constants of :class:`torch.optim.Adadelta`.

    ``v <- rho v + (1 - rho) g^2``, the direction is ``d = g sqrt(u + eps) / sqrt(v + eps)``, and then
    ``u <- rho u + (1 - rho) d^2``. The state holds ``v`` and, under ``name + "/moved"``, ``u`` for every weight.
    """

    rho, eps = 0.9, 1e-6

    def start(self, weights: Weights) -> Weights:
        """Return the state before the first step."""
        zeros = {name: torch.zeros_like(value) for name, value in weights.items()}
        return zeros | {f"{name}/moved": value for name, value in zeros.items()}

    def __call__(self, grads: Weights, state: Weights) -> tuple[Weights, Weights]:
        """Return the directions of a step, and the state after it."""
        directions: Weights = {}
        after: Weights = {}
        for name, grad in grads.items():
            moved = state[f"{name}/moved"]
            square = self.rho * state[name] + (1 - self.rho) * grad.square()
            directions[name] = grad * ((moved + self.eps) / (square + self.eps)).sqrt()
            after[name] = square
            after[f"{name}/moved"] = self.rho * moved + (1 - self.rho) * directions[name].square()
        return directions, after


Rule = SGD | Adam | Adadelta
RULES: dict[str, type[Rule]] = {"sgd": SGD, "adam": Adam, "adadelta": Adadelta}


LEARNED = ("layer", "weight")
"""Values of ``head.rates`` for which inner learning rates are learned."""


class Shape(NamedTuple):
    """A weight that adapts, for learned rates.

    Attributes:
        name: its name.
        size: its shape, with 1 for the number of classes where that differs from task to task.
    """

    name: str
    size: torch.Size


def adapting_shapes(backbone: Backbone, names: Iterable[str], output: Output) -> list[Shape]:
    """Return the shapes of the weights ``names``, prefixed by ``backbone.``, and of an output layer that adapts."""
    values = dict(backbone.named_parameters())
    shapes = [Shape(f"backbone.{name}", values[name].shape) for name in names]
    if output.adapts:
        rows = output.way or 1
        shapes += [Shape("weight", torch.Size((rows, backbone.features))), Shape("bias", torch.Size((rows,)))]
    return shapes


class Rates(HasMetaParameters):
    """Inner learning rates: one for all weights, or learned ones, which are exempt from weight decay.

    Args:
        kind: ``fixed``; ``layer``, a learned rate for each weight tensor and step (LSLR, Antoniou et al. 2019; steps
            beyond those of training use the last); or ``weight``, a learned rate for each single weight, the same in
            all steps (Meta-SGD, Li et al. 2017).
        lr: the rate, and what learned rates start from.
        steps: steps in training.
        shapes: the weights that adapt.
    """

    def __init__(self, kind: str, lr: float, steps: int, shapes: Sequence[Shape]):
        super().__init__()
        if kind == "layer" and steps < 1:
            raise UsageError("expected at least one step for head.rates=layer, got head.steps=0: type head.steps=1")
        self.kind, self.names = kind, [shape.name for shape in shapes]
        if kind != "fixed":
            for shape in shapes:
                size = (steps,) if kind == "layer" else shape.size
                self.register_parameter(entry(shape.name), nn.Parameter(torch.full(size, float(lr))))
        self.meta_parameters = tuple(name for name, _ in self.named_parameters())

    def descend(self, weights: Weights, directions: Weights, step: int, lr: float) -> Weights:
        """Return ``weight - rate * direction`` for each weight; ``step`` and ``lr`` as in :meth:`at`."""
        rates = self.at(step, lr)
        return {name: stepped(weights[name], rates[name], direction) for name, direction in directions.items()}

    def at(self, step: int, lr: float) -> StepRates:
        """Return the rate of each weight in step ``step``, from 0; ``lr`` where rates are not learned."""
        if self.kind == "fixed":
            return dict.fromkeys(self.names, lr)
        rates = {name: getattr(self, entry(name)) for name in self.names}
        if self.kind == "weight":
            return rates
        return {name: rate[min(step, len(rate) - 1)] for name, rate in rates.items()}


def stepped(weight: Tensor, rate: Tensor | float, direction: Tensor) -> Tensor:
    """Return ``weight - rate * direction``."""
    return torch.sub(weight, direction, alpha=rate) if isinstance(rate, float | int) else weight - rate * direction


def entry(name: str) -> str:
    """Return the name under which a module registers a tensor that belongs to the weight ``name``."""
    return "of/" + name.replace(".", "/")
