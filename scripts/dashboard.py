"""Make a report in Weights & Biases that shows all runs of a project, grouped by what was chosen.

  python scripts/dashboard.py project=metafew [entity=ME] [heads=protonet,svm] [by=head,norm] [out=FILE.json]

The report has validation accuracy and TaskNorm's alphas over steps, test accuracies and seconds as bars, the figures
that runs left, and the table of test tasks. Bands and bars are means over the runs of a group. heads are those whose
accuracies are shown, by default all that metafew has; by are the choices that runs are grouped by, such as
by=norm,dataset. entity is a user or a team, by default yours. out=FILE.json writes the description instead of sending
it, which needs neither a key nor the package wandb-workspaces.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from metafew.errors import UsageError, carry_out
from metafew.io import CONF, write_json

DEFAULTS = {"project": "metafew", "entity": "", "heads": "", "by": "head,norm", "out": ""}
HEADS = sorted(file.stem for file in (CONF / "head").glob("*.yaml"))
STEP = "trainer/global_step"


def description(project: str, entity: str, heads: Sequence[str], by: Sequence[str]) -> dict[str, Any]:
    """Return the report as plain values: which runs, how they are grouped, and panels with the options of their class.

    Args:
        project: name of the project.
        entity: user or team, empty for one's own.
        heads: those whose accuracies are shown.
        by: groups of the configuration, such as ``norm``, whose words tell groups of runs apart.
    """
    band = {"x": STEP, "title_x": "step", "groupby_aggfunc": "mean", "groupby_rangefunc": "minmax"}
    validation, tested = ([f"{split}/{head}/accuracy" for head in heads] for split in ("val", "test"))
    panels = [
        {"panel": "LinePlot", "title": "validation accuracy", "y": validation, **band},
        {"panel": "BarPlot", "title": "test accuracy", "metrics": tested, "groupby_aggfunc": "mean"},
        {"panel": "LinePlot", "title": "training loss (nats)", "y": ["train/loss"], **band},
        {"panel": "LinePlot", "title": "alpha of TaskNorm", "metric_regex": r"alpha/layer\d+", **band},
        {"panel": "BarPlot", "title": "seconds", "metrics": ["seconds/fit", "seconds/test"], "groupby_aggfunc": "mean"},
        {"panel": "MediaBrowser", "title": "figures", "media_keys": ["figures/learning_curve", "figures/episode"]},
        {"panel": "WeavePanelSummaryTable", "table_name": "test_tasks"},
    ]
    layouts = [{"x": 12 * (number % 2), "y": 8 * (number // 2), "w": 12, "h": 8} for number in range(len(panels))]
    runs = {"entity": entity, "project": project, "name": "runs", "groupby": [f"config.choices.{word}" for word in by]}
    title = f"{project} by {' and '.join(by)}"
    placed = [{**panel, "layout": layout} for panel, layout in zip(panels, layouts, strict=True)]
    return {"title": title, "runs": runs, "panels": placed}


def send(described: dict[str, Any]) -> str:
    """Make the report that is described, and return its address."""
    if find_spec("wandb_workspaces") is None:
        raise UsageError(
            "a report wants the package wandb-workspaces, which is not installed: type pip install wandb-workspaces, "
            "or out=FILE.json for its description"
        )
    from metafew.loggers.wandb import has_wandb_key

    if not has_wandb_key():
        raise UsageError(
            "a report is kept by Weights & Biases, and there is no key to log in with: type wandb login, or "
            "out=FILE.json for its description"
        )
    made = report(described)
    made.save()
    return made.url


def report(described: dict[str, Any]):
    """Return the report that is described, made of the classes of wandb-workspaces."""
    import wandb_workspaces.reports.v2 as reports

    panels = [dict(panel) for panel in described["panels"]]
    made = [getattr(reports, p.pop("panel"))(layout=reports.Layout(**p.pop("layout")), **p) for p in panels]
    grid = reports.PanelGrid(runsets=[reports.Runset(**described["runs"])], panels=made)
    place = {key: described["runs"][key] for key in ("entity", "project") if described["runs"][key]}
    return reports.Report(title=described["title"], width="fluid", blocks=[grid], **place)


def dashboard(typed: Sequence[str]) -> None:
    """Do what the command line says."""
    options = DEFAULTS | dict(word.split("=", 1) for word in typed if "=" in word)
    unknown = [word for word in typed if word.split("=")[0] not in DEFAULTS or "=" not in word]
    if unknown:
        raise UsageError(f"a dashboard takes {', '.join(DEFAULTS)}, not {unknown[0]}: type project=metafew")
    heads = options["heads"].split(",") if options["heads"] else HEADS
    described = description(options["project"], options["entity"], heads, options["by"].split(","))
    if options["out"]:
        write_json(Path(options["out"]), described)
    print(f"the description is in {options['out']}" if options["out"] else f"the report is at {send(described)}")


def main(typed: Sequence[str]) -> int:
    """Carry out what is typed, and return the exit code."""
    return carry_out(dashboard, typed, __doc__)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
