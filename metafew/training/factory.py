"""Build the objects of a run from its configuration."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.optim import Optimizer

from metafew.backbones.backbone import Backbone
from metafew.backbones.task_weights import accept_task_weights
from metafew.config.groups import CONF
from metafew.config.option_types import check_option_types
from metafew.config.option_values import as_list
from metafew.data.datamodule import FewShot
from metafew.data.minibatches import Minibatches
from metafew.data.sources import Source
from metafew.data.store import store_root
from metafew.data.task_spec import TaskSpec, task_options
from metafew.errors import UsageError
from metafew.norms.fast import accelerate
from metafew.norms.none import Identity as NoNorm
from metafew.norms.own import OwnNorms
from metafew.objectives.objective import Objective
from metafew.training.evaluated_heads import make_evaluated_heads
from metafew.training.instantiate import attempt, make, make_head
from metafew.training.learner import Learner
from metafew.training.pretrained import freeze

log = logging.getLogger(__name__)


def make_source(cfg: DictConfig) -> Source:
    """Return the dataset. A mixture (``_partial_``) also receives the function that makes its parts."""
    check_option_types(cfg.dataset, "dataset.")
    source = make(cfg.dataset)
    if isinstance(source, Source):
        return source
    return attempt("dataset", source, find=partial(make_part, cfg.data_dir))


def make_part(data_dir: str, item: str | Mapping[str, Any], image_size: int) -> Source:
    """Return a dataset of a mixture.

    Args:
        data_dir: the folder of datasets.
        item: an option of ``dataset``; a folder of class folders, relative to the current folder or to ``data_dir``; or
            a mapping of the options of a dataset, with ``dataset`` for its kind (default ``folder``) and ``name`` for
            its name in tables.
        image_size: height and width of its images.

    Raises:
        UsageError: if there is no such dataset, it does not have these options, or it cannot be part of a mixture.
    """
    options = dict(item) if isinstance(item, Mapping) else {"dataset": str(item)}
    dataset = options.pop("dataset", "folder")
    label = options.pop("name", Path(str(options.get("root", dataset))).resolve().name)
    files = {file.stem: file for file in (CONF / "dataset").glob("*.yaml")}
    if dataset not in files:
        folders = [path for path in (Path(dataset), Path(data_dir) / dataset) if path.is_dir()]
        if not folders:
            raise UsageError(
                f"expected a mixture of options of dataset and of folders, and {dataset} is neither, here or in "
                f"data_dir={data_dir}: type dataset.sources=[glyphs,omniglot,DIR]"
            )
        dataset, options["root"] = "folder", str(folders[0])
    cfg = OmegaConf.create({"data_dir": data_dir, **OmegaConf.load(files[dataset])})
    if "image_size" not in cfg.dataset or "_partial_" in cfg.dataset:
        raise UsageError(f"dataset={dataset} cannot be a part of a mixture: take it out of dataset.sources")
    allowed = [key for key in cfg.dataset if not key.startswith("_") and key != "image_size"]
    if unknown := options.keys() - set(allowed):
        raise UsageError(
            f"{', '.join(sorted(unknown))} is no option of dataset={dataset} in a mixture, where it takes "
            f"{', '.join(allowed)}: take it out of dataset.sources"
        )
    cfg.dataset.update({**options, "image_size": image_size})
    check_option_types(cfg.dataset, f"{dataset}.", "correct it in dataset.sources")
    source = make(cfg.dataset)
    source.label = str(label)
    return source


def make_learner(
    cfg: DictConfig, source: Source, provenance: dict, trained: bool, fit: bool, base_mean: bool = True
) -> Learner:
    """Return the LightningModule.

    Args:
        cfg: the composed configuration; with ``evaluate=all``, heads that do not fit are removed from it.
        source: the dataset.
        provenance: plain values that checkpoints carry.
        trained: whether the main head is, or will be, trained; if not, it only evaluates, like the heads of
            ``evaluate``.
        fit: whether it will be trained.
        base_mean: whether ``evaluate=all`` has heads that use the mean feature of training images.
    """
    backbone = make_backbone(cfg, source)
    objective = make_objective(cfg, source, backbone)
    trained = trained and objective.trains_head
    name = provenance["choices"]["head"]
    heads = {name: make_head(cfg.head, backbone, trained)}
    evaluated = cfg.get("evaluate") or OmegaConf.create()
    heads |= make_evaluated_heads(evaluated, name, backbone, base_mean)
    # Lightning creates the optimizer and schedule when training starts; creating them here raises errors earlier.
    optimizer, schedule = make(cfg.optimizer), make(cfg.schedule)
    trial = attempt("optimizer", optimizer, [{"params": [nn.Parameter(torch.zeros(1))]}])
    attempt("schedule", first_step, schedule, trial)
    learner = Learner(
        backbone,
        heads,
        objective,
        optimizer,
        schedule,
        queries=cfg.test.queries,
        provenance=provenance,
        cuda_graph=fit and cfg.cuda_graph,
    )
    if fit:
        objective.prepare(backbone, heads[learner.trained])
        objective.advise(attempt("optimizer", optimizer, [{"params": [nn.Parameter(torch.zeros(1))]}]))
        if cfg.trainer.accumulate_grad_batches > 1 and (backbone.couples_tasks or objective.regularizer.on_weights):
            log.warning(
                "trainer.accumulate_grad_batches=%d is not the same as a larger train.tasks here, because tasks of a "
                "meta-batch affect one another through norm=batch_shared, batch norms of the network, or weight "
                "clustering",
                cfg.trainer.accumulate_grad_batches,
            )
    return learner


def first_step(schedule: Callable, optimizer: Optimizer) -> None:
    """Make a schedule and take its first step, at which some find errors in their options."""
    made = schedule(optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the optimizer has taken no step
        made.step()


def make_backbone(cfg: DictConfig, source: Source) -> Backbone:
    """Return the backbone, frozen as ``backbone.freeze`` says; null freezes it if it has ``backbone.weights``."""
    node = OmegaConf.masked_copy(cfg.backbone, [key for key in cfg.backbone if key not in ("weights", "freeze")])
    options = {"channels": source.channels, "image_size": source.image_size, "norm": make(cfg.norm)}
    try:
        backbone = attempt("backbone or norm", instantiate, node, **options, _convert_="all")
    except UsageError as error:
        if "channels" in cfg.dataset:
            raise
        raise UsageError(re.sub(r"dataset\.channels=\d+, or ", "", str(error))) from error
    warn_of_norm_without_effect(backbone, options["norm"])
    backbone.keep_frozen()
    chosen = cfg.backbone.get("freeze")  # checkpoints of earlier versions have none
    freeze(backbone, ("none" if cfg.backbone.weights is None else "all") if chosen is None else chosen)
    if backbone.channels_last:
        backbone.to(memory_format=torch.channels_last)  # as the images; otherwise each pass would copy the weights
    accept_task_weights(accelerate(backbone))
    return backbone


def warn_of_norm_without_effect(backbone: Backbone, norm: Any) -> None:
    """Warn if the backbone has no layers of ``norm``, what makes those of ``norm=``, unless it is ``own`` or none."""
    if backbone.own_norms and not isinstance(norm, OwnNorms):
        log.warning("norm has no effect here, as backbone.norms=own keeps the layers of the network")
    elif not (backbone.own_norms or backbone.norms or (isinstance(norm, partial) and norm.func is NoNorm)):
        log.warning("norm has no effect here, as the network has no norms")


def make_objective(cfg: DictConfig, source: Source, backbone: Backbone) -> Objective:
    """Return the objective, built for the backbone and the classes of ``source``."""
    objective = attempt("objective", make(cfg.objective), regularizer=make(cfg.regularizer))
    if not isinstance(objective, Objective):
        raise UsageError(
            f"expected objective to make a metafew.objectives.objective.Objective, got {type(objective).__name__}: "
            "type objective=episodic, or derive its class from Objective"
        )
    objective.build(backbone, source)
    return objective


def make_data(cfg: DictConfig, source: Source, objective: Objective) -> FewShot:
    """Return the data of every split."""

    def make_spec(split: str, total: int, seed: int, **changes: Any) -> TaskSpec:
        options = task_options(cfg[split]) | {"tasks": cfg[split].tasks}
        return TaskSpec(split=split, total=total, seed=seed, **options | changes)

    if (queries := cfg.test.queries) == "class" and cfg.test.balance != "balanced":
        raise UsageError(
            f"expected the same number of queries of each class with test.queries={queries}, got "
            f"test.balance={cfg.test.balance}: type test.queries=single"
        )
    total = cfg.trainer.max_steps * cfg.trainer.accumulate_grad_batches * cfg.train.tasks
    if objective.minibatches:
        pairs = objective.regularizer.on_features
        train = Minibatches("train", cfg.train.batch_size, cfg.train.tasks, total, cfg.seed, pairs)
    else:
        if "batch_size" in cfg.train:
            raise UsageError(
                f"expected no train.batch_size with an objective that trains on tasks, got {cfg.train.batch_size}: "
                "type objective=classical, or train.tasks=4 for the tasks of a step"
            )
        train = make_spec("train", total, cfg.seed)
    val = make_spec("val", cfg.val.total, cfg.test.seed)
    test = [make_spec("test", cfg.test.total, cfg.test.seed, shot=shot) for shot in as_list(cfg.test.shot)]
    analyzed = replace(test[0], split=cfg.analyze.split, total=cfg.analyze.tasks, balance="balanced")
    return FewShot(
        source, train, val, test, make(cfg.augment), store_root(cfg.cache_dir), cfg.data.num_workers, analyzed
    )
