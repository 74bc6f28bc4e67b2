"""Model-agnostic meta-learning, second order and first (Finn et al. 2017)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metafew.backbones.backbone import Backbone
from metafew.episode import Labelled
from metafew.errors import UsageError
from metafew.heads.fast import (
    BACKBONE,
    Bound,
    Differentiate,
    Known,
    Task,
    adaptable,
    by_autograd,
    by_function,
    detached,
    embed,
)
from metafew.heads.inner import RULES, Rates, Shape, Weights
from metafew.heads.output import Output, classify, prototypes
from metafew.norms.norm import Norm

CHOICES = {
    "adapt": ("all", "no_norm", "output"),
    "rates": ("fixed", "layer", "weight"),
    "optimizer": tuple(RULES),
    "inner": ("auto", "loop", "chunk", "vmap"),
}
Plan = dict[float, dict[int, list[str]]]
"""For each inner learning rate, which results are read after which step."""


class MAML(nn.Module):
    """Fit the backbone and a linear output layer to the support set by a few steps of gradient descent.

    With ``adapt="output"`` the layer alone is fitted (ANIL, Raghu et al. 2020), on features that are computed once.

    Each step descends the mean cross-entropy of the support set, whose rows are the context of every norm; the queries
    then pass together with the support set, which gives the context's moments under the adapted weights. In training
    the gradient of the queries' loss passes through the steps (or, with ``first_order``, is taken at their end as if
    they had been constant: FOMAML). TaskNorm's own scalars take part in the outer gradient only.

    The inner learning rate is on the mean over support rows. Finn et al. sum over classes: their rate times the way is
    ours, so their 0.4 on 5-way Omniglot is 2.0 here.

    In evaluation ``lr`` and ``test_steps`` may be lists: each pair is measured on the validation tasks, and the best
    one is tested.

    Args:
        backbone: the backbone that it will adapt; only names and shapes of its weights matter here.
        way: number of classes of every task, for ``output="linear"``.
        steps: gradient steps in training.
        test_steps: gradient steps in evaluation, or a list to choose from.
        lr: inner learning rate, or a list to choose from in evaluation.
        rates: ``fixed``; or learned from ``lr`` on, one a ``layer`` and step, or one a ``weight``
            (:class:`~metafew.heads.inner.Rates`).
        optimizer: ``sgd`` or ``adam`` (:mod:`metafew.heads.inner`).
        first_order: leave the second derivatives out.
        adapt: ``all`` weights of the backbone; ``no_norm``, all but scales and shifts of norms (Finn et al.); or only
            the ``output`` layer.
        freeze: beginnings of names of backbone weights that do not adapt, such as ``blocks.0``.
        output: what the output layer starts from (:class:`~metafew.heads.output.Output`).
        inner: how the tasks of a meta-batch are worked through, with the same numbers: one by one in a ``loop``, a
            ``chunk`` or all of them at once by ``vmap``; ``auto`` is ``vmap`` on a GPU, which it keeps busy, and
            ``loop`` on a CPU, where it is faster. In training no more than these are held in memory at once.
        chunk: tasks in a chunk.
        each_step: also measure after every step of evaluation. The best of these is a selection on test data, which
            Bronskill et al. (2020) report.
        trained: whether the head is, or will be, trained.
    """

    def __init__(
        self,
        backbone: Backbone,
        trained: bool,
        way: int | str,
        steps: int = 5,
        test_steps: int | Sequence[int] = 10,
        lr: float | Sequence[float] = 0.4,
        rates: str = "fixed",
        optimizer: str = "sgd",
        first_order: bool = False,
        adapt: str = "all",
        freeze: Sequence[str] = (),
        output: str = "auto",
        inner: str = "auto",
        chunk: int = 4,
        each_step: bool = False,
    ):
        super().__init__()
        for key, value in {"adapt": adapt, "rates": rates, "optimizer": optimizer, "inner": inner}.items():
            if value not in CHOICES[key]:
                wanted = " or ".join(CHOICES[key])
                raise UsageError(f"head.{key} is {wanted}, not {value}: type head.{key}={CHOICES[key][0]}")
        self.lrs, self.marks = listed(lr), listed(test_steps)
        whole = {"steps": ([steps], 0), "test_steps": (self.marks, 0), "chunk": ([chunk], 1)}
        for key, (values, least) in whole.items():
            if not values or not all(isinstance(v, int) and v >= least for v in values):
                raise UsageError(f"head.{key} is a whole number from {least}, not {values}: type head.{key}=5")
        if not self.lrs or not all(isinstance(v, int | float) and v > 0 for v in self.lrs):
            raise UsageError(f"head.lr is a positive number, not {lr}: type head.lr=0.4")
        if rates != "fixed" and len(self.lrs) > 1:
            raise UsageError(f"head.rates={rates} learns from one head.lr on: type head.lr={self.lrs[0]}")
        self.steps, self.first_order, self.inner, self.chunk = steps, first_order, inner, chunk
        self.each_step, self.chosen = each_step, None
        self.output = Output(output, way, backbone.features, trained)
        self.names = adaptable(backbone, adapt, listed(freeze))
        self.rule = RULES[optimizer]()
        self.rates = Rates(rates, self.lrs[0], steps, [*self._shapes(backbone)])

    def _shapes(self, backbone: Backbone) -> Iterator[Shape]:
        values = dict(backbone.named_parameters())
        for name in self.names:
            yield Shape(BACKBONE + name, values[name].shape)
        rows = self.output.way or 1
        yield Shape("weight", torch.Size((rows, backbone.features)))
        yield Shape("bias", torch.Size((rows,)))

    @property
    def adapts_backbone(self) -> bool:
        """Whether the backbone's weights change from task to task."""
        return bool(self.names)

    @property
    def fixed_way(self) -> int | None:
        """The only number of classes that this head can tell apart, if there is one."""
        return self.output.way

    @property
    def candidates(self) -> dict[str, tuple[float, int]]:
        """Pairs of ``lr`` and ``test_steps`` to choose from, by name."""
        return {f"lr{lr:g}_steps{mark}": (lr, mark) for lr in self.lrs for mark in self.marks}

    @property
    def extra(self) -> list[str]:
        """Names of what evaluation measures beside the result: candidates until one is chosen, steps if asked for."""
        if len(self.candidates) > 1 and self.chosen is None:
            return [*self.candidates]
        return [f"step{step}" for step in range(1, self._setting[1] + 1)] if self.each_step else []

    @property
    def _setting(self) -> tuple[float, int]:
        return self.candidates[self.chosen or next(iter(self.candidates))]

    def tasks_at_once(self, device: torch.device) -> int | None:
        """Return how many tasks are worked through together; None for all of a meta-batch."""
        inner = ("vmap" if device.type == "cuda" else "loop") if self.inner == "auto" else self.inner
        return {"loop": 1, "chunk": self.chunk, "vmap": None}[inner]

    def forward(self, backbone: Backbone, support: Labelled, query: Tensor, way: int) -> Tensor:
        """Return logits ``(t, q, w)`` of the images ``query`` ``(t, q, c, h, w)``."""
        return self._measure(backbone, support, query, way, extra=False)[""]

    def readings(self, backbone: Backbone, support: Labelled, query: Tensor, way: int) -> dict[str, Tensor]:
        """Return logits under the name ``""``, and those of everything in :attr:`extra`."""
        return self._measure(backbone, support, query, way, extra=True)

    def _plan(self, extra: bool) -> Plan:
        lr, steps = (self.lrs[0], self.steps) if self.training else self._setting
        plan = {lr: {steps: [""]}}
        for name in self.extra if extra else []:
            rate, mark = self.candidates.get(name) or (lr, int(name.removeprefix("step")))
            plan.setdefault(rate, {}).setdefault(mark, []).append(name)
        return plan

    def _measure(
        self, backbone: Backbone, support: Labelled, query: Tensor, way: int, extra: bool
    ) -> dict[str, Tensor]:
        plan, bound = self._plan(extra), Bound(backbone)
        size = self.tasks_at_once(query.device)
        images = support.images
        if not self.adapts_backbone:
            bound, (images, query) = Known(), backbone.embed(images, query)
        one = partial(self._loop if size == 1 else self._vmap, bound, way, plan)
        parts = zip(*(part.split(size or len(part)) for part in (images, support.labels, query)), strict=True)
        results = [one(*part) for part in parts]
        return {name: torch.cat([result[name] for result in results]) for name in results[0]}

    def _loop(
        self, bound: Bound, way: int, plan: Plan, images: Tensor, labels: Tensor, query: Tensor
    ) -> dict[str, Tensor]:
        """Read the results ``(1, q, w)`` of one task."""
        return dict(self._task(bound, Task(images[0], labels[0], way), query[0], plan, differentiate=by_autograd))

    def _vmap(
        self, bound: Bound, way: int, plan: Plan, images: Tensor, labels: Tensor, query: Tensor
    ) -> dict[str, Tensor]:
        """Read the results ``(t, q, w)`` of several tasks at once."""
        norms: list[Norm] = []

        def one(images: Tensor, labels: Tensor, query: Tensor) -> tuple[dict[str, Tensor], list[Tensor]]:
            ledger: dict[Norm, Tensor] = {}
            task = Task(images, labels, way)
            logits = dict(self._task(bound, task, query, plan, by_function, record=ledger))
            norms[:] = ledger
            return {name: value[0] for name, value in logits.items()}, list(ledger.values())

        logits, moments = torch.vmap(one, randomness="different")(images, labels, query)
        for norm, value in zip(norms, moments, strict=True):
            norm.gather(value.sum(0))
        return logits

    def _task(
        self,
        bound: Bound,
        task: Task,
        query: Tensor,
        plan: Plan,
        differentiate: Differentiate,
        record: bool | dict = True,
    ) -> Iterator[tuple[str, Tensor]]:
        """Adapt to one task and yield names and logits ``(1, q, w)`` of its queries."""
        for lr, marks in plan.items():
            path = self._path(bound, task, lr, max(marks), differentiate)
            for step, weights in enumerate(path):
                if step in marks:
                    _, features = embed(bound, weights, task.images, query, record=record)
                    logits = classify(features, weights)
                    yield from ((name, logits) for name in marks[step])

    def _path(self, bound: Bound, task: Task, lr: float, steps: int, differentiate: Differentiate) -> Iterator[Weights]:
        """Yield the weights after 0, 1, ..., ``steps`` steps."""
        outer = self.training and torch.is_grad_enabled()
        weights = self.start(bound, task)
        state = self.first_state(weights)
        # Where no gradient will be asked for, nothing is kept of how the weights came about.
        hold = dict if outer else detached
        weights, state = hold(weights), hold(state)
        yield weights
        for step in range(steps):
            loss = partial(self.loss, bound, task, step)
            grads, _ = differentiate(loss, weights, outer and not self.first_order)
            weights, state = self.rule(weights, grads, state, self.rates.at(step, lr))
            weights, state = hold(weights), hold(state)
            yield weights

    def adaptation(self, backbone: Backbone, support: Labelled, way: int) -> Iterator[tuple[Weights, Weights]]:
        """Yield the weights of each task before and after the steps of evaluation; in eval mode, one by one."""
        bound, (lr, steps) = Bound(backbone), self._setting
        for images, labels in zip(*support, strict=True):
            path = self._path(bound, Task(images, labels, way), lr, steps, by_autograd)
            start = next(path)
            yield start, deque(path, maxlen=1).pop() if steps else start

    def first_state(self, weights: Weights) -> Weights:
        """Return the state of the inner optimizer before the first step."""
        return self.rule.start(weights)

    def start(self, bound: Bound, task: Task) -> Weights:
        """Return the weights that adaptation starts from."""
        values = dict(bound.named_parameters())
        fast = {BACKBONE + name: values[BACKBONE + name] for name in self.names}
        output = self.output.start(task.way, like=task.images)
        if self.output.kind == "prototype":
            features, _ = embed(bound, fast, task.images, record=False)
            output = prototypes(features[0], task.labels, task.way)
        return fast | output

    def loss(self, bound: Bound, task: Task, step: int, weights: Weights) -> Tensor:
        """Return the mean cross-entropy, in nats, of the support rows that step ``step`` uses."""
        features, _ = embed(bound, weights, task.images, record=False)
        return F.cross_entropy(classify(features[0], weights), task.labels)


def listed(value) -> list:
    """Return a list, whether a list or a single value was given."""
    return list(value) if isinstance(value, list | tuple) else [value]
