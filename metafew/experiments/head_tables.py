"""The tables of all heads that the tests of an experiment evaluated. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce

from metafew.analysis.compare.comparison import compare_runs
from metafew.analysis.compare.find import find_runs
from metafew.analysis.compare.heads_as_rows import heads_as_rows
from metafew.analysis.compare.merge import merge
from metafew.analysis.compare.runs import Run
from metafew.analysis.compare.tables import accuracy_table, difference_table
from metafew.analysis.text_table import TextTable
from metafew.experiments.plan import Cell
from metafew.experiments.record import panel_of


def head_tables(panels: Mapping[str, Sequence[Run]]) -> list[TextTable]:
    """Return two tables for each panel, of accuracies and of paired differences from the best: each head has a row.

    A row of the experiment's own table is a column here, which is named after the settings that differ.

    Args:
        panels: the tests of each panel, from :func:`runs_by_panel`.
    """
    tables = []
    for panel, runs in panels.items():
        heads = heads_as_rows(compare_runs([run for run in runs if run.heads], None))
        if heads:
            where = f": {panel}" if panel else ""
            tables.append(accuracy_table(heads, "ci95", f"All heads{where}"))
            tables.append(difference_table(heads, f"Difference from the best head{where} (points)"))
    return tables


def runs_by_panel(cells: Sequence[Cell]) -> dict[str, list[Run]]:
    """Return the finished tests of each panel, each with those of further heads on its network."""
    panels: dict[str, list[Cell]] = {}
    for cell in cells:
        if cell.finished:
            panels.setdefault(panel_of(cell.row), []).append(cell)
    return {panel: with_further_heads(own) for panel, own in panels.items()}


def with_further_heads(cells: Sequence[Cell]) -> list[Run]:
    """Return the tests of finished cells, merged with those of the heads that were trained on their networks."""
    tests = {
        cell.test.folder.resolve(): [test for fit, test in cell.further if fit.finished and test.finished]
        for cell in cells
    }
    runs, _ = find_runs([str(cell.test.folder) for cell in cells])
    return [reduce(merge, (Run.in_folder(test.folder) for test in tests[run.folder]), run) for run in runs]
