"""What a run leaves behind: results.json, tasks.csv, and the final table."""

from __future__ import annotations

import csv
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.console import Console
from rich.table import Table
from torch import Tensor

from metafew.metrics import summary

BEST = "best_step/accuracy"
"""The highest accuracy after any step of an adapting head: a selection on test data."""
PACKAGES = ("metafew", "torch", "pytorch-lightning", "hydra-core", "numpy")


def versions() -> dict[str, str]:
    """Return the versions of the packages that results depend on."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # used from a checkout that is not installed
            found[name] = "unknown"
    return found


def measures(tables: list[dict[str, Tensor]], shots: list, heads: list[str]) -> dict[str, dict]:
    """Return ``metrics`` of the heads and ``baselines`` of what else was measured, each with mean, ci95 and tasks.

    Args:
        tables: for each test one table of tasks a name, as :class:`~metafew.metrics.PerTask` computes them.
        shots: the shot of each test; tests after the first carry it in the name of the measure.
        heads: names that are heads, the trained one first.
    """
    metrics, baselines = {}, {}
    for number, (test, shot) in enumerate(zip(tables, shots, strict=False)):
        prefix = f"shot{shot}/" if number else ""
        for name, table in test.items():
            head, _, reading = name.partition("/")
            path = f"{head}/{prefix}{reading}".rstrip("/")
            if head not in heads:
                baselines[path] = summary(table, "accuracy")
                continue
            metrics |= {f"test/{path}/{measure}": summary(table, measure) for measure in ("accuracy", "loss")}
        for head in heads:
            steps = {
                name: summary(table, "accuracy") for name, table in test.items() if name.startswith(f"{head}/step")
            }
            if steps:
                best = max(steps, key=lambda name: steps[name]["mean"])
                metrics[f"test/{head}/{prefix}{BEST}"] = steps[best] | {"step": int(best.split("/step")[1])}
    return {"metrics": metrics, "baselines": baselines}


def write_tasks(path: Path, tables: list[dict[str, Tensor]], source: str) -> None:
    """Write one row for each test task and head."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["index", "source", "head", "way", "shot", "accuracy", "loss"])
        for test in tables:
            for name, table in test.items():
                for index, way, shot, accuracy, loss in table.tolist():
                    writer.writerow([int(index), source, name, int(way), f"{shot:g}", accuracy, loss])


def show(report: dict) -> None:
    """Print accuracies as a table, with the baselines below."""
    table = Table(title=" ".join(f"{group}={word}" for group, word in report["choices"].items()))
    for column, side in (("measured", "left"), ("accuracy", "right"), ("tasks", "right")):
        table.add_column(column, justify=side)
    for section in ("metrics", "baselines"):
        for name, value in report[section].items():
            if not name.endswith("loss") and not re.search(r"/step\d+/", name):
                label = name.removeprefix("test/").removesuffix("/accuracy").removesuffix("accuracy")
                label += f" ({value['step']}, selected on test)" if name.endswith(BEST) else ""
                spread = "" if value["ci95"] is None else f" ± {100 * value['ci95']:.2f}"
                figure = "diverged" if value["mean"] is None else f"{100 * value['mean']:.2f}{spread} %"
                table.add_row(label, figure, str(value["tasks"]))
        table.add_section()
    for head, choice in report["chosen"].items():
        print(f"{head}: lr={choice['lr']:g} test_steps={choice['test_steps']} chosen on validation tasks")
    mode = "transductive" if report["transductive"] else "not transductive"
    table.caption = f"mean ± 95 % confidence interval over test tasks, {mode}"
    Console().print(table)
