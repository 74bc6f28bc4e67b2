"""What an experiment leaves: one JSON file with everything that its tables and its page are made of. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict

from metafew.analysis.compare.table import DAGGER, Sheet
from metafew.evaluation.statistics import format_percent
from metafew.experiments.claims import MISSING, check, verdict
from metafew.experiments.measured import Measured, measured
from metafew.experiments.plan import Cell

ELSEWHERE = re.compile(r"(seed|stages|ckpt|data_dir|cache_dir|backbone\.weights)=")
"""Words of a training that differ from place to place, and from seed to seed."""


def gather(experiment: Mapping, cells: Sequence[Cell]) -> dict:
    """Return the results of an experiment, as far as its cells are finished.

    Args:
        experiment: what stands below ``experiment`` in the YAML, with ``name``, ``budget`` and ``command``.
        cells: all of them.
    """
    of = {row: [cell for cell in cells if cell.row == row] for row in experiment["rows"]}
    table: dict[tuple[str, str], Measured] = {}
    for row, own in of.items():
        for name, column in experiment["columns"].items():
            other = "" if isinstance(column, str) else "/".join(filter(None, [row.rpartition("/")[0], column["of"]]))
            if value := measured(own, column, of.get(other, [])):
                table[row, name] = value
    claims = []
    for text, lines in experiment.get("claims", {}).items():
        evidence = check(lines, table, list(experiment["columns"]))
        claims.append({"text": text, "verdict": verdict(evidence), "evidence": [asdict(each) for each in evidence]})
    done = {command.folder: command.report for cell in cells for command in cell.commands if command.finished}
    return {
        **{key: experiment[key] for key in ("name", "title", "paper", "setting", "budget", "command")},
        "columns": {name: unit(column) for name, column in experiment["columns"].items()},
        "seeds": sorted({cell.seed for cell in cells}),
        "rows": {row: of_row(own, row, table) for row, own in of.items()},
        "published": experiment.get("published"),
        "figures": [],
        "claims": claims,
        "minutes": round(sum(sum(report["seconds"].values()) for report in done.values()) / 60, 1),
        "versions": next((report["versions"] for report in done.values()), {}),
    }


def unit(column: str | Mapping) -> str:
    """Return what a column is counted in: percent, steps, seconds, or nothing."""
    if isinstance(column, Mapping):
        return column["in"]
    return "percent" if column.startswith("test/") and column.endswith("accuracy") else ""


def of_row(cells: Sequence[Cell], row: str, table: Mapping[tuple[str, str], Measured]) -> dict:
    """Return what stands in results.json of one row."""
    reports = [cell.test.report for cell in cells if cell.finished]
    return {
        "words": [word for word in cells[0].fit.words if not ELSEWHERE.match(word)],
        "figures": {name: value.summary() for (own, name), value in table.items() if own == row},
        "steps": max((report["steps"] for report in reports), default=0),
        "transductive": any(report["transductive"] for report in reports),
        "chosen": [report["chosen"] for report in reports if report["chosen"]],
        "errors": sorted({cell.error for cell in cells if cell.error}),
    }


def tables(report: Mapping) -> list[Sheet]:
    """Return one table for each panel, the claims, and the published figures where they are of other rows."""
    claims = Sheet("claims", ["here"], [[claim["text"], claim["verdict"]] for claim in report["claims"]])
    claims.notes += [line for claim in report["claims"] for line in evidence(claim, report["columns"])]
    return [*panels(report), *([claims] if claims.rows else []), *published(report)]


def beside(report: Mapping) -> Mapping:
    """Return the published figures if all of them are of our own rows, else nothing."""
    theirs = report["published"] or {"rows": {}}
    return theirs if theirs["rows"].keys() <= {row.rpartition("/")[2] for row in report["rows"]} else {"rows": {}}


def published(report: Mapping) -> Iterator[Sheet]:
    """Yield a table of the published figures, if there are some and they are not all of our own rows."""
    theirs = report["published"]
    if theirs and not beside(report)["rows"]:
        rows = [[row, *map(quoted, values)] for row, values in theirs["rows"].items()]
        yield Sheet("published", theirs.get("columns", list(report["columns"])), rows, [theirs["text"]])


def panels(report: Mapping) -> Iterator[Sheet]:
    """Yield the tables of our figures, with published ones of the same rows beside them."""
    theirs = beside(report)
    columns = list(report["columns"])
    names: dict[str, list[str]] = {}
    for name in report["rows"]:
        names.setdefault(name.rpartition("/")[0], []).append(name)
    for panel, rows in names.items():
        quotes = {name: theirs["rows"].get(name.rpartition("/")[2]) for name in rows}
        quoting = theirs.get("columns", columns) if any(quotes.values()) else []
        title = f"{report['title']}: {panel}" if panel else report["title"]
        sheet = Sheet(title, [*columns, *(f"published: {name}" for name in quoting)], notes=[caption(report, rows)])
        for name in rows:
            own, row = report["rows"][name], name.rpartition("/")[2]
            figures = [cell(own["figures"].get(column), report["columns"][column]) for column in columns]
            if not own["figures"]:
                figures = ["failed" if own["errors"] else MISSING] * len(columns)
            figures += map(quoted, quotes[name] or ["–"] * len(quoting)) if quoting else []
            sheet.rows.append([f"{row} †" if own["transductive"] else row, *figures])
        owns = {name.rpartition("/")[2]: report["rows"][name] for name in rows}
        sheet.notes += [DAGGER] * any(own["transductive"] for own in owns.values())
        sheet.notes += [theirs["text"]] if quoting else []
        sheet.notes += [
            f"{row}: lr={picked['lr']:g} test_steps={picked['test_steps']} of head={head} chosen on validation tasks"
            for row, own in owns.items()
            for choice in own["chosen"]
            for head, picked in choice.items()
        ]
        for error in dict.fromkeys(error for own in owns.values() for error in own["errors"]):
            failed = ", ".join(row for row, own in owns.items() if error in own["errors"])
            sheet.notes.append(f"{failed} failed: {error}")
        yield sheet


def caption(report: Mapping, rows: Sequence[str]) -> str:
    """Return what the figures of these rows are."""
    counts = {len(figure["seeds"]) for row in rows for figure in report["rows"][row]["figures"].values()} or {1}
    tasks = "95 % interval over test tasks, or over pairs of classes where accuracies are not meant"
    seeds = f"95 % t-interval over {' or '.join(map(str, sorted(counts - {1})))} seeds"
    over = " or, of one seed, ".join([seeds] * (max(counts) > 1) + [tasks] * (1 in counts))
    return f"mean ± {over}; accuracies in percent"


def cell(summary: Mapping | None, unit: str) -> str:
    """Return a figure as it stands in a table.

    >>> cell({"mean": 0.875, "ci95": 0.0123}, "percent"), cell({"mean": 1.25, "ci95": 0.04}, "")
    ('87.50 ± 1.23', '1.250 ± 0.040')
    >>> cell({"mean": 400, "ci95": None, "over": True}, "steps"), cell(None, "")
    ('> 400', '–')
    """
    if summary is None or unit == "percent" or summary["mean"] is None:
        return format_percent(summary)
    digits = 0 if unit else 3
    spread = "" if summary["ci95"] is None else f" ± {summary['ci95']:.{digits}f}"
    return f"{'> ' if summary.get('over') else ''}{summary['mean']:.{digits}f}{spread}"


def quoted(value: float | str) -> str:
    """Return a published figure as it was printed."""
    return value if isinstance(value, str) else f"{value:.2f}"


def evidence(claim: Mapping, units: Mapping[str, str]) -> Iterator[str]:
    """Yield one line for each comparison behind a claim, with the difference in the unit of its column.

    >>> each = {"line": "a [x] > b", "verdict": "holds", "difference": 0.05, "ci95": 0.0123, "paired": True}
    >>> list(evidence({"evidence": [each]}, {"x": "percent"}))
    ['a [x] > b: holds, +5.00 ± 1.23']
    """
    for each in claim["evidence"]:
        gap = ""
        if each["difference"] is not None:
            unit = units[each["line"].partition("[")[2].partition("]")[0]]
            scale, digits = (100, 2) if unit == "percent" else (1, 0 if unit else 3)
            spread = "" if each["ci95"] is None else f" ± {scale * each['ci95']:.{digits}f}"
            unpaired = ", no interval" if each["ci95"] is None else "" if each["paired"] else ", unpaired"
            gap = f", {scale * each['difference']:+.{digits}f}{spread}{unpaired}".replace("-", "−")
        yield f"{each['line']}: {each['verdict']}{gap}"
