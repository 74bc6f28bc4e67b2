"""Send the results of a finished run to its loggers: metrics, figures, predictions on test tasks, checkpoints."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger
from torch import Tensor

from metafew.episode import Episode
from metafew.loggers.metrics_file import MetricsFile
from metafew.predictions import NO_ANSWER, answers

QUERIES, IMAGES = 100, 5
"""The maximum number of queries of a task in a table, and of support images of a class."""


class Prediction(NamedTuple):
    """A query of a test task, its class and the predicted one, by name, and the support images of both.

    The prediction is None for an unanswered query.
    """

    task: int
    query: Image.Image
    label: str
    support: Image.Image
    predicted: str | None
    confidence: float | None
    support_of_predicted: Image.Image | None


def publish(
    loggers: Iterable[Logger], report: dict, tasks: Iterable[tuple[Episode, Tensor, Sequence[str]]], out: Path
) -> None:
    """Send the results of a run to its loggers, and figures to Weights & Biases and TensorBoard.

    Args:
        loggers: the loggers of the run.
        report: the content of results.json.
        tasks: test tasks, each with the probabilities ``(t, q, w)`` of its queries under the trained head and the names
            of its classes.
        out: output folder of the run, whose PNG files are the figures.
    """
    figures = sorted(out.glob("*.png"))
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            table = [row for task in tasks for row in predictions(*task)]
            to_wandb(logger, report, figures, table, out)
        elif isinstance(logger, TensorBoardLogger):
            to_tensorboard(logger, report, figures)
        elif not isinstance(logger, MetricsFile):  # results.json is next to it
            logger.log_metrics(measured(report), report["steps"])
            logger.save()


def to_wandb(
    logger: WandbLogger, report: dict, figures: Sequence[Path], table: Sequence[Prediction], out: Path
) -> None:
    """Log figures, the table of predictions and the checkpoints, and write the results to the summary."""
    import wandb

    step = report["steps"]
    logger.experiment.summary.update(summary(report))
    for path in figures:
        logger.log_image(f"figures/{path.stem}", [str(path)], step)
    with staged(out / "wandb"):
        if table:
            rows = [[wandb.Image(v) if isinstance(v, Image.Image) else v for v in row] for row in table]
            logger.log_table("test_tasks", [name.replace("_", " ") for name in Prediction._fields], rows, step=step)
        for name in getattr(logger, "checkpoints", ()):
            if (file := out / "checkpoints" / f"{name}.ckpt").is_file():
                artifact = wandb.Artifact(f"checkpoint-{logger.version}", type="model")
                artifact.add_file(str(file), policy=logger.add_file_policy)
                logger.experiment.log_artifact(artifact, aliases=[name])


@contextmanager
def staged(folder: Path) -> Iterator[None]:
    """Stage artifacts for upload in ``folder`` instead of the home directory, unless the environment sets a folder."""
    if "WANDB_DATA_DIR" in os.environ:
        yield
        return
    os.environ["WANDB_DATA_DIR"] = str(folder)
    try:
        yield
    finally:
        del os.environ["WANDB_DATA_DIR"]


def to_tensorboard(logger: TensorBoardLogger, report: dict, figures: Sequence[Path]) -> None:
    """Log figures, results as scalars, and options with results as hyperparameters for comparing runs."""
    step = report["steps"]
    for path in figures:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        logger.experiment.add_image(f"figures/{path.stem}", pixels, step, dataformats="HWC")
    logger.log_hyperparams(dict(logger.hparams), measured(report), step)
    logger.experiment.flush()


def summary(report: dict) -> dict[str, Any]:
    """Return mean, interval and failed tasks of all metrics, the best validation, and the duration of each stage.

    >>> summary({"metrics": {"test/svm/accuracy": {"mean": 0.8, "ci95": 0.1, "failed": 0}}, "baselines": {},
    ...          "validation": {}, "seconds": {"fit": 2.5}})
    {'test/svm/accuracy': 0.8, 'test/svm/accuracy_ci95': 0.1, 'test/svm/accuracy_failed': 0, 'seconds/fit': 2.5}
    """
    metrics = report["metrics"] | {f"test/{name}/accuracy": value for name, value in report["baselines"].items()}
    values: dict[str, Any] = {}
    for name, value in metrics.items():
        values |= {name: value["mean"], f"{name}_ci95": value["ci95"], f"{name}_failed": value["failed"]}
    values |= {f"{name}_best": value for name, value in report["validation"].items()}
    return values | {f"seconds/{stage}": seconds for stage, seconds in report["seconds"].items()}


def measured(report: dict) -> dict[str, Any]:
    """Return the values of :func:`summary` that are not None."""
    return {name: value for name, value in summary(report).items() if value is not None}


def predictions(episode: Episode, probabilities: Tensor, names: Sequence[str]) -> Iterator[Prediction]:
    """Yield predictions for at most 100 evenly spaced queries of the first task of ``episode``.

    Args:
        episode: tasks with images in [0, 1], on the CPU.
        probabilities: ``(t, q, w)``.
        names: the names of the classes of the first task, by label.
    """
    (support, classes), (query, labels) = ([part[0] for part in pair] for pair in (episode.support, episode.query))
    strips = [strip(support[classes == c][:IMAGES]) for c in range(episode.way)]
    for number in range(0, len(labels), -(-len(labels) // QUERIES)):
        label, best = int(labels[number]), int(answers(probabilities[0, number]))
        true = (int(episode.index[0]), strip(query[number : number + 1]), names[label], strips[label])
        if best == NO_ANSWER:
            yield Prediction(*true, None, None, None)
        else:
            yield Prediction(*true, names[best], float(probabilities[0, number, best]), strips[best])


def strip(images: Tensor) -> Image.Image:
    """Return images ``(n, c, h, w)`` in [0, 1] side by side; grey images are inverted to dark on white."""
    row = images.permute(2, 0, 3, 1).flatten(1, 2).float().clamp(0, 1).numpy()
    pixels = (255 * row).round().astype(np.uint8)
    return Image.fromarray(pixels if pixels.shape[-1] == 3 else 255 - pixels[..., 0])
