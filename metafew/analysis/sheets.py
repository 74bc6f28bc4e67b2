"""The tables of an experiment, for a terminal and for a file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from rich.table import Table

CAPTION = "mean ± 95 % confidence interval over test tasks, in percent"
DAGGER = "† transductive: a query is classified with the help of the other queries of its task"


@dataclass
class Sheet:
    """A table of text: a title, the names of the columns, rows, and lines that stand below."""

    title: str
    columns: list[str]
    rows: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def rich(self) -> Table:
        """Return the table for a terminal, without the lines below."""
        table = Table(title=self.title)
        for number, column in enumerate(["", *self.columns]):
            table.add_column(column, justify="right" if number else "left")
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        """Return the table and the lines below as Markdown."""
        rows = [["", *self.columns], ["---"] + ["---:"] * len(self.columns), *self.rows]
        table = ["| " + " | ".join(row) + " |" for row in rows]
        return "\n".join([f"## {self.title}", "", *table, "", *(f"- {note}" for note in self.notes), ""])


def sheets(experiment: dict, reports: dict[str, dict]) -> Iterator[Sheet]:
    """Yield one table for each panel, the part of a cell's name before the slash, and at last the published one.

    Args:
        experiment: the title, the columns and the published table, as the YAML names them.
        reports: what each cell measured, in the order of the rows.
    """
    panels: dict[str, Sheet] = {}
    columns = list(experiment["columns"])
    for name, report in reports.items():
        panel, _, row = name.rpartition("/")
        title = f"{experiment['title']}: {panel}" if panel else experiment["title"]
        sheet = panels.setdefault(panel, Sheet(title, columns, notes=[CAPTION]))
        if "error" in report:
            sheet.rows.append([row] + ["failed"] * len(columns))
            sheet.notes.append(f"{row} failed: {report['error']}")
            continue
        figures = [figure(report["metrics"].get(column)) for column in columns]
        sheet.rows.append([f"{row} †" if report["transductive"] else row, *figures])
        for head, choice in report["chosen"].items():
            picked = f"lr={choice['lr']:g} test_steps={choice['test_steps']}"
            sheet.notes.append(f"{row}: {picked} of head={head} chosen on validation tasks")
        if report["transductive"] and DAGGER not in sheet.notes:
            sheet.notes.insert(1, DAGGER)
    yield from panels.values()
    published = experiment["published"]
    rows = [[row, *(f"{value:.2f}" for value in values)] for row, values in published["rows"].items()]
    yield Sheet("published", columns, rows, [published["text"]])


def figure(measure: dict | None) -> str:
    """Return an accuracy in percent with its confidence interval, which a single task lacks.

    >>> figure({"mean": 0.875, "ci95": 0.0123}), figure({"mean": 1.0, "ci95": None}), figure(None)
    ('87.50 ± 1.23', '100.00', '–')
    """
    if measure is None:
        return "–"
    spread = "" if measure["ci95"] is None else f" ± {100 * measure['ci95']:.2f}"
    return f"{100 * measure['mean']:.2f}{spread}"
