"""Figures of how several trainings went, from metrics.csv and results.json. Imports no torch.

Each function takes folders by label and the PNG to write, as those of :mod:`metafew.analysis.compare.feature_plots` do.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from metafew.analysis.compare.feature_plots import Folders, only
from metafew.analysis.compare.runs import Run
from metafew.analysis.style import HEIGHT, canvas, legend, look, plain, save
from metafew.evaluation.statistics import summarized

BAND = "mean over seeds, band from the\nlowest to the highest"
INTERVAL = "mean ± 95 % interval"


def curves(folders: Folders, file: Path) -> None:
    """Draw validation accuracy over steps and over seconds: the mean over seeds, in a band from lowest to highest.

    The seconds are those of the whole training, validations too, in proportion to the steps. A training that started
    from a checkpoint knows its last stretch alone, and has no line there.
    """
    read = {label: [run for run in map(Run.of, each) if run.validations] for label, each in folders.items()}
    found = only(read, folders, "validations in metrics.csv", "stages=[fit,test]")
    timed = any(all(run.pace for run in runs) for runs in found.values())
    figure = Figure(figsize=(11.0 if timed else 8.0, HEIGHT), layout="constrained")
    panels = figure.subplots(1, 1 + timed, sharey=True, squeeze=False)[0]
    for axes, unit in zip(panels, ("step", "training time (s), in proportion to steps"), strict=False):
        plain(axes)
        axes.set_xlabel(unit)
    panels[0].set_ylabel("validation accuracy (%)")
    for number, (label, runs) in enumerate(found.items()):
        steps = np.array(sorted(set.intersection(*(set(run.validations) for run in runs))))
        values = 100 * np.array([[run.validations[step] for step in steps] for run in runs])
        paces = [run.pace for run in runs]
        for axes, scale in zip(panels, (1, np.mean(paces) if all(paces) else None), strict=False):
            if scale:
                line = look(number)
                axes.plot(scale * steps, values.mean(0), label=label, markersize=4, **line)
                if len(runs) > 1:
                    axes.fill_between(scale * steps, values.min(0), values.max(0), color=line["color"], alpha=0.2)
    legend(figure, BAND if max(map(len, found.values())) > 1 else "")
    save(figure, file)


def rates(folders: Folders, file: Path) -> None:
    """Draw test accuracy over the outer learning rate: for several seeds their mean with its t-interval.

    One seed has the interval over its tasks. Runs that diverged are left out.
    """
    found: dict[str, dict[float, list[dict]]] = {label: {} for label in folders}
    for label, each in folders.items():
        for run in map(Run.of, each):
            rate, value = run.facts.get("optimizer.lr"), accuracy(run)
            if rate and value["mean"] is not None:
                found[label].setdefault(rate, []).append(value)
    found = only(found, folders, "optimizer.lr and a test accuracy in results.json", "stages=[fit,test]")
    figure, axes = canvas("outer learning rate (optimizer.lr)", "test accuracy (%)")
    for number, (label, points) in enumerate(found.items()):
        points = dict(sorted(points.items()))
        cells = [summarized(each) for each in points.values()]
        mean, spread = (100 * np.array([cell[name] or 0.0 for cell in cells]) for name in ("mean", "ci95"))
        beside = 1.03 ** (number - (len(found) - 1) / 2)  # so that no interval hides another
        where = beside * np.array(list(points))
        axes.errorbar(where, mean, spread, label=label, capsize=2, elinewidth=1, markersize=5, **look(number))
    seen = sorted({rate for points in found.values() for rate in points})
    axes.set_xscale("log")
    axes.set_xticks(seen, [f"{rate:g}" for rate in seen])
    axes.set_xticks([], minor=True)
    legend(figure, INTERVAL)
    save(figure, file)


def accuracy(run: Run) -> dict:
    """Return the first test accuracy of the trained head."""
    metrics = run.report.get("metrics", {})
    return next((value for name, value in metrics.items() if name.endswith("/accuracy")), {"mean": None})
