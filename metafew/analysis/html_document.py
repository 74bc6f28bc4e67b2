"""A self-contained HTML document with a table of contents."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from datetime import datetime
from html import escape

HEAD = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>metafew: {title}</title>
<style>
:root {{ color-scheme: light dark; --text: #1c1c1c; --paper: #ffffff; --faint: #555555; --line: #c8c8c8;
  --wrong: #b34700; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --text: #e6e6e6; --paper: #161616; --faint: #b0b0b0; --line: #444444; --wrong: #ff9a57; }}
}}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 90rem; margin: 2rem auto; padding: 0 1rem;
  color: var(--text); background: var(--paper); }}
h1 {{ font-size: 1.5rem; margin-bottom: 0; }} h2 {{ font-size: 1.15rem; margin-top: 2rem; }}
header p {{ color: var(--faint); margin: .3rem 0; }}
nav ul {{ padding-left: 0; }} nav li {{ display: inline-block; margin-right: 1.2rem; }} a {{ color: inherit; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }}
.scroll + .scroll {{ margin-top: 1.5rem; }}
th, td {{ padding: .3rem .6rem; text-align: right; vertical-align: bottom; border-bottom: 1px solid var(--line); }}
th {{ font-weight: 600; }} th:first-child {{ text-align: left; }}
td {{ white-space: nowrap; }} td.text {{ white-space: normal; text-align: left; }}
th[scope=row] {{ text-align: left; font-weight: normal; min-width: 9rem; position: sticky; left: 0;
  background: var(--paper); }}
ul {{ color: var(--faint); font-size: .9rem; padding-left: 1.2rem; overflow-wrap: anywhere; }}
pre {{ font-size: .8rem; white-space: pre-wrap; overflow-wrap: anywhere; max-height: 24rem; overflow-y: auto; }}
figure {{ display: inline-block; margin: .5rem; max-width: 100%; vertical-align: top; }}
img {{ max-width: 26rem; width: 100%; background: #ffffff; }}
figure.wide img {{ max-width: 60rem; }}
figure.small {{ width: 9rem; }}
figure.small img {{ max-width: 6rem; image-rendering: pixelated; border: 1px solid var(--line); }}
figcaption {{ font-size: .85rem; overflow-wrap: anywhere; max-width: 26rem; }}
.wrong figcaption {{ color: var(--wrong); }}
</style>
</head>
<body>
<header>
<h1>{title}</h1>
<p>{subject}, written {written} by</p>
<pre>{command}</pre>
<nav aria-label="Contents"><ul>"""


def document(title: str, subject: str, command: str, sections: Iterable[tuple[str, str]]) -> str:
    """Return a document.

    Args:
        title: the heading.
        subject: what it is about, in a few words.
        command: the command line that wrote it.
        sections: the title and the HTML of each section.
    """
    written = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    contents, body = [], []
    for number, (name, content) in enumerate(sections):
        contents.append(f'<li><a href="#{number}">{escape(name)}</a></li>')
        body.append(f'<section id="{number}">\n<h2>{escape(name)}</h2>\n{content}\n</section>')
    head = HEAD.format(title=escape(title), subject=escape(subject), written=written, command=escape(command))
    return "\n".join([head, *contents, "</ul></nav>\n</header>", *body, "</body>", "</html>", ""])


def figure(png: bytes, alt: str, caption: str = "", kind: str = "") -> str:
    """Return a figure with a PNG.

    Args:
        png: the content of the PNG.
        alt: a description of the picture.
        caption: HTML below the picture.
        kind: classes of the style sheet: ``wide``, or ``small`` and ``wrong``.
    """
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    classes, below = f' class="{kind}"' if kind else "", f"<figcaption>{caption}</figcaption>" if caption else ""
    return f'<figure{classes}><img alt="{escape(alt)}" src="{source}">{below}</figure>'
