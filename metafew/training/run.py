"""One run: fit and test what a configuration names, and leave the results in a folder."""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch import Tensor

from metafew.analysis import run_plots
from metafew.analysis.features import analyze
from metafew.config import option_types
from metafew.data.datamodule import FewShot
from metafew.data.task_spec import NATURAL, TaskSpec
from metafew.distributed import launch
from metafew.distributed.collective import gather_objects
from metafew.episode import Episode
from metafew.errors import UsageError
from metafew.evaluation import results
from metafew.io import write_json
from metafew.loggers import wandb as loggers
from metafew.loggers.metrics_file import MetricsFile
from metafew.loggers.publish import publish
from metafew.solvers.unsolved import counted
from metafew.training import checkpoint, resume
from metafew.training.factory import make_data, make_learner, make_loggers, make_source, make_trainer, words
from metafew.training.learner import Learner
from metafew.training.out_of_memory import enough_memory

log = logging.getLogger(__name__)

STAGES = ("fit", "test", "analyze")
SPLITS = ("test", "val", "train")
TRAINING = [
    "dataset",
    "augment",
    "backbone",
    "norm",
    "regularizer",
    "objective",
    "optimizer",
    "schedule",
    "head",
    "train",
    "seed",
]
STEP = ["accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm", "precision"]
"""Words of the trainer that change what a step does."""
SHOWN = 3  # test tasks that loggers show


def run(cfg: DictConfig, choices: dict[str, str], overrides: list[str], out: Path) -> dict:
    """Carry out the stages of ``cfg`` and return what stands in results.json.

    Args:
        cfg: the composed configuration.
        choices: the word chosen for each group.
        overrides: what was typed, for checkpoints to carry.
        out: folder for everything that the run leaves behind.

    Raises:
        UsageError: something in ``cfg`` cannot be done; raised before images are read where possible.
    """
    quiet()
    try:
        with counted() as unsolved:
            return carry_out(cfg, choices, overrides, out, unsolved)
    except SIGTERMException:
        resume.end(out)
    finally:
        loggers.close()


def carry_out(
    cfg: DictConfig, choices: dict[str, str], overrides: list[str], out: Path, unsolved: Counter[str]
) -> dict:
    """Do what :func:`run` says, but for the end of logging; ``unsolved`` counts the tasks that solvers gave up."""
    stages = check(cfg)
    fit = "fit" in stages
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    source = make_source(cfg)
    start = cfg.ckpt and checkpoint.read(cfg.ckpt)
    provenance = {
        "overrides": overrides,
        "choices": choices,
        "training": OmegaConf.to_container(OmegaConf.masked_copy(cfg, TRAINING))
        | {"trainer": OmegaConf.to_container(OmegaConf.masked_copy(cfg.trainer, STEP))},
        "version": results.versions()["metafew"],
    }
    trained = fit or (start is not None and start["metafew"]["choices"]["head"] == choices["head"])
    learner = make_learner(cfg, source, provenance, trained, fit)
    if not fit and start is None and any(True for _ in learner.backbone.parameters()):
        raise UsageError(f"stages=[{','.join(stages)}] wants a trained model, and ckpt is not given: type ckpt=PATH")
    learner.provenance["model"] = {  # all that metafew.load makes it from
        "images": {"channels": source.channels, "image_size": source.image_size},
        "trained": learner.objective.trains_head,
        **{group: OmegaConf.to_container(cfg[group], resolve=True) for group in ("backbone", "norm", "head")},
    }
    if start:
        learner.load_state_dict(checkpoint.reconcile(checkpoint.trained(start), learner, cfg.ckpt, fit))
    installed = start and start["metafew"]["model"]["backbone"]["weights"]
    if cfg.backbone.weights not in (None, installed):
        checkpoint.install(learner.backbone, cfg.backbone.weights)
    chooses = any(len(head.candidates) > 1 for head in learner.heads.values())
    analyzes = "analyze" in stages
    used = {"train": fit, "val": fit or chooses, "test": "test" in stages, "analyze": analyzes}
    data = make_data(cfg, source, learner.objective, [split for split, needed in used.items() if needed])
    check_tasks(learner, data, fit)
    if fit and not any(p.requires_grad for p in learner.parameters()):
        raise UsageError(
            f"nothing is left to train: no weight of the backbone or of head={learner.trained} is free: "
            "leave out backbone.weights, or choose another head or head.output"
        )
    options = {"head": learner.heads[learner.trained].evaluation_options, "dataset": source.evaluation_options}
    going = resume.goes_on(cfg, start, provenance, out, options) if fit else None
    metrics = [MetricsFile(out / "metrics.csv", start["global_step"] if going else 0)] if fit else []
    trainer = make_trainer(cfg, learner.trained, [*metrics, *make_loggers(cfg, choices)], out)
    launch.check(cfg.trainer, trainer.world_size)
    if fit and data.train.tasks % trainer.world_size:
        raise UsageError(
            f"train.tasks={data.train.tasks} cannot be shared evenly by {trainer.world_size} processes: "
            f"type train.tasks={trainer.world_size * (1 + data.train.tasks // trainer.world_size)}"
        )
    # Before Lightning starts other processes, which would wait in vain for one that cannot build a store.
    data.prepare_data()
    seconds, selected, chosen = {}, None, {}
    with enough_memory(trainer, learner):
        if fit:
            seconds["fit"] = timed(trainer.fit, learner, data, ckpt_path=going, weights_only=True)
            selected = select(cfg.test.select, trainer, learner)
        if chooses and stages != ["fit"]:
            trainer.validate(learner, data, verbose=False)
            chosen = learner.choose()
        if "test" in stages:
            seconds["test"] = timed(trainer.test, learner, data, verbose=False)
        analysis = analyze.analyze(trainer, learner, data, out) if analyzes else None
    seen = source.components("train")
    sources = {component.title: component in seen for component in source.components("test")}
    measures = results.measures(learner.tables, words(cfg.test.shot), list(learner.heads), list(sources))
    for name, value in measures["metrics"].items():
        if not math.isfinite(value["mean"]):
            value |= {"mean": None, "ci95": None}
            log.warning(
                "%s is not finite: training, or adaptation to a task, diverged; a smaller optimizer.lr or head.lr may "
                "help",
                name,
            )
    report = {
        **measures,
        "analysis": analysis,
        "sources": sources,
        "chosen": chosen,
        "transductive": learner.transductive,
        "over": cfg.norm.get("over"),
        "queries": cfg.test.queries,
        "select": selected,
        "validation": validation(trainer, learner),
        "choices": choices | ({"norm": "own"} if learner.backbone.own_norms else {}),
        "steps": trainer.global_step if fit else start["global_step"] if start else 0,
        "seconds": seconds,
        "precision": trainer.precision,
        "unsolved": dict(sum(gather_objects(unsolved), Counter())),
        "seed": cfg.seed,
        "versions": results.versions(),
        "config": OmegaConf.to_container(cfg, resolve=True),
    }
    if trainer.is_global_zero:
        leave(report, learner, data, out)
    return report


