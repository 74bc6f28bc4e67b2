"""The same steps by a plain loop as the papers' code writes it and, with --peers DIR, by other libraries.

Everyone has a process of its own. One can be slower than its twin for as long as it lives, so that one launch says less
than its many rounds suggest: --launches starts all of them several times.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field

from benchmarks.measure import Bench, Call, Rows, Tables, medians
from benchmarks.workers import OWN, Failure, Worker, launched


@dataclass
class Found:
    """What is known of one algorithm.

    Attributes:
        exact: loss and norm of the gradient of the first step in float64; empty if unknown.
        seconds: of each row, in each round.
        firsts: for each row, loss and norm of the gradient in the first step of a fresh network.
        broken: rows that could not be measured.
    """

    exact: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    firsts: dict[str, dict[str, float]] = field(default_factory=dict)
    broken: Rows = field(default_factory=dict)

    def add(self, bench: Bench, algorithm: str, workers: list[Worker]) -> None:
        """Let those take turns that offer the algorithm."""
        calls: dict[str, Call] = {}
        for worker in workers:
            for step in worker.steps:
                if step.split()[0] != algorithm:
                    continue
                name = step.replace(algorithm, worker.title, 1)
                try:
                    self.firsts[name] = first(worker, step)
                    calls[name] = worker.timed(step)
                except Failure as failure:
                    self.broken[name] = {"note": str(failure)}
        for name, values in bench.rounds_of(algorithm, calls).items():
            self.seconds[name] += values

    def rows(self) -> Rows:
        """Return the table; loss and gradient of the first step are off from the exact ones, or from ours."""
        table = medians(self.seconds)
        reference = self.exact or self.firsts[OWN]
        for name, row in table.items():
            row |= {f"{key} off by": off(self.firsts[name][key], reference[key]) for key in ("loss", "gradient")}
        return table | self.broken


def tables(bench: Bench) -> Tables:
    """Measure every algorithm by everyone that offers it, each from the same weights and data."""
    found: dict[str, Found] = {}
    steps = exact(bench)
    for _ in range(bench.launches):
        with launched(bench) as workers:
            for algorithm in workers[OWN].steps:
                found.setdefault(algorithm, Found(steps.get(algorithm, {}))).add(bench, algorithm, [*workers.values()])
            failed = {name: {"note": worker.error} for name, worker in workers.items() if worker.error}
    known = {f"{algorithm}, {bench.setting}": each.rows() for algorithm, each in found.items()}
    return known | ({"peers that did not start": failed} if failed else {})


def exact(bench: Bench) -> dict[str, dict[str, float]]:
    """Return loss and gradient of the plain loop's first steps in float64: in float32 its own are off by rounding."""
    found = {}
    with launched(bench, ["plain"], "float64") as workers:
        for step in workers["plain"].steps:
            with suppress(Failure):  # it wants twice the memory
                found[step] = first(workers["plain"], step)
    return found


def first(worker: Worker, step: str) -> dict[str, float]:
    """Take a step, and return its loss and the norm of its gradient."""
    reply = worker.take(step)
    return {"loss": reply["value"], "gradient": reply["gradient"]}


def off(value: float, reference: float) -> float:
    """Return the relative difference."""
    return abs(value - reference) / abs(reference)
