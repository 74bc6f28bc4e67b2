"""A report as a single, self-contained HTML file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from metafew.analysis.compare.comparison import Comparison
from metafew.analysis.compare.runs import Omitted
from metafew.analysis.compare.text_table import TextTable, escape_html
from metafew.analysis.html_document import data_url, document

CURVE = "learning_curve.png"
WIDTH = 140
"""Characters of a table that fit in a window of 1280 pixels."""


def html_page(
    tables: Sequence[TextTable],
    comparison: Comparison,
    figures: Mapping[str, Path],
    omitted: Sequence[Omitted],
    commands: Mapping[Path, str],
    command: str,
) -> str:
    """Return a page with a list of contents, tables, figures, learning curves, commands and omissions.

    Args:
        tables: the tables of the comparison.
        comparison: the tested runs.
        figures: PNG files by name.
        omitted: what is left out.
        commands: the command of each run, by folder.
        command: the command of the report.
    """
    sections = sections_of(tables, comparison, figures, omitted, commands)
    return document("Runs compared", f"{len(commands)} runs", command, sections)


def sections_of(
    tables: Sequence[TextTable],
    comparison: Comparison,
    figures: Mapping[str, Path],
    omitted: Sequence[Omitted],
    commands: Mapping[Path, str],
) -> Iterator[tuple[str, str]]:
    """Yield the title and the content of each section."""
    for table in tables:
        yield table.title, "\n".join(part.html() for part in table.fitting(WIDTH))
    for name, file in figures.items():
        title = name.replace("_", " ")
        yield (
            title.capitalize(),
            f'<figure class="wide"><img alt="{title}" src="{data_url(file.read_bytes())}"></figure>',
        )
    curves = []
    for row in comparison.rows:
        for run in row.runs:
            if (file := run.folder / CURVE).is_file():
                image = f'<img alt="learning curve" src="{data_url(file.read_bytes())}">'
                caption = f"<figcaption>{escape_html(f'{row.label}, seed {run.seed}')}</figcaption>"
                curves.append(f"<figure>{image}{caption}</figure>")
    if curves:
        yield "Learning curve of each run", "\n".join(curves)
    yield "Commands", f"<pre>{escape_html(chr(10).join(commands.values()))}</pre>"
    if omitted:
        listed = [f"<li>{escape_html(f'{place}: {reason}')}</li>" for place, reason in omitted]
        yield "Left out", "\n".join(["<ul>", *listed, "</ul>"])
