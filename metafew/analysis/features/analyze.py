"""``stages=[analyze]``: measure the features of a checkpoint, write results and figures, and print a table."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from rich.console import Console
from rich.table import Table
from torch import Tensor

from metafew.analysis.features import measures, plots
from metafew.analysis.features.observer import Observed, Observer, in_order
from metafew.analysis.features.projection import project_features
from metafew.analysis.features.weight_distance import adapts_by_gradient
from metafew.data.datamodule import FewShot
from metafew.data.sampler import Sampler
from metafew.distributed.collective import gather_objects
from metafew.evaluation.evaluator import Evaluator
from metafew.evaluation.feature_cache import parts
from metafew.io import write_json

log = logging.getLogger(__name__)

CLASSES, IMAGES = 5, 100  # number of classes in a projection, and of images per class
PAIRS, EXAMPLES = 8, 6  # number of confused pairs of classes that are drawn, and of images per class


def analyze(trainer: pl.Trainer, learner: Evaluator, data: FewShot, out: Path) -> dict | None:
    """Measure the features of ``learner``, write analysis.json and figures to ``out``, and return a summary.

    The backbone is in eval mode, without dropout. Pairs of classes are drawn from the support and query rows of tasks,
    which are embedded as in a test: the support set is the context, and all queries are embedded together. Measures of
    a split use each of its images once if features do not depend on other images, else the rows of all tasks. Features
    are taken before adaptation. If features are not finite, this logs a warning and returns None.
    """
    assert data.analyzed is not None  # set for stages=[analyze]
    sampler = data.sampler(data.analyzed)
    observer = Observer(learner, sampler)
    predictions = trainer.predict(observer, data)
    tasks = in_order([batch for process in gather_objects(predictions) for batch in process])
    diverged = [f"task {task.number}" for task in tasks if not measurable(task.features)]
    if observer.split_features and not measurable(observer.split_features[0]):
        diverged.append("an image")
    if diverged:
        log.warning(
            "features of %s of the %s split are not finite, or too large to be squared, as training diverged, and "
            "are not measured: a smaller optimizer.lr may help",
            *(diverged[0], data.analyzed.split),
        )
        return None
    split, names = data.analyzed.split, [name for part in parts(sampler) for name in part.split.names]
    adapts = adapts_by_gradient(observer.head)
    content: dict[str, Any] = {
        "split": split,
        "tasks": len(tasks),
        "clustering": measures.clustering(tasks, observer.split_features),
        "sufficient_condition": measures.pair_conditions(tasks),
        "alpha": measures.alpha_by_context(learner.alphas, data.train.contexts) if learner.alphas else None,
        "travel": measures.layer_distances(tasks) if adapts else None,
        "distances": measures.task_distances(tasks) if adapts else None,
        "confusion": measures.confusion(tasks, names),
        "projection": project_features(*select_rows(tasks[0], observer), names),
    }
    if trainer.is_global_zero:
        write_json(out / "analysis.json", content)
        draw_analysis(content, confused_images(content["confusion"], sampler), out)
        print_analysis(content)
    return summarize(content)


def measurable(features: Tensor) -> bool:
    """Return whether squared distances, of which all measures consist, are finite."""
    return bool((2 * features).square().sum(-1).isfinite().all())


def summarize(content: dict) -> dict:
    """Return the entry of results.json: the scalar measures."""
    found = {"split": content["split"], "tasks": content["tasks"], **content["clustering"]}
    found |= {name: content["sufficient_condition"][name] for name in ("eps", "one_shot_accuracy")}
    return found | ({"travel": content["travel"]["all"]} if content["travel"] else {})


def confused_images(confusion: dict, sampler: Sampler) -> list[tuple[dict, np.ndarray, np.ndarray]]:
    """Return images of the classes that are confused most often, if there are too many classes for a matrix.

    The list is empty if the data are not images, or no query is misclassified.
    """
    if confusion["by"] == "class" or parts(sampler)[0].split.images.shape[-1] == 1:
        return []
    classes = [(part.split, number) for part in parts(sampler) for number in range(len(part.split.names))]
    pairs = []
    for entry in confusion["most_confused"][:PAIRS]:
        chosen = [classes[number] for number in entry["classes"]]
        rows = [(split, split.rows[number][:EXAMPLES], split.turns[number]) for split, number in chosen]
        pairs.append((entry, *(split.gather(own, np.full(len(own), turns)) for split, own, turns in rows)))
    return pairs


def draw_analysis(content: dict, confused: list[tuple[dict, np.ndarray, np.ndarray]], out: Path) -> None:
    """Draw the figures of all measures."""
    split = content["split"]
    plots.draw_sufficient_condition(content["sufficient_condition"]["points"], split, out / "sufficient_condition.png")
    plots.draw_projection(content["projection"], split, out / "projection.png")
    if confused:
        plots.draw_confused_pairs(confused, split, out / "confusion.png")
    else:
        plots.draw_confusion(content["confusion"], split, out / "confusion.png")
    if content["travel"]:
        plots.draw_weight_distances(content["distances"], content["travel"], split, out / "travel.png")


def select_rows(task: Observed, observer: Observer) -> tuple[np.ndarray, np.ndarray]:
    """Return features and classes to project: the first classes of a task, from the entire split if it is embedded.

    Args:
        task: the task whose classes are projected.
        observer: provides the features of the split.
    """
    features, classes = observer.split_features or (task.features, task.classes)
    chosen = list(dict.fromkeys(task.classes.tolist()))[:CLASSES]
    rows = np.concatenate([np.flatnonzero(classes.numpy() == c)[:IMAGES] for c in chosen])
    return features[rows].numpy(), classes[rows].numpy()


def print_analysis(content: dict) -> None:
    """Print the measures as a table."""
    found = content["clustering"]
    pairwise = {name: value for name, value in found.items() if isinstance(value, dict)}
    pairwise |= {name: content["sufficient_condition"][name] for name in ("eps", "one_shot_accuracy")}
    title = f"features of the {content['split']} split"
    table = Table("measured", title=title, caption="mean ± 95 % confidence interval")
    table.add_column("value", justify="right")
    table.add_column("over", justify="right")
    for name, value in pairwise.items():
        table.add_row(name.replace("_", " "), format_measure(value), f"{value['pairs']} pairs of classes")
    for name in ("variance_ratio", "class_clustering"):
        table.add_row(name.replace("_", " "), f"{found[name]:.3f}", f"{found['images']} images")
    for layer, value in (content["travel"] or {}).items():
        table.add_row(f"weight distance, {layer}", format_measure(value), f"{value['tasks']} tasks")
    if content["alpha"]:
        size = str(content["alpha"]["trained"][1])
        for number, layer in enumerate(content["alpha"]["layers"], 1):
            table.add_row(f"alpha, layer {number}", f"{layer[size]:.3f}", f"a context of {size}")
    if unanswered := sum(content["confusion"]["unanswered"]):
        table.add_row("queries without an answer", str(unanswered), f"{content['tasks']} tasks")
    Console().print(table)


def format_measure(value: dict) -> str:
    """Format a mean and its interval."""
    if value["mean"] is None:
        return "diverged"
    return f"{value['mean']:.3f}" + ("" if value["ci95"] is None else f" ± {value['ci95']:.3f}")
