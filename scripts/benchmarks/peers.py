"""The same steps by a plain loop as the papers' code writes it and, with --peers DIR, by other libraries."""

from __future__ import annotations

import torch
from peers import plain
from peers.problem import Problem, Step

from benchmarks import steps
from benchmarks.measure import Bench, Call, Rows, Tables
from benchmarks.workers import Failure, Worker, launched

ALGORITHMS = ("maml", "fomaml", "protonet", "svm")
LARGE = f"{plain.TITLE} in large pages"
"""The plain loop in this process, with the memory that train.py asks for; the other is a process as users start it."""


def tables(bench: Bench) -> Tables:
    """Measure every algorithm by everyone that offers it, each from the same weights and data."""
    algorithms = [name for name in ALGORITHMS if name in (bench.setting.heads or ALGORITHMS)]
    with launched(bench) as workers:
        found = {f"{name}, {bench.setting}": rows(bench, name, workers) for name in algorithms}
        if failed := {name: {"note": worker.error} for name, worker in workers.items() if worker.error}:
            found["peers that did not start"] = failed
    return found


def own(problem: Problem, algorithm: str) -> Step:
    """Return our step with batch norm, from the weights of all others."""
    step = steps.step(problem, algorithm, "batch")
    network = plain.network(problem)
    adapts = algorithm in steps.GRADIENT
    theirs = list((network if adapts else network.backbone).parameters())
    head = step.network.heads[algorithm]
    ours = [*step.network.backbone.parameters(), *([head.output.weight, head.output.bias] if adapts else [])]
    with torch.no_grad():
        for mine, its in zip(ours, theirs, strict=True):
            mine.copy_(its)
    return step


def first(step: Step) -> dict:
    """Take the first step of a fresh network; return its loss and the norm of its gradient."""
    loss = step.take()
    return {"loss": loss.item(), "gradient": step.gradient()}


def rows(bench: Bench, algorithm: str, workers: dict[str, Worker]) -> Rows:
    """Measure one algorithm. The difference of a row is that of loss and gradient in the first step, from plain's."""
    local = {"metafew": own(bench.problem, algorithm)}
    if hasattr(plain, algorithm):
        local[LARGE] = getattr(plain, algorithm)(bench.problem)
    calls: dict[str, Call] = {name: bench.timed(step.take) for name, step in local.items()}
    firsts, broken = {name: first(step) for name, step in local.items()}, {}
    for worker in workers.values():
        for step in worker.steps:
            if step.split()[0] != algorithm:
                continue
            name = step.replace(algorithm, worker.title, 1)
            try:
                reply = worker.take(step)
                firsts[name] = {"loss": reply["value"], "gradient": reply["gradient"]}
                calls[name] = worker.timed(step)
            except Failure as failure:
                broken[name] = {"note": str(failure)}
    measured = bench.measure(algorithm, calls)
    reference = firsts.get(LARGE, firsts["metafew"])
    for name, values in firsts.items():
        measured[name] |= {f"{key} off by": off(values[key], reference[key]) for key in ("loss", "gradient")}
    return measured | broken


def off(value: float, reference: float) -> float:
    """Return the relative difference."""
    return abs(value - reference) / abs(reference)
