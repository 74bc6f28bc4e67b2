"""Second-order and first-order model-agnostic meta-learning (Finn et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from metafew.backbones.backbone import Backbone
from metafew.config.option_values import as_list, check_choice, check_integer
from metafew.errors import UsageError
from metafew.heads.adapting import AdaptingHead
from metafew.heads.batching import Readout
from metafew.heads.fast_weights import adapting_names
from metafew.heads.inner import LEARNED, RULES
from metafew.heads.output import Output

CHOICES = {
    "adapt": ("all", "no_norm", "output", "body"),
    "rates": ("fixed", "layer", "weight", "curvature"),
    "optimizer": tuple(RULES),
}


class MAML(AdaptingHead):
    """Fit the backbone and a linear output layer to the support set by a few steps of gradient descent.

    With ``adapt="output"`` only the layer is fitted (ANIL, Raghu et al. 2020), on features that are computed once. With
    ``adapt="body"`` only the backbone is fitted (BOIL, Oh et al. 2021), and the outer gradient learns the output layer;
    in an untrained head, this layer is made from the class means before adaptation. With ``first_order`` the outer
    gradient treats the inner gradients as constant (FOMAML). TaskNorm's scalars are learned by the outer gradient only.

    The inner learning rate applies to the mean loss over support rows. Finn et al. sum over classes, so that their rate
    must be multiplied by the way: their 0.4 on 5-way Omniglot is 2.0 here.

    In evaluation ``lr`` and ``test_steps`` may be lists: each pair is measured on the validation tasks, and the best
    one is tested.

    Args:
        backbone: the backbone to adapt; only the names and shapes of its weights are used here.
        trained: whether the head is, or will be, trained.
        way: number of classes of every task, for ``output="linear"``.
        steps: gradient steps in training.
        test_steps: gradient steps in evaluation, or a list to choose from.
        lr: inner learning rate, or a list to choose from in evaluation.
        rates: ``fixed``; or learned, starting at ``lr``: one for each ``layer`` and step, or one for each ``weight``
            (:class:`~metafew.heads.inner.Rates`); ``curvature``: ``lr`` times learned matrices
            (:class:`~metafew.heads.curvature.Curvature`).
        optimizer: ``sgd``, ``adam`` or ``adadelta`` (:mod:`metafew.heads.inner`).
        first_order: leave out the second derivatives.
        adapt: ``all`` weights; ``no_norm``, all but scales and shifts of norms (Finn et al.); only the ``output``
            layer; or only the ``body``, the backbone.
        freeze: prefixes of names of backbone weights that do not adapt, such as ``blocks.0``.
        output: the output layer before adaptation (:class:`~metafew.heads.output.Output`).
        output_std: standard deviation of the initial weights of a meta-learned output layer; None: as
            :class:`torch.nn.Linear`. Finn et al. use 1 on Omniglot, where inner gradients are then ten times as large.
        inner: ``auto``, ``loop``, ``batch``, ``chunk`` or ``vmap`` (:class:`~metafew.heads.batching.BatchingHead`).
        chunk: tasks in a chunk.
        memory: memory limit in MiB for tasks that are processed together, or ``auto``.
        each_step: also measure after every inner step in evaluation. The best of these results, which Bronskill et al.
            (2020) report, is selected on test data.
    """

    evaluation_options: tuple[str, ...] = ("test_steps", "each_step")
    exemptions: ClassVar = {"exchangeable_classes": "a linear output layer has a row for each class"}

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
        output_std: float | None = None,
        inner: str = "auto",
        chunk: int = 4,
        memory: int | str = "auto",
        each_step: bool = False,
    ):
        for key, value in {"adapt": adapt, "rates": rates, "optimizer": optimizer}.items():
            check_choice(f"head.{key}", value, CHOICES[key])
        lrs, test_steps = as_list(lr), as_list(test_steps)
        for key, values in {"steps": [steps], "test_steps": test_steps}.items():
            for value in values or [None]:
                check_integer(f"head.{key}", value, 0, 5)
        if not lrs or not all(isinstance(v, int | float) and not isinstance(v, bool) and v > 0 for v in lrs):
            raise UsageError(f"expected head.lr to be a positive number, got {lr}: type head.lr=0.4")
        if rates in LEARNED and len(lrs) > 1:
            raise UsageError(
                f"expected one head.lr for head.rates={rates} to start from, got {lr}: type head.lr={lrs[0]}"
            )
        layer = Output(output, way, backbone.features, trained, output_std, adapts=adapt != "body")
        names = adapting_names(backbone, adapt, as_list(freeze))
        if not (names or layer.adapts):
            raise UsageError(
                f"expected a network with weights that adapt for head.adapt=body, got {type(backbone).__name__} with "
                "none: type head.adapt=output"
            )
        super().__init__(
            backbone, layer, names, steps, lrs, RULES[optimizer](), rates, first_order, inner, chunk, memory
        )
        self.test_steps, self.each_step = test_steps, each_step

    @property
    def candidates(self) -> dict[str, dict[str, Any]]:
        """Pairs of ``lr`` and ``test_steps`` to choose from, by name."""
        return {
            f"lr{lr:g}_steps{steps}": {"lr": lr, "test_steps": steps}
            for lr in self.learning_rates
            for steps in self.test_steps
        }

    @property
    def evaluation_setting(self) -> tuple[float, int]:
        """Learning rate and number of steps in evaluation: those chosen, or the first."""
        setting = self.candidates[self.chosen or next(iter(self.candidates))]
        return setting["lr"], setting["test_steps"]

    @property
    def extra_readings(self) -> list[str]:
        """The candidates, until one is chosen; after that every step, with ``each_step``."""
        if len(self.candidates) > 1 and self.chosen is None:
            return [*self.candidates]
        return [f"step{step}" for step in range(1, self.evaluation_setting[1] + 1)] if self.each_step else []

    def readout(self, extra: Sequence[str]) -> Readout:
        """Return the learning rate and the step at which the result and each of the readings ``extra`` are taken."""
        readout = super().readout(extra)
        (lr,) = readout
        for name in extra:
            if name in self.candidates:
                rate, steps = self.candidates[name].values()
            else:
                rate, steps = lr, int(name.removeprefix("step"))
            readout.setdefault(rate, {}).setdefault(steps, []).append(name)
        return readout
