"""Generate docs/reproduction.md: the tables, figures and claims of every experiment. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from textwrap import fill

import yaml

from metafew.analysis.text_table import escape_markdown
from metafew.config.groups import CONF, options_of
from metafew.experiments.claims_table import claims_tables
from metafew.experiments.record import evidence_lines, measured_seeds, panel_tables, published_only
from metafew.io import read_json

INTRO = """\
# Reproduction

[metafew](../README.md) · next: [Compare](compare.md), [Understand](understand.md)

This page checks claims of *Unraveling Meta-Learning* (Goldblum et al. 2020) and *TaskNorm* (Bronskill et al. 2020), and
two claims of Veilleux et al. 2021, which come with tables of all heads. One command makes each table. `make reproduce`
runs all of them at a small budget, which takes about 13 hours on two CPU cores; the same command resumes after an
interruption. To run a single experiment:

```
python train.py experiment=tasknorm_maml
python train.py experiment=tasknorm_maml seeds=[0,1,2] trainer.max_steps=2000
python train.py experiment=tasknorm_maml budget=paper
```

`budget=paper` uses the optimizers, schedules, steps, tasks per step and test tasks of the papers, as far as these state
them, on the data and networks below, and `budget=medium`, which some experiments have, is between this and the small
budget. `seeds=[0,1,2]` trains three times, `jobs=2` runs two trainings at a time, and all other overrides apply to
every run of the table. An experiment first prints how many trainings it runs and, if it has been measured, how long
they take. Its table, results and figures are written to `outputs/NAME`; `make reproduce` and `metafew reproduce NAME`
also copy results and figures to `docs` in the current folder, in place of those shown here. Runs are kept in
`outputs/cells`, in folders whose names are hashes of their overrides, so that tables share them. Omniglot is
downloaded; [mini-ImageNet](data.md) and [Caltech-101](https://data.caltech.edu/records/mzrjq-6wc02)
(`caltech101/101_ObjectCategories`) are expected in `data_dir`.

An inequality holds if the 95 % interval of the difference, over the same seeds or else over the same test tasks, lies
on the claimed side of zero, and fails if it lies on the other side; an equality holds if the interval lies within the
tolerance, and fails if it lies outside. Otherwise a comparison is undecided. With one seed, the verdict applies to that
one training. A claim is reproduced if all of its comparisons hold, partly reproduced if some hold, not reproduced if
none holds and at least one fails, and otherwise undecided. These networks and budgets are small: a claim that is not
reproduced here is not refuted. The values in the tables of claims are those of a claim's first comparison, in percent
where they are accuracies; all comparisons follow below. The second number of steps is that of `budget=paper`; where the
papers state none, as for all heads, inner learning rates and ProtoNets, it is our choice. A claim that the paper does
not make has *ours* in the column *in*. Results marked *reported* instead of *published* are quoted from a secondary
source, and have not been checked against the paper.

This page is generated from the files in [results](results): `metafew reproduce page`."""


def reproduction_page(results: Path) -> str:
    """Return the page in Markdown.

    Args:
        results: the folder with NAME.json, the results of each experiment, and NAME.md, optional remarks.
    """
    names = options_of("experiment")
    reports = {name: read_reports(results, name) for name in names}
    tables = claims_tables({name: read_yaml(name) for name in names}, reports)
    parts = [INTRO, "## Claims", *(with_italic_title(table.markdown()) for table in tables)]
    for name, of_budgets in reports.items():
        remarks = results / f"{name}.md"
        for report in of_budgets or [{}]:
            parts += experiment_section(name, report)
        parts += [remarks.read_text(encoding="utf-8").strip()] if remarks.exists() else []
    return "\n\n".join(parts) + "\n"


def read_reports(results: Path, name: str) -> list[Mapping]:
    """Return the results of an experiment with each budget, largest first; its YAML lists them from small to large."""
    files = [results_file(results, name, budget) for budget in reversed(read_yaml(name)["budgets"])]
    return [read_json(file) for file in files if file.is_file()]


def results_file(results: Path, name: str, budget: str) -> Path:
    """Return the file of an experiment's results with a budget: NAME.json with ``small``, else NAME-BUDGET.json."""
    return results / f"{name}{'' if budget == 'small' else f'-{budget}'}.json"


def read_yaml(name: str) -> Mapping:
    """Return the node ``experiment`` of an experiment's YAML."""
    return yaml.safe_load((CONF / "experiment" / f"{name}.yaml").read_text(encoding="utf-8"))["experiment"]


def experiment_section(name: str, report: Mapping) -> list[str]:
    """Return the paragraphs about one experiment."""
    about = report or read_yaml(name)
    command = report.get("command", f"python train.py experiment={name}")
    setting = wrap(f"{about['paper']}: {about['setting'].strip()}")
    budget = report.get("budget", "small")
    heading = about["title"] if budget == "small" else f"{about['title']}, budget={budget}"
    parts = [f"## {heading}", setting, f"```\n{command}\n```"]
    if not report:
        return [*parts, "Not yet run."]
    stem = results_file(Path(), name, budget).stem
    steps = sorted({row["steps"] for row in report["rows"].values()} - {0})
    seeds = measured_seeds(report, list(report["rows"]))
    parts.append(
        f"{', '.join(f'{count:,}' for count in steps)} training steps, {seeds} {'seeds' if seeds > 1 else 'seed'}, "
        f"{report['minutes']:.0f} minutes of run time."
    )
    tables = [table.markdown() for table in (*panel_tables(report), *published_only(report))]
    parts += map(with_italic_title, [*tables, *report.get("heads", [])])
    parts += [f"![{figure}](pictures/{stem}_{figure}.png)" for figure in report["figures"]]
    for claim in report["claims"]:
        lines = [wrap(f"- {escape_markdown(line)}") for line in evidence_lines(claim, report["columns"])]
        parts.append("\n".join([f"**{claim['text']}**: {claim['verdict']}.", "", *lines]))
    return parts


def with_italic_title(table: str) -> str:
    """Return a table in Markdown with an italic title, if any, instead of a heading."""
    heading, *lines = table.strip().split("\n")
    title = heading.removeprefix("## ").strip()
    body = "\n".join(wrap(line) if line.startswith("- ") else line for line in lines).strip()
    return "\n\n".join(filter(None, [f"*{title}*" if title else "", body]))


def wrap(text: str) -> str:
    """Wrap a paragraph or a list item to 120 characters."""
    indent = "  " if text.startswith("- ") else ""
    return fill(text, 120, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False)
