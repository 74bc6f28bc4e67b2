"""Create a Weights & Biases report that shows all runs of a project, grouped by their choices.

  metafew dashboard project=metafew [entity=ME] [heads=protonet,svm] [by=head,norm] [out=FILE.json]

The report shows validation accuracy and TaskNorm's alphas over steps, test accuracies and seconds as bars, the figures
of the runs, and the table of test tasks. Bands and bars are means over the runs of a group. heads selects the heads
whose accuracies are shown (default: all heads of metafew); by lists the groups of options by which runs are grouped,
such as by=norm,dataset. entity is a user or a team (default: you). out=FILE.json writes the description to a file
instead of sending it, which requires neither a key nor the package wandb-workspaces.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from metafew.commands.command_line import own_options, run_command, written
from metafew.config.groups import options_of
from metafew.errors import UsageError
from metafew.io import write_json

DEFAULTS = {"project": "metafew", "entity": "", "heads": "", "by": "head,norm", "out": ""}
STEP = "trainer/global_step"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(dashboard, arguments, __doc__)


def dashboard(arguments: Sequence[str]) -> None:
    """Create the report, or write its description."""
    options, unknown = own_options(arguments, DEFAULTS)
    if unknown:
        raise UsageError(
            f"expected {', '.join(f'{key}=...' for key in DEFAULTS)}, got {unknown[0]}: type project=metafew"
        )
    heads = options["heads"].split(",") if options["heads"] else options_of("head")
    description = describe_report(options["project"], options["entity"], heads, options["by"].split(","))
    if options["out"]:
        with written(file := Path(options["out"]), "FILE.json"):
            write_json(file, description)
        print(f"the description is in {options['out']}")
    else:
        print(f"the report is at {send(description)}")


def describe_report(project: str, entity: str, heads: Sequence[str], by: Sequence[str]) -> dict[str, Any]:
    """Return the report as plain values: runs, grouping, and each panel with the options of its class.

    Args:
        project: name of the project.
        entity: user or team; empty for the user who is logged in.
        heads: the heads whose accuracies are shown.
        by: groups of the configuration, such as ``norm``; runs with the same options form one group.
    """
    band = {"x": STEP, "title_x": "step", "groupby_aggfunc": "mean", "groupby_rangefunc": "minmax"}
    validation, tested = ([f"{split}/{head}/accuracy" for head in heads] for split in ("val", "test"))
    failed = [f"val/{head}/failed" for head in heads] + [f"test/{head}/accuracy_failed" for head in heads]
    panels: list[dict[str, Any]] = [
        {"panel": "LinePlot", "title": "validation accuracy", "y": validation, **band},
        {"panel": "BarPlot", "title": "test accuracy", "metrics": tested, "groupby_aggfunc": "mean"},
        {"panel": "BarPlot", "title": "failed tasks", "metrics": failed, "groupby_aggfunc": "mean"},
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


def send(description: dict[str, Any]) -> str:
    """Create the report and return its address.

    Raises:
        UsageError: if wandb-workspaces is not installed, or there is no key.
    """
    if find_spec("wandb_workspaces") is None:
        raise UsageError(
            "expected the package wandb-workspaces, got no such package: type pip install wandb-workspaces, or "
            "out=FILE.json for the description"
        )
    from metafew.loggers.wandb import has_wandb_key

    if not has_wandb_key():
        raise UsageError(
            "expected a key of Weights & Biases, got none: type wandb login, or out=FILE.json for the description"
        )
    report = wandb_report(description)
    report.save()
    return report.url


def wandb_report(description: dict[str, Any]):
    """Return a description as a ``Report`` of wandb-workspaces."""
    import wandb_workspaces.reports.v2 as reports

    panels = [dict(panel) for panel in description["panels"]]
    made = [getattr(reports, p.pop("panel"))(layout=reports.Layout(**p.pop("layout")), **p) for p in panels]
    grid = reports.PanelGrid(runsets=[reports.Runset(**description["runs"])], panels=made)
    place = {key: description["runs"][key] for key in ("entity", "project") if description["runs"][key]}
    return reports.Report(title=description["title"], width="fluid", blocks=[grid], **place)
