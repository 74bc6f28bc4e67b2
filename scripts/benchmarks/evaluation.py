"""The evaluation of a prototypical network on many tasks, as one command."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from benchmarks.commands import BRIEF, dataset, train
from benchmarks.measure import Bench, Tables


def tables(bench: Bench) -> Tables:
    """Test from a checkpoint with each norm; the seconds are those of results.json."""
    s, rows = bench.setting, {}
    shape = [f"test.{key}={getattr(s, key)}" for key in ("way", "shot", "query")]
    with tempfile.TemporaryDirectory() as folder:
        for norm in ("batch", "tasknorm"):
            fit, test = Path(folder, norm, "fit"), Path(folder, norm, "test")
            train(bench, "head=protonet", f"norm={norm}", f"hydra.run.dir={fit}", *BRIEF)
            ckpt = fit / "checkpoints" / "last.ckpt"
            train(
                bench, f"ckpt={ckpt}", "stages=[test]", f"test.total={s.test_tasks}", *shape,
                "trainer.enable_progress_bar=false", f"hydra.run.dir={test}",
            )  # fmt: skip
            seconds = json.loads((test / "results.json").read_text())["seconds"]["test"]
            rows[f"protonet {norm}"] = {"seconds": seconds, "ms per task": 1e3 * seconds / s.test_tasks}
    title = f"evaluation of {s.test_tasks} tasks of {dataset()}, {s.way}-way {s.shot}-shot, {s.query} query"
    return {f"{title}, seconds.test of one command": rows}
