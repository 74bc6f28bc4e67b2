"""A self-contained HTML document with a list of contents."""

from __future__ import annotations

import base64
from collections.abc import Mapping
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
header p {{ color: var(--faint); margin: .3rem 0; }} a {{ color: inherit; }}
nav ul {{ padding-left: 0; }} nav li {{ display: inline-block; margin-right: 1.2rem; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .3rem .6rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }}
th {{ font-weight: 600; }} th[scope=row] {{ text-align: left; font-weight: normal; }}
ul {{ padding-left: 1.2rem; overflow-wrap: anywhere; }}
pre {{ font-size: .8rem; white-space: pre-wrap; overflow-wrap: anywhere; }}
figure {{ display: inline-block; margin: .5rem; max-width: 100%; vertical-align: top; }}
figure.full img {{ width: 100%; max-width: 75rem; background: #ffffff; }}
figure.small {{ width: 9rem; }}
figure.small img {{ width: 6rem; image-rendering: pixelated; border: 1px solid var(--line); }}
figcaption {{ font-size: .8rem; overflow-wrap: anywhere; }} .wrong figcaption {{ color: var(--wrong); }}
</style>
</head>
<body>
<header>
<h1>{title}</h1>
<p>written {written} by</p>
<pre>{command}</pre>
<nav aria-label="Contents"><ul>"""


def document(title: str, command: str, sections: Mapping[str, str]) -> str:
    """Return a document.

    Args:
        title: the heading.
        command: the command line that wrote it.
        sections: the HTML of each section by its title.
    """
    written = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    lines = [HEAD.format(title=escape(title), written=written, command=escape(command))]
    lines += [f'<li><a href="#{number}">{escape(name)}</a></li>' for number, name in enumerate(sections)]
    lines.append("</ul></nav>\n</header>")
    for number, (name, content) in enumerate(sections.items()):
        lines.append(f'<section id="{number}">\n<h2>{escape(name)}</h2>\n{content}\n</section>')
    return "\n".join([*lines, "</body>", "</html>", ""])


def data_url(png: bytes) -> str:
    """Return the content of a PNG as a data URL."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
