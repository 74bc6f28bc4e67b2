"""One page of HTML that needs nothing beside it."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path

from metafew.analysis.compare.comparison import Comparison
from metafew.analysis.compare.runs import Omitted
from metafew.analysis.compare.table import Sheet, html

CURVE = "learning_curve.png"
STYLE = """
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
"""


def page(sheets: Sequence[Sheet], table: Comparison, figures: Mapping[str, Path], omitted: Sequence[Omitted]) -> str:
    """Return the tables, the figures of several runs, the learning curves that runs left, and what was left out."""
    curves = [
        f'<figure><img alt="learning curve" src="{embedded(file)}"><figcaption>{html(about)}</figcaption></figure>'
        for row in table.rows
        for run in row.runs
        if (file := run.folder / CURVE).is_file() and (about := f"{row.label}, seed {run.seed}")
    ]
    body = [sheet.html() for sheet in sheets]
    for name, file in figures.items():
        about = name.replace("_", " ")
        shown = f'<figure class="wide"><img alt="{about}" src="{embedded(file)}"></figure>'
        body += ["<section>", f"<h2>{about.capitalize()}</h2>", shown, "</section>"]
    if curves:
        body += ["<section>", "<h2>Learning curve of each run</h2>", *curves, "</section>"]
    if omitted:
        listed = [f"<li>{html(str(place))}: {html(reason)}</li>" for place, reason in omitted]
        body += ["<section>", "<h2>Left out</h2>", "<ul>", *listed, "</ul>", "</section>"]
    head = [
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        "<title>metafew: runs compared</title>",
        f"<style>{STYLE}</style>",
    ]
    whole = ["<!doctype html>", '<html lang="en">', "<head>", *head, "</head>", "<body>", "<h1>Runs compared</h1>"]
    return "\n".join([*whole, *body, "</body>", "</html>", ""])


def embedded(file: Path) -> str:
    """Return a PNG as an address that holds it."""
    return f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"
