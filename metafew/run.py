"""One run: fit and test what a configuration names, and leave the results in a folder."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf

from metafew import checkpoint, loggers, results
from metafew.analysis import figures
from metafew.assemble import make, make_data, make_learner, make_loggers, make_trainer, words
from metafew.data.datamodule import FewShot
from metafew.errors import UsageError
from metafew.learner import Learner

log = logging.getLogger(__name__)

STAGES = ("fit", "test")
TRAINING = ["dataset", "backbone", "norm", "objective", "optimizer", "schedule", "head", "train", "seed"]


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
        return carry_out(cfg, choices, overrides, out)
    finally:
        loggers.close()


def carry_out(cfg: DictConfig, choices: dict[str, str], overrides: list[str], out: Path) -> dict:
    """Do what :func:`run` says, but for the end of logging."""
    stages = check(cfg)
    fit = "fit" in stages
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    source = make(cfg.dataset)
    start = cfg.ckpt and checkpoint.read(cfg.ckpt)
    provenance = {
        "overrides": overrides,
        "choices": choices,
        "training": OmegaConf.to_container(OmegaConf.masked_copy(cfg, TRAINING)),
        "version": results.versions()["metafew"],
    }
    trained = fit or start["metafew"]["choices"]["head"] == choices["head"]
    learner = make_learner(cfg, source, provenance, trained)
    if start:
        learner.load_state_dict(checkpoint.reconcile(start["state_dict"], learner, cfg.ckpt, fit))
    data = make_data(cfg, source, choices["dataset"])
    check_tasks(learner, data)
    trainer = make_trainer(cfg, learner.trained, make_loggers(cfg, out), out)
    if fit and data.train.tasks % trainer.world_size:
        raise UsageError(
            f"train.tasks={data.train.tasks} cannot be shared evenly by {trainer.world_size} processes: "
            f"type train.tasks={trainer.world_size * (1 + data.train.tasks // trainer.world_size)}"
        )
    seconds, selected = {}, None
    if fit:
        resume = goes_on(cfg, start, provenance)
        seconds["fit"] = timed(trainer.fit, learner, data, ckpt_path=resume, weights_only=True)
        selected = select(cfg.test.select, trainer, learner)
    if "test" in stages:
        seconds["test"] = timed(trainer.test, learner, data, verbose=False)
    report = {
        **results.measures(learner.tables, words(cfg.test.shot), list(learner.heads)),
        "transductive": learner.backbone.transductive,
        "over": cfg.norm.get("over"),
        "queries": cfg.test.queries,
        "select": selected,
        "choices": choices,
        "steps": trainer.global_step if fit else start["global_step"],
        "seconds": seconds,
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
        raise UsageError(f"stages wants fit, test or both, not {stages}: type stages=[fit,test]")
    if "fit" not in stages and cfg.ckpt is None:
        raise UsageError("stages=[test] wants a trained model, and ckpt is not given: type ckpt=PATH")
    for key, allowed in (("test.select", ("best", "last")), ("test.queries", ("together", "single", "class"))):
        value = OmegaConf.select(cfg, key)
        if value not in allowed:
            raise UsageError(f"{key} is {' or '.join(allowed)}, not {value}: type {key}={allowed[0]}")
    least = {"seed": 0, "test.seed": 0, "data.num_workers": 0, "train.tasks": 1, "val.every": 1}
    least |= {"trainer.max_steps": 1, "trainer.accumulate_grad_batches": 1}
    for key, low in least.items():
        value = OmegaConf.select(cfg, key)
        if not isinstance(value, int) or value < low:
            raise UsageError(f"{key} is a whole number of at least {low}, not {value}: type {key}={low}")
    if not words(cfg.test.shot):
        raise UsageError("test.shot is a number or a list of some, not an empty list: type test.shot=1")
    return stages


def check_tasks(learner: Learner, data: FewShot) -> None:
    """Raise a sentence, or warn once, where norm or heads are not made for the tasks."""
    low, high = data.train.contexts
    if learner.backbone.couples_tasks:
        if learner.heads[learner.trained].adapts_backbone:
            raise UsageError(
                f"head={learner.trained} adapts the backbone to one task at a time, and this norm treats the tasks of "
                "a meta-batch as one batch: type norm=transductive"
            )
        if low < high:
            raise UsageError(
                f"this norm treats the tasks of a meta-batch as one batch and wants them all of one size, not train.way"
                f"={data.train.way} with train.shot={data.train.shot}: type train.way=5 train.shot=1, or norm=batch"
            )
    for name, head in learner.heads.items():
        for plan in (data.train, data.val, *data.test):
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


def goes_on(cfg: DictConfig, start: dict | None, provenance: dict) -> str | None:
    """Return the checkpoint whose training goes on; None where training starts, be it from a checkpoint's weights."""
    if start is None:
        return None
    if start["metafew"]["training"] == provenance["training"]:
        return cfg.ckpt
    log.warning("the training of %s was another one: a new training starts from its weights", cfg.ckpt)
    return None


def select(which: str, trainer: pl.Trainer, learner: Learner) -> str:
    """Give ``learner`` the weights of the best or the last checkpoint; return which it was."""
    folder = Path(trainer.checkpoint_callback.dirpath)
    trainer.save_checkpoint(folder / "last.ckpt")
    if which == "best" and not (folder / "best.ckpt").exists():
        log.warning("no validation took place in this run, so that the last weights are tested")
        which = "last"
    learner.load_state_dict(checkpoint.read(folder / f"{which}.ckpt")["state_dict"])
    return which


def leave(report: dict, learner: Learner, data: FewShot, out: Path) -> None:
    """Write results.json, tasks.csv and figures, and print the table."""
    results.write_json(out / "results.json", report)
    if "fit" in report["seconds"]:
        figures.learning_curve(out / "metrics.csv", learner.trained, out / "learning_curve.png")
    if learner.alphas:
        figures.alpha_curve(learner.alphas, data.train.contexts, out / "alpha.png")
    if learner.tables:
        results.write_tasks(out / "tasks.csv", learner.tables, report["choices"]["dataset"])
        episode = data.first_test_episode(learner.dtype)
        figures.episode_sheet(episode, learner.predict(episode), out / "episode.png")
        results.show(report)
    print(f"results, figures and checkpoints are in {out}")


def timed(function: Callable, *args: Any, **kwargs: Any) -> float:
    """Call ``function`` and return the seconds it took."""
    begin = time.perf_counter()
    function(*args, **kwargs)
    return round(time.perf_counter() - begin, 2)


def quiet() -> None:
    """Silence messages of Lightning that say nothing of the user's own doing."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*exists and is not empty.*",
        ".*smaller than the logging interval.*",
        ".*The dirpath has changed.*",
        ".*your dataloader is not resumable.*",  # ours starts at the step of the checkpoint
        ".*isinstance.treespec, LeafSpec.*",
        ".*lr_scheduler.step.*before.*optimizer.step.*",
    ):
        warnings.filterwarnings("ignore", message)
