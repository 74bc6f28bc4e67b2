"""A text table that renders to a terminal, Markdown, LaTeX and HTML."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html import escape

from rich.table import Table
from rich.text import Text

CAPTION = "mean ± 95 % confidence interval over test tasks, in percent"
DAGGER = "† transductive: the prediction of a query may depend on the other queries of its task"
FAILED = "failed: tasks, of all seeds, with queries whose logits are not finite; such queries count as wrong"
LATEX = str.maketrans(
    {char: f"\\{char}" for char in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
    | {"±": r"$\pm$", "−": "$-$", "–": "--", "†": r"\textdagger{}", "‡": r"\textdaggerdbl{}"}
)


class Bold(str):
    """Text set in bold."""


@dataclass
class TextTable:
    """A text table: title, column names except the first, rows, and notes below it."""

    title: str
    columns: list[str]
    rows: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def rich(self) -> Table:
        """Render for a terminal, without notes."""
        table = Table(title=Text(self.title))
        for number, column in enumerate(["", *self.columns]):
            table.add_column(Text(column), justify="right" if number else "left")
        for row in self.rows:
            table.add_row(*(Text(cell, style="bold" if isinstance(cell, Bold) else "") for cell in row))
        return table

    def markdown(self) -> str:
        """Render to Markdown."""
        rows = [[escape_markdown(cell) for cell in row] for row in [["", *self.columns], *self.rows]]
        rows.insert(1, ["---"] + ["---:"] * len(self.columns))
        table = ["| " + " | ".join(row) + " |" for row in rows]
        notes = (f"- {escape_markdown(note)}" for note in self.notes)
        return "\n".join([f"## {escape_markdown(self.title)}", "", *table, "", *notes, ""])

    def latex(self) -> str:
        """Render to LaTeX; requires the package booktabs."""
        head, *rows = (
            "    " + " & ".join(map(escape_latex, row)) + r" \\" for row in [["", *self.columns], *self.rows]
        )
        notes = " \\\\\n  ".join(map(escape_latex, self.notes))
        return "\n".join(
            [
                r"\begin{table}",
                r"  \centering",
                rf"  \caption{{{escape_latex(self.title)}}}",
                rf"  \begin{{tabular}}{{l{'r' * len(self.columns)}}}",
                *(r"    \toprule", head, r"    \midrule", *rows, r"    \bottomrule"),
                *(r"  \end{tabular}", "", rf"  \footnotesize {notes}" if notes else "  %", r"\end{table}", ""),
            ]
        )

    def html(self) -> str:
        """Render to HTML, without the title."""
        head = "".join(f'<th scope="col">{escape_html(column)}</th>' for column in ["", *self.columns])
        cells = [[f"<td>{escape_html(cell)}</td>" for cell in row[1:]] for row in self.rows]
        names = [f'<th scope="row">{escape_html(row[0])}</th>' for row in self.rows]
        rows = [f"<tr>{name}{''.join(row)}</tr>" for name, row in zip(names, cells, strict=True)]
        notes = [f"<li>{escape_html(note)}</li>" for note in self.notes]
        lines = ['<div class="wide"><table>', f"<thead><tr>{head}</tr></thead>", "<tbody>", *rows, "</tbody>"]
        return "\n".join([*lines, "</table></div>", *(["<ul>", *notes, "</ul>"] if notes else [])])


def escape_markdown(text: str) -> str:
    r"""Escape text for Markdown.

    >>> escape_markdown("a|b*c <d> test_steps"), escape_markdown(Bold("1.00"))
    ('a\\|b\\*c \\<d> test_steps', '**1.00**')
    """
    plain = re.sub(r"([\\|*<`~]|(?<!\w)_|_(?!\w))", r"\\\1", text)
    return f"**{plain}**" if isinstance(text, Bold) else plain


def escape_latex(text: str) -> str:
    r"""Escape text for LaTeX.

    >>> escape_latex("50 % of a_b"), escape_latex(Bold("1 ± 2"))
    ('50 \\% of a\\_b', '\\textbf{1 $\\pm$ 2}')
    """
    plain = text.translate(LATEX)
    return rf"\textbf{{{plain}}}" if isinstance(text, Bold) else plain


def escape_html(text: str) -> str:
    """Escape text for HTML.

    >>> escape_html("a < b"), escape_html(Bold("1.00"))
    ('a &lt; b', '<b>1.00</b>')
    """
    return f"<b>{escape(text)}</b>" if isinstance(text, Bold) else escape(text)
