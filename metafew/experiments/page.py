"""docs/reproduction.md: every experiment, its table beside the published one, and what became of each claim."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml

from metafew.analysis.compare.table import Sheet, markdown
from metafew.experiments.claims import MISSING
from metafew.experiments.record import evidence, panels, published
from metafew.io import CONF, read_json

INTRO = """\
# Reproduction

[metafew](../README.md) · next: [Compare](compare.md), [Understand](understand.md)

The claims of *Unraveling Meta-Learning* (Goldblum et al. 2020) and *TaskNorm* (Bronskill et al. 2020), one command a
table, on data that anyone can get. `make reproduce` runs them all at a small budget on two CPU cores, hours in all;
typed again it goes on where it stopped. One alone:

```
python train.py experiment=tasknorm_maml
python train.py experiment=tasknorm_maml seeds=[0,1,2] trainer.max_steps=2000
python train.py experiment=tasknorm_maml budget=paper
```

`budget=paper` has the papers' optimizers, schedules, steps, tasks a step and test tasks, on these data and
networks; `seeds=[0,1,2]` trains that often, `jobs=2` is how many runs share the cores, and all other words hold for
every run of the table. Runs stand in `outputs/cells`, in folders named after their words, so that a table finds there
what another made. Omniglot and Caltech-101 (`caltech101/101_ObjectCategories`) are looked for in `data_dir`.

A comparison holds or fails where the 95 % interval of the difference, over the same seeds or else over the same test
tasks, leaves out zero; elsewhere it is undecided. Where there is one seed, the verdict is on that one training. Of a
claim all comparisons must hold: then it is reproduced, and if only some do, partly. These are small networks and
budgets: what is not reproduced here is not refuted.

The page is made from the files in [results](results), which the commands left: `python scripts/reproduce.py page`."""


def page(results: Path) -> str:
    """Return the page, of NAME.json in ``results``, and NAME.md with remarks where there is one."""
    names = sorted(file.stem for file in (CONF / "experiment").glob("*.yaml"))
    parts = [INTRO, "## Claims", claims({name: read_json(results / f"{name}.json") for name in names})]
    for name in names:
        file = results / f"{name}.md"
        parts += section(name, read_json(results / f"{name}.json"), file.read_text().strip() if file.exists() else "")
    return "\n\n".join(filter(None, parts)) + "\n"


def claims(reports: Mapping[str, Mapping]) -> str:
    """Return the table of all claims."""
    sheet = Sheet("", ["here", "experiment"])
    for name, report in reports.items():
        found = report.get("claims") or [{"text": text, "verdict": MISSING} for text in described(name)["claims"]]
        sheet.rows += [[claim["text"], claim["verdict"], name] for claim in found]
    return table(sheet)


def described(name: str) -> Mapping:
    """Return an experiment as its YAML describes it."""
    return yaml.safe_load((CONF / "experiment" / f"{name}.yaml").read_text())["experiment"]


def section(name: str, report: Mapping, remarks: str) -> list[str]:
    """Return the paragraphs on one experiment."""
    about = report or described(name)
    command = report.get("command", f"python train.py experiment={name}")
    parts = [f"## {about['title']}", f"{about['paper']}: {about['setting'].strip()}", f"```\n{command}\n```"]
    if not report:
        return [*parts, "Not yet run."]
    steps = sorted({row["steps"] for row in report["rows"].values()} - {0})
    seeds = len(report["seeds"])
    parts.append(
        f"{', '.join(f'{count:,}' for count in steps)} training steps, {seeds} {'seeds' if seeds > 1 else 'seed'}, "
        f"{report['minutes']:.0f} minutes of runs."
    )
    parts += [table(sheet) for sheet in (*panels(report), *published(report))]
    parts += [f"![{figure}](pictures/{name}_{figure}.png)" for figure in report["figures"]]
    for claim in report["claims"]:
        lines = [f"- {markdown(line)}" for line in evidence(claim, report["columns"])]
        parts.append("\n".join([f"**{claim['text']}**: {claim['verdict']}.", "", *lines]))
    return [*parts, remarks]


def table(sheet: Sheet) -> str:
    """Return a table and its notes under their title, if it has one."""
    heading, _, rest = sheet.markdown().partition("\n")
    title = heading.removeprefix("## ").strip()
    return "\n\n".join(filter(None, [f"*{title}*" if title else "", rest.strip()]))