def check(cfg: DictConfig) -> list[str]:
    """Return the stages to carry out; raise a sentence for what no component will check."""
    stages = words(cfg.stages)
    if not stages or set(stages) - set(STAGES):
        raise UsageError(f"stages wants some of fit, test and analyze, not {stages}: type stages=[fit,test]")
    known = {"test.select": ("best", "last"), "test.queries": ("together", "single", "class"), "analyze.split": SPLITS}
    for key, allowed in known.items():
        value = OmegaConf.select(cfg, key)
        if value not in allowed:
            raise UsageError(f"{key} is {' or '.join(allowed)}, not {value}: type {key}={allowed[0]}")
    least = {"seed": 0, "test.seed": 0, "data.num_workers": 0, "train.tasks": 1, "val.every": 1}
    least |= {
        "trainer.max_steps": 1,
        "trainer.accumulate_grad_batches": 1,
        "trainer.log_every_n_steps": 1,
        "save.every": 1,
        "analyze.tasks": 1,
        "analyze.every": 0,
    }
    for key, low in least.items():
        value = OmegaConf.select(cfg, key)
        if not isinstance(value, int) or value < low:
            raise UsageError(f"{key} is a whole number of at least {low}, not {value}: type {key}={low}")
    option_types.check(cfg)
    for key in ("ckpt", "data_dir", "cache_dir", "backbone.weights"):
        value = OmegaConf.select(cfg, key)
        if not isinstance(value, str | None):
            raise UsageError(f"{key} is a path, not {value}: type {key}=PATH")
    if not words(cfg.test.shot):
        raise UsageError("test.shot is a number or a list of some, not an empty list: type test.shot=1")
    if NATURAL in words(cfg.test.shot) and len(words(cfg.test.shot)) > 1:
        raise UsageError(
            f"the shots of a list are measured on the same classes and queries, and natural ones bring their own, not "
            f"{words(cfg.test.shot)}: type test.shot=natural"
        )
    return stages


