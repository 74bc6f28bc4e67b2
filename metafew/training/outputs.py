"""Write the outputs of a run: results.json, tasks.csv, figures, and entries of loggers."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor

from metafew.analysis import run_plots
from metafew.config.option_values import as_list
from metafew.distributed.collective import gather_objects
from metafew.episode import Episode
from metafew.evaluation import results
from metafew.evaluation.results_table import print_results
from metafew.io import has_results_of, set_results_aside, write_json
from metafew.loggers.publish import publish
from metafew.training.parts import Parts
from metafew.training.stages import Outcome

log = logging.getLogger(__name__)

SHOWN = 3
"""Number of test tasks that loggers show."""


def make_report(parts: Parts, outcome: Outcome, unsolved: Counter[str]) -> dict:
    """Return the content of results.json.

    Args:
        parts: the parts of the run.
        outcome: the outcome of its stages.
        unsolved: number of tasks that each solver did not solve on this rank.
    """
    learner, source, trainer, config = parts.learner, parts.source, parts.trainer, parts.config
    trained_on = source.components("train")
    sources = {component.display_name: component in trained_on for component in source.components("test")}
    # None without validation; a resumed training may have validated earlier.
    best = parts.checkpoints.best_model_score if parts.data.val.total else None
    validation = {} if best is None else {"accuracy": best.item(), "failed": parts.checkpoints.failed}
    shots = as_list(config["test"]["shot"])
    heads = results.describe_heads(learner.tables, shots, learner.transductive, learner.seconds, len(sources))
    ranked = learner.heads if heads and len(sources) > 1 and len(learner.heads) > 1 else ()
    report = {
        **results.collect(learner.tables, shots, list(learner.heads), list(sources)),
        **({"average_rank": {head: heads[head]["rank"] for head in ranked}} if ranked else {}),
        "calibration": results.by_shot(learner.calibration, shots),
        "analysis": outcome.analysis,
        "sources": sources,
        "data": outcome.data,
        "tested_on": dict(zip(sources, parts.data.test_images(), strict=True)) if learner.tables else {},
        "chosen": outcome.chosen,
        "heads": heads,
        "differences": results.differences(learner.tables, shots, list(learner.heads)),
        "transductive": any(learner.transductive.values()),
        "over": config["norm"].get("over"),
        "queries": config["test"]["queries"],
        "balance": config["test"]["balance"],
        "select": outcome.selected,
        "validation": {f"val/{learner.trained}/{measure}": value for measure, value in validation.items()},
        "choices": parts.choices | ({"norm": "own"} if learner.backbone.own_norms else {}),
        "steps": trainer.global_step if parts.fits else parts.start["global_step"] if parts.start else 0,
        "finished": outcome.finished,
        "seconds": outcome.seconds,
        "precision": trainer.precision,
        "unsolved": dict(sum(gather_objects(unsolved), Counter())),
        "seed": config["seed"],
        "versions": results.versions(),
        "config": config,
    }
    if failed := results.failures(report["metrics"]):
        log.warning(
            "%s, as some queries have logits that are not finite and count as wrong: training or adaptation to a task "
            "diverged, or the data overflow; a smaller optimizer.lr or head.lr, or smaller vectors, may help",
            ", ".join(failed),
        )
    return report


def write_outputs(report: dict, parts: Parts) -> None:
    """Write results.json, tasks.csv, splits drawn at random and figures, publish them, and print the table."""
    learner, data, out = parts.learner, parts.data, parts.out
    if not parts.fits and not has_results_of(out, parts.config):
        set_results_aside(out)
    write_json(out / "results.json", report)
    write_drawn_splits(parts)
    if parts.fits:
        run_plots.learning_curve(out / "metrics.csv", learner.trained, out / "learning_curve.png")
    if learner.alphas:
        run_plots.alpha_curve(learner.alphas, data.train.contexts, out / "alpha.png")
    if learner.tables:
        class_names = data.sampler(data.test[0]).class_names  # all tests have the same classes
        results.write_tasks(out / "tasks.csv", learner.tables, list(report["sources"]), class_names)
        for task in predicted_tasks(parts, 1):
            run_plots.episode_sheet(*task, out / "episode.png", learner.temperatures.get(learner.trained) is not None)
        print_results(report)
    publish(parts.trainer.loggers, report, predicted_tasks(parts, SHOWN), out)
    print(f"results, figures and checkpoints are in {out}")


def write_drawn_splits(parts: Parts) -> None:
    """Write the classes of each dataset whose splits were drawn at random, in a file that ``dataset.splits`` reads."""
    drawn = [source for source in parts.source.all_components() if source.drawn]
    for source in drawn:
        name = "splits.json" if len(drawn) == 1 else f"splits_{source.title}.json"
        names = {split: [category.name for category in found] for split, found in source.splits().items()}
        write_json(parts.out / name, names)


def predicted_tasks(parts: Parts, count: int) -> Iterator[tuple[Episode, Tensor, list[str]]]:
    """Yield the first ``count`` test tasks with the probabilities of their queries and the names of their classes.

    Without a test or without images, there are none.
    """
    learner, data = parts.learner, parts.data
    if learner.tables and data.source.image_size > 1:
        sampler = data.sampler(data.test[0])
        for index in range(min(count, data.test[0].total)):
            episode = data.test_episode(index, cast(torch.dtype, learner.dtype))
            yield episode, learner.predict(episode), sampler.class_names(index)
