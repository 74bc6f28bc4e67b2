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
from metafew.assemble import make, make_data, make_learner, make_trainer, words
from metafew.data.datamodule import FewShot
from metafew.errors import UsageError
from metafew.learner import Learner

STAGES = ("fit", "test")


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
    stages = check(cfg)
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    source = make(cfg.dataset)
    provenance = {"overrides": overrides, "choices": choices, "version": results.versions()["metafew"]}
    learner = make_learner(cfg, source, provenance)
    start = cfg.ckpt and checkpoint.read(cfg.ckpt)
    if start:
        learner.load_state_dict(checkpoint.reconcile(start["state_dict"], learner, cfg.ckpt))
    data = make_data(cfg, source, choices["dataset"])
    trainer = make_trainer(cfg, learner.trained, out)
    if data.train.tasks % trainer.world_size:
        raise UsageError(
            f"train.tasks={data.train.tasks} cannot be shared evenly by {trainer.world_size} processes: "
            f"type train.tasks={trainer.world_size * (1 + data.train.tasks // trainer.world_size)}"
        )
    try:
        seconds = fit_and_test(stages, cfg, learner, data, trainer, start)
    finally:
        loggers.close(trainer.loggers)
    report = {
        **results.measures(learner.tables, words(cfg.test.shot), list(learner.heads)),
        "transductive": learner.backbone.transductive,
        "over": cfg.norm.get("over"),
        "queries": "together",
        "select": cfg.test.select if "fit" in stages else None,
        "choices": choices,
        "steps": trainer.global_step if "fit" in stages else start["global_step"],
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
    if cfg.test.select not in ("best", "last"):
        raise UsageError(f"test.select is best or last, not {cfg.test.select}: type test.select=best")
    for key in ("trainer.max_steps", "trainer.accumulate_grad_batches", "val.every"):
        value = OmegaConf.select(cfg, key)
        if not isinstance(value, int) or value < 1:
            raise UsageError(f"{key} is a whole number of at least 1, not {value}: type {key}=100")
    return stages


def fit_and_test(
    stages: list[str], cfg: DictConfig, learner: Learner, data: FewShot, trainer: pl.Trainer, start: dict | None
) -> dict[str, float]:
    """Carry out ``stages`` and return the seconds that each took."""
    seconds = {}
    if "fit" in stages:
        resume = cfg.ckpt if start and same_training(start, learner.provenance["choices"]) else None
        seconds["fit"] = timed(trainer.fit, learner, data, ckpt_path=resume, weights_only=True)
        folder = Path(trainer.checkpoint_callback.dirpath)
        trainer.save_checkpoint(folder / "last.ckpt")
        learner.load_state_dict(checkpoint.read(folder / f"{cfg.test.select}.ckpt")["state_dict"])
    if "test" in stages:
        seconds["test"] = timed(trainer.test, learner, data, verbose=False)
    return seconds


def same_training(start: dict, choices: dict[str, str]) -> bool:
    """Tell whether a checkpoint's training can go on; otherwise only its weights are taken."""
    groups = ("backbone", "norm", "head", "objective", "optimizer", "schedule")
    return all(start["metafew"]["choices"].get(group) == choices[group] for group in groups)


def leave(report: dict, learner: Learner, data: FewShot, out: Path) -> None:
    """Write results.json, tasks.csv and figures, and print the table."""
    results.write_json(out / "results.json", report)
    if "fit" in report["seconds"]:
        figures.learning_curve(out / "metrics.csv", learner.trained, out / "learning_curve.png")
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
