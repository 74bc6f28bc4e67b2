"""Folders of finished runs for tests of reports and their figures."""

import csv
import json

import numpy as np

from metafew.analysis.compare.comparison import compare_runs
from metafew.analysis.compare.find import find_runs
from metafew.analysis.features.projection import project_features
from metafew.evaluation.statistics import interval

NAMES = ["a/1", "b $2", "c_3"]
TASKS = 12


def accuracies(seed, lift=0.0):
    """Return accuracies of tasks whose difficulty is the same for every seed."""
    easy = np.random.default_rng(100).normal(0.6, 0.1, TASKS)
    return easy + lift + np.random.default_rng(seed).normal(0, 0.01, TASKS)


def finished(folder, values, *, seed=0, head="protonet", norm="tasknorm", dataset="omniglot", **changes):
    """Write the folder of a finished run; ``values`` are accuracies, or a dictionary by head, shot or source."""
    tests = values if isinstance(values, dict) else {head: values}
    config = {"seed": seed, "backbone": {"width": 64}, "trainer": {"max_steps": 600}, "evaluate": {}}
    config["test"] = {"way": 5, "shot": 1, "query": 15, "total": TASKS, "seed": 0, "queries": "together"}
    for key, value in changes.pop("config", {}).items():
        group, _, name = key.partition(".")
        config.setdefault(group, {})[name] = value
    choices = {"head": head, "norm": norm, "backbone": "conv4", "dataset": dataset, "objective": "episodic"}
    choices |= {"regularizer": "none"}
    metrics, rows = {}, []
    for name, accuracy in tests.items():
        shown = interval(np.asarray(accuracy))
        metrics |= {f"test/{name}/accuracy": shown, f"test/{name}/loss": shown}
        rows += [[i, dataset, name.split("/")[0], 5, 1, value, 1.0] for i, value in enumerate(accuracy)]
    whole = {"metrics": metrics, "baselines": {"pixels_1nn": {"mean": 0.4, "ci95": 0.01, "tasks": TASKS}}}
    whole |= {"transductive": norm == "transductive", "queries": "together", "select": "best", "seed": seed}
    whole |= {"choices": choices, "config": config, "validation": {"protonet": 0.5}} | changes
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(whole))
    with (folder / "tasks.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["index", "source", "head", "way", "shot", "accuracy", "loss"], *rows])
    return whole


def comparison_of(folder, **options):
    return compare_runs(find_runs([str(folder)])[0], **options)


def trained(folder, curve, **changes):
    """Write the folder of a run with a validation accuracy every ten steps."""
    finished(folder, accuracies(0), **changes)
    head = changes.get("head", "protonet")
    rows = [{"step": 10 * (i + 1) - 1, f"val/{head}/accuracy": value} for i, value in enumerate(curve)]
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["step", "train/loss", f"val/{head}/accuracy"])
        writer.writeheader()
        writer.writerows([{"step": 4, "train/loss": 1.5}, *rows])


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def analyzed(folder, seed=0, *, names=NAMES, test=None, **changes):
    """Write the folder of an analyzed run, also tested if ``test``; return the content of its analysis.json."""
    rng = np.random.default_rng(seed)
    finished(folder, accuracies(seed) if test else {}, seed=seed, analysis={"split": "test"}, **changes)
    classes = np.repeat(range(len(names)), 7)
    features = rng.normal(size=(len(classes), 6)) + 3 * np.eye(6)[classes]
    sizes = {str(size): 0.1 * seed + size / 1000 for size in (1, 5, 25)}
    content = {"split": "test", "alpha": {"trained": [5, 25], "layers": [sizes] * 3}}
    content["projection"] = project_features(features, classes, names)
    content["distances"] = rng.random(20).tolist()
    content["sufficient_condition"] = {"points": rng.uniform(0.2, 1, (9, 2)).tolist()}
    (folder / "analysis.json").write_text(json.dumps(content))
    return content
