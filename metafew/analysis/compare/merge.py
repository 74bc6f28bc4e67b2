"""Merge runs that measured the same model, so that each is one row. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

from metafew.analysis.compare.runs import Omitted, Run

MEASURED = {"metrics", "baselines", "unsolved", "chosen", "tested_on"}
"""The parts of a results.json that hold one entry per measurement."""


def merge_runs(runs: list[Run]) -> tuple[list[Run], list[Omitted]]:
    """Merge runs that differ only in the heads that they evaluate, or in whether they analyze features.

    If several of them measured the same, the newest measurement counts. A run that measured nothing but what newer ones
    did is left out.

    Args:
        runs: all runs that were found.

    Returns:
        The runs after merging, and the runs that are left out.
    """
    newest_first = sorted(runs, key=lambda run: run.file.stat().st_mtime, reverse=True)
    merged, repeated = {}, []
    for newest, *others in agreeing(newest_first, same_model):
        run = newest
        for other in others:
            if adds_to(run, other):
                run = merge(run, other)
            else:
                reason = f"repeated: the same choices and seed as the newer {newest.folder}"
                repeated.append(Omitted(other.folder, reason))
        merged[newest.file] = run
    return [merged[run.file] for run in runs if run.file in merged], repeated


def same_model(run: Run) -> Any:
    """Return what two runs share if they test the same model on the same tasks."""
    settings = {key: value for key, value in run.settings.items() if not key.startswith("evaluate.")}
    return [settings, run.starts, run.seed, run.tested_images]


def agreeing(runs: Iterable[Run], key: Callable[[Run], Any]) -> list[list[Run]]:
    """Group runs with equal ``key`` that evaluate no head with different options.

    Args:
        runs: the runs.
        key: returns plain values.
    """
    groups: dict[str, list[list[Run]]] = {}
    for run in runs:
        of_key = groups.setdefault(json.dumps(key(run), sort_keys=True), [])
        found = next((group for group in of_key if all(agree(run, other) for other in group)), None)
        if found is None:
            of_key.append([run])
        else:
            found.append(run)
    return [group for of_key in groups.values() for group in of_key]


def agree(one: Run, other: Run) -> bool:
    """Return whether two runs evaluate the heads that both of them evaluate with the same options."""
    return all(one.evaluated[name] == other.evaluated[name] for name in one.evaluated.keys() & other.evaluated.keys())


def adds_to(run: Run, other: Run) -> bool:
    """Return whether another run measured what ``run`` did not."""
    return bool({*other.heads} - {*run.heads} or (other.report.get("analysis") and not run.report.get("analysis")))


def merge(run: Run, other: Run) -> Run:
    """Return a run with what another one, of the same network and tests, adds to it."""
    tested, analyzed = (run, other) if run.heads else (other, run)
    report = analyzed.report | tested.report
    for key in MEASURED & report.keys():
        own = run.report.get(key) or {}
        report[key] = own | (other.report.get(key) or {}) | own
    report["analysis"] = run.report.get("analysis") or other.report.get("analysis")
    config, before = run.report.get("config", {}), other.report.get("config", {})
    report["config"] = config | {"evaluate": (before.get("evaluate") or {}) | (config.get("evaluate") or {})}
    report["heads"] = other.head_entries | run.head_entries
    report["transductive"] = any(each.report.get("transductive") for each in (run, other))
    return Run(run.file, report, (*run.merged, other))
