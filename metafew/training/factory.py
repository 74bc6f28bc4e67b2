"""From a configuration to objects: the model, the data and the Lightning Trainer of a run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import nn

from metafew.analysis.features import analyze
from metafew.backbones.backbone import Backbone
from metafew.callbacks.checkpoints import AtomicCheckpointIO, Checkpoints
from metafew.callbacks.clustering_monitor import ClusteringMonitor
from metafew.callbacks.graceful_stop import GracefulStop
from metafew.callbacks.nan_guard import NanGuard
from metafew.callbacks.progress import Progress
from metafew.data.datamodule import FewShot
from metafew.data.minibatches import Minibatches
from metafew.data.sources import Source
from metafew.data.store import store_root
from metafew.data.task_spec import TaskSpec
from metafew.distributed import launch
from metafew.errors import UsageError
from metafew.heads.head import Head
from metafew.io import CONF
from metafew.norms.fast import accelerate
from metafew.objectives.objective import Objective
from metafew.training import checkpoint
from metafew.training.learner import Learner

log = logging.getLogger(__name__)


def words(value: Any) -> list:
    """Return a list, whether a list or a bare word was typed."""
    return list(value) if isinstance(value, ListConfig | list) else [value]


def make(node: DictConfig, **injected: Any) -> Any:
    """Instantiate what ``node`` names; what its constructor objects to becomes a sentence."""
    return attempt(node._get_full_key(None), instantiate, node, **injected, _convert_="all")


def attempt(group: str, constructor: Callable, *args: Any, **kwargs: Any) -> Any:
    """Call ``constructor``; what it objects to becomes a sentence about ``group``."""
    try:
        return constructor(*args, **kwargs)
    except (InstantiationException, TypeError, ValueError, ArithmeticError, MisconfigurationException) as error:
        cause = error.__cause__ or error
        if isinstance(cause, UsageError):
            raise cause from None
        reason = " ".join(str(cause).split()).rstrip(".")
        raise UsageError(
            f"{group} cannot be made as typed ({reason}): --cfg job shows every value of {group}"
        ) from error


def make_source(cfg: DictConfig) -> Source:
    """Return the dataset; one that consists of others (``_partial_``) is told how to find them."""
    source = make(cfg.dataset)
    return source if isinstance(source, Source) else attempt("dataset", source, find=partial(find, cfg))


def find(cfg: DictConfig, item: str | Mapping[str, Any], image_size: int) -> Source:
    """Return a dataset of a mixture.

    Args:
        cfg: the composed configuration.
        item: a word of ``dataset``; a folder of class folders, as typed or below ``data_dir``; or options of a dataset,
            with ``dataset`` for its word (default ``folder``) and ``name`` for what tables call it.
        image_size: height and width of its images.
    """
    options = dict(item) if isinstance(item, Mapping) else {"dataset": str(item)}
    word = options.pop("dataset", "folder")
    label = options.pop("name", Path(options.get("root", word)).resolve().name)
    files = {file.stem: file for file in (CONF / "dataset").glob("*.yaml")}
    if word not in files:
        folders = [path for path in (Path(word), Path(cfg.data_dir) / word) if path.is_dir()]
        if not folders:
            raise UsageError(
                f"a mixture wants words of dataset and folders, and {word} is neither, here or in "
                f"data_dir={cfg.data_dir}: type dataset.sources=[glyphs,omniglot,DIR]"
            )
        word, options["root"] = "folder", str(folders[0])
    whole = OmegaConf.create({"data_dir": cfg.data_dir, **OmegaConf.load(files[word])})
    if "image_size" not in whole.dataset or "_partial_" in whole.dataset:
        raise UsageError(f"dataset={word} cannot be a part of a mixture: take it out of dataset.sources")
    free = [key for key in whole.dataset if not key.startswith("_") and key != "image_size"]
    if unknown := options.keys() - set(free):
        raise UsageError(
            f"{', '.join(sorted(unknown))} is no option of dataset={word} in a mixture, where it takes "
            f"{', '.join(free)}: take it out of dataset.sources"
        )
    whole.dataset.update({**options, "image_size": image_size})
    source = make(whole.dataset)
    source.label = str(label)
    return source


def make_learner(cfg: DictConfig, source: Source, provenance: dict, trained: bool, fit: bool) -> Learner:
    """Return the model. An evaluation head of the trained head's name is the trained head.

    Args:
        cfg: the composed configuration.
        source: where the images come from.
        provenance: what checkpoints say of themselves.
        trained: whether the main head is, or will be, trained; otherwise it only measures, like those of ``evaluate``.
        fit: whether it will be trained.
    """
    backbone = make_backbone(cfg, source)
    objective = make_objective(cfg, source, backbone)
    trained = trained and objective.trains_head
    nodes = {provenance["choices"]["head"]: cfg.head}
    nodes |= {name: node for name, node in cfg.get("evaluate", {}).items() if name not in nodes}
    heads = {name: make_head(node, backbone, trained and node is cfg.head) for name, node in nodes.items()}
    # Optimizer and schedule are made when training starts; what they object to should be said before.
    optimizer, schedule = make(cfg.optimizer), make(cfg.schedule)
    trial = attempt("optimizer", optimizer, [{"params": [nn.Parameter(torch.zeros(1))]}])
    attempt("schedule", schedule, trial)
    learner = Learner(
        backbone,
        heads,
        objective,
        optimizer,
        schedule,
        queries=cfg.test.queries,
        provenance=provenance,
    )
    if fit:
        objective.prepare(backbone, heads[learner.trained])
        objective.advise(trial)
        if cfg.trainer.accumulate_grad_batches > 1 and (backbone.couples_tasks or objective.regularizer.on_weights):
            log.warning(
                "trainer.accumulate_grad_batches=%d is not the same as a larger train.tasks here, as tasks change one "
                "another within a meta-batch: norm=batch_shared, batch norm of the network's own, weight clustering",
                cfg.trainer.accumulate_grad_batches,
            )
    return learner


def make_backbone(cfg: DictConfig, source: Source) -> Backbone:
    """Return the backbone, frozen if it is to have the weights of a checkpoint, which it does not have yet."""
    node = OmegaConf.masked_copy(cfg.backbone, [key for key in cfg.backbone if key != "weights"])
    options = {"channels": source.channels, "image_size": source.image_size, "norm": make(cfg.norm)}
    backbone = attempt("backbone or norm", instantiate, node, **options, _convert_="all")
    if cfg.backbone.weights is not None:
        checkpoint.freeze(backbone)
    if not backbone.own_norms:  # such a network is given images in the usual layout
        backbone.to(memory_format=torch.channels_last)  # as images lie, or every pass would copy the weights
    return accelerate(backbone)


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


def make_head(node: DictConfig, backbone: Backbone, trained: bool) -> Head:
    """Return a head; one whose YAML says ``_partial_: true`` gets ``backbone`` and ``trained``."""
    head, group = make(node), node._get_full_key(None)
    if not isinstance(head, nn.Module):
        head = attempt(group, head, backbone=backbone, trained=trained)
    if not isinstance(head, Head):
        raise UsageError(
            f"expected {group} to make a metafew.heads.head.Head, got {type(head).__name__}: "
            f"type {group}=protonet, or derive its class from Head or FeatureHead"
        )
    return accelerate(head)


def make_data(cfg: DictConfig, source: Source, objective: Objective, used: Container[str]) -> FewShot:
    """Return the data of every split, having checked that what is wanted of those to be used can be drawn."""

    def plan(split: str, total: int, seed: int, **changes: Any) -> TaskSpec:
        node = {word: cfg[split][word] for word in ("way", "shot", "query", "tasks", "support")}
        return TaskSpec(split=split, total=total, seed=seed, **node | changes)

    steps = cfg.trainer.max_steps * cfg.trainer.accumulate_grad_batches
    total = steps * cfg.train.tasks
    if objective.minibatches:
        pairs = objective.regularizer.on_features
        train = Minibatches("train", cfg.train.batch_size, cfg.train.tasks, total, cfg.seed, pairs)
    else:
        train = plan("train", total, cfg.seed)
    val = plan("val", cfg.val.total, cfg.test.seed)
    test = [plan("test", cfg.test.total, cfg.test.seed, shot=shot) for shot in words(cfg.test.shot)]
    analyzed = analyze.analysis_tasks(cfg, test[0])
    augmentation = make(cfg.augment)
    plans = [each for each in (train, val, *test) if each.split in used]
    classes = {c: c.splits() for c in dict.fromkeys(c for each in plans for c in source.components(each.split))}
    for each in plans:
        components = source.components(each.split)
        if each.total < len(components):
            raise UsageError(
                f"{each.split}.total={each.total} leaves out some of the {len(components)} datasets of the mixture: "
                f"type {each.split}.total={100 * len(components)}"
            )
        for component in components:
            categories = classes[component][each.split]
            each.check_drawable(categories, component.title)
            augmentation.check_applicable(each.split, component.image_size, categories)
    if "analyze" in used:
        analyze.check_analysis_tasks(analyzed, source)
    return FewShot(source, train, val, test, augmentation, store_root(cfg.cache_dir), cfg.data.num_workers, analyzed)


def make_loggers(cfg: DictConfig, choices: dict[str, str]) -> list[Logger]:
    """Return the loggers asked for, which are told the configuration and the word chosen for each group."""
    loggers = [make(node) for node in cfg.get("logger", {}).values()]
    for logger in loggers:
        logger.log_hyperparams({"choices": choices, **OmegaConf.to_container(cfg, resolve=True)})
    return loggers


def make_trainer(cfg: DictConfig, trained: str, loggers: list[Logger], out: Path) -> pl.Trainer:
    """Return a Trainer that logs, keeps checkpoints of the head ``trained``, and shows progress."""
    checkpoints = Checkpoints(out / "checkpoints", trained, cfg.save.every, cfg.save.keep)
    callbacks: list[Callback] = [checkpoints, NanGuard(), GracefulStop()]
    if cfg.trainer.enable_progress_bar:
        callbacks.append(Progress())
    if cfg.analyze.every:
        callbacks.append(ClusteringMonitor(cfg.analyze.every, cfg.analyze.tasks))
    # Solvers and measures are float64, which Apple's GPUs lack.
    no_doubles = cfg.trainer.accelerator == "auto" and torch.backends.mps.is_available()
    accelerator = "cpu" if no_doubles else cfg.trainer.accelerator
    batches = cfg.trainer.accumulate_grad_batches
    trainer = make(
        cfg.trainer,
        logger=loggers,
        accelerator=accelerator,
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO(), *launch.environment(cfg.trainer), *map(make, cfg.trainer.get("plugins") or [])],
        default_root_dir=str(out),
        val_check_interval=batches * min(cfg.val.every, cfg.trainer.max_steps),
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        enable_model_summary=False,
        # The ranks divide the tasks of each meta-batch among themselves.
        use_distributed_sampler=False,
        # Heads that adapt take gradients in evaluation.
        inference_mode=False,
    )
    if str(cfg.trainer.precision).startswith("16") and trainer.precision == "bf16-mixed":
        log.warning("a CPU does not train in float16: trainer.precision=%s is bf16-mixed here", cfg.trainer.precision)
    return trainer
