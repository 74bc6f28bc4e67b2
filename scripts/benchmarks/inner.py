"""Measure a training step of heads that adapt under every execution of the inner loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from peers.problem import Problem, Setting

from benchmarks import steps
from benchmarks.measure import Bench, Tables
from metafew.heads.maml import CHOICES

NORMS = ("transductive", "tasknorm")
FLOOR = "floor"
"""The backbone alone on as many images, all in one batch with one weight for all tasks."""
OMNIGLOT = Setting(tasks=32, query=1, inner=1, rate=2.0, downsample="stride", heads=("fomaml", "maml"))
SETTINGS = {
    "Omniglot 5-way": OMNIGLOT,
    "Omniglot 20-way": replace(OMNIGLOT, tasks=16, way=20, inner=5, heads=("fomaml",)),
    "mini-ImageNet": Setting(channels=3, size=84, width=32, heads=("maml",)),
    "4 tasks": Setting(heads=("maml", "fomaml", "anil")),
}


def tables(bench: Bench) -> Tables:
    """Measure every setting, or with ``heads`` that of ``bench``; ``auto`` is how its choice compares with the best."""
    settings = {str(bench.setting): bench.setting} if bench.setting.heads else SETTINGS
    rows = {}
    for title, setting in settings.items():
        for head in filter(steps.GRADIENT.__contains__, setting.heads):
            for norm in NORMS:
                rows[f"{title}, {head} {norm}"] = row(bench, Problem(setting, bench.device), head, norm)
    return {"ms of a training step by head.inner": rows}


def row(bench: Bench, problem: Problem, head: str, norm: str) -> dict[str, float | str]:
    """Return the milliseconds of the floor and of every execution, what ``auto`` takes, and its ratio to the best."""
    executions = [name for name in CHOICES["inner"] if name != "auto"]
    takes: dict[str, Callable[[], object]] = {FLOOR: floor(problem)}
    takes |= {name: steps.step(problem, head, norm, f"head.inner={name}").take for name in executions}
    found = bench.measure("inner", {name: bench.timed(take) for name, take in takes.items()})
    ms = {name: cells["ms"] for name, cells in found.items()}
    learner = steps.step(problem, head, norm).network
    chosen = learner.heads[head].execution(learner.backbone, problem.device)
    best = min(ms[name] for name in executions)
    return {**ms, "auto": chosen, "auto / best": ms[chosen] / best, "auto / floor": ms[chosen] / ms[FLOOR]}


def floor(problem: Problem) -> Callable[[], None]:
    """Return a pass of the backbone over the images of the inner steps and of the step that labels queries."""
    tasks = problem.tasks()
    images = [*[tasks.support] * (problem.setting.inner + 1), tasks.query]
    return steps.passes(problem, [torch.cat(images, 1).flatten(0, 1)])
