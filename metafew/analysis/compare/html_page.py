"""A report as a single, self-contained HTML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from metafew.analysis.compare.comparison import Comparison
from metafew.analysis.compare.runs import Omitted
from metafew.analysis.compare.text_table import TextTable, escape_html
from metafew.analysis.html_document import data_url

CURVE = "learning_curve.png"
HEAD = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>metafew: runs compared</title>
<style>
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem;
  color: #1c1c1c; background: #ffffff; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem; text-align: right; border-bottom: 1px solid #c8c8c8; white-space: nowrap; }
th { font-weight: 600; } th[scope=row] { text-align: left; font-weight: normal; }
ul { color: #555555; font-size: .9rem; padding-left: 1.2rem; overflow-wrap: anywhere; }
figure { display: inline-block; margin: .5rem; max-width: 100%; }
img { max-width: 26rem; width: 100%; background: #ffffff; }
figure.wide img { max-width: 60rem; }
figcaption { font-size: .85rem; overflow-wrap: anywhere; max-width: 26rem; }
@media (prefers-color-scheme: dark) {
  body { color: #e6e6e6; background: #161616; } th, td { border-color: #444444; } ul { color: #b0b0b0; }
}
</style>
</head>
<body>
<h1>Runs compared</h1>"""


def html_page(
    tables: Sequence[TextTable], comparison: Comparison, figures: Mapping[str, Path], omitted: Sequence[Omitted]
) -> str:
    """Return a page with the tables, figures, the learning curve of each run, and a list of omissions."""
    body = [line for table in tables for line in section(escape_html(table.title), table.html())]
    for name, file in figures.items():
        title = name.replace("_", " ")
        figure = f'<figure class="wide"><img alt="{title}" src="{data_url(file.read_bytes())}"></figure>'
        body += section(title.capitalize(), figure)
    curves = []
    for row in comparison.rows:
        for run in row.runs:
            if (file := run.folder / CURVE).is_file():
                image = f'<img alt="learning curve" src="{data_url(file.read_bytes())}">'
                caption = f"<figcaption>{escape_html(f'{row.label}, seed {run.seed}')}</figcaption>"
                curves.append(f"<figure>{image}{caption}</figure>")
    if curves:
        body += section("Learning curve of each run", *curves)
    if omitted:
        listed = [f"<li>{escape_html(f'{place}: {reason}')}</li>" for place, reason in omitted]
        body += section("Left out", "<ul>", *listed, "</ul>")
    return "\n".join([HEAD, *body, "</body>", "</html>", ""])


def section(title: str, *lines: str) -> list[str]:
    """Return the lines of a section of the page."""
    return ["<section>", f"<h2>{title}</h2>", *lines, "</section>"]
