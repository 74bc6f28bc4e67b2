"""Evaluate heads on arrays of features, and classify rows of such arrays."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from torch import Tensor, nn

from metafew.analysis.text_table import DAGGER, Bold, TextTable, in_groups
from metafew.api.loops import as_array, check_tasks
from metafew.backbones.identity import Identity
from metafew.config.groups import ALL, CONF, load_option, options_of
from metafew.config.mistakes import no_option
from metafew.data.array_split import ArraySplit
from metafew.data.loader import MetaBatches, make_loader
from metafew.data.sampler import Sampler
from metafew.data.sources.features import categories, labelled_vectors
from metafew.data.task_spec import TaskSpec
from metafew.errors import UsageError
from metafew.evaluation.eval_mode import evaluating
from metafew.evaluation.evaluator import Evaluator
from metafew.evaluation.metrics import PerTask, summary
from metafew.evaluation.statistics import (
    Interval,
    contains_zero,
    differences_to_best,
    format_difference,
    format_percent,
    interval,
)
from metafew.heads.head import Head
from metafew.inference import Model
from metafew.training.evaluated_heads import fitting_heads
from metafew.training.instantiate import make_head
from metafew.training.run import silence_lightning

Heads = Sequence[str | Head] | Mapping[str, str | Head]

log = logging.getLogger(__name__)


@dataclass(frozen=True, repr=False)
class Evaluation:
    """The accuracies of heads on the same tasks, returned by :func:`metafew.evaluate`. Printing it shows a table.

    Attributes:
        title: the tasks.
        accuracies: the accuracy of each task ``(tasks,)``, by head.
        measures: by head, the mean accuracy, the half width ``ci95`` of its 95 % interval, the number of tasks and of
            failed ones, and ``transductive``: whether a query may change the predictions of others.
        baseline: the name of 1-nearest-neighbour on the features, which is measured like a head.
        left_out: the heads that ``heads="all"`` leaves out, by reason.
    """

    title: str
    accuracies: dict[str, np.ndarray]
    measures: dict[str, Interval]
    baseline: str
    left_out: str = ""

    @property
    def heads(self) -> list[str]:
        """The names of the heads, without the baseline."""
        return [name for name in self.measures if name != self.baseline]

    @property
    def mean(self) -> dict[str, float]:
        """The mean accuracy of each head."""
        return {name: measure["mean"] for name, measure in self.measures.items()}

    @property
    def ci95(self) -> dict[str, float | None]:
        """The half width of the 95 % confidence interval of each mean; None for a single task."""
        return {name: measure["ci95"] for name, measure in self.measures.items()}

    @property
    def rows(self) -> list[dict[str, Any]]:
        """A row for each head, with the baseline last, as ``pandas.DataFrame(table.rows)`` takes them."""
        return [{"head": name, **measure} for name, measure in self.measures.items()]

    @property
    def best(self) -> str:
        """The head with the highest mean accuracy."""
        return self.differences[self.baseline]["to"]

    @property
    def differences(self) -> dict[str, Interval]:
        """Paired differences of heads and the baseline from the best head, named in ``to``: see :meth:`difference`."""
        return differences_to_best(self.accuracies, self.heads)

    def to_dict(self) -> dict[str, Interval]:
        """Return the measures of each head as plain values, by its name."""
        return {name: dict(measure) for name, measure in self.measures.items()}

    def difference(self, head: str, other: str) -> Interval:
        """Return mean, ``ci95`` and number of tasks of the paired difference ``head - other``.

        The interval is that of the differences on the same tasks, which is usually narrower than that of the difference
        of two independent means.
        """
        return interval(self.accuracies[head] - self.accuracies[other])

    def table(self) -> TextTable:
        """Return the table that is shown, which also renders to Markdown, LaTeX and HTML."""
        gaps, rows = self.differences, []
        best = gaps[self.baseline]["to"]
        heads = sorted(self.heads, key=lambda name: self.measures[name]["transductive"])
        for name in (*heads, self.baseline):
            measure = self.measures[name]
            cells = [format_percent(measure), "–" if name == best else format_difference(gaps[name])]
            top = name == best or contains_zero(gaps[name])
            rows.append([f"{name} †" if measure["transductive"] else name, *(map(Bold, cells) if top else cells)])
        marks = [self.measures[name]["transductive"] for name in heads]
        rows = [*in_groups(rows[:-1], marks), rows[-1]]
        notes = [DAGGER] * any(marks)
        notes += [f"left out: {self.left_out}"] * bool(self.left_out)
        return TextTable(self.title, ["accuracy (%)", f"difference from {best} (points)"], rows, notes)

    def __repr__(self) -> str:
        console = Console(file=io.StringIO(), width=100, color_system=None, force_jupyter=False)
        console.print(self.table().rich(), *self.table().notes, sep="\n")
        return console.file.getvalue().rstrip()  # type: ignore[attr-defined]  # of StringIO

    def _repr_markdown_(self) -> str:
        """Return the table as notebooks show it."""
        return self.table().markdown()


class Classification(NamedTuple):
    """The classes of queries, returned by :func:`metafew.classify`.

    Attributes:
        labels: the most probable label of each query; None where logits are not finite.
        probabilities: ``(q, w)`` in float32, with one column per class in ``classes``.
        classes: the labels of the support set in sorted order, or in order of first occurrence.
    """

    labels: list
    probabilities: Tensor
    classes: list


def evaluate_features(
    features: np.ndarray | Tensor, labels: Any, heads: Heads, way: int | str, shot: int | str, query: int, tasks: int,
    seed: int, base: np.ndarray | Tensor | None,
) -> Evaluation:  # fmt: skip
    """Evaluate heads on tasks drawn from features: :func:`metafew.evaluate`."""
    advice = "give an array of vectors, and one label for each"
    vectors, classes = labelled_vectors(as_array(features), as_array(labels), "features and labels", "labels", advice)
    split = ArraySplit(vectors[..., None, None], categories(classes))
    spec = TaskSpec("test", way=way, shot=shot, query=query, tasks=4, total=tasks, seed=seed)
    check_tasks(spec, split.categories, "features")
    backbone = Identity(vectors.shape[1], 1, norm=nn.Identity)
    if heads == ALL:
        made, left_out = fitting_heads(default_nodes(options_of("head"), way, seed), backbone, base is not None)
    else:
        made, left_out = make_heads(heads, backbone, way, seed), ""
    set_base_mean(made, base, backbone.features)
    evaluator = Evaluator(backbone, {str(number): head for number, head in enumerate(made.values())}, "together")
    tables = run_test(evaluator, Sampler(split, spec, views=None))
    names = {str(number): name for number, name in enumerate(made)} | {evaluator.baseline: evaluator.baseline}
    measures: dict[str, Interval] = {}
    for key, name in names.items():
        measures[name] = summary(tables[key], "accuracy") | {"transductive": name in made and made[name].transductive}
    column = PerTask.columns.index("accuracy")
    return Evaluation(
        f"{way}-way {shot}-shot, {query} queries per class, {tasks} tasks",
        {name: tables[key][:, column].cpu().numpy() for key, name in names.items()},
        measures,
        evaluator.baseline,
        left_out,
    )


def run_test(evaluator: Evaluator, sampler: Sampler) -> dict[str, Tensor]:
    """Return the table of tasks of each head, as the stage ``test`` of a run computes it."""
    with warnings.catch_warnings():
        silence_lightning()
        trainer = pl.Trainer(
            accelerator="gpu" if torch.cuda.is_available() else "cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            inference_mode=False,
        )
        loader = make_loader(MetaBatches(sampler, 0, 1, evaluator.tasks_of_a_step(sampler)), workers=0)
        trainer.test(evaluator, [loader], verbose=False)
    return evaluator.tables[0]


def make_heads(heads: Heads, backbone: Identity, way: int | str, seed: int) -> dict[str, Head]:
    """Return heads by name; those given as names on the command line are made with their default options.

    Raises:
        UsageError: if there is no head of a given name, or two heads have the same name.
    """
    if isinstance(heads, str | Head):
        heads = [heads]
    given = [*heads.items()] if isinstance(heads, Mapping) else [(name_of(head), head) for head in heads]
    if not given:
        raise UsageError("expected one head or more, got none: pass heads=['protonet', 'svm']")
    names = [name for name, _ in given]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise UsageError(
            f"expected heads of different names, got {', '.join(sorted(repeated))} twice: pass a dictionary, such as "
            "heads={'first': SVM(c=0.1), 'second': SVM(c=1.0)}"
        )
    return {
        name: as_given(head) if isinstance(head, Head) else make_one(head, backbone, way, seed) for name, head in given
    }


def as_given(head: Head) -> Head:
    """Return a copy of a head, which evaluation may move to a GPU or give another mean of training features.

    A head that lacks this mean is not copied, and keeps that of its first evaluation.
    """
    if head.needs_base_mean and head.base_mean is None:
        return head
    # A mean of features with a graph cannot be copied.
    mean = head.base_mean
    return deepcopy(head, {} if mean is None else {id(mean): mean.detach()})


def name_of(head: str | Head) -> str:
    """Return the word that names a head, or the name of its class."""
    return head if isinstance(head, str) else type(head).__name__


def make_one(word: str, backbone: Identity, way: int | str, seed: int) -> Head:
    """Return the untrained head with this name on the command line."""
    if word not in options_of("head"):
        raise UsageError(no_option("head", word))
    head = make_head(default_nodes([word], way, seed)[word], backbone, trained=False)
    if head.requires_training:
        log.warning("head=%s must be trained, but its initial weights are used: pass a trained head", word)
    return head


def default_nodes(words: Sequence[str], way: int | str, seed: int) -> DictConfig:
    """Return the default options of heads, by their names on the command line."""
    nodes = {word: load_option(CONF / "head" / f"{word}.yaml") for word in words}
    return OmegaConf.create({"evaluate": nodes, "train": {"way": way}, "seed": seed}).evaluate


def set_base_mean(heads: Mapping[str, Head], base: np.ndarray | Tensor | None, length: int) -> None:
    """Give heads that use it the mean of features of training classes.

    Args:
        heads: the heads, by name.
        base: the features ``(n, d)``, or their mean ``(d,)``; None keeps what the heads have.
        length: the dimension ``d``.

    Raises:
        UsageError: if a head has none, or ``base`` has another shape or values that are not finite.
    """
    using = {name: head for name, head in heads.items() if head.needs_base_mean}
    if base is not None:
        values = as_array(base)
        if values.ndim not in (1, 2) or not values.size or values.shape[-1] != length or not np.isfinite(values).all():
            raise UsageError(
                f"expected base to be finite features (n, {length}) of training classes, or their mean ({length},), "
                f"got an array of shape {values.shape}: pass the output of the same network for training classes"
            )
        mean = torch.tensor(np.atleast_2d(values).mean(0, dtype=np.float64), dtype=torch.float32)
        for head in using.values():
            head.base_mean = mean
    lacking = [name for name, head in using.items() if head.base_mean is None]
    if lacking:
        raise UsageError(
            f"expected features of training classes, by whose mean {lacking[0]} centres features, got none: pass "
            "base=features of training classes, or leave it out of heads"
        )


def classify_features(
    head: str | Head, support: np.ndarray | Tensor, labels: Any, query: np.ndarray | Tensor,
    base: np.ndarray | Tensor | None,
) -> Classification:  # fmt: skip
    """Classify query features, given a support set: :func:`metafew.classify`."""
    vectors = as_array(support)
    if vectors.ndim != 2:
        raise UsageError(
            f"expected support to be features (n, d), got an array of shape {vectors.shape}: give a vector for each "
            "example, such as the output of a network"
        )
    backbone = Identity(vectors.shape[1], 1, norm=nn.Identity)
    made = make_heads([head], backbone, "2", 0)
    set_base_mean(made, base, backbone.features)
    model = Model(backbone, made[name_of(head)], {"head": name_of(head)})
    with evaluating(model):
        task = model.adapt(vectors, labels.tolist() if isinstance(labels, np.ndarray | Tensor) else labels)
        probabilities = task.predict(as_array(query))
    return Classification(task.most_probable(probabilities), probabilities, task.classes)
