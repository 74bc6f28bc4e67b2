"""Tables of heads in reports: inductive and transductive ones apart, ranks, times and paired differences."""

import csv
import os
from types import SimpleNamespace

import numpy as np
import pytest
from run_folders import accuracies, comparison_of, finished

from metafew.analysis.compare.find import find_runs
from metafew.analysis.compare.heads_as_rows import heads_as_rows
from metafew.analysis.compare.tables import arrange, report_tables
from metafew.analysis.text_table import DAGGER, Bold
from metafew.commands import report
from metafew.evaluation.statistics import format_difference, interval
from metafew.experiments.head_tables import head_tables, runs_by_panel

HEADS = {"protonet": accuracies(0), "tim": accuracies(0, 0.1), "svm": accuracies(1)}
SECONDS = {"protonet": 1e-3, "tim": 0.5, "svm": 2e-3}


def entries(transductive=("tim",)):
    """Return what results.json says of heads."""
    return {
        name: {"transductive": name in transductive, "rank": 1.0, "seconds_per_task": seconds}
        for name, seconds in SECONDS.items()
    }


@pytest.fixture
def runs(tmp_path):
    for norm in ("batch", "layer"):
        finished(tmp_path / norm, HEADS, norm=norm, transductive=True, heads=entries())
    finished(tmp_path / "transductive", HEADS, norm="transductive", heads=entries(HEADS))
    return tmp_path


def test_a_transductive_head_marks_no_other(runs):
    comparison = comparison_of(runs)
    accuracy = report_tables(comparison, None, "ci95")[0]
    assert accuracy.columns[:3] == ["protonet", "tim †", "svm"] and DAGGER in accuracy.notes
    assert [row[0] for row in accuracy.rows[:3]] == ["norm=batch", "norm=layer", "norm=transductive †"]
    assert not any("†" in cell for row in accuracy.rows for cell in row[1:])
    arranged = report_tables(comparison, None, "ci95", arrange(comparison, None, "norm"))
    marks = [["†" in cell for row in table.rows for cell in row[1:]] for table in arranged[:3]]
    assert marks == [[False, False, True], [True, True, True], [False, False, True]]


def test_heads_are_rows_in_two_groups_with_ranks_times_and_paired_differences(runs):
    table, gaps = report_tables(comparison_of(runs), None, "ci95")[2:4]
    assert table.columns == ["norm=batch", "norm=layer", "norm=transductive †", "average rank", "ms a task"]
    names = ["inductive", "protonet", "svm", "transductive", "tim †"]
    assert [row[0] for row in table.rows] == [*names, "pixels_1nn"] and [row[0] for row in gaps.rows] == names
    assert [row[-1] for row in table.rows] == ["", "1.00", "2.00", "", "500.00", ""]
    assert table.rows[4][-2] == "1.00" and all(isinstance(cell, Bold) for cell in table.rows[4][1:4])
    assert gaps.rows[4][1:] == ["+0.00"] * 3
    assert gaps.rows[2][1:] == [format_difference(interval(HEADS["svm"] - HEADS["tim"]))] * 3


def test_the_report_writes_them(runs, tmp_path, capsys):
    assert report.main([str(runs), f"out={tmp_path}/report"]) == 0
    assert "Difference from the best head (points)" in capsys.readouterr().out
    page = (tmp_path / "report" / "index.html").read_text()
    assert "<b>transductive</b>" in page and "tim †" in page
    with (tmp_path / "report" / "heads.csv").open() as file:
        every = [*csv.DictReader(file)]
    rows = [row for row in every if row["runs"] == "svm"]
    assert {row["measure"] for row in every} == {row["measure"] for row in rows}, "a baseline is that of no head"
    assert [row["measure"] for row in rows] == [f"norm={norm}" for norm in ("batch", "layer", "transductive")]
    assert float(rows[0]["difference"]) == pytest.approx((HEADS["svm"] - HEADS["tim"]).mean())
    assert [row["transductive"] for row in rows] == ["False", "False", "True"] and rows[0]["paired"] == "True"
    with (tmp_path / "report" / "runs.csv").open() as file:
        marked = {(row["norm"], row["measured"]) for row in csv.DictReader(file) if row["transductive"] == "True"}
    assert marked == {("batch", "tim"), ("layer", "tim"), *(("transductive", head) for head in HEADS)}


