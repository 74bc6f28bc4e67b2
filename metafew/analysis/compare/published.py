"""Figures that papers print, beside ours where the setting is the same."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import yaml

from metafew.analysis.compare.comparison import Comparison
from metafew.analysis.compare.rows_and_columns import OWN, Column
from metafew.analysis.compare.runs import Run
from metafew.analysis.compare.table import Sheet
from metafew.evaluation.statistics import NORMAL, format_percent

FILE = Path(__file__).with_name("published.yaml")
NOTES = [
    "ours and published in percent ± 95 % interval, the gap (ours minus published) in points",
    "the dataset, way, shot and what stands in the name of the row match; splits, networks and budgets may differ",
]


@cache
def entries() -> list[tuple[dict, dict, str]]:
    """Return every published figure: what must match, its mean and 95 % interval, and its source."""
    found = []
    for table in yaml.safe_load(FILE.read_text(encoding="utf-8")):
        scale = NORMAL if table["spread"] == "standard error" else 1.0
        source = table["source"] if table["standing"] == "published" else f"reported: {table['source']}"
        for row in table["rows"]:
            for word, (mean, *spread) in zip(table["words"], row.pop("figures"), strict=True):
                ci95 = scale * spread[0] / 100 if spread else None
                found.append((table["match"] | row | {table["by"]: word}, {"mean": mean / 100, "ci95": ci95}, source))
    return found


def beside(table: Comparison) -> Sheet | None:
    """Return our figures beside those of papers that were measured in the same setting; None where none was."""
    sheet = Sheet("Beside published figures", ["ours", "published", "gap", "source"], notes=NOTES)
    for (i, column), cell in table.cells.items():
        for theirs, source in matching(cell.runs[0], column):
            if cell.mean is not None:
                gap = f"{100 * (cell.mean - theirs['mean']):+.2f}".replace("-", "−")
                ours = format_percent({"mean": cell.mean, "ci95": cell.ci95})
                name = f"{table.rows[i].label}, {table.columns[column]}"
                sheet.rows.append([name, ours, format_percent(theirs), gap, source])
    return sheet if sheet.rows else None


def matching(run: Run, column: Column) -> Iterator[tuple[dict, str]]:
    """Yield the published figures of the setting of this measure, with their sources."""
    if column.baseline or column.source is not None:
        return
    measured = run.heads[0] if column.head == OWN else column.head
    setting = run.facts | {"way": run.facts.get("test.way"), "shot": run.shots[column.number], "measured": measured}
    setting["queries"] = run.report.get("queries")
    for match, figures, source in entries():
        if all(setting.get(key) == value for key, value in match.items()):
            yield figures, source