def check_tasks(learner: Learner, data: FewShot, fit: bool) -> None:
    """Raise a sentence, or warn once, where norm or heads are not made for the tasks."""
    low, high = data.train.contexts
    plans = [plan for plan in (data.train, data.val, *data.test) if isinstance(plan, TaskSpec)]
    if fit and learner.objective.needs_queries and data.train.query == 0:
        raise UsageError("this objective learns from queries, and train.query is 0: type train.query=15")
    if fit and learner.backbone.couples_tasks:
        norm, instead = ("this network", "a network without batch norm") if learner.backbone.own_norms else (
            "this norm", "norm=transductive")  # fmt: skip
        if learner.heads[learner.trained].adapts_backbone:
            raise UsageError(
                f"head={learner.trained} adapts the backbone to one task at a time, and {norm} treats the tasks of "
                f"a meta-batch as one batch: type {instead}"
            )
        if low < high:
            raise UsageError(
                f"{norm} treats the tasks of a meta-batch as one batch and wants them all of one size, not train.way"
                f"={data.train.way} with train.shot={data.train.shot}: type train.way=5 train.shot=1, or norm=batch"
            )
    for name, head in learner.heads.items():
        for plan in plans:
            if head.fixed_way is not None and plan.bounds("way") != (head.fixed_way, head.fixed_way):
                raise UsageError(
                    f"head={name} has a linear output layer for {head.fixed_way} classes, and {plan.split}.way is "
                    f"{plan.way}: type head.output=shared"
                )
    asked = [size for plan in data.test for size in plan.contexts]
    if any(alpha.scale is not None for alpha in learner.alphas) and not low <= min(asked) <= max(asked) <= high:
        log.warning(
            "TaskNorm was trained with contexts of %d to %d images and is tested with %d to %d: its alpha was never "
            "fitted there (norm.alpha=independent does not depend on the size)",
            *(low, high, min(asked), max(asked)),
        )


def select(which: str, trainer: pl.Trainer, learner: Learner) -> str:
    """Give ``learner`` the weights of the best or the last checkpoint; return which it was."""
    folder = Path(trainer.checkpoint_callback.dirpath)
    if which == "best" and not (folder / "best.ckpt").exists():
        log.warning("no validation took place in this run, so that the last weights are tested")
        which = "last"
    learner.load_state_dict(checkpoint.read(folder / f"{which}.ckpt")["state_dict"])
    return which


def validation(trainer: pl.Trainer, learner: Learner) -> dict[str, float]:
    """Return the highest validation accuracy in training, by its name; nothing where no validation took place."""
    best = trainer.checkpoint_callback.best_model_score
    return {} if best is None else {f"val/{learner.trained}/accuracy": best.item()}


def leave(report: dict, learner: Learner, data: FewShot, out: Path) -> None:
    """Write results.json, tasks.csv and figures, and print the table."""
    write_json(out / "results.json", report)
    if "fit" in report["seconds"]:
        run_plots.learning_curve(out / "metrics.csv", learner.trained, out / "learning_curve.png")
    if learner.alphas:
        run_plots.alpha_curve(learner.alphas, data.train.contexts, out / "alpha.png")
    if learner.tables:
        results.write_tasks(out / "tasks.csv", learner.tables, list(report["sources"]))
        if data.source.image_size > 1:
            episode = data.test_episode(0, learner.dtype)
            run_plots.episode_sheet(episode, learner.predict(episode), out / "episode.png")
        results.show(report)
    publish(learner.loggers, report, shown_tasks(learner, data), out)
    print(f"results, figures and checkpoints are in {out}")


def shown_tasks(learner: Learner, data: FewShot) -> Iterator[tuple[Episode, Tensor]]:
    """Yield the first test tasks with what is predicted for them; nothing without a test, or without images."""
    if learner.tables and data.source.image_size > 1:
        for number in range(min(SHOWN, data.test[0].total)):
            episode = data.test_episode(number, learner.dtype)
            yield episode, learner.predict(episode)


def timed(function: Callable, *args: Any, **kwargs: Any) -> float:
    """Call ``function`` and return the seconds it took."""
    begin = time.perf_counter()
    function(*args, **kwargs)
    return round(time.perf_counter() - begin, 2)


def quiet() -> None:
    """Silence messages of Lightning that say nothing of the user's own doing."""
    for package in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(package).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*exists and is not empty.*",
        ".*smaller than the logging interval.*",
        ".*your dataloader is not resumable.*",  # ours starts at the step of the checkpoint
        ".*Grad strides do not match bucket view strides.*",  # of one channel: both are the same
        ".*isinstance.treespec, LeafSpec.*",
        ".*AMP with fp16 is not supported on CPU.*",  # said by make_trainer
        ".*lr_scheduler.step.*before.*optimizer.step.*",
    ):
        warnings.filterwarnings("ignore", message)
