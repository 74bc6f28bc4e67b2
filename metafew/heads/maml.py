"""Model-agnostic meta-learning, second order and first (Finn et al. 2017)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metafew.backbones.backbone import Backbone
from metafew.episode import Labelled
from metafew.errors import UsageError
from metafew.norms.alpha import Alpha
from metafew.norms.norm import Norm

Weights = dict[str, Tensor]


class Layers(NamedTuple):
    """What adapts to a task: weights of the backbone by name, and a linear output layer."""

    backbone: Weights
    output: Weights

    def descend(self, loss: Tensor, rate: float, graph: bool) -> Layers:
        """Return the layers after a step of gradient descent, which autograd sees through if ``graph``."""
        values = [*self.backbone.values(), *self.output.values()]
        steps = iter(torch.autograd.grad(loss, values, create_graph=graph))
        return Layers(*({name: value - rate * next(steps) for name, value in part.items()} for part in self))

    def leaves(self) -> Layers:
        """Return the same values, cut off from where they came from."""
        return Layers(*({name: value.detach().requires_grad_() for name, value in part.items()} for part in self))


class Bound(nn.Module):
    """A backbone's ``embed`` as a ``forward``, so that it can be called with other weights."""

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Embed as the backbone does."""
        return self.backbone.embed(*args, **kwargs)


class MAML(nn.Module):
    """Fit the backbone and a linear output layer to the support set by a few steps of gradient descent.

    Each step descends the mean cross-entropy of the support set, whose rows are the context of every norm; the queries
    then pass together with the support set, which gives the context's moments under the adapted weights. In training
    the gradient of the queries' loss passes through the steps (or, with ``first_order``, is taken at their end as if
    they had been constant: FOMAML). TaskNorm's own scalars take part in the outer gradient only.

    The inner learning rate is on the mean over support rows. Finn et al. sum over classes: their rate times the way is
    ours, so their 0.4 on 5-way Omniglot is 2.0 here.

    Args:
        features: dimension of the backbone's features.
        way: number of classes of every task, for ``output="linear"``.
        steps: gradient steps in training.
        test_steps: gradient steps in evaluation.
        lr: inner learning rate.
        first_order: leave the second derivatives out.
        adapt: ``all`` weights of the backbone, or ``no_norm`` for all but scales and shifts of norms (Finn et al.).
        output: ``linear``, a meta-learned output layer of ``way`` rows; ``shared``, one meta-learned row that all
            classes start from; ``zero``; or ``auto``: ``zero`` in a head that was not trained, else ``linear`` if
            tasks have one way, else ``shared``. All but ``linear`` take any way.
        trained: whether the head is, or will be, trained.
    """

    adapts_backbone = True

    def __init__(
        self,
        features: int,
        trained: bool,
        way: int | str,
        steps: int = 5,
        test_steps: int = 10,
        lr: float = 0.4,
        first_order: bool = False,
        adapt: str = "all",
        output: str = "auto",
    ):
        super().__init__()
        choices = {"adapt": (adapt, ("all", "no_norm")), "output": (output, ("auto", "linear", "shared", "zero"))}
        for key, (value, allowed) in choices.items():
            if value not in allowed:
                raise UsageError(f"head.{key} is {' or '.join(allowed)}, not {value}: type head.{key}={allowed[0]}")
        for key, value in (("steps", steps), ("test_steps", test_steps)):
            if not isinstance(value, int) or value < 0:
                raise UsageError(f"head.{key} is a whole number from 0, not {value}: type head.{key}=5")
        if output == "auto":
            output = "zero" if not trained else "linear" if isinstance(way, int) else "shared"
        if output == "linear" and not isinstance(way, int):
            raise UsageError(
                f"a linear output layer wants one number of classes, not train.way={way}: type head.output=shared"
            )
        self.way, self.steps, self.test_steps, self.lr = way, steps, test_steps, lr
        self.first_order, self.adapt, self.output = first_order, adapt, output
        if output != "zero":
            size = way if output == "linear" else 1
            self.weight = nn.Parameter(torch.empty(size, features))
            nn.init.kaiming_uniform_(self.weight, a=5**0.5)
            self.bias = nn.Parameter(torch.zeros(size))
        self.features = features

    @property
    def fixed_way(self) -> int | None:
        """The only number of classes that this head can tell apart, if there is one."""
        return self.way if self.output == "linear" else None

    def start(self, backbone: Backbone, way: int) -> Layers:
        """Return the weights that adaptation starts from."""
        if self.output == "linear" and way != self.way:
            raise UsageError(
                f"this output layer was made for {self.way} classes and a task has {way}: type head.output=shared"
            )
        kept = Alpha if self.adapt == "all" else (Alpha, Norm)
        names = {id(p) for module in backbone.modules() if isinstance(module, kept) for p in module.parameters()}
        fast = {name: p for name, p in backbone.named_parameters() if id(p) not in names}
        if self.output == "zero":
            like = next(backbone.parameters()).detach()
            shapes = {"weight": (way, self.features), "bias": (way,)}
            output = {name: like.new_zeros(shape).requires_grad_() for name, shape in shapes.items()}
        else:
            output = {"weight": self.weight.expand(way, -1), "bias": self.bias.expand(way)}
        return Layers(fast, output)

    def forward(self, backbone: Backbone, support: Labelled, query: Tensor, way: int) -> Tensor:
        """Return logits ``(t, q, w)`` of the images ``query`` ``(t, q, c, h, w)``."""
        tasks = zip(support.images.split(1), support.labels, query.split(1), strict=True)
        return torch.cat([self._task(backbone, images, labels, asked, way) for images, labels, asked in tasks])

    def _task(self, backbone: Backbone, images: Tensor, labels: Tensor, query: Tensor, way: int) -> Tensor:
        """Adapt to one task and return the logits ``(1, q, w)`` of its queries."""
        bound = Bound(backbone)
        with torch.enable_grad():
            layers = self.start(backbone, way)
            if not self.training:
                layers = layers.leaves()
            for _ in range(self.steps if self.training else self.test_steps):
                features, _ = self._embed(bound, layers, images, record=False)
                loss = F.cross_entropy(F.linear(features[0], **layers.output), labels)
                layers = layers.descend(loss, self.lr, graph=self.training and not self.first_order)
                if not self.training:
                    layers = layers.leaves()
        _, features = self._embed(bound, layers, images, query)
        return F.linear(features, **layers.output)

    @staticmethod
    def _embed(bound: Bound, layers: Layers, *images: Tensor, **options: bool) -> tuple[Tensor, Tensor]:
        weights = {f"backbone.{name}": value for name, value in layers.backbone.items()}
        return torch.func.functional_call(bound, weights, images, options)
