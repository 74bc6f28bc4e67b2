"""Measure only the SVM, ridge and logistic solvers, forward and backward; with --peers DIR also qpth's."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from peers.problem import BRIEF
from torch import Tensor

from benchmarks.measure import Bench, Rows, Tables
from benchmarks.workers import Failure, launched
from metafew.solvers.crammer_singer import crammer_singer, gram_matrix, kkt_residual
from metafew.solvers.logistic import logistic
from metafew.solvers.ridge import ridge

BOUND, PENALTY, C = 0.1, 50.0, 1.0


def tables(bench: Bench) -> Tables:
    """Measure every solver for every number of shots."""
    s, found = bench.setting, {}
    with launched(bench, ["qpth"]) as workers:
        for shot in s.solver_shots:
            sizes = f"{s.solver_tasks} tasks, {s.way}-way {shot}-shot, {s.features} features"
            found[f"a solver, forward and backward, {sizes}"] = rows(bench, shot, workers["qpth"] if workers else None)
    return found


def rows(bench: Bench, shot: int, qpth) -> Rows:
    """Measure every solver."""
    features, labels, slope = bench.problem.solved(shot)
    gram = gram_matrix(features)
    takes = own(bench.setting.way, features, labels, slope)
    residuals = {"crammer_singer": kkt_residual(gram, takes["crammer_singer"](), labels, BOUND).max().item()}
    calls = {name: bench.timed(take, BRIEF) for name, take in takes.items()}
    broken: Rows = {}
    if qpth is not None:
        try:
            alpha = torch.tensor(qpth.take(f"crammer_singer {shot}-shot")["value"], device=bench.device)
            residuals["crammer_singer, qpth"] = kkt_residual(gram, alpha, labels, BOUND).max().item()
            calls["crammer_singer, qpth"] = qpth.timed(f"crammer_singer {shot}-shot")
        except Failure as failure:
            broken["crammer_singer, qpth"] = {"note": str(failure)}
    measured = bench.measure(f"solvers, {shot}-shot", calls)
    for name, residual in residuals.items():
        measured[name]["KKT residual"] = residual
    return measured | broken


def own(way: int, features: Tensor, labels: Tensor, slope: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Return a call for each solver of metafew that returns its solution; support rows are also the queries."""

    def call(solve: Callable[[Tensor], Tensor]) -> Callable[[], Tensor]:
        def take() -> Tensor:
            leaves = features.detach().requires_grad_()
            solution = solve(leaves)
            solution.backward(slope.to(solution.dtype))
            return solution.detach()

        return take

    targets = F.one_hot(labels, way).to(features.dtype)
    return {
        "crammer_singer": call(lambda leaves: crammer_singer(gram_matrix(leaves), labels, way, BOUND)),
        "ridge": call(lambda leaves: ridge(leaves, targets, PENALTY, leaves)),
        "logistic": call(lambda leaves: logistic(leaves, labels, way, C, leaves)),
    }
