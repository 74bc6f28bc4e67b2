"""Find finished runs on disk, and report the reasons for omitting others. Imports no torch."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from metafew.analysis.compare.merge import merge_runs
from metafew.analysis.compare.runs import Omitted, Run
from metafew.config.moved import update_record
from metafew.data.formats.names import natural_order
from metafew.distributed.output_folder import CHECKPOINTS
from metafew.errors import UsageError


def find_runs(places: Sequence[str]) -> tuple[list[Run], list[Omitted]]:
    """Return the finished runs in ``places``, and the omitted folders and files.

    Args:
        places: folders, searched recursively, results.json files, or glob patterns of either.

    Raises:
        UsageError: if a place does not exist, or no run is finished.
    """
    runs: list[Run] = []
    omitted: list[Omitted] = []
    for file in dict.fromkeys(file.resolve() for place in places for file in find_results(place)):
        found = read_run(file)
        if isinstance(found, Run):
            runs.append(found)
        else:
            omitted.append(found)
    runs, repeated = merge_runs(runs)
    omitted += repeated
    if not runs:
        first = f" (first: {omitted[0].place}: {omitted[0].reason})" if omitted else ""
        raise UsageError(
            f"expected RUNS to be folders of finished runs, got none among the {len(omitted)} in {' '.join(places)}"
            f"{first}: type python train.py to train one"
        )
    return runs, omitted


def find_results(place: str) -> Iterator[Path]:
    """Yield each results.json in a place in natural order, including its path in folders of unfinished runs."""
    found = [place] if Path(place).exists() else sorted(glob.glob(place, recursive=True), key=natural_order)
    paths = [*map(Path, found)]
    if not paths:
        raise UsageError(f"expected RUNS to be folders or results.json files, got {place}: type outputs or multirun")
    for path in paths:
        if path.is_file():
            yield path
        for folder, inside, files in os.walk(path):
            if "results.json" in files or ".hydra" in inside or "metrics.csv" in files:
                yield Path(folder) / "results.json"
            kept = [name for name in inside if not CHECKPOINTS.fullmatch(name) and not name.startswith(".")]
            inside[:] = sorted(kept, key=natural_order)


def read_run(file: Path) -> Run | Omitted:
    """Return the run of a results.json, or the reason for omitting it."""
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        steps = [int(row["step"]) for row in Run(file, {}).csv_rows("metrics.csv") if (row.get("step") or "").isdigit()]
        stopped = f"after {max(steps) + 1} logged steps" if steps else "before anything was logged"
        return Omitted(file.parent, f"no results.json: still running, or stopped {stopped}")
    except (OSError, ValueError) as error:
        return Omitted(file, f"foreign: it cannot be read as JSON ({error})")
    metrics = report.get("metrics") if isinstance(report, dict) else None
    if isinstance(report, dict) and "error" in report:
        return Omitted(file.parent, f"failed: {report['error']}")
    if isinstance(report, dict) and "rows" in report:
        return Omitted(file.parent, "the table of an experiment: pass the folders of its runs instead")
    if not isinstance(metrics, dict) or not all(isinstance(v, dict) and "mean" in v for v in metrics.values()):
        return Omitted(file, "foreign: it does not hold the results of a run")
    if not report.get("finished", True):
        return Omitted(
            file.parent, f"unfinished: trainer.max_time ended its training after {report.get('steps')} steps"
        )
    run = Run(file, update_record(report))
    if run.heads or report.get("analysis"):
        return run
    return Omitted(file.parent, "finished without a test: there is nothing to compare")
