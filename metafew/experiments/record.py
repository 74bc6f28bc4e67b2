"""The results.json of an experiment, from which tables and the page are generated. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict

from metafew.analysis.compare.runs import Run
from metafew.analysis.text_table import DAGGER, FAILED, TextTable
from metafew.evaluation.statistics import format_options, format_percent
from metafew.experiments.claims import MISSING, Measurements, claim_verdict, gather_evidence
from metafew.experiments.measurements import measure_row
from metafew.experiments.plan import Cell
from metafew.experiments.progress import steps_so_far

NOT_RECORDED = re.compile(r"(seed|stages|ckpt|data_dir|cache_dir|backbone\.weights)=")
"""Overrides of a training that depend on the machine or the seed."""


def collect_results(experiment: Mapping, cells: Sequence[Cell]) -> dict:
    """Return the results of the finished cells of an experiment.

    Args:
        experiment: the node ``experiment`` of the YAML, with ``name``, ``budget`` and ``command``.
        cells: all cells.
    """
    columns = experiment["columns"]
    units = {name: column_unit(column) for name, column in columns.items()}
    cells_of = {row: [cell for cell in cells if cell.row == row] for row in experiment["rows"]}
    measurements: dict = {}
    for row, own in cells_of.items():
        for name, column in columns.items():
            reference = "" if isinstance(column, str) else "/".join(filter(None, [panel_of(row), column["of"]]))
            if measurement := measure_row(own, column, cells_of.get(reference, [])):
                measurements[row, name] = measurement
    claims = []
    for text, lines in experiment.get("claims", {}).items():
        evidence = gather_evidence(lines, measurements, units)
        claims.append({"text": text, "verdict": claim_verdict(evidence), "evidence": list(map(asdict, evidence))})
    reports = {command.folder: command.report for cell in cells for command in cell.all_commands if command.finished}
    return {
        **{key: experiment[key] for key in ("name", "title", "paper", "setting", "budget", "command")},
        "columns": units,
        "seeds": sorted({cell.seed for cell in cells}),
        "rows": {row: row_results(own, row, measurements) for row, own in cells_of.items()},
        "published": experiment.get("published"),
        "figures": [],
        "claims": claims,
        "minutes": round(sum(sum(report["seconds"].values()) for report in reports.values()) / 60, 1),
        "versions": next((report["versions"] for report in reports.values()), {}),
    }


def measured_seeds(report: Mapping, rows: Sequence[str]) -> int:
    """Return the number of seeds over which some rows were measured, or are to be."""
    figures = (figure for row in rows for figure in report["rows"][row]["figures"].values())
    return len({seed for figure in figures for seed in figure["seeds"]} or report["seeds"])


def panel_of(row: str) -> str:
    """Return the panel of a row; empty in a table without panels."""
    return row.rpartition("/")[0]


def name_in_panel(row: str) -> str:
    """Return the name of a row without its panel."""
    return row.rpartition("/")[2]


def column_unit(column: str | Mapping) -> str:
    """Return the unit of a column: percent, steps, seconds, or none."""
    if isinstance(column, Mapping):
        return column["in"]
    return "percent" if column.startswith("test/") and column.endswith("accuracy") else ""


def row_results(cells: Sequence[Cell], row: str, measurements: Measurements) -> dict:
    """Return the entry of one row in results.json."""
    done = [cell for cell in cells if cell.finished]
    tests = [Run(cell.test.folder, cell.test.report) for cell in done]
    figures = {}
    for (own, column), found in measurements.items():
        if own == row:
            seeds = {str(seed): mean for seed, mean in found.seeds.items()}
            figures[column] = {"mean": found.mean, "ci95": found.ci95, "tasks": found.tasks, "seeds": seeds}
            figures[column] |= {"failed": found.failed}
            figures[column] |= {"over": True} if found.lower_bound else {}
            figures[column] |= {"transductive": True} if found.transductive else {}
    return {
        "words": [word for word in cells[0].fit.overrides if not NOT_RECORDED.match(word)],
        "figures": figures,
        "steps": max((cell.fit.report["steps"] for cell in done), default=0),
        "transductive": any(run.is_transductive() for run in tests),
        "chosen": [run.report["chosen"] for run in tests if run.report["chosen"]],
        "errors": sorted({cell.error for cell in cells if cell.error}),
        "under_way": sorted({so_far for cell in cells if (so_far := steps_so_far(cell))}),
    }


def result_tables(report: Mapping) -> list[TextTable]:
    """Return the tables of all panels, of the claims, and of published results for rows with other names."""
    claims = TextTable("claims", ["here"], [[claim["text"], claim["verdict"]] for claim in report["claims"]])
    claims.notes += [line for claim in report["claims"] for line in evidence_lines(claim, report["columns"])]
    return [*panel_tables(report), *([claims] if claims.rows else []), *published_only(report)]


def published_rows(report: Mapping) -> Mapping:
    """Return the published results if all of them belong to rows of the experiment, else nothing."""
    published = report["published"] or {"rows": {}}
    return published if published["rows"].keys() <= set(map(name_in_panel, report["rows"])) else {"rows": {}}


def published_only(report: Mapping) -> Iterator[TextTable]:
    """Yield a table of the published results, if any, for rows with other names.

    Its title is ``standing``: ``published``, the default, or ``reported`` for values that are not quoted from the paper
    or its slides.
    """
    published = report["published"]
    if published and not published_rows(report)["rows"]:
        rows = [[row, *map(format_published, values)] for row, values in published["rows"].items()]
        columns = published.get("columns", list(report["columns"]))
        yield TextTable(published.get("standing", "published"), columns, rows, [published["text"]])


def panel_tables(report: Mapping) -> Iterator[TextTable]:
    """Yield a table for each panel, with columns for the published results of its rows."""
    published = published_rows(report)
    panels: dict[str, dict[str, Mapping]] = {}
    for row, results in report["rows"].items():
        panels.setdefault(panel_of(row), {})[name_in_panel(row)] = results
    for panel, rows in panels.items():
        shown = published.get("columns", list(report["columns"])) if rows.keys() & published["rows"].keys() else []
        columns = [*report["columns"], *(f"published: {name}" for name in shown)]
        table = TextTable(f"{report['title']}: {panel}" if panel else report["title"], columns)
        for name, results in rows.items():
            figures, marked = results["figures"], marked_figures(results)
            line = [
                format_figure(figures.get(column), unit) + " †" * (column in marked)
                for column, unit in report["columns"].items()
            ]
            if not figures:
                line = ["failed" if results["errors"] else "under way" if results.get("under_way") else MISSING] * len(
                    line
                )
            line += map(format_published, published["rows"].get(name, ["–"] * len(shown)) if shown else [])
            table.rows.append([f"{name} †" if results["transductive"] else name, *line])
        table.notes = panel_notes(rows, [published["text"]] if shown else [])
        yield table


def marked_figures(results: Mapping) -> set[str]:
    """Return the transductive columns of a row; empty if the row itself is transductive."""
    figures = results["figures"].items()
    return set() if results["transductive"] else {column for column, figure in figures if figure.get("transductive")}


def panel_notes(rows: Mapping[str, Mapping], published: list[str]) -> list[str]:
    """Return the notes of a panel: intervals, source, selected hyperparameters and errors.

    Args:
        rows: the results of the rows of the panel by name.
        published: the source of the published results, if the table has them.
    """
    counts = {len(figure["seeds"]) for row in rows.values() for figure in row["figures"].values()} or {1}
    tasks = "95 % interval over test tasks or, for measures of pairs of classes, over pairs"
    seeds = f"95 % t-interval over {' or '.join(map(str, sorted(counts - {1})))} seeds"
    over = " or, for one seed, ".join([seeds] * (max(counts) > 1) + [tasks] * (1 in counts))
    notes = [f"mean ± {over}; accuracies of tasks in percent"]
    failed = any(figure.get("failed") for row in rows.values() for figure in row["figures"].values())
    marked = any(row["transductive"] or marked_figures(row) for row in rows.values())
    notes += [FAILED] * failed + [DAGGER] * marked + published
    notes += [
        f"{name}: {format_options(picked)} of head={head} chosen on validation tasks"
        for name, row in rows.items()
        for choice in row["chosen"]
        for head, picked in choice.items()
    ]
    notes += [
        f"{name} is under way: {' and '.join(row['under_way'])}" for name, row in rows.items() if row.get("under_way")
    ]
    for error in dict.fromkeys(error for row in rows.values() for error in row["errors"]):
        failed = ", ".join(name for name, row in rows.items() if error in row["errors"])
        notes.append(f"{failed} failed: {error}")
    return notes


def format_figure(figure: Mapping | None, unit: str) -> str:
    """Format a measurement in the unit of its column.

    >>> format_figure({"mean": 0.875, "ci95": 0.0123}, "percent"), format_figure({"mean": 1.25, "ci95": 0.04}, "")
    ('87.50 ± 1.23', '1.250 ± 0.040')
    >>> format_figure({"mean": 400, "ci95": None, "over": True}, "steps"), format_figure(None, "")
    ('> 400', '–')
    """
    if figure is None or unit == "percent" or figure["mean"] is None:
        return format_percent(figure)
    digits = 0 if unit else 3
    spread = "" if figure["ci95"] is None else f" ± {figure['ci95']:.{digits}f}"
    return f"{'> ' if figure.get('over') else ''}{figure['mean']:.{digits}f}{spread}"


def format_published(value: float | str) -> str:
    """Format a published result; text is kept as printed."""
    return value if isinstance(value, str) else f"{value:.2f}"


def evidence_lines(claim: Mapping, units: Mapping[str, str]) -> Iterator[str]:
    """Yield one line per comparison of a claim, with the difference in the unit of its column.

    >>> each = {"line": "a [x] > b", "verdict": "holds", "difference": 0.05, "ci95": 0.0123, "paired": True}
    >>> list(evidence_lines({"evidence": [each]}, {"x": "percent"}))
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
