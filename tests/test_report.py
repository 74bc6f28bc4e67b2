"""Reports of runs: which runs are found, what rows and columns are, and whether the numbers are right."""

import csv
import itertools
import json
import math
import os
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from contracts import sampled
from omegaconf import OmegaConf
from rich.console import Console
from run_folders import TASKS, accuracies, analyzed, comparison_of, finished
from scipy import stats

from metafew.analysis.compare import comparison_plots
from metafew.analysis.compare.comparison import compare_runs, find_row
from metafew.analysis.compare.csv_files import measurements
from metafew.analysis.compare.find import find_results, find_runs, read_run
from metafew.analysis.compare.published import published_results
from metafew.analysis.compare.rows_and_columns import TRAINED, Column
from metafew.analysis.compare.runs import Run
from metafew.analysis.compare.settings import NOT_COMPARED, non_default_settings
from metafew.analysis.compare.tables import TIE, arrange, report_tables
from metafew.analysis.text_table import FAILED, Bold, TextTable
from metafew.commands import report
from metafew.config.groups import CONF
from metafew.errors import UsageError
from metafew.evaluation.statistics import interval, ranks, summarize_seeds

UNBALANCED = {"config": {"test.balance": "dirichlet"}}
STUDENT = stats.t.ppf(0.975, TASKS - 1)
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b55"
    "0000000a49444154789c6360000000020001e221bc330000000049454e44ae426082"
)


def labels(table):
    return [row.label for row in table.rows]


def only(table, label):
    """Return the cells of a row by the names of their columns."""
    number = labels(table).index(label)
    return {table.columns[column]: cell for (row, column), cell in table.cells.items() if row == number}


# what is found


@pytest.fixture
def mixed(tmp_path):
    """Finished, failed, running, foreign and damaged runs, and one of an earlier version."""
    runs = tmp_path / "runs"
    finished(runs / "good" / "a", accuracies(1), head="svm")
    finished(runs / "good" / "b", accuracies(2, -0.1))
    (runs / "good" / "b" / "tasks.csv").unlink()
    (runs / "good" / "b" / "learning_curve.png").write_bytes(PIXEL)
    old = finished(runs / "old", accuracies(3, -0.2), head="ridge")
    (runs / "old" / "results.json").write_text(json.dumps({key: old[key] for key in ("metrics", "choices")}))
    for name, text in {
        "failed": '{"error": "too few classes <2>: type test.way=2"}',
        "foreign": '{"metrics": 3}',
        "list": "[1, 2]",
        "cut": '{"metrics": {"test/svm/accur',
        "fitted": json.dumps(old | {"metrics": {}}),
        "experiment": '{"title": "t", "rows": {}}',
    }.items():
        (runs / name).mkdir()
        (runs / name / "results.json").write_text(text)
    (runs / "running").mkdir()
    (runs / "running" / "metrics.csv").write_text("epoch,step,train/loss\n0,9,1.5\n0,19,1.2\n")
    (runs / "starting" / ".hydra").mkdir(parents=True)
    (runs / "short").mkdir()
    (runs / "short" / "results.json").write_text(json.dumps(old | {"finished": False, "steps": 300}))
    (runs / "good" / "a" / "checkpoints-1").mkdir()
    (runs / "good" / "a" / "checkpoints-1" / "results.json").write_text(json.dumps(old))
    (runs / "empty").mkdir()
    return runs


def test_finished_runs_are_distinguished_from_all_others(mixed):
    runs, omitted = find_runs([str(mixed)])
    assert {run.folder.relative_to(mixed).as_posix() for run in runs} == {"good/a", "good/b", "old"}
    reasons = {place.relative_to(mixed).parts[0]: reason for place, reason in omitted}
    assert set(reasons) == {
        *["failed", "foreign", "list", "cut", "fitted", "experiment", "running", "starting", "short"]
    }
    assert reasons["short"] == "unfinished: trainer.max_time ended its training after 300 steps"
    assert reasons["failed"] == "failed: too few classes <2>: type test.way=2"
    assert reasons["running"].endswith("after 20 logged steps") and "before anything" in reasons["starting"]
    assert reasons["cut"].startswith("foreign: it cannot be read as JSON")
    assert "without a test" in reasons["fitted"] and "table of an experiment" in reasons["experiment"]


def test_the_script_writes_its_files_and_lists_what_it_left_out(mixed, tmp_path, capsys):
    out = tmp_path / "deep" / "report"
    out.mkdir(parents=True)
    for name in ("heads.csv", "rates.png", "travel.svg"):  # of an earlier report
        (out / name).touch()
    assert report.main([str(mixed), f"out={out}"]) == 0
    printed = capsys.readouterr().out
    for text in (printed, (out / "table.md").read_text()):
        assert "too few classes <2>: type test.way=2" in text and str(mixed / "running") in text
        assert "unpaired, as the test tasks may differ" in text  # one has no tasks.csv, one no configuration
    page = (out / "index.html").read_text()
    assert "too few classes &lt;2&gt;" in page and "data:image/png;base64," in page
    assert not re.search(r"https?://|<script|<link|src=\"(?!data:)", page)
    assert {file.name for file in out.iterdir()} == {*("table.md", "table.tex", "table.csv", "runs.csv", "index.html")}
    with (out / "table.csv").open(newline="") as file:
        rows = {row["runs"]: row for row in csv.DictReader(file) if row["measure"] == "accuracy"}
    for name, label in (("good/a", "head=svm"), ("good/b", "head=protonet"), ("old", "head=ridge")):
        measure = json.loads((mixed / name / "results.json").read_text())["metrics"]
        measure = measure[f"test/{label.removeprefix('head=')}/accuracy"]
        row = next(row for words, row in rows.items() if words.split()[0] == label)
        assert float(row["mean"]) == measure["mean"] and float(row["ci95"]) == measure["ci95"]
        assert f"{100 * measure['mean']:.2f} ± {100 * measure['ci95']:.2f}" in printed


@pytest.mark.parametrize("pattern", ["", "*"])
def test_the_runs_of_a_sweep_are_found_in_their_order(tmp_path, pattern):
    for number in (10, 9, 0):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "results.json").write_text("{}")
    assert [path.parent.name for path in find_results(str(tmp_path / pattern))] == ["0", "9", "10"]


