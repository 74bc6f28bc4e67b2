"""The sections of the page of a report."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from metafew.analysis.compare.comparison import Comparison
from metafew.analysis.compare.runs import Omitted
from metafew.analysis.html_document import figure
from metafew.analysis.text_table import TextTable, escape_html

CURVE = "learning_curve.png"
WIDTH = 140
"""Width of a table, in characters, that fits in a window of 1280 pixels."""


def report_sections(
    tables: Sequence[TextTable],
    comparison: Comparison,
    figures: Mapping[str, Path],
    omitted: Sequence[Omitted],
    commands: Iterable[str],
) -> Iterator[tuple[str, str]]:
    """Yield the title and the HTML of each section: tables, figures, learning curves, commands and omissions.

    Args:
        tables: the tables of the comparison.
        comparison: the tested runs.
        figures: PNG files by name.
        omitted: what is left out.
        commands: the command of each run.
    """
    for table in tables:
        yield table.title, "\n".join(part.html() for part in table.fitting(WIDTH))
    for name, file in figures.items():
        title = name.replace("_", " ")
        yield title.capitalize(), figure(file.read_bytes(), title, kind="wide")
    curves = []
    for row in comparison.rows:
        for run in row.runs:
            if (file := run.folder / CURVE).is_file():
                caption = escape_html(f"{row.label}, seed {run.seed}")
                curves.append(figure(file.read_bytes(), "learning curve", caption))
    if curves:
        yield "Learning curve of each run", "\n".join(curves)
    yield "Commands", f"<pre>{escape_html(chr(10).join(commands))}</pre>"
    if omitted:
        listed = [f"<li>{escape_html(f'{place}: {reason}')}</li>" for place, reason in omitted]
        yield "Left out", "\n".join(["<ul>", *listed, "</ul>"])
