"""The same steps by a plain loop as the papers' code writes it and, with --peers DIR, by other libraries.

Each peer runs in a separate process. Two processes with the same code can differ in speed for as long as they run, so
that many rounds of one launch are not independent: --launches starts all processes several times.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field, replace

from benchmarks.measure import Bench, Call, Rows, Tables, medians
from benchmarks.papers import PEERS
from benchmarks.workers import OWN, Failure, Worker, launched


@dataclass
class Found:
    """The measurements of one algorithm.

    Attributes:
        exact: loss and norm of the gradient of the first step in float64; empty if not computed.
        seconds: of each row, in each round.
        firsts: for each row, loss and norm of the gradient in the first step of a fresh network.
        broken: rows that could not be measured.
    """

    exact: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    firsts: dict[str, dict[str, float]] = field(default_factory=dict)
    broken: Rows = field(default_factory=dict)

    def add(self, bench: Bench, algorithm: str, workers: list[Worker]) -> None:
        """Measure the algorithm in turns by all workers that have it."""
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
        """Return the table, with the relative errors of the first step: to the exact values, or else to metafew's."""
        table = medians(self.seconds)
        reference = self.exact or self.firsts[OWN]
        for name, row in table.items():
            row |= {f"{key} off by": off(self.firsts[name][key], reference[key]) for key in ("loss", "gradient")}
        return table | self.broken


def tables(bench: Bench) -> Tables:
    """Measure every algorithm by each peer that has it, from the same weights and data; or in papers' settings."""
    if bench.papers is None:
        return tables_of(bench)
    settings = {name: setting for name, setting in PEERS.items() if bench.papers.lower() in name.lower()}
    found = {name: tables_of(replace(bench, setting=setting)) for name, setting in settings.items()}
    return {f"{name}, {title}": rows for name, each in found.items() for title, rows in each.items()}


def tables_of(bench: Bench) -> Tables:
    """Measure every algorithm in one setting."""
    found: dict[str, Found] = {}
    steps = exact(bench)
    for _ in range(bench.launches):
        with launched(bench) as workers:
            for algorithm in workers[OWN].steps:
                found.setdefault(algorithm, Found(steps.get(algorithm, {}))).add(bench, algorithm, [*workers.values()])
            failed = {name: {"note": worker.error} for name, worker in workers.items() if worker.error}
    measured = {f"{algorithm}, {bench.setting}": each.rows() for algorithm, each in found.items()}
    return measured | ({"peers that did not start": failed} if failed else {})


def exact(bench: Bench) -> dict[str, dict[str, float]]:
    """Return loss and gradient of the plain loop's first steps in float64, free of the rounding errors of float32."""
    found = {}
    with launched(bench, ["plain"], "float64") as workers:
        for step in workers["plain"].steps:
            with suppress(Failure):  # float64 takes twice the memory
                found[step] = first(workers["plain"], step)
    return found


def first(worker: Worker, step: str) -> dict[str, float]:
    """Take a step, and return its loss and the norm of its gradient."""
    reply = worker.take(step)
    return {"loss": reply["value"], "gradient": reply["gradient"]}


def off(value: float, reference: float) -> float:
    """Return the relative difference."""
    return abs(value - reference) / abs(reference)
