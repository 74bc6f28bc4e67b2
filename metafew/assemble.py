"""From a configuration to objects: the model, the data and the Lightning Trainer of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pooch
import pytorch_lightning as pl
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger

from metafew.data.datamodule import FewShot
from metafew.data.sampler import Plan
from metafew.data.sources import Source
from metafew.errors import UsageError
from metafew.learner import Learner
from metafew.progress import Progress


def words(value: Any) -> list:
    """Return a list, whether a list or a bare word was typed."""
    return list(value) if isinstance(value, ListConfig | list) else [value]


def make(node: DictConfig, **injected: Any) -> Any:
    """Instantiate what ``node`` names; what its constructor objects to becomes a sentence."""
    try:
        return instantiate(node, **injected, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, UsageError):
            raise cause from None
        reason = " ".join(str(cause or error).split()).rstrip(".")
        group = node._get_full_key(None)
        raise UsageError(
            f"{group} cannot be made as typed ({reason}): --cfg job shows every value of {group}"
        ) from error


def make_learner(cfg: DictConfig, source: Source, provenance: dict) -> Learner:
    """Return the model. An evaluation head of the trained head's name is the trained head."""
    backbone = make(cfg.backbone, channels=source.channels, image_size=source.image_size, norm=make(cfg.norm))
    heads = {provenance["choices"]["head"]: make(cfg.head)}
    heads |= {name: make(node) for name, node in cfg.get("evaluate", {}).items() if name not in heads}
    return Learner(backbone, heads, make(cfg.objective), make(cfg.optimizer), make(cfg.schedule), provenance)


def make_data(cfg: DictConfig, source: Source, dataset: str) -> FewShot:
    """Return the data of every split, having checked that the tasks of each can be drawn."""

    def plan(split: str, total: int, seed: int, **changes: Any) -> Plan:
        node = {word: cfg[split][word] for word in ("way", "shot", "query", "tasks")}
        return Plan(split=split, total=total, seed=seed, **node | changes)

    steps = cfg.trainer.max_steps * cfg.trainer.accumulate_grad_batches
    train = plan("train", steps * cfg.train.tasks, cfg.seed)
    val = plan("val", cfg.val.total, cfg.test.seed)
    test = [plan("test", cfg.test.total, cfg.test.seed, shot=shot) for shot in words(cfg.test.shot)]
    splits = source.splits()
    for each in (train, val, *test):
        each.check(splits[each.split], dataset)
    cache = Path(cfg.cache_dir or pooch.os_cache("metafew"))
    return FewShot(source, train, val, test, cache=cache, num_workers=cfg.data.num_workers)


def make_trainer(cfg: DictConfig, trained: str, out: Path) -> pl.Trainer:
    """Return a Trainer that logs, keeps checkpoints of the head ``trained``, and shows progress."""
    loggers = [make(node) for node in cfg.get("logger", {}).values()]
    for logger in loggers:
        logger.log_hyperparams(OmegaConf.to_container(cfg, resolve=True))
    callbacks: list[Callback] = [
        ModelCheckpoint(
            out / "checkpoints",
            filename="best",
            monitor=f"val/{trained}/accuracy",
            mode="max",
            save_last=True,
            enable_version_counter=False,
        )
    ]
    if cfg.trainer.enable_progress_bar:
        callbacks.append(Progress())
    batches = cfg.trainer.accumulate_grad_batches
    return make(
        cfg.trainer,
        logger=[CSVLogger(out, name="", version=""), *loggers],
        callbacks=callbacks,
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
