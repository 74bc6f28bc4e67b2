"""Evaluate a prototypical network on many tasks by one command."""

from __future__ import annotations

import csv
import json
import tempfile
from pathlib import Path

from benchmarks.commands import BRIEF, TRAIN, dataset, train
from benchmarks.measure import Bench, Tables

ROWS = {
    "protonet batch": ("batch", TRAIN),
    "protonet batch, every task embedded": ("batch", Path(__file__).with_name("every_task.py")),
    "protonet tasknorm": ("tasknorm", TRAIN),
}


def tables(bench: Bench) -> Tables:
    """Test a checkpoint of each norm; seconds are those of results.json, ratios are relative to the first row.

    The first two rows give the same results: "rows that differ" counts the tasks whose accuracies in tasks.csv differ.
    """
    s, rows, measured = bench.setting, {}, {}
    shape = [f"test.{key}={getattr(s, key)}" for key in ("way", "shot", "query")]
    with tempfile.TemporaryDirectory() as folder:
        for norm in {norm for norm, _ in ROWS.values()}:
            train(bench, "head=protonet", f"norm={norm}", f"hydra.run.dir={Path(folder, norm)}", *BRIEF)
        for number, (row, (norm, script)) in enumerate(ROWS.items()):
            test = Path(folder, str(number))
            train(
                bench, f"ckpt={Path(folder, norm, 'checkpoints', 'last.ckpt')}", "stages=[test]",
                f"test.total={s.test_tasks}", *shape, "trainer.enable_progress_bar=false", f"hydra.run.dir={test}",
                script=script,
            )  # fmt: skip
            seconds = json.loads((test / "results.json").read_text(encoding="utf-8"))["seconds"]["test"]
            with (test / "tasks.csv").open(encoding="utf-8") as file:
                measured[row] = [line["accuracy"] for line in csv.DictReader(file)]
            rows[row] = {"seconds": seconds, "ms per task": 1e3 * seconds / s.test_tasks}
    for row in rows.values():
        row["ratio"] = row["seconds"] / rows["protonet batch"]["seconds"]
    cached, embedded = "protonet batch", "protonet batch, every task embedded"
    pairs = zip(measured[cached], measured[embedded], strict=True)
    rows[embedded]["rows that differ"] = sum(one != other for one, other in pairs)
    title = f"evaluation of {s.test_tasks} tasks of {dataset()}, {s.way}-way {s.shot}-shot, {s.query} query"
    return {f"{title}, seconds.test of one command": rows}
