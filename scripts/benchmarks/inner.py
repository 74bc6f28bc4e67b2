"""Measure training and evaluation of heads that adapt under every execution of the inner loop."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from unittest import mock

import torch
from peers.problem import Problem
from torch import Tensor

from benchmarks import steps
from benchmarks.measure import Bench, Rows, Tables
from benchmarks.papers import INNER
from metafew.episode import Labelled
from metafew.heads import batching
from metafew.objectives import objective

Takes = dict[str, Callable[[], object]]
Make = Callable[[Problem, str, str, bool], Takes]
NORMS = ("transductive", "tasknorm")
FLOOR = "floor"
"""The backbone alone on as many images, all in one batch with one weight for all tasks."""
EVALUATED, TEST_STEPS = ("fomaml",), 10
"""Heads whose test is measured, too, and its number of steps."""
ROWS = 10
"""Support rows in a step of Reptile, ``head.batch``."""
EXECUTIONS = tuple(name for name in batching.EXECUTIONS if name != "auto")
TOGETHER = ("loop", "batch")
"""The executions of ``objective=reptile``, and of CNAPs, which has no ``head.inner``: tasks one by one, or together."""
RECORDED = ", recorded"
"""End of the names of executions with ``cuda_graph=true``, which are measured on a GPU."""
ADAPTS = {head: EXECUTIONS for head in steps.GRADIENT} | {"reptile": TOGETHER, "cnaps": TOGETHER}


def tables(bench: Bench) -> Tables:
    """Measure every setting, or with ``heads`` that of ``bench``; ``auto`` is how its choice compares with the best."""
    settings = {str(bench.setting): bench.setting} if bench.setting.heads else INNER
    measured: Rows = {}
    for title, setting in settings.items():
        for head in filter(ADAPTS.__contains__, setting.heads):
            for norm in NORMS:
                problem, name = Problem(setting, bench.device), f"{title}, {head} {norm}"
                measured |= rows(bench, name, problem, head, norm, takes)
                if head in EVALUATED:
                    measured |= rows(bench, f"{name}, test", problem, head, norm, evaluations)
    return {"ms of a training step, or of a test of as many tasks, by head.inner": measured}


def rows(bench: Bench, title: str, problem: Problem, head: str, norm: str, make: Make) -> Rows:
    """Return the milliseconds of the floor and of every execution, what ``auto`` takes, and its ratio to the best."""
    calls = {
        name + suffix: bench.timed(take)
        for suffix, bf16 in bench.precisions.items()
        for name, take in make(problem, head, norm, bf16).items()
    }
    ms = {name: cells["ms"] for name, cells in bench.measure("inner", calls).items()}
    chosen, found = auto(problem, head, norm), {}
    for suffix in bench.precisions:
        names = (FLOOR, *ADAPTS[head], *(name + RECORDED for name in ADAPTS[head]))
        own = {name: ms[name + suffix] for name in names if name + suffix in ms}
        best = min(own[name] for name in ADAPTS[head])
        compared = {"auto / best": own[chosen] / best, "auto / floor": own[chosen] / own[FLOOR]}
        found[title + suffix] = {**own, "auto": chosen, **compared}
    return found


def takes(problem: Problem, head: str, norm: str, bf16: bool) -> Takes:
    """Return a training step for the floor and for every execution."""
    if head == "cnaps":
        take = steps.step(problem, head, norm, bf16=bf16).take
        executions = {"loop": one_by_one(take), "batch": take}
    else:
        executions = {
            name: steps.step(problem, head, norm, f"head.inner={name}", bf16=bf16).take for name in ADAPTS[head]
        }
        if problem.device.type == "cuda" and head in steps.GRADIENT:
            for name in ("batch", "vmap"):
                words = f"head.inner={name}", "cuda_graph=true"
                executions[name + RECORDED] = steps.step(problem, head, norm, *words, bf16=bf16).take
    return {FLOOR: floor(problem, head, bf16), **executions}


def evaluations(problem: Problem, head: str, norm: str, bf16: bool) -> Takes:
    """Return a call that adapts in :data:`TEST_STEPS` steps and labels the queries after each, for every execution."""
    tasks, calls = problem.tasks(), {FLOOR: floor_of_test(problem, bf16)}
    for name in ADAPTS[head]:
        options = f"head.inner={name}", "head.each_step=true", f"head.test_steps={TEST_STEPS}"
        learner = steps.step(problem, head, norm, *options).network.eval()
        given = learner.backbone, Labelled(tasks.support, tasks.labels), tasks.query, problem.setting.way
        calls[name] = without_gradients(partial(learner.heads[head].readings, *given), problem, bf16)
    return calls


def without_gradients(call: Callable[[], object], problem: Problem, bf16: bool) -> Callable[[], object]:
    """Return ``call`` as it runs in a test."""

    def take() -> object:
        with torch.no_grad(), steps.autocast(problem, bf16):
            return call()

    return take


def one_by_one(take: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Return a step that differentiates one task at a time."""

    def call() -> Tensor:
        with mock.patch.object(objective, "PIXELS", 1):
            return take()

    return call


def auto(problem: Problem, head: str, norm: str) -> str:
    """Return the execution that a head takes by default."""
    if head == "cnaps":
        return "batch"
    learner = steps.step(problem, head, norm).network
    chosen = learner.heads[head].execution(learner.backbone, problem.device)
    return chosen if chosen in ADAPTS[head] else "loop"


def floor(problem: Problem, head: str, bf16: bool) -> Callable[[], None]:
    """Return a pass of the backbone over the images of the inner steps and of the step that labels queries."""
    tasks, inner = problem.tasks(), problem.setting.inner
    if head == "reptile":
        images = [tasks.support[:, :ROWS]] * inner
    else:  # features do not change in the inner steps of ANIL, and CNAPs has none
        images = [*[tasks.support] * (1 if head in ("anil", "cnaps") else inner + 1), tasks.query]
    return steps.passes(problem, [torch.cat(images, 1).flatten(0, 1)], bf16)


def floor_of_test(problem: Problem, bf16: bool) -> Callable[[], None]:
    """Return passes of the backbone over the support images in each step, and over the queries after it."""
    tasks = problem.tasks()
    step = steps.passes(problem, [tasks.support.flatten(0, 1)], bf16)
    label = steps.passes(problem, [tasks.query.flatten(0, 1)], bf16, backward=False)

    def take() -> None:
        for _ in range(TEST_STEPS):
            step()
            label()

    return take
