"""A table of text, for a terminal, Markdown, LaTeX and HTML."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html import escape

from rich.table import Table
from rich.text import Text

CAPTION = "mean ± 95 % confidence interval over test tasks, in percent"
DAGGER = "† transductive: a query is classified with the help of the other queries of its task"
LATEX = str.maketrans(
    {char: f"\\{char}" for char in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
    | {"±": r"$\pm$", "−": "$-$", "–": "--", "†": r"\textdagger{}", "‡": r"\textdaggerdbl{}"}
)


class Bold(str):
    """Text that stands out."""


@dataclass
class Sheet:
    """A table of text: a title, the names of the columns, rows, and lines that stand below."""

    title: str
    columns: list[str]
    rows: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def rich(self) -> Table:
        """Return the table for a terminal, without the lines below."""
        table = Table(title=Text(self.title))
        for number, column in enumerate(["", *self.columns]):
            table.add_column(Text(column), justify="right" if number else "left")
        for row in self.rows:
            table.add_row(*(Text(cell, style="bold" if isinstance(cell, Bold) else "") for cell in row))
        return table

    def markdown(self) -> str:
        """Return the table and the lines below as Markdown."""
        rows = [[markdown(cell) for cell in row] for row in [["", *self.columns], *self.rows]]
        rows.insert(1, ["---"] + ["---:"] * len(self.columns))
        table = ["| " + " | ".join(row) + " |" for row in rows]
        notes = (f"- {markdown(note)}" for note in self.notes)
        return "\n".join([f"## {markdown(self.title)}", "", *table, "", *notes, ""])

    def latex(self) -> str:
        """Return the same as a table of LaTeX, for the package booktabs."""
        head, *rows = ("    " + " & ".join(map(latex, row)) + r" \\" for row in [["", *self.columns], *self.rows])
        notes = " \\\\\n  ".join(map(latex, self.notes))
        return "\n".join(
            [
                r"\begin{table}",
                r"  \centering",
                rf"  \caption{{{latex(self.title)}}}",
                rf"  \begin{{tabular}}{{l{'r' * len(self.columns)}}}",
                *(r"    \toprule", head, r"    \midrule", *rows, r"    \bottomrule"),
                *(r"  \end{tabular}", "", rf"  \footnotesize {notes}" if notes else "  %", r"\end{table}", ""),
            ]
        )

    def html(self) -> str:
        """Return the same as a section of HTML."""
        head = "".join(f'<th scope="col">{html(column)}</th>' for column in ["", *self.columns])
        rows = [
            f'<tr><th scope="row">{html(row[0])}</th>{"".join(f"<td>{html(cell)}</td>" for cell in row[1:])}</tr>'
            for row in self.rows
        ]
        notes = [f"<li>{html(note)}</li>" for note in self.notes]
        table = [f"<thead><tr>{head}</tr></thead>", "<tbody>", *rows, "</tbody>"]
        body = ['<div class="wide"><table>', *table, "</table></div>", "<ul>", *notes, "</ul>"]
        return "\n".join(["<section>", f"<h2>{html(self.title)}</h2>", *body, "</section>"])


def markdown(text: str) -> str:
    r"""Return text as Markdown shows it.

    >>> markdown("a|b*c <d> test_steps"), markdown(Bold("1.00"))
    ('a\\|b\\*c \\<d> test_steps', '**1.00**')
    """
    plain = re.sub(r"([\\|*<`~]|(?<!\w)_|_(?!\w))", r"\\\1", text)
    return f"**{plain}**" if isinstance(text, Bold) else plain


def latex(text: str) -> str:
    r"""Return text as LaTeX sets it.

    >>> latex("50 % of a_b"), latex(Bold("1 ± 2"))
    ('50 \\% of a\\_b', '\\textbf{1 $\\pm$ 2}')
    """
    plain = text.translate(LATEX)
    return rf"\textbf{{{plain}}}" if isinstance(text, Bold) else plain


def html(text: str) -> str:
    """Return text as HTML shows it.

    >>> html("a < b"), html(Bold("1.00"))
    ('a &lt; b', '<b>1.00</b>')
    """
    return f"<b>{escape(text)}</b>" if isinstance(text, Bold) else escape(text)
