"""The tables of an experiment."""

from __future__ import annotations

from collections.abc import Iterator

from metafew.analysis.sheet import CAPTION, DAGGER, Sheet, figure


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
