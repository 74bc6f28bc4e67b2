"""The first tables of docs/reproduction.md: each claim with published values, ours, and the scale of our runs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from metafew.analysis.text_table import TextTable
from metafew.config.groups import group_names
from metafew.experiments.claims import LINE, MISSING
from metafew.experiments.plan import plan_cells
from metafew.experiments.progress import planned_steps
from metafew.experiments.record import (
    format_figure,
    format_published,
    measured_seeds,
    name_in_panel,
    published_rows,
)

COLUMNS = ["in", "published", "here", "scale", "verdict", "experiment"]


def claims_tables(experiments: Mapping[str, Mapping], reports: Mapping[str, Sequence[Mapping]]) -> Iterator[TextTable]:
    """Yield a table for each paper, in which claims that the experiment lists under ``ours`` are marked.

    The results of a claim are those of the largest budget with which all of its rows were run. The values are those of
    its first comparison.

    Args:
        experiments: the node ``experiment`` of the YAML of each experiment.
        reports: the results of each experiment, those of the largest budget first.
    """
    tables: dict[str, TextTable] = {}
    for name, experiment in experiments.items():
        paper, _, place = experiment["paper"].partition(", ")
        table = tables.setdefault(paper, TextTable(paper, COLUMNS))
        cells = plan_cells(dict(experiment), [], "paper", [0], Path(), group_names())
        totals = {cell.row: planned_steps(cell.fit) for cell in cells}
        for text in experiment["claims"]:
            found = ((claim, report) for report in reports[name] for claim in report["claims"] if claim["text"] == text)
            decided = [(claim, report) for claim, report in found if claim["verdict"] != MISSING]
            described = describe_claim(*decided[0], totals) if decided else ["–", "–", "–", MISSING]
            source = "ours" if text in experiment.get("ours", ()) else place
            table.rows.append([text, source, *described, name])
    yield from tables.values()


def describe_claim(claim: Mapping, report: Mapping, totals: Mapping[str, int | None]) -> list[str]:
    """Return the published values and ours of the first comparison of a claim, its scale and its verdict.

    Args:
        claim: the claim, with its evidence.
        report: the results that decide it.
        totals: the number of steps of the paper, by row.
    """
    lines = [match for each in claim["evidence"] if (match := LINE.fullmatch(each["line"]))]
    first = lines[0]
    sides = [(first["left"], first["in"]), (first["right"], first["at"] or first["in"])]
    sides = [(row, column) for row, column in sides if row in report["rows"]]
    here = [
        format_figure(report["rows"][row]["figures"].get(column), report["columns"][column]) for row, column in sides
    ]
    published = [published_figure(report, row, column) for row, column in sides]
    rows = {side for match in lines for side in (match["left"], match["right"])} & report["rows"].keys()
    shown = [" / ".join(figures) if any(each != "–" for each in figures) else "–" for figures in (published, here)]
    only = published_rows(report).get("columns", ())
    if len(only) == 1 and shown[0] != "–" and any(column not in only for _, column in sides):
        shown[0] += f" ({only[0]})"
    return [*shown, scale(report, sorted(rows), totals), claim["verdict"]]


def published_figure(report: Mapping, row: str, column: str) -> str:
    """Return the published value of a row in a column, or in the only column that was published."""
    published = published_rows(report)
    columns = published.get("columns", list(report["columns"]))
    if name_in_panel(row) not in published["rows"] or (column not in columns and len(columns) > 1):
        return "–"
    values = published["rows"][name_in_panel(row)]
    return format_published(values[columns.index(column) if column in columns else 0])


def scale(report: Mapping, rows: Sequence[str], totals: Mapping[str, int | None]) -> str:
    """Return the steps of some rows, those of the paper, the number of seeds, and their data and networks."""
    words = [word for row in rows for word in report["rows"][row]["words"]]
    data = [name_dataset(word) for word in words if re.match(r"dataset(\.root)?=", word)]
    networks = [word.removeprefix("backbone=") for word in words if word.startswith("backbone=")]
    done, total = span([report["rows"][row]["steps"] for row in rows]), span([totals.get(row) for row in rows])
    steps, count = f"{done} of {total} steps", measured_seeds(report, rows)
    seeds = f"{count} seed{'s' * (count > 1)}"
    return ", ".join([steps, seeds, *(" and ".join(dict.fromkeys(filter(None, names))) for names in (data, networks))])


def span(numbers: Sequence[int | None]) -> str:
    """Return the range of numbers of steps, without unknown ones and without 1, which is an untrained network.

    >>> span([300, 1000, 1]), span([60000, 60000, None])
    ('300 to 1,000', '60,000')
    """
    counted = sorted({number for number in numbers if number and number > 1}) or [1]
    return f"{counted[0]:,} to {counted[-1]:,}" if len(counted) > 1 else f"{counted[0]:,}"


def name_dataset(word: str) -> str:
    """Return the dataset that an override chooses; empty for ``dataset=folder``, whose root says more.

    >>> name_dataset("dataset=omniglot"), name_dataset("dataset.root=${data_dir}/caltech101/101_ObjectCategories")
    ('omniglot', 'caltech101')
    """
    value = word.partition("=")[2].removeprefix("${data_dir}/").partition("/")[0]
    return "" if value == "folder" else value
