"""Measure how the time of a step grows with tasks and classes, and how the memory of MAML does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from peers.problem import Problem

from benchmarks import steps
from benchmarks.measure import Bench, Rows, Tables

ROUNDS = 3
HEADS = ("protonet", "ridge", "svm")


def tables(bench: Bench) -> Tables:
    """Measure time per task and per image, which should be constant, and memory, which should not grow."""
    s = bench.setting
    batches = [replace(s, tasks=tasks) for tasks in s.more_tasks]
    takes = {
        f"{each.tasks} tasks": steps.step(Problem(each, bench.device), "protonet", "batch").take for each in batches
    }
    per_task = shared(bench, takes, [each.tasks for each in batches])
    takes, images = {}, []
    for way in s.more_ways:
        each = Problem(replace(s, tasks=1, way=way), bench.device)
        takes[f"{way} ways, the backbone alone"] = steps.floor(each)
        takes |= {f"{way} ways, {head}": steps.step(each, head, "batch").take for head in HEADS}
        images += [way * (s.shot + s.query)] * (1 + len(HEADS))
    per_image = shared(bench, takes, images)
    return {
        f"a protonet step with norm=batch per task of {s.way}-way {s.shot}-shot": per_task,
        f"a step with norm=batch per image, 1 task of {s.shot}-shot": per_image,
        f"memory of a second-order maml step with norm=batch, {s.inner} inner steps": memory(bench),
    }


def shared(bench: Bench, takes: dict[str, Callable[[], object]], sizes: list[int]) -> Rows:
    """Measure ``takes`` and divide the time of each by its size."""
    rows = bench.measure("scaling", {name: bench.timed(take) for name, take in takes.items()}, ROUNDS)
    for row, size in zip(rows.values(), sizes, strict=True):
        row["ms"] /= size
    first = next(iter(rows.values()))["ms"]
    return {name: {"ms": row["ms"], "ratio": row["ms"] / first} for name, row in rows.items()}


def memory(bench: Bench) -> Rows:
    """Return the memory of a step of MAML for several meta-batch sizes, measured in its second step."""
    found = {}
    for tasks in bench.setting.memory_tasks:
        take = steps.step(Problem(replace(bench.setting, tasks=tasks), bench.device), "maml", "batch").take
        take()
        found[f"{tasks} tasks"] = bench.memory(take)
    first = next(iter(found.values()))
    return {name: {"MiB": value, "ratio": value / first} for name, value in found.items()}
