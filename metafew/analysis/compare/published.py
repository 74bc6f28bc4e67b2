"""Published results for the settings of a comparison. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import yaml

from metafew.analysis.compare.comparison import Comparison
from metafew.analysis.compare.rows_and_columns import Column
from metafew.analysis.compare.runs import Run
from metafew.analysis.text_table import TextTable
from metafew.evaluation.statistics import format_difference, format_percent

FILE = Path(__file__).with_name("published.yaml")
NORMAL = 1.96
"""Half width of a published 95 % interval, over hundreds of tasks, in standard errors."""
NOTES = [
    "ours and published in percent ± 95 % interval, the gap (ours minus published) in points",
    "dataset, way, shot and the settings in the row's name match; class splits, networks and budgets may differ",
]


@cache
def published_results() -> list[tuple[dict, dict, str]]:
    """Return, for every published result, the setting to match, its mean and 95 % interval, and its source."""
    found = []
    for table in yaml.safe_load(FILE.read_text(encoding="utf-8")):
        scale = NORMAL if table["spread"] == "standard error" else 1.0
        source = table["source"] if table["standing"] == "published" else f"reported: {table['source']}"
        for row in table["rows"]:
            for word, (mean, *spread) in zip(table["words"], row.pop("figures"), strict=True):
                ci95 = scale * spread[0] / 100 if spread else None
                found.append((table["match"] | row | {table["by"]: word}, {"mean": mean / 100, "ci95": ci95}, source))
    return found


def published_table(comparison: Comparison) -> TextTable | None:
    """Return a table of measurements and published results for the same settings; None if there are none."""
    table = TextTable("Published results", ["ours", "published", "gap", "source"], notes=NOTES)
    for (i, column), cell in comparison.cells.items():
        for theirs, source in matching_results(cell.runs[0], column):
            if cell.mean is not None:
                gap = format_difference({"mean": cell.mean - theirs["mean"], "ci95": None})
                ours = format_percent({"mean": cell.mean, "ci95": cell.ci95, "failed": cell.failed})
                name = f"{comparison.rows[i].label}, {comparison.columns[column]}"
                table.rows.append([name, ours, format_percent(theirs), gap, source])
    return table if table.rows else None


def matching_results(run: Run, column: Column) -> Iterator[tuple[dict, str]]:
    """Yield the published results for the setting of a measure, with their sources."""
    if column.baseline or column.source is not None or run.values.get("test.balance", "balanced") != "balanced":
        return
    setting = run.values | {"way": run.values.get("test.way"), "shot": run.shots[column.number]}
    setting |= {"measured": column.head_of(run), "queries": run.report.get("queries")}
    for match, result, source in published_results():
        if all(setting.get(key) == value for key, value in match.items()):
            yield result, source
