"""Check the claims of a paper against measurements. Imports no torch.

A claim consists of comparisons, each a line such as

    layer/svm > layer/classical                in every column
    layer/svm[SVM] > layer/classical[SVM]      in one column
    batch[accuracy] < 0.25                     with a number
    single = together within 0.01              equality up to a tolerance

An inequality is decided if the 95 % interval of the difference excludes 0, an equality if the interval lies entirely
within the tolerance or entirely outside it. Differences are paired by the seeds that both sides have, if there are two
or more, else by test task if the tasks are equal, else unpaired. A diverged training counts as worse than all others in
accuracy, and is undecided in other measures.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from metafew.analysis.compare.comparison import Difference, Measurement, difference
from metafew.errors import UsageError

Measurements = Mapping[tuple[str, str], Measurement]
"""Measurements by row and column."""
LINE = re.compile(
    r"(?P<left>[\w/]+)(?:\[(?P<in>.+?)\])? (?P<sign>[<>=]) "
    r"(?P<right>[\w/.]+)(?:\[(?P<at>.+?)\])?(?: within (?P<bound>[\d.]+))?"
)
HOLDS, FAILS, OPEN, MISSING = "holds", "fails", "undecided", "not yet run"


@dataclass(frozen=True)
class Evidence:
    """The result of one comparison.

    Args:
        line: the comparison.
        verdict: holds, fails, undecided or not yet run.
        difference: left minus right, in the unit of the column; None if a run is missing.
        ci95: half width of its 95 % interval; None without an interval.
        paired: whether it is over the same seeds or tasks.
    """

    line: str
    verdict: str
    difference: float | None = None
    ci95: float | None = None
    paired: bool = True


def gather_evidence(lines: Sequence[str], measurements: Measurements, columns: Mapping[str, str]) -> list[Evidence]:
    """Return the evidence for every comparison: one for each column if the comparison names none.

    Args:
        lines: the comparisons of a claim.
        measurements: the measurements by row and column.
        columns: the unit of each column; accuracies are in percent.

    Raises:
        UsageError: if a line is not a comparison.
    """
    found = []
    for line in lines:
        match = LINE.fullmatch(line)
        if match is None:
            raise UsageError(
                f"expected a claim to compare rows, got {line!r}: write it as 'row > row', 'row[column] < 0.25' or "
                "'row = row within 0.01'"
            )
        for column in [match["in"]] if match["in"] else columns:
            full_line = line if match["in"] else line.replace(match["left"], f"{match['left']}[{column}]", 1)
            accuracies = columns.get(column) == "percent"
            found.append(compare_cells(full_line, match, measurements, column, accuracies))
    return found


def compare_cells(line: str, match: re.Match, measurements: Measurements, column: str, accuracies: bool) -> Evidence:
    """Return the evidence for one comparison in one column, of ``accuracies`` or of another measure."""
    left = measurements.get((match["left"], column))
    number = re.fullmatch(r"[\d.]+", match["right"])
    right = None if number else measurements.get((match["right"], match["at"] or column))
    if left is None or (right is None and not number) or (right and right.seeds.keys() != left.seeds.keys()):
        return Evidence(line, MISSING)
    if left.mean is None or (right and right.mean is None):
        if not accuracies:
            return Evidence(line, OPEN)
        undecided = left.mean is None and (right is None or right.mean is None)
        higher = OPEN if undecided else FAILS if left.mean is None else HOLDS
        lower = {HOLDS: FAILS, FAILS: HOLDS, OPEN: OPEN}[higher]
        return Evidence(line, {">": higher, "<": lower, "=": FAILS}[match["sign"]])
    gap = difference(left, right) if right else Difference(left.mean - float(match["right"]), left.ci95, True)
    # A comparison without an interval, as for a scalar of a single training, is undecided.
    verdict = OPEN if gap.ci95 is None else judge(match["sign"], gap.mean, gap.ci95, match["bound"])
    return Evidence(line, verdict, *gap)


def judge(sign: str, difference: float, ci95: float, bound: str | None) -> str:
    """Return whether a comparison holds.

    >>> judge(">", 0.05, 0.02, None), judge(">", 0.01, 0.02, None), judge("<", 0.05, 0.02, None)
    ('holds', 'undecided', 'fails')
    >>> judge("=", 0.003, 0.004, "0.01"), judge("=", 0.02, 0.004, "0.01"), judge("=", 0.003, 0.02, "0.01")
    ('holds', 'fails', 'undecided')
    """
    if sign == "=":
        limit = float(bound or 0)
        if abs(difference) + ci95 <= limit:
            return HOLDS
        return FAILS if abs(difference) - ci95 > limit else OPEN
    if abs(difference) <= ci95:
        return OPEN
    return HOLDS if (difference > 0) == (sign == ">") else FAILS


def claim_verdict(evidence: Sequence[Evidence]) -> str:
    """Return the verdict on a claim.

    >>> claim_verdict([Evidence("a > b", HOLDS), Evidence("a > c", HOLDS)])
    'reproduced'
    >>> claim_verdict([Evidence("a > b", HOLDS), Evidence("a > c", OPEN)]), claim_verdict([Evidence("a > b", OPEN)])
    ('partly', 'undecided')
    >>> claim_verdict([Evidence("a > b", FAILS), Evidence("a > c", OPEN)])
    'not reproduced'
    """
    verdicts = {each.verdict for each in evidence}
    if MISSING in verdicts:
        return MISSING
    if HOLDS in verdicts:
        return "reproduced" if verdicts == {HOLDS} else "partly"
    return "not reproduced" if FAILS in verdicts else OPEN