def test_the_last_line_says_if_an_earlier_report_is_replaced(tmp_path, capsys):
    finished(tmp_path / "a", accuracies(0))
    for replaced in ("", " (in place of an earlier report)"):
        assert report.main([str(tmp_path / "a"), f"out={tmp_path}/report"]) == 0
        assert f"\n1 run is compared in {tmp_path}/report{replaced}: table.md" in capsys.readouterr().out


def test_heads_of_one_run_have_ranks_too(tmp_path):
    finished(tmp_path / "a", {"protonet": accuracies(0), "svm": accuracies(0, 0.1)})
    table, gaps, *_ = report_tables(comparison_of(tmp_path), None, "ci95")  # none has the run as its only row
    assert [row[0] for row in gaps.rows] == ["protonet", "svm"]
    assert table.columns == ["accuracy", "average rank"] and [row[-1] for row in table.rows] == ["2.00", "1.00", ""]


def test_columns_of_heads_do_not_repeat_a_baseline(runs):
    accuracy, _, heads, *_ = report_tables(comparison_of(runs), None, "ci95")
    assert [row[0].split("=")[0] for row in accuracy.rows] == ["norm"] * 3 and heads.rows[-1][0] == "pixels_1nn"


def test_runs_of_one_head_each_have_no_such_table(tmp_path):
    finished(tmp_path / "b", accuracies(0), norm="batch")
    finished(tmp_path / "c", accuracies(0), norm="batch", head="svm")
    assert heads_as_rows(comparison_of(tmp_path)) is None


def test_heads_of_an_earlier_version_share_one_mark(tmp_path):
    old = {"protonet": accuracies(0), "tim": accuracies(0, 0.1)}
    finished(tmp_path / "a", old, transductive=True)
    finished(tmp_path / "b", {"protonet": accuracies(0), "svm": accuracies(1)}, heads=entries())
    for time, name in enumerate("ab"):
        os.utime(tmp_path / name / "results.json", (time, time))
    (run,), _ = find_runs([str(tmp_path)])
    assert [run.is_transductive(head) for head in ("protonet", "svm", "tim")] == [False, False, True]
    assert not run.is_transductive()


def test_an_experiment_has_two_tables_for_each_panel_with_finished_cells(tmp_path):
    for norm in ("batch", "layer"):
        finished(tmp_path / norm, HEADS, norm=norm, heads=entries())
    cells = [
        SimpleNamespace(row=row, finished=done, test=SimpleNamespace(folder=tmp_path / norm), further=())
        for row, norm, done in (("a/x", "batch", True), ("a/y", "layer", True), ("b/x", "none", False))
    ]
    accuracy, gaps = head_tables(runs_by_panel(cells))
    assert accuracy.title == "All heads: a" and gaps.title == "Difference from the best head: a (points)"
    assert accuracy.columns[:2] == gaps.columns == ["norm=batch", "norm=layer"]
    assert [row[0] for row in gaps.rows] == ["inductive", "protonet", "svm", "transductive", "tim †"]
    alone = [SimpleNamespace(row="x", finished=True, test=cells[0].test, further=())]
    assert [table.title for table in head_tables(runs_by_panel(alone))] == [
        "All heads",
        "Difference from the best head (points)",
    ]
    assert head_tables(runs_by_panel(cells[2:])) == []


def test_heads_trained_on_the_network_of_a_row_are_in_its_column(tmp_path):
    finished(tmp_path / "network", HEADS, heads=entries())
    finished(tmp_path / "cnaps", {"cnaps": 0.8 + 0.01 * np.arange(-6, 6)}, head="cnaps")
    done, failed = (SimpleNamespace(folder=tmp_path / "cnaps", finished=finished) for finished in (True, False))
    test = SimpleNamespace(folder=tmp_path / "network")
    cell = SimpleNamespace(row="x", finished=True, test=test, further=((done, done), (done, failed)))
    panels = runs_by_panel([cell])
    ((run,),) = panels.values()
    assert run.heads == [*HEADS, "cnaps"] and run.trained_head == next(iter(HEADS))
    accuracy, gaps = head_tables(panels)
    names = [row[0] for row in accuracy.rows]
    assert names[:6] == ["inductive", "protonet", "svm", "cnaps", "transductive", "tim †"]
    assert next(row for row in accuracy.rows if row[0] == "cnaps")[1].startswith("79.50")
    assert not any("unpaired" in value for row in gaps.rows for value in row)
