"""Evaluate heads on arrays of features, and classify rows of such arrays."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.plugins.environments import LightningEnvironment
from torch import Tensor, nn

from metafew.api.loops import as_array, check_tasks
from metafew.api.results import Classification, Evaluation
from metafew.backbones.identity import Identity
from metafew.config.groups import ALL, CONF, load_option, options_of
from metafew.config.mistakes import no_option
from metafew.config.option_values import as_int
from metafew.data.array_split import ArraySplit
from metafew.data.loader import MetaBatches, make_loader
from metafew.data.sampler import Sampler
from metafew.data.sources.features import categories, labelled_vectors
from metafew.data.task_spec import TaskSpec
from metafew.errors import UsageError
from metafew.evaluation.eval_mode import evaluating
from metafew.evaluation.evaluator import Evaluator
from metafew.evaluation.metrics import PerTask, summary
from metafew.evaluation.statistics import Interval
from metafew.heads.head import Head
from metafew.inference import Model
from metafew.training.evaluated_heads import fitting_heads
from metafew.training.instantiate import make_head
from metafew.training.run import silence_lightning

Heads = Sequence[str | Head] | Mapping[str, str | Head]

log = logging.getLogger(__name__)


def evaluate_features(
    features: np.ndarray | Tensor, labels: Any, heads: Heads, way: int | str, shot: int | str, query: int, tasks: int,
    seed: int, base: np.ndarray | Tensor | None,
) -> Evaluation:  # fmt: skip
    """Evaluate heads on tasks drawn from features: :func:`metafew.evaluate`."""
    way, shot, query, tasks, seed = map(as_int, (way, shot, query, tasks, seed))
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
            plugins=[LightningEnvironment()],  # one process, also in a SLURM job of several
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
        UsageError: if there is no head of a given name, two heads have the same name, or one is neither a name nor a
            head, such as a class.
    """
    if isinstance(heads, str | Head | type):
        heads = [heads]
    given = [*heads.items()] if isinstance(heads, Mapping) else [(name_of(head), head) for head in heads]
    if not given:
        raise UsageError("expected one head or more, got none: pass heads=['protonet', 'svm']")
    if wrong := [head for _, head in given if not isinstance(head, str | Head)]:
        raise UsageError(f"expected heads as words or objects, got {wrong[0]!r}: pass 'svm' or metafew.heads.SVM()")
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
