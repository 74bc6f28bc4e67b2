"""What a paper claims, held against what was measured. Imports no torch.

A claim holds some comparisons, each a line such as

    layer/svm > layer/classical                in every column
    layer/svm[SVM] > layer/classical[SVM]      in one column
    batch[accuracy] < 0.25                     against a number
    single = together within 0.01              equal, but for so much

A comparison is decided where the 95 % interval of the difference leaves out 0; equality where the whole interval lies
within the bound. The difference is that of the same seeds, else of the same test tasks, else of two means. A training
that diverged is below all others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from metafew.analysis.compare.comparison import minus
from metafew.experiments.measured import Measured

Table = Mapping[tuple[str, str], Measured]
"""Figures by row and column."""
LINE = re.compile(
    r"(?P<left>[\w/]+)(?:\[(?P<in>.+?)\])? (?P<sign>[<>=]) "
    r"(?P<right>[\w/.]+)(?:\[(?P<at>.+?)\])?(?: within (?P<bound>[\d.]+))?"
)
HOLDS, FAILS, OPEN, MISSING = "holds", "fails", "undecided", "not yet run"


@dataclass(frozen=True)
class Evidence:
    """One comparison.

    Args:
        line: what was compared.
        verdict: whether it holds, fails, is undecided, or was not yet run.
        difference: left minus right, in the unit of the column; None where something was not run.
        ci95: half width of its 95 % interval; None where there is none.
        paired: whether it is of the same seeds or tasks.
    """

    line: str
    verdict: str
    difference: float | None = None
    ci95: float | None = None
    paired: bool = True


def check(lines: Sequence[str], table: Table, columns: Sequence[str]) -> list[Evidence]:
    """Return the evidence of every comparison, one for each column where no column is named."""
    found = []
    for line in lines:
        match = LINE.fullmatch(line)
        for column in [match["in"]] if match["in"] else columns:
            named = line if match["in"] else line.replace(match["left"], f"{match['left']}[{column}]", 1)
            found.append(compare(named, match, table, column))
    return found


def compare(line: str, match: re.Match, table: Table, column: str) -> Evidence:
    """Return the evidence of one comparison in one column."""
    left = table.get((match["left"], column))
    number = re.fullmatch(r"[\d.]+", match["right"])
    right = None if number else table.get((match["right"], match["at"] or column))
    sides = [left] if number else [left, right]
    if None in sides or len({frozenset(side.figure.seeds) for side in sides}) > 1:
        return Evidence(line, MISSING)
    lost = [side.figure.mean is None for side in sides]
    if any(lost):
        higher = OPEN if all(lost) or number else (FAILS if lost[0] else HOLDS)
        lower = {HOLDS: FAILS, FAILS: HOLDS, OPEN: OPEN}[higher]
        return Evidence(line, {">": higher, "<": lower, "=": FAILS}[match["sign"]])
    paired = True
    if number:
        difference, ci95 = left.figure.mean - float(match["right"]), left.figure.ci95
    else:
        difference, ci95, paired = minus(left.figure, right.figure)
    # One number of one training has no interval, and decides nothing.
    found = OPEN if ci95 is None else judge(match["sign"], difference, ci95, match["bound"])
    return Evidence(line, found, difference, ci95, paired)


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
    signed = difference if sign == ">" else -difference
    if abs(signed) <= ci95:
        return OPEN
    return HOLDS if signed > 0 else FAILS


def verdict(evidence: Sequence[Evidence]) -> str:
    """Return what the evidence says of the whole claim.

    >>> verdict([Evidence("a > b", HOLDS), Evidence("a > c", HOLDS)])
    'reproduced'
    >>> verdict([Evidence("a > b", HOLDS), Evidence("a > c", OPEN)]), verdict([Evidence("a > b", OPEN)])
    ('partly', 'undecided')
    >>> verdict([Evidence("a > b", FAILS), Evidence("a > c", OPEN)])
    'not reproduced'
    """
    verdicts = {each.verdict for each in evidence}
    if MISSING in verdicts:
        return MISSING
    if verdicts == {HOLDS}:
        return "reproduced"
    if HOLDS in verdicts:
        return "partly"
    return "not reproduced" if FAILS in verdicts else OPEN
