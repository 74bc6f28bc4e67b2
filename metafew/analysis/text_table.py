"""A text table that renders to a terminal, Markdown, LaTeX and HTML."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from html import escape
from textwrap import fill
from typing import Any

from rich.table import Table
from rich.text import Text

CAPTION = "mean ± 95 % confidence interval over test tasks, in percent"
DAGGER = "† transductive: the prediction of a query may depend on the other queries of its task"
FAILED = "failed: tasks, of all seeds, with queries whose logits are not finite; such queries count as wrong"
LATEX = str.maketrans(
    {char: f"\\{char}" for char in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
    | {"±": r"$\pm$", "≈": r"$\approx$", "−": "$-$", "–": "--", "†": r"\textdagger{}", "‡": r"\textdaggerdbl{}"}
)
PADDING = 3  # characters of a column in a terminal besides its content


class Bold(str):
    """Text set in bold."""


@dataclass
class TextTable:
    """A text table.

    Attributes:
        title: its title.
        columns: the names of the columns, except the first.
        rows: the cells, of which the first is the name of the row.
        notes: lines below the table.
        corner: the name of the first column.
    """

    title: str
    columns: list[str]
    rows: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    corner: str = ""

    @property
    def header(self) -> list[str]:
        """The names of all columns."""
        return [self.corner, *self.columns]

    def column_widths(self) -> list[int]:
        """Return the smallest width of each column in characters: numbers stay in one line, words are not broken."""
        return [
            max(len(part) for text in column for part in unbreakable(text))
            for column in zip(self.header, *self.rows, strict=True)
        ]

    def turned(self) -> TextTable:
        """Return the table with rows as columns, whose names the corner then describes."""
        names, *columns = zip(*self.rows, strict=True)
        rows = [[name, *cells] for name, cells in zip(self.columns, columns, strict=True)]
        return replace(self, columns=list(names), rows=rows)

    def fitting(self, width: int) -> list[TextTable]:
        """Return tables with the same cells that fit in ``width`` characters, in which notes follow the last one.

        A table that is too wide is turned if it then fits, and otherwise split by columns.
        """
        if self.full_width() <= width:
            return [self]
        if self.rows and (turned := self.turned()).full_width() <= width:
            return [turned]
        first, *widths = self.column_widths()
        parts: list[list[int]] = [[]]
        for number, own in enumerate(widths):
            used = 1 + min(first, width // 3) + PADDING + sum(widths[other] + PADDING for other in parts[-1])
            if parts[-1] and used + own + PADDING > width:
                parts.append([])
            parts[-1].append(number)
        tables = [
            replace(
                self,
                title=f"{self.title} ({place} of {len(parts)})",
                columns=[self.columns[number] for number in part],
                rows=[[row[0], *(row[1 + number] for number in part)] for row in self.rows],
                notes=self.notes if place == len(parts) else [],
            )
            for place, part in enumerate(parts, 1)
        ]
        return tables if len(parts) > 1 else [self]

    def full_width(self) -> int:
        """Return the smallest width of the table in a terminal, in characters."""
        return 1 + sum(width + PADDING for width in self.column_widths())

    def rich(self) -> Table:
        """Render for a terminal, without notes."""
        table = Table(title=Text(self.title))
        for number, (column, width) in enumerate(zip(self.header, self.column_widths(), strict=True)):
            numeric = number > 0 and all(unbreakable(row[number]) == [row[number]] for row in self.rows)
            name = fill(column, max(width, 1), break_long_words=False) if numeric else column
            justify: Any = "right" if number else "left"
            table.add_column(Text(name), justify=justify, no_wrap=numeric, overflow="fold")
        for row in self.rows:
            table.add_row(*(Text(cell, style="bold" if isinstance(cell, Bold) else "") for cell in row))
        return table

    def markdown(self) -> str:
        """Render to Markdown."""
        rows = [[escape_markdown(cell) for cell in row] for row in [self.header, *self.rows]]
        rows.insert(1, ["---"] + ["---:"] * len(self.columns))
        table = ["| " + " | ".join(row) + " |" for row in rows]
        notes = (f"- {escape_markdown(note)}" for note in self.notes)
        return "\n".join([f"## {escape_markdown(self.title)}", "", *table, "", *notes, ""])

    def latex(self) -> str:
        """Render to LaTeX; requires the package booktabs."""
        head, *rows = ("    " + " & ".join(map(escape_latex, row)) + r" \\" for row in [self.header, *self.rows])
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
        head = "".join(f'<th scope="col">{escape_html(column)}</th>' for column in self.header)
        cells = [[cell_html(cell) for cell in row[1:]] for row in self.rows]
        names = [f'<th scope="row">{escape_html(row[0])}</th>' for row in self.rows]
        rows = [f"<tr>{name}{''.join(row)}</tr>" for name, row in zip(names, cells, strict=True)]
        notes = ["<ul>", *(f"<li>{escape_html(note)}</li>" for note in self.notes), "</ul>"] if self.notes else []
        table = [f"<thead><tr>{head}</tr></thead>", "<tbody>", *rows, "</tbody>"]
        return "\n".join(['<div class="scroll"><table>', *table, "</table></div>", *notes])


def unbreakable(text: str) -> list[str]:
    """Return the parts of a text that stay in one line: its words, or all of it if it is a number.

    >>> unbreakable("≈ 81.94 ± 0.96"), unbreakable("head=svm norm=batch"), unbreakable("−0.5 ‡"), unbreakable("")
    (['≈ 81.94 ± 0.96'], ['head=svm', 'norm=batch'], ['−0.5 ‡'], [''])
    """
    return [text] if re.match(r"[+−–≈\d]|$", text) else text.split()


def cell_html(text: str) -> str:
    """Return a cell of an HTML table, in which only text is wrapped."""
    words = "" if unbreakable(text) == [text] else ' class="text"'
    return f"<td{words}>{escape_html(text)}</td>"


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


def in_groups(lines: list[list[str]], transductive: Sequence[bool]) -> list[list[str]]:
    """Return the lines of a table of heads, with headings if there are both inductive and transductive ones.

    Args:
        lines: the cells of each head, with inductive heads first.
        transductive: whether each head is transductive; empty if the rows are not heads.
    """
    if len(set(transductive)) < 2:
        return lines
    first, blank = transductive.index(True), [""] * (len(lines[0]) - 1)
    return [[Bold("inductive"), *blank], *lines[:first], [Bold("transductive"), *blank], *lines[first:]]
