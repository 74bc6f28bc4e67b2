"""Figures of several trainings, from metrics.csv and results.json. Imports no torch.

Each function takes folders by label and the PNG to write, as in :mod:`metafew.analysis.compare.feature_plots`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from metafew.analysis.compare.feature_plots import Folders, require_any
from metafew.analysis.compare.runs import Run
from metafew.analysis.style import HEIGHT, canvas, legend, look, plain, save
from metafew.evaluation.statistics import format_failed, summarize_seeds

BAND = "mean over seeds, band from the\nlowest to the highest"
INTERVAL = "mean ± 95 % interval"


def learning_curves(folders: Folders, file: Path) -> None:
    """Draw validation accuracy over steps and over seconds: the mean over seeds, and a band from lowest to highest.

    Seconds are the duration of the entire training, including validations, in proportion to the steps. A resumed
    training, which only timed its last part, is not drawn over seconds.

    Raises:
        UsageError: if no run has validations.
    """
    read = {label: [run for run in map(Run.in_folder, each) if run.validations] for label, each in folders.items()}
    found = require_any(read, folders, "validations in metrics.csv", "stages=[fit,test]")
    timed = any(all(run.seconds_per_step for run in runs) for runs in found.values())
    figure = Figure(figsize=(11.0 if timed else 8.0, HEIGHT), layout="constrained")
    panels = figure.subplots(1, 1 + timed, sharey=True, squeeze=False)[0]
    for axes, unit in zip(panels, ("step", "training time (s), in proportion to steps"), strict=False):
        plain(axes)
        axes.set_xlabel(unit)
    panels[0].set_ylabel("validation accuracy (%)")
    for number, (label, runs) in enumerate(found.items()):
        steps = np.array(sorted(set.intersection(*(set(run.validations) for run in runs))))
        values = 100 * np.array([[run.validations[step] for step in steps] for run in runs])
        seconds = [run.seconds_per_step for run in runs]
        label += format_failed(sum(run.failed_validation_tasks for run in runs))
        for axes, scale in zip(panels, (1, np.mean(seconds) if all(seconds) else None), strict=False):
            if scale:
                line = look(number)
                axes.plot(scale * steps, values.mean(0), label=label, markersize=4, **line)
                if len(runs) > 1:
                    axes.fill_between(scale * steps, values.min(0), values.max(0), color=line["color"], alpha=0.2)
    legend(figure, BAND if max(map(len, found.values())) > 1 else "")
    save(figure, file)


def learning_rates(folders: Folders, file: Path) -> None:
    """Draw test accuracy over the outer learning rate, with the t-interval over seeds, or over tasks for one seed.

    Runs that diverged are left out.

    Raises:
        UsageError: if no run has a test accuracy.
    """
    found: dict[str, dict[float, list[dict]]] = {label: {} for label in folders}
    for label, each in folders.items():
        for run in map(Run.in_folder, each):
            metrics = run.report.get("metrics", {})
            value = next((value for name, value in metrics.items() if name.endswith("/accuracy")), {"mean": None})
            rate = run.values.get("optimizer.lr")
            if rate and value["mean"] is not None:
                found[label].setdefault(rate, []).append(value)
    found = require_any(found, folders, "optimizer.lr and a test accuracy in results.json", "stages=[fit,test]")
    figure, axes = canvas("outer learning rate (optimizer.lr)", "test accuracy (%)")
    for number, (label, points) in enumerate(found.items()):
        points = dict(sorted(points.items()))
        cells = [summarize_seeds(each) for each in points.values()]
        mean, ci95 = (100 * np.array([cell[name] or 0.0 for cell in cells]) for name in ("mean", "ci95"))
        label += format_failed(sum(value.get("failed", 0) for each in points.values() for value in each))
        offset = 1.03 ** (number - (len(found) - 1) / 2)  # keeps intervals from hiding one another
        draw_errorbars(axes, offset * np.array(list(points)), mean, ci95, label, number)
    rates = sorted({rate for points in found.values() for rate in points})
    axes.set_xscale("log")
    axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
    axes.set_xticks([], minor=True)
    legend(figure, INTERVAL)
    save(figure, file)


def draw_errorbars(axes: Axes, x: ArrayLike, mean: ArrayLike, ci95: ArrayLike, label: str, number: int) -> None:
    """Draw line ``number`` of a figure with intervals."""
    axes.errorbar(x, mean, ci95, label=label, capsize=2, elinewidth=1, markersize=5, **look(number))
