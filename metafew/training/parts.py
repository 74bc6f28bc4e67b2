"""The parts of a run, built from its configuration before any image is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import Logger

from metafew.callbacks.checkpoints import Checkpoints
from metafew.config.carried import carried, training_options
from metafew.config.groups import ALL
from metafew.config.option_values import as_list
from metafew.data.datamodule import FewShot
from metafew.data.sources import Source
from metafew.data.task_spec import TaskSpec
from metafew.distributed.launcher import job_of_queue
from metafew.evaluation import results
from metafew.evaluation.base_mean import without_training_images
from metafew.loggers.metrics_file import MetricsFile
from metafew.training import checkpoint, resume
from metafew.training.factory import make_data, make_learner, make_source
from metafew.training.instantiate import make
from metafew.training.learner import Learner
from metafew.training.pretrained import load_backbone
from metafew.training.trainer import make_trainer


@dataclass(frozen=True)
class Parts:
    """The parts of a run.

    Attributes:
        source: the dataset.
        learner: backbone, heads and objective, with the weights of ``start`` if there is one.
        data: tasks of every split.
        trainer: the Lightning Trainer.
        stages: the stages of the run, a subset of fit, test and analyze.
        start: the checkpoint that ``ckpt`` names.
        resumes: whether the run resumes the training of ``start`` instead of starting a new one from its weights.
        config: the resolved configuration, as plain values.
        out: folder of the run.
    """

    source: Source
    learner: Learner
    data: FewShot
    trainer: pl.Trainer
    stages: list[str]
    start: dict | None
    resumes: bool
    config: dict
    out: Path

    @property
    def fits(self) -> bool:
        """Whether the run trains."""
        return "fit" in self.stages

    @property
    def tested(self) -> list[TaskSpec]:
        """The tasks of each test, which an analysis also follows; none if the run only trains."""
        return [] if self.stages == ["fit"] else self.data.test

    @property
    def untrained_heads(self) -> list[str]:
        """The names of heads that must be trained, but are trained neither by this run nor by its checkpoint."""
        trained = {checkpoint.trained_head(self.start)} if self.start is not None else set()
        if self.fits and self.learner.objective.trains_head:
            trained.add(self.learner.trained)
        return [name for name, head in self.learner.heads.items() if head.requires_training and name not in trained]

    @property
    def selects_on_validation(self) -> bool:
        """Whether validation tasks select options of a head, such as its learning rate, unless the run only trains."""
        return self.stages != ["fit"] and any(len(head.candidates) > 1 for head in self.learner.heads.values())

    @property
    def first_candidates(self) -> list[str]:
        """Overrides with which each head uses its first candidate, and nothing is selected."""
        words = []
        for name, head in self.learner.heads.items():
            group = "head" if name == self.learner.trained else f"evaluate.{name}"
            if len(head.candidates) > 1:
                words += [f"{group}.{key}={value}" for key, value in next(iter(head.candidates.values())).items()]
        return words

    @property
    def checkpoints(self) -> Checkpoints:
        """The callback that writes best.ckpt and last.ckpt."""
        return cast(Checkpoints, self.trainer.checkpoint_callback)

    @property
    def choices(self) -> dict[str, str]:
        """The option chosen for each group."""
        return self.learner.provenance["choices"]


def make_parts(cfg: DictConfig, choices: dict[str, str], overrides: list[str], out: Path) -> Parts:
    """Build all parts of a run.

    Args:
        cfg: the composed configuration, with checked options.
        choices: the option chosen for each group.
        overrides: the overrides, which are stored in checkpoints.
        out: folder of the run.

    Raises:
        UsageError: if a component rejects its options, or the checkpoint does not fit the model.
    """
    fits = "fit" in (stages := as_list(cfg.stages))
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    start = checkpoint.read(cfg.ckpt) if cfg.ckpt else None
    source = make_source(cfg)
    provenance = {
        "overrides": overrides,
        "choices": carried(choices),
        "job": job_of_queue(),
        "version": results.versions()["metafew"],
    }
    trained = fits or (start is not None and start["metafew"]["choices"]["head"] == choices["head"])
    base_mean = ALL not in (cfg.get("evaluate") or {}) or base_mean_available(source, start, fits)
    learner = make_learner(cfg, source, provenance, trained, fits, base_mean)
    written: Any = OmegaConf.to_container(cfg, resolve=False)
    learner.provenance["config"] = carried(written)
    learner.provenance["model"] = {  # everything that metafew.load needs to build the model
        "images": {"channels": source.channels, "image_size": source.image_size},
        "trained": learner.objective.trains_head,
        **{group: OmegaConf.to_container(cfg[group], resolve=True) for group in ("backbone", "norm", "head")},
    }
    if str(cfg.trainer.get("precision")).startswith("64"):
        learner.double()  # Lightning does so too, but after it has loaded a checkpoint into float32
    load_weights(learner, start, cfg.ckpt, cfg.backbone.weights, fits)
    no_effect = {"head": learner.heads[learner.trained].evaluation_options, "dataset": source.evaluation_options}
    if start is not None and "data" in start["metafew"]:
        no_effect["dataset"] += resume.PATHS_OF_DATA  # the images themselves are compared
    data = make_data(cfg, source, learner.objective)
    config: Any = OmegaConf.to_container(cfg, resolve=True)
    training = training_options(written) | {"train": config["train"]}
    resumes = fits and start is not None and resume.is_same_training(start, training, cfg.ckpt, out, no_effect, data)
    restore_fitted(learner, start if resumes or not fits else None)
    loggers: list[Logger] = []
    if fits:
        loggers.append(MetricsFile(out / "metrics.csv", resumes))
    loggers += [make(node) for node in cfg.get("logger", {}).values()]
    return Parts(
        source=source,
        learner=learner,
        data=data,
        trainer=make_trainer(cfg, learner.trained, loggers, out),
        stages=stages,
        start=start,
        resumes=resumes,
        config=config,
        out=out,
    )


def base_mean_available(source: Source, start: dict | None, fits: bool) -> bool:
    """Return whether a checkpoint has the mean feature of training images, or a run has the images to compute it.

    Only the names of datasets are compared, as images are read later.

    Args:
        source: the data of the run.
        start: the content of the checkpoint that is resumed or tested, if any.
        fits: whether the run trains.
    """
    saved = {} if start is None else start["metafew"]
    if fits or saved.get("base_mean") is not None:
        return True
    names = {part.title for part in source.components("train")}
    return names <= {*saved.get("data", names)} and not without_training_images(source)


def restore_fitted(learner: Learner, start: dict | None) -> None:
    """Give ``learner`` what validations computed: temperatures and, if it has the same features, their mean.

    Args:
        learner: the model of this run.
        start: the content of the checkpoint that is resumed or tested, if any.
    """
    if start is None:
        return
    saved, now = start["metafew"], learner.provenance["model"]
    learner.temperatures, before = saved["temperatures"], saved["model"]
    if all(before[part] == now[part] for part in ("images", "backbone", "norm")):
        learner.base_mean.value = saved["base_mean"]


def load_weights(learner: Learner, start: dict | None, ckpt: str | None, weights: str | None, fits: bool) -> None:
    """Load the weights of ``ckpt``, then those of the backbone that ``backbone.weights`` names.

    Args:
        learner: the model.
        start: the content of ``ckpt``.
        ckpt: a checkpoint.
        weights: a file of which only the backbone is loaded, unless ``ckpt`` was trained from it.
        fits: whether the model will be trained.

    Raises:
        UsageError: if a checkpoint does not fit the model.
    """
    if start is not None and ckpt is not None:
        state = checkpoint.trained_state(start)
        with checkpoint.explain_channels(learner, start, ckpt):
            learner.load_state_dict(checkpoint.complete_state(state, learner, ckpt, fits))
    contained = start and start["metafew"]["model"]["backbone"]["weights"]
    if weights not in (None, contained):
        load_backbone(learner, weights, fits)