def test_places_are_folders_files_and_patterns_and_each_run_counts_once(mixed):
    places = [str(mixed / "good" / "a" / "results.json"), str(mixed / "go*"), str(mixed / "good")]
    assert [run.folder.name for run in find_runs(places)[0]] == ["a", "b"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["runs/nowhere"], "got runs/nowhere"),
        (["runs/failed"], "none among the 1"),
        (["runs/good", "spread=sd"], "expected spread to be ci95 or se, got sd"),
        (["out=elsewhere"], "expected folders of runs or results.json files, got out=elsewhere"),
        (["runs/good", "against=norm=tasknorm"], "fits 2 of these: head=protonet; head=svm"),
        (["runs/good", "against=head=maml"], "fits 0 of these"),
        (["runs/good", "out=runs/failed/results.json"], "type out=DIR"),
    ],
)
def test_invalid_arguments_are_one_line_errors(mixed, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(mixed.parent)
    assert report.main(arguments) == 2
    error = capsys.readouterr().err
    assert (message in error and "type" in error) or "train one" in error
    assert error.count("\n") == 1 and not Path("elsewhere").exists()


def test_nothing_of_the_report_imports_torch(mixed, tmp_path):
    code = (
        "import sys, runpy; sys.argv = ['report.py', *sys.argv[1:]]\n"
        "try:\n    runpy.run_path('scripts/report.py', run_name='__main__')\n"
        "except SystemExit as end:\n    print('torch' in sys.modules, end.code)"
    )
    root = Path(__file__).parents[1]
    typed = [sys.executable, "-c", code, str(mixed), f"out={tmp_path / 'o'}"]
    shown = subprocess.run(typed, cwd=root, env=os.environ | {"PYTHONPATH": str(root)}, capture_output=True, text=True)
    assert shown.stdout.splitlines()[-1] == "False 0", shown.stderr


# rows and columns


def test_rows_are_settings_that_other_choices_do_not_imply(tmp_path):
    finished(tmp_path / "0", accuracies(0), config={"train.tasks": 4})
    brought = {"train.tasks": 1, "train.batch_size": 64}  # by objective=classical
    elsewhere = {"test.tasks": 2, "trainer.devices": 2, "data.num_workers": 4, "dataset.root": "/data/omniglot"}
    whole = finished(tmp_path / "1", accuracies(1), config=brought | elsewhere | {"optimizer.lr": 0.1})
    whole["choices"]["objective"], whole["config"]["data_dir"] = "classical", "/data"
    (tmp_path / "1" / "results.json").write_text(json.dumps(whole))
    assert labels(comparison_of(tmp_path)) == ["objective=classical optimizer.lr=0.1", "objective=episodic"]
    whole = {"choices": {"head": "reptile", "objective": "reptile", "optimizer": "plain_sgd", "schedule": "linear"}}
    assert non_default_settings(
        whole | {"config": {"head": {"seed": 3, "way": 20}, "train": {"way": 20}, "seed": 3}}
    ) == {
        "head": "reptile",
        "train.way": 20,
    }


@pytest.mark.parametrize("head", sampled(sorted(file.stem for file in (CONF / "head").glob("*.yaml")), 8))
def test_a_head_with_its_defaults_has_no_settings_but_its_name(composed, head):
    cfg, choices, _ = composed(f"head={head}")
    config = OmegaConf.to_container(cfg, resolve=True)
    settings = non_default_settings({"choices": choices, "config": config})
    assert settings == ({} if head == "protonet" else {"head": head})


def test_paths_of_an_earlier_version_are_those_of_today(composed, tmp_path):
    cfg, choices, _ = composed("schedule=classical", "regularizer=feature_clustering")
    report = {"metrics": {"test/protonet/accuracy": {"mean": 0.5, "ci95": 0.1, "tasks": 6}}, "seed": 0}
    report |= {"choices": choices, "config": OmegaConf.to_container(cfg, resolve=True)}
    text = json.dumps(report)
    (tmp_path / "new").mkdir(), (tmp_path / "old").mkdir()
    (tmp_path / "new" / "results.json").write_text(text)
    old = text.replace("metafew.training.schedules", "metafew.schedules")
    (tmp_path / "old" / "results.json").write_text(
        old.replace("metafew.objectives.regularizers", "metafew.regularizers")
    )
    new, old = (read_run(tmp_path / name / "results.json") for name in ("new", "old"))
    assert new.settings == old.settings == {"schedule": "classical", "regularizer": "feature_clustering"}


def test_runs_that_differ_only_in_seed_are_one_row_with_a_t_interval(tmp_path):
    values = [accuracies(seed) for seed in range(3)]
    for seed, each in enumerate(values):
        finished(tmp_path / str(seed), each, seed=seed)
    finished(tmp_path / "other", accuracies(7), norm="batch")
    table = comparison_of(tmp_path)
    assert labels(table) == ["norm=batch", "norm=tasknorm"]
    cell = only(table, "norm=tasknorm")["accuracy"]
    means = [each.mean() for each in values]
    low, high = stats.t.interval(0.95, 2, np.mean(means), stats.sem(means))
    assert len(cell.runs) == 3 and cell.mean == pytest.approx(np.mean(means), abs=1e-12)
    assert (cell.mean - cell.ci95, cell.mean + cell.ci95) == pytest.approx((low, high), abs=1e-10)
    assert cell.error == pytest.approx(stats.sem(means), abs=1e-12)
    assert cell.ci95 != pytest.approx(STUDENT * stats.sem(np.concatenate(values)), rel=0.1)  # seeds x tasks pooled
    single = only(table, "norm=batch")["accuracy"]
    assert single.ci95 == pytest.approx(STUDENT * stats.sem(accuracies(7)), abs=1e-12)
    assert single.error == pytest.approx(stats.sem(accuracies(7)), abs=1e-12)


def test_a_run_that_was_repeated_counts_once(tmp_path):
    for name, value in (("first", 0.5), ("second", 0.5), ("other_seed", 0.7)):
        finished(tmp_path / name, [value] * TASKS, seed=int(name == "other_seed"))
    os.utime(tmp_path / "first" / "results.json", (1, 1))
    runs, omitted = find_runs([str(tmp_path)])
    assert {run.folder.name for run in runs} == {"second", "other_seed"}
    assert [place.name for place, _ in omitted] == ["first"] and str(tmp_path / "second") in omitted[0].reason


def evaluated(folder, seed=0, time=None, **heads):
    """Write the folder of a run that evaluates heads, each given by its options and its accuracies."""
    tests = {"protonet": accuracies(seed)} | {name: values for name, (_, values) in heads.items()}
    config = {f"evaluate.{name}": options for name, (options, _) in heads.items()}
    finished(folder, tests, seed=seed, config=config)
    if time is not None:
        os.utime(folder / "results.json", (time, time))


def test_runs_that_differ_in_evaluate_only_are_one_row_with_all_that_they_measured(tmp_path):
    svm, ridge, newer = accuracies(5, 0.1), accuracies(6, 0.2), accuracies(7)
    evaluated(tmp_path / "a", time=1, svm=({"c": 0.1}, svm))
    evaluated(tmp_path / "b", time=2, ridge=({"penalty": 50.0}, ridge), svm=({"c": 0.1}, newer))
    evaluated(tmp_path / "c", time=3, cosine=({"scale": 10.0}, svm))
    evaluated(tmp_path / "plain", time=4)
    runs, omitted = find_runs([str(tmp_path)])
    (run,) = runs
    assert [folder.name for folder in run.folders] == ["plain", "c", "b"]
    assert [place.name for place, _ in omitted] == ["a"], "a newer run evaluated svm too"
    table = comparison_of(tmp_path)
    (row,) = table.rows
    cells = only(table, row.label)
    means = {name: cells[name].mean for name in ("protonet", "svm", "ridge", "cosine")}
    expected = {"protonet": accuracies(0), "svm": newer, "ridge": ridge, "cosine": svm}
    assert means == pytest.approx({name: np.mean(values) for name, values in expected.items()})
    assert list(cells["ridge"].accuracies.values()) == pytest.approx(ridge)
    assert report.main([str(tmp_path), f"out={tmp_path / 'report'}"]) == 0
    (line,) = [line for line in csv_rows(tmp_path / "report") if line["measure"] == "ridge"]
    assert line["folders"].split() == [str(tmp_path / name) for name in ("plain", "c", "b")]


def test_a_head_evaluated_with_different_options_has_a_row_for_each(tmp_path):
    for seed in (0, 1):
        for c, name in ((0.1, "default"), (1.0, "one"), (9.0, "nine")):
            evaluated(tmp_path / f"{name}{seed}", seed, time=c, svm=({"c": c}, accuracies(seed, c / 100)))
        evaluated(tmp_path / f"ridge{seed}", seed, time=99, ridge=({"penalty": 1.0}, accuracies(seed, 0.2)))
    table = comparison_of(tmp_path)
    assert all(len(row.runs) == 2 for row in table.rows), "seeds share rows"
    means = [cell.mean for cell in (table.cells.get((i, find(table, "svm"))) for i in range(3)) if cell]
    assert sorted(means) == pytest.approx(
        [np.mean([accuracies(seed, c / 100) for seed in (0, 1)]) for c in (0.1, 1, 9)]
    )
    assert {word for label in labels(table) for word in label.split() if "svm" in word} == {
        "evaluate.svm.c=0.1", "evaluate.svm.c=1.0", "evaluate.svm.c=9.0"
    }  # fmt: skip
    assert sum((i, find(table, "ridge")) in table.cells for i in range(3)) == 1


def test_an_analysis_is_kept_when_a_newer_run_only_tests(tmp_path):
    analyzed(tmp_path / "analyzed", test=True)
    os.utime(tmp_path / "analyzed/results.json", (1, 1))
    finished(tmp_path / "tested", accuracies(0))
    (run,), omitted = find_runs([str(tmp_path)])
    assert run.folder.name == "tested" and run.analyzed.name == "analyzed" and not omitted
    assert run.analysis["split"] == "test"


def test_an_analysis_of_the_weights_before_a_resumed_training_is_not_read(tmp_path):
    analyzed(tmp_path / "a", test=True)
    assert Run.in_folder(tmp_path / "a").analysis["split"] == "test"
    file = tmp_path / "a/results.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"analysis": None}))
    assert Run.in_folder(tmp_path / "a").analysis == {}
    tested = {"analysis": None, "seconds": {"test": 1.0}}
    for ckpt, read in ((tmp_path / "a/checkpoints/best.ckpt", True), (tmp_path / "b/checkpoints/best.ckpt", False)):
        report = json.loads(file.read_text())
        file.write_text(json.dumps(report | tested | {"config": report["config"] | {"ckpt": str(ckpt)}}))
        assert bool(Run.in_folder(tmp_path / "a").analysis) == read


def find(table, name):
    """Return the column of a name."""
    return next(column for column, own in table.columns.items() if own == name)


def csv_rows(folder):
    with (folder / "table.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_checkpoints_only_separate_runs_of_the_same_seed(tmp_path):
    for seed in (0, 1):
        finished(tmp_path / f"seed{seed}", accuracies(seed), seed=seed, config={"ckpt.": None})
    for seed, name in itertools.product((0, 1), ("best", "last")):
        whole = finished(tmp_path / f"{name}{seed}", accuracies(seed), norm="batch", seed=seed)
        whole["config"]["ckpt"] = f"{name}.ckpt"
        (tmp_path / f"{name}{seed}" / "results.json").write_text(json.dumps(whole))
    table = comparison_of(tmp_path)
    assert sorted((row.label, len(row.runs)) for row in table.rows) == [
        ("norm=batch ckpt=best.ckpt", 2),
        ("norm=batch ckpt=last.ckpt", 2),
        ("norm=tasknorm", 2),
    ]


def test_tests_of_the_checkpoints_of_several_seeds_are_one_row(tmp_path):
    for seed, name in itertools.product((0, 1, 2), ("best", "last")):
        start = {"ckpt": f"/runs/{seed}/checkpoints/{name}.ckpt"}
        whole = finished(tmp_path / f"{name}{seed}", accuracies(seed), seed=seed)
        whole["config"] |= start
        (tmp_path / f"{name}{seed}" / "results.json").write_text(json.dumps(whole))
        own = {"ckpt": f"{tmp_path}/{seed}/checkpoints/{name}.ckpt"}  # it was resumed
        whole = finished(tmp_path / f"{seed}{name}", accuracies(seed), norm="batch", seed=seed * 2 + (name == "best"))
        whole["config"] |= {"ckpt": own["ckpt"].replace(f"/{seed}/", f"/{seed}{name}/")}
        (tmp_path / f"{seed}{name}" / "results.json").write_text(json.dumps(whole))
    own = f"{tmp_path}/layer1/checkpoints/last.ckpt"
    for number, (seed, start) in enumerate(((0, None), (1, own), (2, "a/best.ckpt"), (0, "b/best.ckpt"))):
        whole = finished(tmp_path / f"layer{number}", accuracies(seed), norm="layer", seed=seed)
        whole["config"]["ckpt"] = start
        (tmp_path / f"layer{number}" / "results.json").write_text(json.dumps(whole))
    table = comparison_of(tmp_path)
    assert sorted((row.label, len(row.runs)) for row in table.rows) == [
        ("norm=batch", 6),
        ("norm=layer ckpt=best.ckpt", 2),
        ("norm=layer ckpt=null", 2),
        ("norm=tasknorm ckpt=best.ckpt", 3),
        ("norm=tasknorm ckpt=last.ckpt", 3),
    ]


@pytest.mark.parametrize("differs", ["data", "augment", None])
def test_runs_on_different_test_images_are_neither_paired_nor_merged(tmp_path, differs):
    for number, head in enumerate(("protonet", "svm", "svm")):
        images = {"data": {"omniglot": {"fingerprint": number if differs == "data" else 0}}}
        views = {"augment.splits": ["test"], "augment.views": {"turn": number}} if differs == "augment" else {}
        finished(tmp_path / str(number), accuracies(number), head=head, config=views, **images)
    runs, omitted = find_runs([str(tmp_path)])
    assert len(runs) == (2 if differs is None else 3) == 3 - len(omitted)  # the last repeats the second
    table = compare_runs(runs[:2])
    (gap,) = [gap for (_, column), gap in table.differences.items() if gap.ci95 is not None and not column.baseline]
    assert gap.paired == (differs is None)


def test_images_of_a_folder_are_compared_by_their_fingerprints(tmp_path):
    """Results name a folder as sources do, and its fingerprint after the option of dataset."""
    for number, images in enumerate(("old", "new", "new")):
        own = {"sources": {"photos": True}, "data": {"folder": {"fingerprint": images}}}
        finished(tmp_path / str(number), accuracies(number), head="svm" if number == 2 else "protonet", **own)
    runs, omitted = find_runs([str(tmp_path)])
    assert len(runs) == 3 and not omitted and [run.tested_images["folder"] for run in runs] == ["old", "new", "new"]
    rows = compare_runs(runs).rows
    assert [len(row.runs) for row in rows] == [1, 1, 1]  # one seed on other images is no second seed
    assert sorted(row.label.split(" images=")[0] for row in rows) == ["head=protonet", "head=protonet", "head=svm"]
    assert len({row.label for row in rows}) == 3
    assert find_row(rows, rows[1].label) == 1


def test_a_trained_head_has_one_column_and_heads_measured_by_all_have_their_own(tmp_path):
    finished(tmp_path / "a" / "0", accuracies(0))
    finished(tmp_path / "a" / "1", accuracies(1), head="svm")
    table = comparison_of(tmp_path / "a")
    assert list(table.columns.values()) == ["accuracy", "pixels_1nn"]
    assert [column.head for column in table.columns] == [TRAINED, "pixels_1nn"]
    finished(tmp_path / "b" / "0", {"protonet": accuracies(0), "svm": accuracies(2)})
    finished(tmp_path / "b" / "1", {"svm": accuracies(1), "protonet": accuracies(3)}, head="svm")
    table = comparison_of(tmp_path / "b")
    assert list(table.columns.values()) == ["protonet", "svm", "pixels_1nn"]
    assert only(table, "head=svm")["protonet"].mean == pytest.approx(accuracies(3).mean(), abs=1e-12)
    finished(tmp_path / "a" / "2", {"svm": accuracies(1), "ridge": accuracies(3)}, head="svm", norm="batch")
    table = comparison_of(tmp_path / "a")
    assert list(table.columns.values()) == [TRAINED, "ridge", "pixels_1nn"]
    assert set(only(table, "head=protonet norm=tasknorm")) == {TRAINED, "pixels_1nn"}


def test_shots_and_datasets_are_columns_and_their_tasks_are_kept_separate(tmp_path):
    for number, norm in enumerate(("tasknorm", "batch")):
        one, five = accuracies(number), accuracies(number, 0.2)
        tests = {"protonet": one, "protonet/shot5": five}
        finished(tmp_path / norm, tests, norm=norm, config={"test.shot": [1, 5]})
        finished(tmp_path / f"{norm} cifar", accuracies(9 + number), norm=norm, dataset="cifar_fs")
    table = comparison_of(tmp_path)
    assert labels(table) == ["norm=batch", "norm=tasknorm"]
    names = [name for name in table.columns.values() if "pixels" not in name]
    assert names == ["dataset=omniglot, 1-shot", "dataset=omniglot, 5-shot", "dataset=cifar_fs, 1-shot"]
    cells = only(table, "norm=batch")
    assert list(cells[names[1]].accuracies.values()) == pytest.approx(accuracies(1, 0.2), abs=1e-15)
    assert list(cells[names[0]].accuracies.values()) == pytest.approx(accuracies(1), abs=1e-15)
    assert table.average_ranks is not None


def test_the_datasets_of_a_mixture_are_columns_and_their_union_is_not_ranked(tmp_path):
    for norm, lift in (("tasknorm", 0.0), ("batch", 0.3)):
        values = accuracies(0, lift)
        tests = {"protonet": values, "protonet/a": values[::2], "protonet/b": values[1::2] - 2 * lift}
        whole = finished(tmp_path / norm, tests, norm=norm, sources={"a": True, "b": False})
        rows = [[i, "ab"[i % 2], "protonet", 5, 1, v - 2 * lift * (i % 2), 1] for i, v in enumerate(values)]
        with (tmp_path / norm / "tasks.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["index", "source", "head", "way", "shot", "accuracy", "loss"], *rows])
        assert "test/protonet/a/accuracy" in whole["metrics"]
    table = comparison_of(tmp_path)
    assert list(table.columns.values()) == ["accuracy", "a", "b", "pixels_1nn"]
    assert table.average_ranks.tolist() == [1.5, 1.5]  # each is best on one dataset


def test_a_diverged_run_is_marked_and_never_best(tmp_path):
    finished(tmp_path / "0", accuracies(0))
    whole = finished(tmp_path / "1", accuracies(1), norm="batch")
    whole["metrics"]["test/protonet/accuracy"] |= {"mean": None, "ci95": None}
    (tmp_path / "1" / "results.json").write_text(json.dumps(whole))
    assert report.main([str(tmp_path), f"out={tmp_path / 'o'}"]) == 0
    assert "| norm=batch | diverged |" in (tmp_path / "o" / "table.md").read_text()


def test_accuracies_are_shown_with_the_tasks_that_failed(tmp_path):
    finished(tmp_path / "0", accuracies(0))  # of an earlier version, which did not count them
    whole = finished(tmp_path / "1", accuracies(1), norm="batch")
    whole["metrics"]["test/protonet/accuracy"]["failed"] = 3
    (tmp_path / "1" / "results.json").write_text(json.dumps(whole))
    table = comparison_of(tmp_path)
    assert [only(table, f"norm={norm}")["accuracy"].failed for norm in ("tasknorm", "batch")] == [0, 3]
    assert report.main([str(tmp_path), f"out={tmp_path / 'o'}"]) == 0
    text = (tmp_path / "o" / "table.md").read_text()
    assert " (3 failed) |" in text and FAILED in text
    with (tmp_path / "o" / "table.csv").open() as file:
        assert {row["runs"]: row["failed"] for row in csv.DictReader(file) if row["measure"] == "accuracy"} == {
            "norm=tasknorm": "0",
            "norm=batch": "3",
        }


# who is best


def test_differences_are_those_of_the_same_tasks_with_seeds_averaged_first(tmp_path):
    ours = [accuracies(seed) for seed in (0, 1)]
    theirs = [accuracies(seed, 0.05) for seed in (2, 3)]
    for norm, values, first in (("batch", ours, 0), ("layer", theirs, 2)):  # of other seeds
        for seed, each in enumerate(values, first):
            finished(tmp_path / f"{norm}{seed}", each, norm=norm, seed=seed)
    table = comparison_of(tmp_path)
    (column,) = table.top
    assert labels(table) == ["norm=batch", "norm=layer"] and table.top[column] == {1}
    pairs = np.mean(ours, 0) - np.mean(theirs, 0)
    difference = table.differences[0, column]
    assert difference.paired and difference.mean == pytest.approx(pairs.mean(), abs=1e-12)
    assert difference.ci95 == pytest.approx(STUDENT * stats.sem(pairs), abs=1e-12)
    assert difference.ci95 < STUDENT * math.hypot(stats.sem(np.mean(ours, 0)), stats.sem(np.mean(theirs, 0))) / 5
    other = comparison_of(tmp_path, against="norm=batch").differences
    assert other[1, column].mean == pytest.approx(-difference.mean, abs=1e-12) and other[0, column].mean == 0


def lifted(folder, lifts):
    """Return the comparison of norms, the column, the difference of layer norm from batch norm, and that of each seed.

    Args:
        folder: an empty folder.
        lifts: for each norm, what its seeds add to the accuracies of batch norm.
    """
    for norm, each in lifts.items():
        for seed, lift in enumerate(each):
            finished(folder / f"{norm}{seed}", accuracies(seed, lift), norm=norm, seed=seed)
    table = comparison_of(folder, against="norm=batch")
    (column,) = table.top
    gaps = [np.mean(accuracies(seed, lift)) - np.mean(accuracies(seed)) for seed, lift in enumerate(lifts["layer"])]
    return table, column, table.differences[labels(table).index("norm=layer"), column], gaps


def test_rows_of_the_same_seeds_differ_by_the_t_interval_over_seeds(tmp_path):
    lifts = {"batch": [0.0, 0.0, 0.0], "layer": [0.02, 0.03, 0.025], "none": [0.2, -0.3, 0.15]}
    table, column, difference, gaps = lifted(tmp_path, lifts)
    assert difference.ci95 == pytest.approx(stats.t.ppf(0.975, 2) * stats.sem(gaps), abs=1e-12)
    best = labels(table).index("norm=layer")
    # One seed of three is far behind: an interval over its tasks would exclude 0, that over seeds does not.
    assert table.top[column] == {best, labels(table).index("norm=none")}


def test_rows_of_unequal_seeds_differ_by_the_t_interval_over_those_that_both_have(tmp_path):
    _, _, difference, gaps = lifted(tmp_path, {"batch": [0.0, 0.0, 0.0], "layer": [0.02, 0.03]})
    assert difference.paired and difference.mean == pytest.approx(np.mean(gaps), abs=1e-12)
    assert difference.ci95 == pytest.approx(stats.t.ppf(0.975, 1) * stats.sem(gaps), abs=1e-12)


def test_a_row_that_is_ahead_of_the_best_in_the_seeds_of_both_is_marked(tmp_path):
    for norm, lifts in {"batch": [0.0, 0.01, 0.02, 0.03, -0.06], "layer": [-0.01, 0.002, 0.009, 0.021]}.items():
        for seed, lift in enumerate(lifts):
            finished(tmp_path / f"{norm}{seed}", accuracies(0, lift), norm=norm, seed=seed)
    table = comparison_of(tmp_path)
    (column,) = table.top
    assert labels(table)[table.best[column]] == "norm=layer" and table.top[column] == {0, 1}


def test_analyses_of_several_splits_are_no_repetitions(tmp_path):
    for name in ("a", "b"):
        for split in ("train", "test"):
            folder = tmp_path / f"{name}-{split}"
            config = {"analyze.split": split, "backbone.weights": f"runs/{name}.ckpt"}
            finished(folder, {}, config=config, analysis={"tasks": 4})
            (folder / "analysis.json").write_text('{"distances": [1.0]}')
    runs, omitted = find_runs([str(tmp_path)])
    assert len(runs) == 4 and not omitted
    folders = comparison_plots.analysis_folders(runs, "distances")
    assert sorted(folders) == [
        f"backbone.weights=runs/{name}.ckpt analyze.split={split}" for name in "ab" for split in ("test", "train")
    ]


def test_only_the_best_is_bold_and_rows_that_do_not_differ_from_it_are_marked(tmp_path):
    wiggle = np.tile([0.03, -0.03], TASKS // 2)
    for norm, lift in {"batch": 0.0, "layer": -0.001 + wiggle, "none": -0.05, "instance": wiggle[::-1] - 0.2}.items():
        finished(tmp_path / norm, accuracies(0) + lift, norm=norm)
    assert report.main([str(tmp_path), f"out={tmp_path / 'o'}"]) == 0
    lines = (tmp_path / "o" / "table.md").read_text().split("## Difference")[0].splitlines()
    rows = {line.split("|")[1].strip(): line for line in lines if line.startswith("| norm=")}
    assert {name: ("**" in line, TIE in line) for name, line in rows.items()} == {
        **{"norm=batch": (True, False), "norm=layer": (False, True)},
        **dict.fromkeys(["norm=none", "norm=instance"], (False, False)),
    }
    with (tmp_path / "o" / "table.csv").open() as file:
        marks = {row["runs"]: (row["best"], row["top"]) for row in csv.DictReader(file) if row["measure"] == "accuracy"}
    assert marks["norm=batch"] == ("True", "True") and marks["norm=layer"] == ("False", "True")


@pytest.mark.parametrize("change", ["test.seed", "test.query", "test.total", "tasks.csv", "index"])
def test_different_tasks_are_compared_unpaired_and_marked(tmp_path, change):
    finished(tmp_path / "0", accuracies(0))
    changed = {change: 7} if change.startswith("test.") else {}
    finished(tmp_path / "1", accuracies(1, 0.02), norm="batch", config=changed)
    file = tmp_path / "1" / "tasks.csv"
    if change == "tasks.csv":
        file.unlink()
    elif change == "index":
        file.write_text(file.read_text().replace("\n11,", "\n12,"))
    table = comparison_of(tmp_path)
    (behind,) = (difference for difference in table.differences.values() if difference.mean)
    assert not behind.paired and abs(behind.mean) <= behind.ci95  # 2 points are significant on paired tasks only
    spreads = [stats.sem(accuracies(0)), stats.sem(accuracies(1, 0.02))]
    assert behind.ci95 == pytest.approx(STUDENT * math.hypot(*spreads), abs=1e-12)
    assert report.main([str(tmp_path), f"out={tmp_path / 'o'}"]) == 0
    assert r"\textdaggerdbl{} unpaired, as the test tasks may differ" in (tmp_path / "o" / "table.tex").read_text()


def test_transductive_rows_and_weights_are_marked_and_standard_errors_shown(tmp_path):
    finished(tmp_path / "0", accuracies(0, 0.1), norm="transductive")
    finished(tmp_path / "1", accuracies(1), norm="batch", select="last")
    assert report.main([str(tmp_path), f"out={tmp_path / 'o'}", "spread=se"]) == 0
    text = (tmp_path / "o" / "table.md").read_text()
    error = 100 * stats.sem(accuracies(0))
    assert f"| norm=transductive † | **{100 * accuracies(0, 0.1).mean():.2f} ± {error:.2f}** |" in text
    assert "† transductive" in text and "the last ones in norm=batch" in text and "standard error" in text
    assert r"norm=transductive \textdagger{}" in (tmp_path / "o" / "table.tex").read_text()


def test_published_results_are_listed_for_the_same_setting_only(tmp_path):
    finished(tmp_path / "0", accuracies(0), norm="layer", config={"backbone.width": 64})
    assert report.main([str(tmp_path), f"out={tmp_path / 'o'}"]) == 0
    text = (tmp_path / "o" / "table.md").read_text()
    gap = f"{100 * accuracies(0).mean() - 98.7:+.2f}".replace("-", "−")
    assert f"| 98.70 ± 0.20 | {gap} | Bronskill et al. 2020, Table C.1 (ProtoNets) |" in text
    for change in ({"norm": "group"}, {"dataset": "glyphs"}, {"head": "svm"}, {"config": {"test.way": 7}}, UNBALANCED):
        folder = tmp_path / str(change)
        finished(folder, accuracies(0), **({"norm": "layer"} | change))
        assert report.main([str(folder), f"out={tmp_path / 'p'}"]) == 0
        assert "published" not in (tmp_path / "p" / "table.md").read_text()


def test_published_standard_errors_become_intervals_and_secondary_sources_are_marked():
    clustered = [entry for entry in published_results() if entry[0].get("regularizer") == "feature_clustering"]
    figures = {(match["backbone"], match["dataset"], match["shot"]): value for match, value, _ in clustered}
    assert figures["resnet12", "mini_imagenet", 1]["ci95"] == pytest.approx(1.96 * 0.0031)
    assert all(source.startswith("reported: ") for *_, source in clustered)
    assert all(0 < value["mean"] < 1 for _, value, _ in published_results())
    keys = {key for match, *_ in published_results() for key in match}
    assert keys <= {"head", "norm", "backbone", "dataset", "objective", "regularizer"} | {
        *("way", "shot", "measured", "queries"),
    }


# arrangements

WIDTHS = {"lr": [1e-05, 0.01, 0.1], "width": [8, 64, 128]}


def test_rows_are_in_natural_order(tmp_path):
    """Numbers are sorted by value, whatever the names of the folders."""
    for number, (lr, width) in enumerate(itertools.product(WIDTHS["lr"], WIDTHS["width"])):
        config = {"optimizer.lr": lr, "backbone.width": width}
        finished(tmp_path / str((7 * number) % 10), accuracies(number), config=config, head=f"h{11 - number % 3}")
    expected = [
        f"head=h{11 - number % 3} backbone.width={width} optimizer.lr={lr}"
        for number, (lr, width) in enumerate(itertools.product(WIDTHS["lr"], WIDTHS["width"]))
    ]
    found = labels(comparison_of(tmp_path))
    assert sorted(found) == sorted(expected)
    assert [label.split()[0] for label in found] == ["head=h9"] * 3 + ["head=h10"] * 3 + ["head=h11"] * 3
    assert [label.split()[-1] for label in found[:3]] == [f"optimizer.lr={lr}" for lr in WIDTHS["lr"]]


@pytest.fixture
def grid(tmp_path):
    """Two heads under three norms, one of them transductive, without one of the combinations."""
    for number, (head, norm) in enumerate(
        itertools.product(["svm", "protonet"], ["tasknorm", "batch", "transductive"])
    ):
        if number != 4:
            finished(tmp_path / "runs" / str(number), accuracies(number, number / 100), head=head, norm=norm)
    return tmp_path / "runs"


def test_settings_are_rows_and_columns_of_a_table(grid):
    table = comparison_of(grid)
    accuracy, difference, *_ = report_tables(table, None, "ci95", arrange(table, "head", "norm"))
    assert accuracy.title == "Accuracy by head and norm" and accuracy.corner == "head"
    assert accuracy.columns == ["batch", "tasknorm", "transductive"]
    assert [row[0] for row in accuracy.rows] == ["protonet", "svm"] and accuracy.rows[0][1] == "–"
    means = {i: 100 * accuracies(i, i / 100).mean() for i in (0, 1, 2, 3, 5)}
    shown = [[float(cell.split()[0]) for cell in row[1:] if cell != "–"] for row in accuracy.rows]
    assert shown == [[round(means[i], 2) for i in each] for each in ([3, 5], [1, 0, 2])]
    assert isinstance(accuracy.rows[0][3], Bold) and accuracy.rows[0][3].endswith("†")
    assert "pixels_1nn: 40.00 ± 1.00" in accuracy.notes and difference.rows[0][3] == "+0.00 †"
    assert report_tables(table, None, "ci95", arrange(table, "norm", None))[0].columns == ["protonet", "svm"]
    assert arrange(table, None, None) is None


def test_other_settings_and_shots_have_tables_of_their_own(grid):
    for seed, (head, lr) in enumerate(itertools.product(["svm", "ridge"], [0.1, 0.2])):
        tests = {head: accuracies(seed), f"{head}/shot5": accuracies(seed)}
        config = {"optimizer.lr": lr, "backbone.width": 8, "test.shot": [1, 5]}
        finished(grid.parent / "more" / str(seed), tests, head=head, config=config)
        finished(grid.parent / "more" / f"{seed} wide", tests, head=head, config=config | {"backbone.width": 64})
    table = comparison_of(grid.parent / "more")
    tables = report_tables(table, None, "ci95", arrange(table, "head", "optimizer.lr"))
    assert [each.title for each in tables if each.title.startswith("Accuracy")] == [
        f"Accuracy by head and optimizer.lr, {shot}-shot, {width}" for shot in (1, 5) for width in (8, 64)
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("colour", "norm"), "head, got colour .*type rows=head"),
        (("head", "head"), "are not columns, norm, got head .*type rows=norm"),
        (("head", "shot"), "norm, got shot .shots and datasets are always columns.: type columns=norm"),
    ],
)
def test_only_settings_that_differ_can_be_rows_or_columns(grid, options, message):
    with pytest.raises(UsageError, match=message):
        arrange(comparison_of(grid), *options)


def test_no_table_is_hidden_in_a_narrow_terminal(tmp_path, monkeypatch, capsys):
    heads = ["protonet", "svm", "ridge", "cosine"]
    for number, norm in enumerate(["tasknorm", "batch", "layer", "none", "instance", "group", "transductive"]):
        names = {name: accuracies(number + i) for i, head in enumerate(heads) for name in (head, f"{head}/shot5")}
        finished(tmp_path / norm, names, norm=norm, config={"test.shot": [1, 5]})
    monkeypatch.setenv("COLUMNS", "80")
    assert report.main([str(tmp_path), f"out={tmp_path / 'o'}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    drawn = [line for line in lines if line.startswith(("│", "┃", "┏"))]
    assert max(map(len, drawn)) <= 80 and not any("…" in line for line in drawn)
    text = "\n".join(drawn)
    for number in range(7):
        for i in range(len(heads)):
            assert f"{100 * accuracies(number + i).mean():.2f} ± " in text
    assert sum("40.00 ± 1.00" in line for line in drawn) == sum("pixels_1nn" in line for line in drawn) > 0
    assert "Accuracy (1 of " in "\n".join(lines)


def test_a_wide_table_is_turned_if_it_then_fits_and_split_otherwise():
    wide = TextTable("t", [f"column {i}" for i in range(9)], [["row", *[Bold("≈ 81.94 ± 0.96")] * 9]], ["note"], "a")
    (turned,) = wide.fitting(40)
    assert turned.header == ["a", "row"] and [row[0] for row in turned.rows] == wide.columns
    assert isinstance(turned.rows[0][1], Bold) and turned.notes == ["note"]
    parts = TextTable("t", wide.columns, wide.rows * 9, ["note"]).fitting(60)
    assert [name for part in parts for name in part.columns] == wide.columns
    assert all(part.full_width() <= 60 for part in parts) and [part.notes for part in parts[-2:]] == [[], ["note"]]
    assert wide.fitting(500) == [wide]


# files


def test_runs_csv_has_a_line_per_run_and_measure(tmp_path):
    for seed in (0, 1):
        tests = {"svm": accuracies(seed), "svm/shot5": accuracies(seed, 0.1), "maml/step3": accuracies(seed)}
        config = {"test.shot": [1, 5], "optimizer.lr": 0.1, "dataset.root": "/data/my birds"}
        finished(tmp_path / "runs" / str(seed), tests, seed=seed, head="svm", dataset="folder", config=config)
    finished(tmp_path / "runs" / "2", {"ridge": accuracies(5)}, head="ridge", config={"optimizer.lr": 0.2})
    assert report.main([str(tmp_path / "runs"), f"out={tmp_path / 'o'}"]) == 0
    with (tmp_path / "o" / "runs.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 2 * (3 * 2 + 1) + 3
    (line,) = [
        line for line in lines if (line["seed"], line["measured"], line["shot"]) == ("1", "svm", "5")
        and line["measure"] == "accuracy"
    ]  # fmt: skip
    assert float(line["mean"]) == accuracies(1, 0.1).mean() and line["tasks"] == str(TASKS)
    named = {"head": "svm", "norm": "tasknorm", "dataset": "my birds", "way": "5", "optimizer.lr": "0.1"}
    assert line.items() >= named.items() and line["folders"] == str(tmp_path / "runs" / "1")
    assert {line["measured"] for line in lines} == {"svm", "ridge", "maml/step3", "pixels_1nn"}


def test_a_source_whose_name_begins_like_a_shot_is_a_source():
    figure = {"mean": 0.5}
    metrics = {f"test/svm/{path}accuracy": figure for path in ("", "shots/", "shot5/", "shot5/shots/")}
    report = {"metrics": metrics, "sources": {"shots": True, "glyphs": True}, "config": {"test": {"shot": [1, 5]}}}
    found = [(line["source"], line["shot"]) for line in measurements(Run(Path("results.json"), report))]
    assert found == [("", 1), ("shots", 1), ("", "5"), ("shots", "5")]


@pytest.mark.parametrize("shot", ["1..10", "5"])
def test_the_shot_of_a_test_is_no_part_of_what_it_measured(shot):
    report = {"metrics": {f"test/svm/shot{shot}/accuracy": {}}, "config": {"test": {"shot": [1, shot]}}}
    (line,) = measurements(Run(Path("results.json"), report))
    assert (line["measured"], line["shot"]) == ("svm", shot)


def test_failed_tasks_before_the_first_step_do_not_count(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,val/svm/failed\n-1,4\n9,2\n19,\n29,1\n")
    run = Run(tmp_path / "results.json", {"choices": {"head": "svm"}})
    assert run.failed_validation_tasks == 3


@pytest.mark.parametrize("head", ["head", "evaluate.svm"])
def test_options_that_do_not_affect_results_are_no_settings(head):
    assert all(NOT_COMPARED.fullmatch(f"{head}.{key}") for key in ("inner", "chunk", "memory", "seed"))
    assert not NOT_COMPARED.fullmatch(f"{head}.lr")


def test_the_command_of_a_run_names_its_folders_of_options(tmp_path):
    (tmp_path / ".hydra").mkdir()
    words = ["hydra.searchpath=[file://mine]", "hydra.run.dir=o"]
    sources = [{"path": "metafew.conf", "provider": "main"}, {"path": "/my conf", "provider": "command-line"}]
    recorded = {"hydra": {"overrides": {"hydra": words}, "runtime": {"config_sources": sources}}}
    (tmp_path / ".hydra" / "hydra.yaml").write_text(json.dumps(recorded))
    (tmp_path / ".hydra" / "overrides.yaml").write_text("- head=parzen\n- ckpt=last\n")
    command = Run(tmp_path / "results.json", {}).command
    assert command == "metafew train --config-dir '/my conf' 'hydra.searchpath=[file://mine]' head=parzen"
    for name, flags in (("train", []), ("mine", ["--config-name", "mine"])):
        recorded["hydra"]["job"] = {"config_name": name}
        (tmp_path / ".hydra" / "hydra.yaml").write_text(json.dumps(recorded))
        words = shlex.split(Run(tmp_path / "results.json", {}).command)
        assert words[4:-2] == flags and words[-1] == "head=parzen"


def test_own_folders_are_called_by_their_name(tmp_path):
    for number, root in enumerate(["/a/birds", "/b/cats 2", None]):
        dataset = "folder" if root else "omniglot"
        config = {"dataset.root": root}
        finished(tmp_path / "runs" / str(number), accuracies(number), dataset=dataset, config=config)
    names = [name for name in comparison_of(tmp_path / "runs").columns.values() if "pixels" not in name]
    assert names == ["dataset=birds", "dataset=cats 2", "dataset=omniglot"]
    finished(tmp_path / "runs" / "other", accuracies(4), dataset="folder", config={"dataset.root": "/c/birds"})
    names = comparison_of(tmp_path / "runs").columns.values()
    assert "dataset=birds dataset.root=/a/birds" in names, "two folders of one name are told apart by their paths"
    finished(tmp_path / "one", accuracies(4), dataset="folder", config={"dataset.root": "/c/birds"})
    assert "dataset=birds" in comparison_of(tmp_path / "one").common


def test_the_page_lists_its_contents_its_date_and_the_commands_of_runs(tmp_path):
    finished(tmp_path / "runs" / "0", accuracies(0), head="svm")
    finished(tmp_path / "runs" / "1", accuracies(1), seed=3)
    (tmp_path / "runs" / "1" / ".hydra").mkdir()
    (tmp_path / "runs" / "1" / ".hydra" / "overrides.yaml").write_text("- seed=3\n- test.shot=[1,5]\n")
    assert report.main([str(tmp_path / "runs"), f"out={tmp_path / 'o'}"]) == 0
    page = (tmp_path / "o" / "index.html").read_text()
    assert "metafew train seed=3 &#x27;test.shot=[1,5]&#x27;<" in page, "as Hydra recorded it"
    assert (
        "metafew train head=svm norm=tasknorm dataset=omniglot trainer.max_steps=600 test.total=12 seed=0\n" in page
    ), "from its results"
    assert f"metafew report {tmp_path / 'runs'}" in page
    links, places = re.findall(r'href="#(\w+)">([^<]*)<', page), re.findall(r'<section id="(\w+)">\n<h2>([^<]*)<', page)
    assert links == places and [title for _, title in links][:2] == ["Accuracy", "Difference from the best (points)"]
    assert re.search(r"2 runs, written 20\d\d-\d\d-\d\d", page)


def test_the_page_has_the_command_of_each_merged_run(tmp_path):
    for name in ("svm", "ridge"):
        evaluated(tmp_path / "runs" / name, **{name: ({}, accuracies(1))})
        (tmp_path / "runs" / name / ".hydra").mkdir()
        (tmp_path / "runs" / name / ".hydra" / "overrides.yaml").write_text(f"- evaluate=[{name}]\n")
    assert report.main([str(tmp_path / "runs"), f"out={tmp_path / 'o'}"]) == 0
    page = (tmp_path / "o" / "index.html").read_text()
    assert all(f"metafew train &#x27;evaluate=[{name}]&#x27;" in page for name in ("svm", "ridge"))


# statistics


def test_intervals_are_those_of_scipy():
    for count in (2, 3, 10, 600):
        values = np.random.default_rng(0).random(count)
        found = interval(values)
        low, high = stats.t.interval(0.95, count - 1, found["mean"], stats.sem(values))
        assert found["ci95"] == pytest.approx((high - low) / 2, rel=1e-10)
        assert summarize_seeds([found])["se"] == pytest.approx(stats.sem(values), rel=1e-10)
    # Results without the number of tasks had 1.96 standard errors.
    assert summarize_seeds([{"mean": 0.5, "ci95": 0.196}])["se"] == pytest.approx(0.1, rel=1e-4)


def test_ranks_without_ties_are_those_of_scipy_and_always_have_the_same_sum():
    rng = np.random.default_rng(0)
    apart = rng.normal(0, 0.01, (5, 200)) + rng.permutation(5)[:, None]
    assert ranks(apart).tolist() == stats.rankdata(-apart.mean(1)).tolist()
    for seed in range(20):
        assert ranks(np.random.default_rng(seed).normal(0, 1, (6, 10))).sum() == pytest.approx(21)


# real runs


def test_the_columns_of_a_real_run_hold_the_means_of_its_tasks(launch):
    whole, folder = launch("norm=none", "test.seed=3", "evaluate=[ridge]", "test.shot=[1,2]")
    table = comparison_of(folder)
    measured = {name: table.cells[0, column] for column, name in table.columns.items() if not column.baseline}
    names = {"protonet, 1-shot": "protonet", "protonet, 2-shot": "protonet/shot2"}
    names |= {"ridge, 1-shot": "ridge", "ridge, 2-shot": "ridge/shot2"}
    assert measured.keys() == names.keys()
    for name, cell in measured.items():
        assert cell.mean == whole["metrics"][f"test/{names[name]}/accuracy"]["mean"]
        assert np.mean(list(cell.accuracies.values())) == pytest.approx(cell.mean, abs=1e-12)
    assert "norm=none" in table.common and "test.seed=3" in table.common and "objective" not in table.common


# the forms of a table


class Cells(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.texts, self.bold = [], [], []

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {"td", "th"} & set(self.open):
            self.texts.append(data)
            if "b" in self.open:
                self.bold.append(data)


NASTY = ["a_b & c% $x$ #1 {y} ~ ^ \\", "<script>alert('x')</script>", "50|60 *star* `code` _i_", "[red]no[/red] [1,5]"]


def test_names_are_escaped_in_every_form(capsys):
    sheet = TextTable("t <i> & |", NASTY, [[name, *[Bold(name)] * len(NASTY)] for name in NASTY], NASTY)
    cells = Cells()
    cells.feed(sheet.html())
    assert cells.open == [] and cells.texts == [*NASTY, *(text for name in NASTY for text in [name] * 5)]
    assert len(cells.bold) == 16 and "<script" not in sheet.html()
    table = [line for line in sheet.markdown().splitlines() if line.startswith("|")]
    assert all(len(re.split(r"(?<!\\)\|", line)) == len(NASTY) + 3 for line in table)
    body = sheet.latex().split(r"\midrule")[1].split(r"\bottomrule")[0]
    assert [len(re.split(r"(?<!\\)&", line)) for line in body.strip().splitlines()] == [5] * 4
    plain = re.sub(r"\\[a-zA-Z]+(\{\})?|\\[&%$#_{}]", "", body.replace(r"\textbf", ""))
    assert not set("%$#_^~\\") - {"\\"} & set(plain) and plain.count("{") == plain.count("}")
    console = Console(width=500)
    console.print(sheet.rich())
    assert "[red]no[/red] [1,5]" in capsys.readouterr().out


def test_a_column_names_its_place_in_results():
    run = type("Run", (), {"shots": [1, 5], "heads": ["svm"], "settings": {}})()
    run.report = {"metrics": {"test/svm/shot5/a/accuracy": {"mean": 0.3}}, "baselines": {"p/shot5": {"mean": 0.1}}}
    assert (
        Column("{}", TRAINED, 1, "a").measure(run) == {"mean": 0.3} and Column("{}", "svm", 0, "a").measure(run) is None
    )
    assert Column("{}", "p", 1, None, True).measure(run) == {"mean": 0.1} and Column("{}", "p", 2).measure(run) is None


def test_a_folder_without_runs_raises(tmp_path):
    with pytest.raises(UsageError, match="none among the 0"):
        find_runs([str(tmp_path)])
