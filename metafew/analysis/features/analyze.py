"""``stages=[analyze]``: the measures of a checkpoint as a file, a table and figures."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from metafew.analysis.features import measures, plots
from metafew.analysis.features.observer import Observed, Observer, in_order
from metafew.analysis.features.projection import projection
from metafew.analysis.features.weight_distance import travels
from metafew.data.datamodule import FewShot
from metafew.data.sources import Source
from metafew.data.task_spec import TaskSpec
from metafew.distributed.collective import gather_objects
from metafew.errors import UsageError
from metafew.evaluation.evaluator import Evaluator
from metafew.evaluation.feature_cache import parts
from metafew.io import write_json

log = logging.getLogger(__name__)

SHOWN, IMAGES = 5, 100  # classes in a projection, and images of each


def plan(cfg: DictConfig, test: TaskSpec) -> TaskSpec:
    """Return the tasks of the analysis: those of the first test, or such as those from another split."""
    return replace(test, split=cfg.analyze.split, total=cfg.analyze.tasks)


def check(plan: TaskSpec, source: Source) -> None:
    """Raise a sentence when some task of ``plan`` cannot be drawn; its way and shots are typed for test."""
    for component in source.components(plan.split):
        try:
            plan.check(component.splits()[plan.split], component.title)
        except UsageError as error:
            raise UsageError(str(error).replace(f"{plan.split}.", "test.")) from None


def analyze(trainer: pl.Trainer, learner: Evaluator, data: FewShot, out: Path) -> dict | None:
    """Measure the features of ``learner``, leave analysis.json and figures in ``out``, and return the chief numbers.

    The backbone is in evaluation mode, dropout off. Pairs of classes come from the support and query rows of tasks,
    embedded as in a test: a norm that wants a context gets the support set, all queries together. Whole-split
    measures take every image once where no image changes the features of another, else the rows of all tasks, as
    images have no features but in a task. Features are those before adaptation, where a head adapts the backbone.
    Where features are not finite, nothing is measured, and a warning says so.
    """
    sampler = data.sampler(data.analyzed)
    observer = Observer(learner, sampler)
    seen = trainer.predict(observer, data)
    tasks = in_order([batch for process in gather_objects(seen) for batch in process])
    ill = next((task.index for task in tasks if not task.features.isfinite().all()), None)
    if ill is not None:
        log.warning(
            "features of task %d of the %s split are not finite, and nothing is measured: training diverged; a smaller "
            "optimizer.lr may help",
            *(ill, data.analyzed.split),
        )
        return None
    split, names = data.analyzed.split, [name for part in parts(sampler) for name in part.split.names]
    adapts = travels(learner.heads[learner.trained])
    content = {
        "split": split,
        "tasks": len(tasks),
        "clustering": measures.clustering(tasks, observer.whole),
        "sufficient_condition": measures.condition(tasks),
        "alpha": measures.alphas(learner.alphas, data.train.contexts) if learner.alphas else None,
        "travel": measures.travelled(tasks) if adapts else None,
        "distances": measures.distances(tasks) if adapts else None,
        "confusion": measures.confusion(tasks, names),
        "projection": projection(*some(tasks[0], observer), names),
    }
    if trainer.is_global_zero:
        write_json(out / "analysis.json", content)
        draw(content, out)
        show(content)
    return summary(content)


def summary(content: dict) -> dict:
    """Return what belongs into results.json: numbers, without what they were computed from."""
    points = content["sufficient_condition"]
    chief = {"split": content["split"], "tasks": content["tasks"], **content["clustering"]}
    chief |= {name: points[name] for name in ("eps", "one_shot_accuracy")}
    return chief | ({"travel": content["travel"]["all"]} if content["travel"] else {})


def draw(content: dict, out: Path) -> None:
    """Draw the figures that there are numbers for."""
    split = content["split"]
    plots.sufficient_condition(content["sufficient_condition"]["points"], split, out / "sufficient_condition.png")
    plots.projection(content["projection"], split, out / "projection.png")
    plots.confusion(content["confusion"], split, out / "confusion.png")
    if content["travel"]:
        plots.travel(content["distances"], content["travel"], split, out / "travel.png")


def some(task: Observed, observer: Observer) -> tuple[np.ndarray, np.ndarray]:
    """Return features and class numbers to project: of some classes of a task, all images if they have features."""
    features, classes = observer.whole or (task.features, task.classes)
    chosen = list(dict.fromkeys(task.classes.tolist()))[:SHOWN]
    rows = np.concatenate([np.flatnonzero(classes.numpy() == c)[:IMAGES] for c in chosen])
    return features[rows].numpy(), classes[rows].numpy()


def show(content: dict) -> None:
    """Print the measures as a table."""
    table = Table(title=f"features of the {content['split']} split")
    for column, side in (("measured", "left"), ("value", "right"), ("over", "right")):
        table.add_column(column, justify=side)
    found = content["clustering"]
    rows = {name: value for name, value in found.items() if isinstance(value, dict)}
    rows |= {name: content["sufficient_condition"][name] for name in ("eps", "one_shot_accuracy")}
    for name, value in rows.items():
        table.add_row(name.replace("_", " "), number(value), f"{value['pairs']} pairs of classes")
    for name in ("variance_ratio", "class_clustering"):
        table.add_row(name.replace("_", " "), f"{found[name]:.3f}", f"{found['images']} images")
    for layer, value in (content["travel"] or {}).items():
        table.add_row(f"travel, {layer}", number(value), f"{value['tasks']} tasks")
    trained = (content["alpha"] or {}).get("trained")
    for number_, layer in enumerate((content["alpha"] or {}).get("layers", ()), 1):
        table.add_row(f"alpha, layer {number_}", f"{layer[str(trained[1])]:.3f}", f"a context of {trained[1]}")
    table.caption = "mean ± 95 % confidence interval"
    Console().print(table)


def number(value: dict) -> str:
    """Return a mean and its interval as they stand in the table."""
    if value["mean"] is None:
        return "diverged"
    return f"{value['mean']:.3f}" + ("" if value["ci95"] is None else f" ± {value['ci95']:.3f}")
