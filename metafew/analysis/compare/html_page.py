"""A report as a single, self-contained HTML file."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from metafew.analysis.compare.comparison import Comparison
from metafew.analysis.compare.runs import Omitted
from metafew.analysis.compare.text_table import TextTable, escape_html

CURVE = "learning_curve.png"
WIDTH = 140
"""Characters of a table that fit in a window of 1280 pixels."""
HEAD = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>metafew: runs compared</title>
<style>
:root { color-scheme: light dark; --text: #1c1c1c; --paper: #ffffff; --faint: #555555; --line: #c8c8c8; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e6e6; --paper: #161616; --faint: #b0b0b0; --line: #444444; }
}
body { font: 16px/1.5 system-ui, sans-serif; max-width: 90rem; margin: 2rem auto; padding: 0 1rem;
  color: var(--text); background: var(--paper); }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.15rem; margin-top: 2rem; }
header p { color: var(--faint); margin: .3rem 0; }
nav ul { padding-left: 0; } nav li { display: inline-block; margin-right: 1.2rem; } a { color: inherit; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
.scroll + .scroll { margin-top: 1.5rem; }
th, td { padding: .3rem .6rem; text-align: right; vertical-align: bottom; border-bottom: 1px solid var(--line); }
th { font-weight: 600; } th:first-child { text-align: left; }
td { white-space: nowrap; } td.text { white-space: normal; text-align: left; }
th[scope=row] { text-align: left; font-weight: normal; min-width: 9rem; position: sticky; left: 0;
  background: var(--paper); }
ul { color: var(--faint); font-size: .9rem; padding-left: 1.2rem; overflow-wrap: anywhere; }
pre { font-size: .8rem; white-space: pre-wrap; overflow-wrap: anywhere; max-height: 24rem; overflow-y: auto; }
figure { display: inline-block; margin: .5rem; max-width: 100%; }
img { max-width: 26rem; width: 100%; background: #ffffff; }
figure.wide img { max-width: 60rem; }
figcaption { font-size: .85rem; overflow-wrap: anywhere; max-width: 26rem; }
</style>
</head>
<body>"""


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
    sections = list(sections_of(tables, comparison, figures, omitted, commands))
    contents = [f'<li><a href="#{number}">{escape_html(title)}</a></li>' for number, (title, _) in enumerate(sections)]
    written = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    header = ["<header>", "<h1>Runs compared</h1>", f"<p>{len(commands)} runs, written {written} by</p>"]
    header += [f"<pre>{escape_html(command)}</pre>", '<nav aria-label="Contents"><ul>', *contents, "</ul></nav>"]
    body = [
        f'<section id="{number}">\n<h2>{escape_html(title)}</h2>\n{content}\n</section>'
        for number, (title, content) in enumerate(sections)
    ]
    return "\n".join([HEAD, *header, "</header>", *body, "</body>", "</html>", ""])


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
        yield title.capitalize(), f'<figure class="wide"><img alt="{title}" src="{data_url(file)}"></figure>'
    curves = []
    for row in comparison.rows:
        for run in row.runs:
            if (file := run.folder / CURVE).is_file():
                image = f'<img alt="learning curve" src="{data_url(file)}">'
                caption = f"<figcaption>{escape_html(f'{row.label}, seed {run.seed}')}</figcaption>"
                curves.append(f"<figure>{image}{caption}</figure>")
    if curves:
        yield "Learning curve of each run", "\n".join(curves)
    yield "Commands", f"<pre>{escape_html(chr(10).join(commands.values()))}</pre>"
    if omitted:
        listed = [f"<li>{escape_html(f'{place}: {reason}')}</li>" for place, reason in omitted]
        yield "Left out", "\n".join(["<ul>", *listed, "</ul>"])


def data_url(file: Path) -> str:
    """Return a PNG as a data URL."""
    return f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"
