"""The tables printed by a run."""

from __future__ import annotations

import re

from rich.console import Console
from rich.table import Table

from metafew.evaluation.results import BEST
from metafew.evaluation.statistics import (
    Interval,
    format_difference,
    format_failed,
    format_options,
    format_percent,
)

DIRICHLET = "proportions of the classes of queries: Dirichlet({dirichlet:g})"


def print_results(report: dict) -> None:
    """Print a table of accuracies and baselines and, for a mixture, one by dataset."""
    console = Console()
    for head, choice in report["chosen"].items():
        print(f"{head}: {format_options(choice)} chosen on validation tasks")
    console.print(table_of_heads(report))
    if len(report["sources"]) > 1:
        console.print(table_by_source(report))


def table_of_heads(report: dict) -> Table:
    """Return a table of inductive heads, transductive heads and baselines.

    If there are several heads, it also shows paired differences from the best one, ranks and times.
    """
    choices = report["choices"] | ({"dataset": next(iter(report["sources"]))} if len(report["sources"]) == 1 else {})
    several = sum("/" not in name for name in report["heads"]) > 1
    marked = {name for name, head in report["heads"].items() if head["transductive"]}
    mixed = 0 < len(marked) < len(report["heads"])
    table = Table(title=" ".join(f"{group}={word}" for group, word in choices.items()))
    table.add_column("measured")
    for column in ("accuracy", *["difference"] * several, "tasks", *["rank", "ms\na task"] * several):
        table.add_column(column, justify="right")
    sections: dict[str, list[list[str]]] = {"inductive": [], "transductive": [], "baselines": []}
    for name, value in {**report["metrics"], **report["baselines"]}.items():
        part = set(name.split("/")[2:-1]) & set(report["sources"])  # test/HEAD/.../SOURCE/accuracy
        if name.endswith("loss") or part or re.search(r"/step\d+/", name):
            continue
        label = name.removeprefix("test/").removesuffix("/accuracy").removesuffix("accuracy")
        section = "transductive" if label.split("/")[0] in marked else "inductive"
        head, gap = report["heads"].get(label), format_gap(report["differences"].get(label), label)
        further = ["", ""] if head is None else [f"{head['rank']:.1f}", f"{1000 * head['seconds_per_task']:.2f}"]
        label += f" ({value['step']}, selected on test)" if name.endswith(BEST) else ""
        label += " †" * (mixed and section == "transductive")
        row = [label, percent(value), *[gap] * several, str(value["tasks"]), *further * several]
        sections["baselines" if name in report["baselines"] else section].append(row)
    for rows in sections.values():
        for row in rows:
            table.add_row(*row)
        table.add_section()
    mode = "† transductive" if mixed else "transductive" if report["transductive"] else "not transductive"
    gaps = "\ndifference from the best head, in points, paired by test task" * several
    queries = f"\n{DIRICHLET.format(**report['config']['test'])}" if report["balance"] == "dirichlet" else ""
    table.caption = f"mean ± 95 % confidence interval over test tasks, {mode}{gaps}\n{tested_on(report)}{queries}"
    return table


def format_gap(gap: Interval | None, name: str) -> str:
    """Format the difference of ``name`` from the best head, if any was measured; that head itself has a dash.

    >>> gap = {"to": "svm", "mean": -0.0123, "ci95": 0.004}
    >>> format_gap(gap, "ridge"), format_gap(gap, "ridge/shot5"), format_gap(gap, "svm/shot5"), format_gap(None, "svm")
    ('−1.23 ± 0.40', '−1.23 ± 0.40', '–', '')
    """
    if gap is None:
        return ""
    return "–" if name.split("/")[0] == gap["to"] else format_difference(gap)


def tested_on(report: dict) -> str:
    """Describe the numbers of distinct images and classes in the tests.

    >>> tested_on({"tested_on": {"glyphs": {"classes": 12, "images": 60}}})
    'test: 12 classes, 60 images'
    """
    return "test: " + "; ".join(
        f"{source} " * (len(report["tested_on"]) > 1) + f"{found['classes']} classes, {found['images']} images"
        for source, found in report["tested_on"].items()
    )


def table_by_source(report: dict) -> Table:
    """Return a table with one row per dataset of a mixture and one column per head, for the first shot."""
    first = next(iter(report["sources"]))
    heads = [n.split("/")[1] for n in report["metrics"] if n.split("/")[2:] == [first, "accuracy"]]
    table = Table(title="accuracy (%) on each dataset")
    table.add_column("dataset", no_wrap=True)
    table.add_column("trained on")
    for column in (*heads, "tasks"):
        table.add_column(column, justify="right", no_wrap=True)
    for source, seen in report["sources"].items():
        values = [report["metrics"][f"test/{head}/{source}/accuracy"] for head in heads]
        table.add_row(
            source, trained_on(seen, report["data"].get(source, {})), *map(short, values), str(values[0]["tasks"])
        )
    if "average_rank" in report:
        table.add_section()
        table.add_row("average rank", "", *(f"{report['average_rank'][head]:.2f}" for head in heads), "")
    return table


def trained_on(seen: bool, summary: dict) -> str:
    """Return whether a dataset was in the training data, itself or through images shared with another dataset.

    >>> trained_on(False, {"shared": {"source": "glyphs", "share": 0.25, "trained": 0.0}})
    'no (25 % same images)'
    """
    share = summary.get("shared", {}).get("share", 0.0)
    if seen or not share:
        return "yes" if seen else "no"
    return "yes (same images)" if share >= 0.5 else f"no ({max(1, round(100 * share))} % same images)"


def percent(value: dict) -> str:
    """Format a mean and its interval for a table."""
    return format_percent(value, " %")


def short(value: dict) -> str:
    """Format a mean and its interval with one decimal, for tables with many columns."""
    return format_percent(value | {"failed": 0}, digits=1).replace(" ", "") + format_failed(value["failed"])
