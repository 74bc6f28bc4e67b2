"""The metrics of results.json, and the rows of tasks.csv."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from torch import Tensor

from metafew.evaluation.metrics import PerTask, of_source, summary
from metafew.evaluation.statistics import differences_to_best, ranks, score
from metafew.io import atomic_write

BEST = "best_step/accuracy"
"""The highest accuracy over the steps of an adapting head, which is selected on test data."""
PACKAGES = ("metafew", "torch", "pytorch-lightning", "hydra-core", "numpy")


def versions() -> dict[str, str]:
    """Return the versions of the packages that results depend on."""
    return {name: version_of(name) for name in PACKAGES}


@cache
def version_of(name: str) -> str:
    """Return the version of a package, or ``unknown`` for a checkout that is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"


def collect(tables: list[dict[str, Tensor]], shots: list, heads: list[str], sources: list[str]) -> dict[str, dict]:
    """Return ``metrics`` of the heads and ``baselines``: mean, 95 % interval, number of tasks, and of failed tasks.

    A mean that is not finite, such as that of the loss if a task failed, becomes None.

    For a mixture, metrics of each head on each dataset are added.

    Args:
        tables: one dictionary per test: the tables computed by :class:`~metafew.evaluation.metrics.PerTask`, by name.
        shots: the shot of each test, which is part of the names of metrics, except for the first test.
        heads: the names of heads in ``tables``, with the trained one first.
        sources: the datasets of the test tasks.
    """
    metrics, baselines = {}, {}
    parts = dict(enumerate(sources)) if len(sources) > 1 else {}
    for number, (test, shot) in enumerate(zip(tables, shots, strict=False)):
        prefix = f"shot{shot}/" if number else ""
        for name, table in test.items():
            head, _, reading = name.partition("/")
            path = f"{head}/{prefix}{reading}".rstrip("/")
            if head not in heads:
                baselines[path] = summary(table, "accuracy")
                continue
            for measure in ("accuracy", "loss"):
                metrics[f"test/{path}/{measure}"] = summary(table, measure)
                for part, source in parts.items():
                    metrics[f"test/{path}/{source}/{measure}"] = summary(of_source(table, part), measure)
        for head in heads:
            steps = {
                name: summary(table, "accuracy") for name, table in test.items() if name.startswith(f"{head}/step")
            }
            if steps:
                best = max(steps, key=lambda name: score(steps[name]["mean"], steps[name]["failed"]))
                metrics[f"test/{head}/{prefix}{BEST}"] = steps[best] | {"step": int(best.split("/step")[1])}
    for value in metrics.values():
        if not math.isfinite(value["mean"]):
            value |= {"mean": None, "ci95": None}
    return {"metrics": metrics, "baselines": baselines}


def describe_heads(
    tables: list[dict[str, Tensor]],
    shots: list,
    transductive: Mapping[str, bool],
    seconds: list[dict[str, float]],
    sources: int,
) -> dict[str, dict]:
    """Return whether heads are transductive, their ranks and seconds per task, in the form of :func:`by_shot`.

    Args:
        tables: as for :func:`collect`.
        shots: as for :func:`collect`.
        transductive: whether, under a head, a query may change the predictions of others.
        seconds: the seconds per task of each head, for each test.
        sources: number of datasets of the test tasks.
    """
    tests = []
    for test, spent in zip(tables, seconds, strict=True):
        ranked = average_ranks(test, list(transductive), sources)
        tests.append(
            {
                head: {"transductive": marked, "rank": ranked[head], "seconds_per_task": spent[head]}
                for head, marked in transductive.items()
            }
        )
    return by_shot(tests, shots)


def differences(tables: list[dict[str, Tensor]], shots: list, heads: Collection[str]) -> dict[str, dict]:
    """Return the paired differences from the best head of each test, in the form of :func:`by_shot`."""
    column = PerTask.columns.index("accuracy")
    accuracies = [
        {name: table[:, column].cpu().numpy() for name, table in test.items() if "/" not in name} for test in tables
    ]
    return by_shot([differences_to_best(test, heads) for test in accuracies], shots)


def by_shot(tests: list[dict[str, dict]], shots: list) -> dict[str, dict]:
    """Return what was measured of each head in each test, by the head and, except for the first test, its shot.

    >>> by_shot([{"svm": {"temperature": 2.0}}, {"svm": {"temperature": 3.0}}], [1, 5])
    {'svm': {'temperature': 2.0}, 'svm/shot5': {'temperature': 3.0}}
    """
    numbered = enumerate(zip(tests, shots, strict=False))
    return {
        f"{head}/shot{shot}" if number else head: found
        for number, (test, shot) in numbered
        for head, found in test.items()
    }


def average_ranks(test: dict[str, Tensor], heads: list[str], sources: int) -> dict[str, float]:
    """Return the rank of each head, averaged over datasets."""
    accuracy = PerTask.columns.index("accuracy")
    tables = {head: test[head].cpu() for head in heads}
    by_dataset = [
        ranks(np.stack([of_source(tables[head], part)[:, accuracy] for head in heads])) for part in range(sources)
    ]
    return dict(zip(heads, np.mean(by_dataset, 0).tolist(), strict=True))


def write_tasks(
    path: Path, tables: list[dict[str, Tensor]], sources: list[str], class_names: Callable[[int], Sequence[str]]
) -> None:
    """Write one row per test task and head, those of the first head with the names of the task's classes by label.

    Args:
        path: the CSV file.
        tables: as for :func:`collect`.
        sources: names of the datasets.
        class_names: returns the names of the classes of a task.
    """
    named = cache(lambda index: "; ".join(class_names(index)))
    with atomic_write(path, newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["index", "source", "head", "way", "shot", *PerTask.columns[4:], "classes"])
        for test in tables:
            for number, (name, table) in enumerate(test.items()):
                for index, source, way, shot, accuracy, loss, failed in table.tolist():
                    task = [int(index), sources[int(source)], name, int(way), f"{shot:g}"]
                    writer.writerow([*task, accuracy, loss, int(failed), "" if number else named(int(index))])


def failures(metrics: dict[str, dict]) -> list[str]:
    """Return a phrase for each accuracy with failed tasks, except those of single steps and of datasets of a mixture.

    >>> failures({"test/svm/accuracy": {"tasks": 600, "failed": 12}, "test/maml/accuracy": {"tasks": 600, "failed": 0}})
    ['12 of 600 tasks failed in test/svm/accuracy']
    """
    plain = re.compile(r"test/[^/]+/(shot[^/]+/)?accuracy")
    return [
        f"{value['failed']} of {value['tasks']} tasks failed in {name}"
        for name, value in metrics.items()
        if plain.fullmatch(name) and value["failed"]
    ]
