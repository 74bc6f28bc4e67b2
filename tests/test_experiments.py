"""Experiments: the runs that they plan, how they resume, and the tables, claims and page made of the results."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import threading
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from contracts import sampled
from filelock import FileLock
from hydra.types import RunMode
from omegaconf import OmegaConf
from runs import ROOT, TINY, Copy, command, compose_in, metafew

from metafew import cli
from metafew.analysis.text_table import DAGGER
from metafew.config.groups import CONF, group_names
from metafew.config.overrides import merge
from metafew.distributed import threads
from metafew.errors import UsageError
from metafew.evaluation.statistics import interval
from metafew.experiments import cells as cells_module
from metafew.experiments import start
from metafew.experiments.cells import run_experiment
from metafew.experiments.claims import LINE
from metafew.experiments.claims_table import claims_tables
from metafew.experiments.page import experiment_section, reproduction_page, results_file
from metafew.experiments.plan import ENTRIES, Cell, Command, fingerprint, plan_cells
from metafew.experiments.progress import Progress
from metafew.experiments.record import collect_results, measured_seeds, result_tables
from metafew.io import write_json

NAMES = [file.stem for file in sorted((CONF / "experiment").glob("*.yaml"))]
KEYS = {"title", "paper", "setting", "settings", "budgets", "rows", "columns"}
OPTIONAL = {"minutes", "parts", "from", "panels", "test", "stages", "checkpoint", "figures", "claims", "published"}
OPTIONAL |= {"report", "ours", "heads", "slow_heads"}
ROWS = {
    "a/good": {"train": ["norm=layer"]},
    "a/bad": {"train": ["train.way=999"]},
    "b/good": {"train": ["norm=layer"], "test": ["test.queries=single"]},
}
COLUMNS = {"ProtoNet": "test/protonet/accuracy", "5-shot": "test/protonet/shot5/accuracy", "R_FC": "clustering/R_FC"}


def table(**changes):
    whole = {"title": "tiny", "paper": "a paper", "setting": "small", "settings": ["test.total=6", "norm=none"]}
    whole |= {"name": "tiny", "budget": "small", "command": "python train.py experiment=tiny"}
    return whole | {"budgets": {"small": ["train.tasks=1"], "paper": []}, "rows": ROWS, "columns": COLUMNS} | changes


def planned(whole, out, typed=(), seeds=(0,), budget="small"):
    return plan_cells(whole, typed, budget, list(seeds), out / "cells", group_names())


@cache
def composed_of(name):
    """Return what stands below ``experiment`` in the YAML of a table, and its other options."""
    with TemporaryDirectory() as folder:
        cfg, _, _ = compose_in(Path(folder), f"experiment={name}")
    return OmegaConf.to_container(cfg.experiment, resolve=True), (cfg.budget, cfg.cells, cfg.jobs)


def overrides_of(command):
    return [word for word in command.overrides if not word.startswith(("seed=", "stages=", "ckpt="))]


class Child:
    """A process that ends at once."""

    def __init__(self, code):
        self.code = code

    def wait(self):
        return self.code


@pytest.fixture
def started(monkeypatch):
    """Replace processes by made-up results; return the arguments of each."""
    found, trained = [], {}

    def launch(typed, log, threads):
        found.append(typed)
        log.write("hello\n")
        out = Path(typed[-1].removeprefix("hydra.run.dir="))
        if "train.way=999" in typed:
            write_json(out / "results.json", {"error": "too many classes: type train.way=5"})
            return Child(2)
        if {"diverges=true", "head=diverges", "evaluate=[diverges]"} & {*typed}:
            write_json(out / "results.json", {"error": "not finite", "diverged": True})
            return Child(2)
        if "train.way=crash" in typed:
            return Child(-9)
        if "train.way=interrupt" in typed:
            os.kill(os.getpid(), signal.SIGINT)
            return Child(143)
        report = {"metrics": {}, "seconds": {"fit": 60.0}, "steps": 10, "versions": {"torch": "2"}, "chosen": {}}
        training = trained.setdefault(out, typed) if "stages=[fit]" in typed else trained.get(out.parent, ["seed=0"])
        report |= {"transductive": "norm=transductive" in training, "choices": {"head": "protonet"}, "seed": 0}
        if "stages=[fit]" not in typed:
            seed = int(next(word for word in training if word.startswith("seed="))[5:])
            tasks = 0.8 + 0.02 * seed + 0.01 * np.arange(6) * (1 + ("test.queries=single" in typed))
            report["metrics"] = {
                "test/protonet/accuracy": interval(tasks),
                "test/protonet/shot5/accuracy": interval(tasks),
            }
            report["chosen"] = {"maml": {"lr": 0.05, "test_steps": 10}}
            report["config"] = {"test": {"shot": [1, 5]}}
            rows = [f"{i},glyphs,protonet,5,{shot},{a},0" for shot in (1, 5) for i, a in enumerate(tasks)]
            (out / "tasks.csv").write_text("\n".join(["index,source,head,way,shot,accuracy,loss", *rows]) + "\n")
            (out / "analysis.json").write_text(json.dumps({"clustering": {"R_FC": 1.25}}))
        write_json(out / "results.json", report)
        return Child(0)

    monkeypatch.setattr(cells_module, "start_subprocess", launch)
    return found


def test_a_table_of_real_runs(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        cells_module, "start_subprocess", lambda typed, log, _: Copy(command(typed, tmp_path), log, log)
    )
    good = {"slow_heads": ["cosine"]}
    rows = {"panel/good": good, "panel/bad": {"train": ["train.way=999"]}}
    columns = {"ProtoNet": "test/trained/accuracy", "RR": "test/ridge/accuracy"}
    whole = table(settings=TINY, budgets={"small": []}, rows=rows, columns=columns, test=["evaluate=[ridge]"])
    whole |= {"report": True, "command": "python train.py experiment=x"}
    cells = planned(whole, Path(), ["dataset=glyphs"])
    assert run_experiment(whole, cells, Path("out")) == 1
    recorded = json.loads(Path("out/results.json").read_text())
    report, tested = recorded["rows"], cells[0].test.report
    figures = report["panel/good"]["figures"]
    assert figures["RR"]["mean"] == tested["metrics"]["test/ridge/accuracy"]["mean"] and figures["RR"]["tasks"] == 6
    assert "999" in report["panel/bad"]["errors"][0] and "type" in report["panel/bad"]["errors"][0]
    printed = capfd.readouterr().out
    for text in (printed, Path("out/table.md").read_text()):
        accuracy = tested["metrics"]["test/protonet/accuracy"]
        assert f"{100 * accuracy['mean']:.2f} ± {100 * accuracy['ci95']:.2f}" in text
        assert f"bad failed: {report['panel/bad']['errors'][0]}" in text
    page = Path("out/report/panel/index.html").read_text()
    assert "python train.py experiment=x" in page and "Difference from the best head" in page
    assert Path("out/report/panel/heads.csv").is_file()
    accuracies, differences = recorded["heads"]
    assert all(re.search(rf"\| {head} \| .*±", accuracies) for head in ("protonet", "ridge", "cosine"))
    assert re.search(r"\| (protonet|ridge|cosine) \| \+0\.00", differences)
    titles = ("*All heads: panel*", "*Difference from the best head: panel (points)*")
    section = "\n".join(experiment_section("x", recorded))
    assert all(title in section for title in titles)
    assert "results, figures" in (cells[0].test.folder / "log.txt").read_text()
    done = [*cells[0].fit.folder.rglob("results.json"), cells[0].fit.folder / "log.txt"]
    times = {file: file.stat().st_mtime_ns for file in done}
    assert len(times) == 4
    only = whole | {"rows": {"panel/good": good}}
    assert run_experiment(only, planned(only, Path(), ["dataset=glyphs"]), Path("out")) == 0
    assert times == {file: file.stat().st_mtime_ns for file in times}
    assert "1 cells, 0 runs to do" in capfd.readouterr().out


def test_a_column_of_a_transductive_head_is_marked(tmp_path, started):
    whole = table(rows={"one": {}}, columns={"ProtoNet": "test/protonet/accuracy", "TIM": "test/tim/accuracy"})
    (cell,) = cells = planned(whole, tmp_path)
    run_experiment(whole, cells, tmp_path / "out")
    measured = cell.test.report
    measured["metrics"]["test/tim/accuracy"] = measured["metrics"]["test/protonet/accuracy"]
    measured["heads"] = {"protonet": {"transductive": False}, "tim": {"transductive": True}}
    write_json(cell.test.folder / "results.json", measured | {"transductive": True})
    (shown, *_) = result_tables(collect_results(whole, cells))
    assert shown.rows[0][0] == "one" and [cell.endswith(" †") for cell in shown.rows[0]] == [False, False, True]
    assert DAGGER in shown.notes


def test_later_overrides_win_and_a_new_choice_drops_the_options_of_the_old_one(tmp_path):
    settings = ["dataset=omniglot", "dataset.split=vinyals", "train.tasks=8", "val.total=50"]
    row = {"train": [["train.tasks=1", "norm=batch"], "norm=layer"], "paper": ["train.tasks=2"]}
    whole = table(settings=settings, budgets={"small": ["val.total=9"], "paper": []}, rows={"row": row}, test=["x=1"])
    (cell,) = planned(whole, tmp_path)
    shared = ["dataset=omniglot", "dataset.split=vinyals"]
    assert overrides_of(cell.fit) == [*shared, "val.total=9", "train.tasks=1", "norm=layer"]
    assert cell.fit.overrides[-3:] == ("seed=0", "stages=[fit]", "ckpt=last")
    assert overrides_of(planned(whole, tmp_path, budget="paper")[0].fit)[-2:] == ["norm=layer", "train.tasks=2"]
    (cell,) = planned(whole, tmp_path, ["dataset=glyphs", "val.total=4"])
    assert overrides_of(cell.fit) == ["train.tasks=1", "norm=layer", "dataset=glyphs", "val.total=4"]
    start = f"ckpt={cell.fit.folder}/checkpoints/last.ckpt"
    assert cell.test.overrides == ("stages=[test]", start, "x=1", "dataset=glyphs", "val.total=4")
    best = whole | {"checkpoint": {"paper": "best"}}
    assert planned(best, tmp_path)[0].test.overrides[1] == planned(whole, tmp_path)[0].test.overrides[1]
    assert planned(best, tmp_path, budget="paper")[0].test.overrides[1].endswith("/best.ckpt")


def test_overrides_of_a_panel_come_between_those_of_the_table_and_of_the_row(tmp_path):
    panel = {"train": ["norm=batch", "train.way=4"], "small": [["val.total=9"]], "test": ["test.total=8", "test.way=3"]}
    row = {"train": ["norm=layer"], "small": ["train.way=7"], "test": ["test.way=2"]}
    rows = {"a/one": {}, "a/two": row, "b/one": {}}
    budgets = {"small": ["test.query=4", "val.total=5"], "paper": ["test.query=1"]}
    whole = table(settings=["norm=none"], budgets=budgets, panels={"a": panel}, rows=rows, test=["test.total=6"])
    one, two, other = planned(whole, tmp_path)
    assert overrides_of(one.fit) == ["test.query=4", "norm=batch", "train.way=4", "val.total=9"]
    assert overrides_of(two.fit) == ["test.query=4", "val.total=9", "norm=layer", "train.way=7"]
    assert overrides_of(other.fit) == ["norm=none", "test.query=4", "val.total=5"]
    assert overrides_of(one.test) == ["test.total=8", "test.way=3", "test.query=4"]
    assert overrides_of(two.test) == ["test.total=8", "test.way=2", "test.query=4"]
    assert overrides_of(other.test) == ["test.total=6", "test.query=4"]
    assert overrides_of(planned(whole, tmp_path, ["test.query=3"])[0].test)[-1] == "test.query=3"
    assert overrides_of(planned(whole, tmp_path, budget="paper")[0].test) == [
        "test.total=8",
        "test.way=3",
        "test.query=1",
    ]


def test_equal_trainings_are_one_and_a_seed_is_another(tmp_path):
    good, _, single = planned(table(), tmp_path)
    assert good.fit == single.fit and good.test.folder != single.test.folder
    assert single.test.folder.parent == good.fit.folder
    seeds = planned(table(), tmp_path, seeds=(0, 1))
    assert len({cell.fit.folder for cell in seeds}) == 4 and good.fit in [cell.fit for cell in seeds]
    other = table(settings=["norm=none"], budgets={"small": ["test.total=7", "train.tasks=1"]})
    assert planned(other, tmp_path, ["data_dir=elsewhere"])[0].fit.folder == good.fit.folder
    assert planned(other, tmp_path, ["x=1"])[0].fit.folder != good.fit.folder
    assert fingerprint(["a", "b"]) != fingerprint(["a"])


def test_another_checkpoint_is_tested_in_a_folder_of_its_own(tmp_path):
    plain, last, best = (
        planned(table(checkpoint=checkpoint), tmp_path)[0].test
        for checkpoint in ({}, {"small": "last"}, {"small": "best"})
    )
    assert plain == last and plain.folder.name == fingerprint(["stages=[test]", *overrides_of(plain)])
    assert best.folder != last.folder and best.folder.parent == last.folder.parent


def test_a_test_on_other_images_than_those_of_training_is_an_error(tmp_path):
    cell = planned(table(), tmp_path)[0]
    for run, images in ((cell.fit, "a"), (cell.test, "b")):
        write_json(run.folder / "results.json", {"metrics": {}, "data": {"glyphs": {"fingerprint": images}}})
    assert cell.error == "it was trained and tested on different images of dataset=glyphs: type another cells=DIR"
    write_json(cell.test.folder / "results.json", {"metrics": {}, "data": {"glyphs": {"fingerprint": "a"}}})
    assert cell.error is None


def test_a_backbone_that_was_trained_before(tmp_path, started):
    first = {"train": ["objective=classical"], "small": ["train.tasks=3"]}
    whole = table(rows={"one": {"train": ["norm=layer"]}, "two": {}}) | {"from": first}
    one, two = cells = planned(whole, tmp_path)
    assert one.pretraining == two.pretraining and overrides_of(one.pretraining) == [
        "objective=classical",
        "train.tasks=3",
    ]
    assert overrides_of(planned(whole, tmp_path, budget="paper")[0].pretraining) == ["objective=classical"]
    assert f"backbone.weights={one.pretraining.folder}/checkpoints/last.ckpt" in one.fit.overrides
    assert run_experiment(whole, cells, tmp_path / "out") == 0
    folders = [words[-1].removeprefix("hydra.run.dir=") for words in started]
    assert (
        folders.count(str(one.pretraining.folder)) == 1
        and folders[0] == str(one.pretraining.folder)
        and len(folders) == 5
    )


def table_with_heads(**settings):
    rows = {"a/one": {"train": ["norm=layer", "head=svm", "head.c=1"]}, "a/two": {"test": ["test.way=3"]}}
    panel = {"test": ["evaluate=[all]", "head.each_step=true"], "heads": ["cnaps", "feat"]}
    return table(rows=rows, panels={"a": panel}, **settings)


def test_heads_are_trained_on_the_frozen_network_of_a_row(tmp_path, started):
    whole = table_with_heads()
    one, two = cells = planned(whole, tmp_path, ["head=ridge"])
    for (fit, test), head in zip(one.further, ("cnaps", "feat"), strict=True):
        assert {f"head={head}", "norm=layer"} <= {*fit.overrides} and "head.c=1" not in fit.overrides
        assert f"backbone.weights={one.fit.folder}/checkpoints/last.ckpt" in fit.overrides
        assert {"evaluate=[]", f"head={head}", f"ckpt={fit.folder}/checkpoints/last.ckpt"} <= {*test.overrides}
        assert not {"head=ridge", "head.each_step=true"} & {*fit.overrides, *test.overrides}
    assert "evaluate=[all]" in one.test.overrides and "test.way=3" in two.further[0][1].overrides
    assert run_experiment(whole, cells, tmp_path / "out") == 0
    folders = [words[-1].removeprefix("hydra.run.dir=") for words in started]
    assert sorted(folders) == sorted(str(command.folder) for cell in cells for command in cell.all_commands)
    assert all(folders.index(str(cell.fit.folder)) < folders.index(str(cell.further[0][0].folder)) for cell in cells)


def test_heads_of_the_table_are_those_of_every_row(tmp_path):
    whole = table(rows={"a/one": {}, "a/two": {"heads": ["feat"]}}, heads=["cnaps"], slow_heads=["tsa"])
    tests = [[test.overrides for _, test in cell.further] for cell in planned(whole, tmp_path)]
    named = [[word for words in each for word in words if word in FURTHER] for each in tests]
    assert named == [["evaluate=[tsa]", "head=cnaps"], ["evaluate=[tsa]", "head=cnaps", "head=feat"]]


FURTHER = {"evaluate=[tsa]", "head=cnaps", "head=feat"}


def test_slow_heads_are_tested_in_runs_of_their_own(tmp_path, started):
    slow = {"slow_heads": ["diverges", "tsa"]}
    whole = table(rows={"one": {}, "two": slow}, test=["evaluate=[all,maml]", "test.total=9"])
    one, two = cells = planned(whole, tmp_path)
    (fit, failing), (same, test) = two.further
    assert not one.further and fit == same == one.fit == two.fit
    assert (
        overrides_of(test) == ["test.total=9", "evaluate=[tsa]"]
        and f"ckpt={fit.folder}/checkpoints/last.ckpt" in test.overrides
    )
    assert run_experiment(whole, cells, tmp_path / "out") == 1
    folders = [words[-1].removeprefix("hydra.run.dir=") for words in started]
    assert folders == [str(command.folder) for command in (fit, one.test, failing, test)] and one.test == two.test
    assert one.error is None and two.error == "not finite" and two.finished and test.finished


def test_a_head_that_fails_leaves_out_only_itself(tmp_path, started):
    whole = table_with_heads()
    whole["panels"]["a"]["heads"] = ["diverges", "feat"]
    one, two = cells = planned(whole, tmp_path)
    assert run_experiment(whole, cells, tmp_path / "out") == 1
    assert one.finished and two.finished and not one.diverged and one.error == "not finite"
    (fit, test), (other, its_test) = one.further
    assert other.finished and its_test.finished and not fit.finished and not test.folder.exists()


def test_several_at_a_time_run_each_training_once(tmp_path, started, monkeypatch, capsys):
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    rows = {f"row{n}": {"train": [f"x={n % 3}"], "test": [f"y={n}"]} for n in range(6)}
    whole = table(rows=rows) | {"from": {"train": ["objective=classical"]}}
    assert run_experiment(whole, planned(whole, tmp_path), tmp_path / "out", jobs=3) == 0
    folders = [words[-1] for words in started]
    assert len(folders) == len(set(folders)) == 1 + 3 + 6
    title = capsys.readouterr().out.splitlines()[0]
    assert title == "tiny: 6 cells, 10 runs to do, 3 at a time, each with OMP_NUM_THREADS=5: time not measured yet"


@pytest.mark.parametrize(("rows", "said"), [(1, "1 at a time:"), (2, "2 at a time, each with OMP_NUM_THREADS=4:")])
def test_no_more_runs_share_the_cores_than_there_are(tmp_path, started, monkeypatch, capsys, rows, said):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # so that it is restored
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(threads, "usable_cores", lambda: 8)
    whole = table(rows={f"row{n}": {"train": [f"x={n}"]} for n in range(rows)})
    run_experiment(whole, planned(whole, tmp_path), tmp_path / "out", jobs=4)
    assert said in capsys.readouterr().out.splitlines()[0]


def test_only_what_is_not_finished_runs_again(tmp_path, started):
    cells = planned(table(), tmp_path)
    assert run_experiment(table(), cells, tmp_path / "out") == 1
    assert len(started) == 4
    assert run_experiment(table(), cells, tmp_path / "out") == 1
    assert (
        [overrides_of(cells[1].fit)[-1]] == ["train.way=999"]
        and started[4] == cells[1].fit.arguments
        and len(started) == 5
    )
    (cells[2].test.folder / "results.json").unlink()
    run_experiment(table(), cells, tmp_path / "out")
    assert cells[2].test.arguments in started[5:] and cells[0].fit.arguments not in started[5:]
    assert (cells[2].test.folder / "log.txt").read_text() == "hello\n" * 2


def test_a_process_that_dies_leaves_an_error(tmp_path, started, capsys):
    whole = table(rows={"row": {"train": ["train.way=crash"]}, "next": {}})
    cells = planned(whole, tmp_path)
    assert run_experiment(whole, cells, tmp_path / "out") == 1
    assert cells[0].error == f"it ended with exit code -9: see {cells[0].fit.folder}/log.txt"
    assert cells[1].finished and "row failed: it ended" in capsys.readouterr().out


def test_after_an_interruption_no_run_starts_and_the_message_says_how_to_resume(tmp_path, started, capsys):
    whole = table(rows={"first": {}, "second": {"train": ["train.way=interrupt"]}, "third": {"train": ["x=1"]}})
    cells = planned(whole, tmp_path)
    assert run_experiment(whole, cells, tmp_path / "out") == 130
    assert "type the same command" in capsys.readouterr().err
    assert cells[0].finished and len(started) == 3 and "train.way=interrupt" in started[-1]


def test_an_interruption_keeps_figures_and_tables_of_heads(tmp_path, started):
    figure = {"draw": "builtins.print", "from": "test", "rows": {"first": "first"}}
    rows = {"first": {}, "second": {"train": ["train.way=interrupt"]}}
    whole = table(rows=rows, figures={"drawn": figure}, report=True)
    assert run_experiment(whole, planned(whole, tmp_path), tmp_path / "out") == 130
    report = json.loads((tmp_path / "out/results.json").read_text())
    assert report["figures"] == ["drawn"] and "heads" in report


def test_the_flags_of_the_command_line_come_before_the_words_of_every_run(tmp_path, started, capsys):
    whole = table(rows={"one": {}}, flags=["--config-dir", "/my own"])
    run_experiment(whole, planned(whole, tmp_path), tmp_path / "out")
    assert [typed[:2] for typed in started] == [["--config-dir", "/my own"]] * 2
    assert "python -m metafew --config-dir '/my own' " in capsys.readouterr().out


def test_every_training_prints_its_commands_and_the_remaining_time(tmp_path, started, capsys, monkeypatch):
    now = iter(range(0, 6000, 600))
    monkeypatch.setattr(cells_module.time, "monotonic", lambda: next(now))
    whole = table(settings=["evaluate=[ridge,svm]"], minutes={"small": 30})
    cells = planned(whole, tmp_path)
    run_experiment(whole, cells, tmp_path / "out")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "tiny: 3 cells, 5 runs to do, 1 at a time: about 60 min at 30 minutes a training"
    assert lines[1] == "1/2: 10 min so far, about 10 min left"
    assert lines[2].startswith(
        "  python -m metafew 'evaluate=[ridge,svm]' train.tasks=1 norm=layer seed=0 'stages=[fit]' ckpt=last "
    )


def test_a_training_under_way_says_how_far_it_is(tmp_path):
    whole = table(budgets={"small": ["trainer.max_steps=60000"], "paper": []})
    cells = planned(whole, tmp_path)
    assert not [*Progress(cells, 0.0).lines(5.0)]
    file = cells[0].fit.folder / "metrics.csv"
    file.parent.mkdir(parents=True)
    file.write_text("epoch,step,train/loss\n0,9,1.0\n0,999,1.0\n")
    progress = Progress(cells, 100.0)
    assert not [*progress.lines(200.0)]  # no step yet: the time before is not counted
    file.write_text(file.read_text() + "0,2999,0.5\n")
    assert [*progress.lines(500.0)] == ["a/good, seed 0: 3,000 of 60,000 steps, 0.15 s a step, about 2 h left"]
    report = collect_results(whole, cells)
    under_way = {row: results["under_way"] for row, results in report["rows"].items()}
    assert under_way == {"a/good": ["3,000 of 60,000 steps"], "a/bad": [], "b/good": ["3,000 of 60,000 steps"]}
    text = "\n".join(each.markdown() for each in result_tables(report))
    assert "| good | under way | under way | under way |" in text and "good is under way: 3,000 of 60,000 steps" in text
    write_json(cells[0].fit.folder / "results.json", {"metrics": {}, "seconds": {}, "versions": {}})
    assert not collect_results(whole, cells)["rows"]["a/good"]["under_way"]


def test_seeds_and_tasks_are_paired(tmp_path, started):
    rows = {"one": {}, "two": {"test": ["test.queries=single"]}}
    claims = {"two is higher": ["two[ProtoNet] > one[ProtoNet]", "two[5-shot] = one[5-shot] within 0.001"]}
    whole = table(rows=rows, claims=claims | {"in every column": ["one < two"], "a number": ["one[ProtoNet] > 0.8"]})
    whole["claims"]["no interval"] = ["one[R_FC] > 1.2"]
    cells = planned(whole, tmp_path)
    run_experiment(whole, cells, tmp_path / "out")
    report = json.loads((tmp_path / "out/results.json").read_text())
    first, equal = report["claims"][0]["evidence"]
    expected = interval(0.01 * np.arange(6))
    assert first["difference"] == pytest.approx(expected["mean"]) and first["ci95"] == pytest.approx(expected["ci95"])
    assert [first["verdict"], equal["verdict"], report["claims"][0]["verdict"]] == ["holds", "fails", "partly"]
    assert [each["line"] for each in report["claims"][1]["evidence"]][-1] == "one[R_FC] < two"
    assert [claim["verdict"] for claim in report["claims"][1:]] == ["partly", "reproduced", "undecided"]
    assert report["rows"]["one"]["figures"]["R_FC"]["mean"] == 1.25 and report["minutes"] == 3.0
    noted = "over test tasks or, for measures of pairs of classes, over pairs; accuracies of tasks in percent"
    assert result_tables(report)[0].notes[0].endswith(noted)


def test_what_is_not_started_is_cancelled_if_results_cannot_be_written(tmp_path, started, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    whole = table(rows={str(number): {"train": [f"x={number}"]} for number in range(9)})
    cells = planned(whole, tmp_path)
    monkeypatch.setattr(cells_module, "write_json", fail)
    with pytest.raises(OSError, match="No space left"):
        run_experiment(whole, cells, tmp_path / "out")
    assert len(started) < 9


def test_folders_of_an_experiment_that_cannot_be_written_are_one_line(tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "cells"))

    monkeypatch.setattr(start, "run_experiment", fail)
    monkeypatch.setattr(sys, "argv", ["train.py", "experiment=tasknorm_maml", f"cells={tmp_path}/cells"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 1, "which keeps what was finished, unlike 2"
    assert f"({tmp_path}/cells): free some space, or type cells=DIR" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["train.py", "experiment=tasknorm_maml", "cells=null"])
    with pytest.raises(SystemExit):
        cli.main()
    assert "got None: type cells=outputs/cells" in capsys.readouterr().err


def test_seeds_of_validation_tasks_have_trainings_of_their_own(tmp_path):
    (plain,), *others = (
        planned(table(rows={"one": {}}), tmp_path, [*words])
        for words in ((), ("test.seed=1",), ("analyze.every=5",), ("test.total=7",))
    )
    (seed,), (monitored,), (more,) = others
    assert seed.fit.folder != plain.fit.folder != monitored.fit.folder and more.fit.folder == plain.fit.folder


def test_a_training_that_diverged_is_below_all_others(tmp_path, started):
    rows = {"good": {}, "bad": {"train": ["diverges=true"]}, "ill": {"train": ["diverges=true", "x=1"]}}
    lines = ["good > bad", "good < bad", "bad < good", "bad > good", "bad > ill", "good = bad within 0.1", "bad > 0.5"]
    whole = table(rows=rows, columns={"ProtoNet": "test/protonet/accuracy"}, claims={line: [line] for line in lines})
    cells = planned(whole, tmp_path)
    assert run_experiment(whole, cells, tmp_path / "out") == 1
    report = collect_results(whole, cells)
    verdicts = [claim["evidence"][0]["verdict"] for claim in report["claims"]]
    assert verdicts == ["holds", "fails", "holds", "fails", "undecided", "fails", "undecided"]
    assert result_tables(report)[0].rows[1] == ["bad", "diverged"]
    # A shot of its own, which a run without results does not have; and a measure that has no better direction.
    columns = {"5-shot": COLUMNS["5-shot"], "R_FC": COLUMNS["R_FC"]}
    lines = ["good > bad", "bad < good", "good = bad within 0.1"]
    whole |= {"columns": columns, "claims": {line: [line] for line in lines}}
    evidence = [each for claim in collect_results(whole, cells)["claims"] for each in claim["evidence"]]
    assert [each["verdict"] for each in evidence if "5-shot" in each["line"]] == ["holds", "holds", "fails"]
    assert [each["verdict"] for each in evidence if "R_FC" in each["line"]] == ["undecided"] * 3


def test_a_row_counts_the_steps_of_its_training_and_the_seeds_that_were_measured(tmp_path, started):
    whole = table(rows={"one": {}}, columns={"ProtoNet": "test/protonet/accuracy"})
    run_experiment(whole, planned(whole, tmp_path), tmp_path / "out")
    cells = planned(whole, tmp_path, seeds=(0, 1))
    write_json(cells[0].test.folder / "results.json", cells[0].test.report | {"steps": 7})  # of its best checkpoint
    report = collect_results(whole, cells)
    assert report["rows"]["one"]["steps"] == 10
    assert report["seeds"] == [0, 1] and measured_seeds(report, ["one"]) == 1
    report["rows"]["one"]["figures"] = {}
    assert measured_seeds(report, ["one"]) == 2


def test_a_claim_on_a_column_that_is_not_there_is_not_yet_run(tmp_path, started):
    whole = table(rows={"one": {}}, claims={"misspelt": ["one[ProtNet] > 0.5"]})
    cells = planned(whole, tmp_path)
    run_experiment(whole, cells, tmp_path / "out")
    assert collect_results(whole, cells)["claims"][0]["verdict"] == "not yet run"


def test_damaged_results_are_a_usage_error(tmp_path, started):
    whole = table(rows={"one": {}})
    (cell,) = cells = planned(whole, tmp_path)
    run_experiment(whole, cells, tmp_path / "out")
    file = cell.test.folder / "results.json"
    file.write_text(file.read_text()[:20])
    with pytest.raises(UsageError, match=rf"expected {file} to be JSON, .* got damaged text .*: restore or delete it"):
        run_experiment(whole, cells, tmp_path / "out")


def test_a_claim_waits_for_all_seeds(tmp_path, started):
    rows = {"one": {}, "two": {"test": ["test.queries=single"]}}
    whole = table(rows=rows, columns={"ProtoNet": "test/protonet/accuracy"}, claims={"two is higher": ["two > one"]})
    run_experiment(whole, planned(whole, tmp_path, seeds=(0, 1)), tmp_path / "out")
    cells = planned(whole, tmp_path, seeds=(0, 1, 2))
    assert collect_results(whole, cells)["claims"][0]["verdict"] == "reproduced"
    (cells[1].test.folder / "results.json").unlink()
    report = collect_results(whole, cells)
    assert report["claims"][0]["verdict"] == "not yet run"
    assert "over 2 seeds or, for one seed, 95 % interval" in result_tables(report)[0].notes[0]


def test_a_run_that_another_process_holds_is_waited_for(tmp_path, started):
    whole = table(rows={"row": {}})
    (cell,) = cells = planned(whole, tmp_path)
    cell.fit.folder.mkdir(parents=True)
    other = FileLock(cell.fit.folder / "run.lock", thread_local=False)
    other.acquire()

    def finish():
        trained = {"metrics": {}, "seconds": {"fit": 1.0}, "steps": 10, "versions": {}}
        (cell.fit.folder / "results.json").write_text(json.dumps(trained))
        other.release()

    timer = threading.Timer(0.5, finish)
    timer.start()
    assert run_experiment(whole, cells, tmp_path / "out") == 0
    timer.join()
    assert started == [cell.test.arguments]


def test_a_figure_that_cannot_be_drawn_does_not_prevent_the_table(tmp_path, started, capsys):
    figure = {"draw": "metafew.analysis.compare.feature_plots.alpha_curves", "from": "test", "rows": {"one": "one"}}
    whole = table(rows={"one": {}}, figures={"alpha": figure})
    (tmp_path / "out").mkdir()
    for suffix in ("png", "svg"):  # of an earlier command
        (tmp_path / f"out/alpha.{suffix}").touch()
    assert run_experiment(whole, planned(whole, tmp_path), tmp_path / "out") == 0
    assert not [*(tmp_path / "out").glob("alpha.*")]
    assert "alpha is not drawn: expected runs with alpha" in capsys.readouterr().out
    assert json.loads((tmp_path / "out/results.json").read_text())["figures"] == []
    assert (tmp_path / "out/table.md").exists()


def test_several_seeds_have_a_t_interval(tmp_path, started):
    whole = table(rows={"one": {}}, columns={"ProtoNet": "test/protonet/accuracy"})
    report = collect_results(whole, planned(whole, tmp_path, seeds=(0, 1, 2)))
    assert report["rows"]["one"]["figures"] == {} and result_tables(report)[0].rows == [["one", "not yet run"]]
    cells = planned(whole, tmp_path, seeds=(0, 1, 2))
    run_experiment(whole, cells, tmp_path / "out")
    report = collect_results(whole, cells)
    expected = interval([0.825, 0.845, 0.865])
    found = report["rows"]["one"]["figures"]["ProtoNet"]
    assert found["mean"] == pytest.approx(expected["mean"]) and found["ci95"] == pytest.approx(expected["ci95"])
    assert found["seeds"] == {str(n): pytest.approx(0.825 + 0.02 * n) for n in range(3)}
    assert "t-interval over 3 seeds" in result_tables(report)[0].notes[0]


def test_the_time_at_which_validation_reaches_the_final_accuracy_of_another_row(tmp_path, started):
    curves = {"fast": [0.5, 0.8, 0.8], "slow": [0.2, 0.5, 0.7], "goal": [0.3, 0.78, 0.8]}
    rows = {f"p/{name}": {"train": [f"x={name}"]} for name in curves}
    column = {"reach": 0.95, "of": "goal", "in": "steps"}
    claims = {"fast is faster": ["p/fast[steps] < p/slow[steps]"]}
    whole = table(rows=rows, columns={"steps": column, "seconds": column | {"in": "seconds"}}, claims=claims)
    cells = planned(whole, tmp_path)
    run_experiment(whole, cells, tmp_path / "out")
    for cell, curve in zip(cells, curves.values(), strict=True):
        lines = [f"{4 + 5 * n},{value}" for n, value in enumerate(curve)]
        (cell.fit.folder / "metrics.csv").write_text("\n".join(["step,val/protonet/accuracy", *lines]) + "\n")
    report = collect_results(whole, cells)
    (sheet, _) = result_tables(report)
    assert sheet.rows == [["fast", "10", "60"], ["slow", "> 15", "> 90"], ["goal", "10", "60"]]
    assert report["claims"][0]["evidence"][0]["difference"] == -5


def test_the_tables(tmp_path, started):
    rows = ROWS | {"a/seen": {"train": ["norm=transductive"]}}
    theirs = {"text": "quoted from a paper", "columns": ["ProtoNet"], "rows": {"good": ["62.6 ± 1.0"], "bad": [55.25]}}
    whole = table(rows=rows, columns={"ProtoNet": COLUMNS["ProtoNet"]}, published=theirs)
    run_experiment(whole, planned(whole, tmp_path), tmp_path / "out")
    report = json.loads((tmp_path / "out/results.json").read_text())
    first, second = result_tables(report)
    assert [sheet.title for sheet in (first, second)] == ["tiny: a", "tiny: b"]
    assert first.columns == ["ProtoNet", "published: ProtoNet"]
    assert first.rows == [
        ["good", "82.50 ± 1.96", "62.6 ± 1.0"],
        ["bad", "failed", "55.25"],
        ["seen †", "82.50 ± 1.96", "–"],
    ]
    assert DAGGER in first.notes and DAGGER not in second.notes and "quoted from a paper" in first.notes
    assert "good: lr=0.05 test_steps=10 of head=maml chosen on validation tasks" in first.notes
    assert "bad failed: too many classes: type train.way=5" in first.notes
    elsewhere = report | {"published": theirs | {"rows": {"another network": [62.6]}}}
    assert result_tables(elsewhere)[-1].rows == [["another network", "62.60"]]
    assert result_tables(elsewhere)[-1].title == "published"
    elsewhere["published"]["standing"] = "reported"
    assert result_tables(elsewhere)[-1].title == "reported"
    assert "| seen † | 82.50 ± 1.96 | – |" in (tmp_path / "out/table.md").read_text()


def test_a_table_that_is_too_wide_for_the_terminal_has_its_columns_as_rows(tmp_path, started, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    columns = {f"column {number}": COLUMNS["ProtoNet"] for number in range(8)}
    whole = table(columns=columns)
    run_experiment(whole, planned(whole, tmp_path), tmp_path / "out")
    printed = capsys.readouterr().out
    assert "│ column 7 │ 82.50 ± 1.96 │ failed │" in printed


def test_invalid_arguments_raise(tmp_path):
    for typed, seeds, budget, message in (
        ([], [0], "huge", "expected budget to be small or paper, got huge: type budget=small"),
        ([], [], "small", r"expected seeds to be different non-negative integers, got \[\]: type seeds=\[0,1,2\]"),
        ([], [1, 1], "small", r"expected seeds to be different non-negative integers, got \[1, 1\]"),
        (["seed=3"], [0], "small", "expected no seed and no stages, which the experiment sets, got seed=3"),
    ):
        with pytest.raises(UsageError, match=message):
            plan_cells(table(), typed, budget, seeds, tmp_path, group_names())
    for changes in ({"rows": {"a/one": {"from": []}}}, {"panels": {"a": {"from": []}}}):
        with pytest.raises(
            UsageError, match="entries train, test, heads, slow_heads, small, paper, got from: leave out from"
        ):
            plan_cells(table(**changes), [], "small", [0], tmp_path, group_names())
    with pytest.raises(UsageError, match=r"expected heads of a/one to be a list, got cnaps: write heads: \[cnaps\]"):
        plan_cells(table(rows={"a/one": {"heads": "cnaps"}}), [], "small", [0], tmp_path, group_names())
    with pytest.raises(
        UsageError, match=r"expected slow_heads of a/one to be a list, got tsa: write slow_heads: \[tsa\]"
    ):
        plan_cells(table(rows={"a/one": {"slow_heads": "tsa"}}), [], "small", [0], tmp_path, group_names())
    with pytest.raises(UsageError, match=r"expected slow_heads of experiment to be a list, got tsa: write slow_heads"):
        plan_cells(table(slow_heads="tsa"), [], "small", [0], tmp_path, group_names())
    for entry, advice in (("checkpoints", "write checkpoint"), ("xyz", "leave out xyz")):
        with pytest.raises(UsageError, match=f"expected experiment to have the entries .*, got {entry}: {advice}"):
            plan_cells(table() | {entry: {"paper": "best"}}, [], "small", [0], tmp_path, group_names())
    with pytest.raises(UsageError, match=r"for each budget, got best: write checkpoint: \{small: best\}"):
        plan_cells(table(checkpoint="best"), [], "small", [0], tmp_path, group_names())


def test_it_needs_no_torch():
    code = (
        "import sys; sys.modules['torch'] = sys.modules['pytorch_lightning'] = None; import metafew.experiments.cells"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def choices_of(words):
    """Yield each word, an option of a component with the word that chooses it."""
    chosen = dict(word.split("=", 1) for word in words)
    for word in words:
        group = word.split(".")[0]
        yield word, chosen.get(group)


@pytest.fixture(scope="session")
def seen():
    """The words that some run of a table has composed."""
    return set()


@pytest.mark.parametrize("name", sampled(NAMES, 3))
def test_every_word_of_a_published_table_composes(name, composed, seen, tmp_path):
    """Every word and every choice is in a run that composes; runs that only mix words of others are left out."""
    whole, options = composed_of(name)
    assert set(whole) >= KEYS and set(whole) - KEYS <= OPTIONAL and {*ENTRIES} == KEYS | OPTIONAL
    assert options == ("small", "outputs/cells", 2)
    assert {"small", "paper"} <= set(whole["budgets"]) <= {"small", "medium", "paper"}
    assert {*whole.get("ours", ())} <= whole["claims"].keys()
    for lines in whole["claims"].values():
        for line in lines:
            found = LINE.fullmatch(line)
            assert found["left"] in whole["rows"], line
            assert found["right"] in whole["rows"] or re.fullmatch(r"[\d.]+", found["right"]), line
            assert {found["in"], found["at"]} <= {None, *whole["columns"]}, line
    assert set(whole.get("panels", {})) <= {row.partition("/")[0] for row in whole["rows"]}
    for figure in whole.get("figures", {}).values():
        assert set(figure.get("rows", {}).values()) <= set(whole["rows"])
    for budget in whole["budgets"]:
        for cell in plan_cells(whole, [], budget, [0], tmp_path / "out", group_names()):
            assert re.fullmatch(r"[a-z0-9_]+(/[a-z0-9_]+)?", cell.row)
            tested = merge(
                [word for word in cell.fit.overrides if "ckpt" not in word], cell.test.overrides, group_names()
            )
            further = [
                merge([word for word in fit.overrides if "ckpt" not in word], test.overrides, group_names())
                for fit, test in cell.further
            ]
            first = cell.pretraining.overrides if cell.pretraining else ()
            for words in (first, cell.fit.overrides, tested, *further):
                words = [word for word in words if not word.startswith(("ckpt=", "backbone.weights=", "stages="))]
                if not seen.issuperset(choices_of(words)):
                    seen.update(choices_of(words))
                    assert "experiment" not in composed(*words)[0]
    typed = ["dataset=glyphs", "trainer.max_steps=10", "test.total=6"]
    cell = plan_cells(whole, typed, "small", [3], tmp_path / "out", group_names())[-1]
    run, _, _ = composed(*cell.fit.overrides[:-1])
    assert (run.dataset._target_.split(".")[-1], run.trainer.max_steps, run.test.total) == ("Glyphs", 10, 6)
    assert run.seed == 3


@pytest.mark.parametrize("budget", ["small", pytest.param("paper", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", sampled(NAMES, 3))
def test_every_published_table_starts(name, budget, launch, tmp_path):
    """Train and test its first row at a tiny size, on glyphs instead of its data."""
    whole = composed_of(name)[0]
    tiny = [
        *TINY,
        "dataset=glyphs",
        "trainer.max_steps=1",
        "val.every=1",
        "analyze.tasks=2",
        "test.way=3",
        "val.way=3",
        "val.total=1",
        "test.total=2",
    ]
    cell = plan_cells(whole, tiny, budget, [0], tmp_path / "cells", group_names())[0]
    if "objective=classical" not in cell.fit.overrides:  # which has no tasks
        cell = plan_cells(whole, [*tiny, "train.way=3"], budget, [0], tmp_path / "cells", group_names())[0]
    words = [word for word in cell.fit.overrides if not word.startswith(("ckpt=", "backbone.weights="))]
    fit, out = launch(*words, out=tmp_path / "fit", tiny=[])
    ckpt = f"ckpt={out}/checkpoints/last.ckpt"
    tests = merge(words, [word for word in cell.test.overrides if "ckpt=" not in word], group_names())
    report, _ = launch(*tests, ckpt, out=tmp_path / "test", tiny=[])
    found = collect_results(
        whole | {"name": name, "budget": budget, "command": "", "claims": {}, "rows": {cell.row: {}}},
        [Cell(cell.row, 0, Command(out, cell.fit.overrides), Command(tmp_path / "test", cell.test.overrides))],
    )
    assert fit["steps"] == 1
    results = {"test": "metrics", "analyze": "analysis"}
    assert all(report[results[stage]] for stage in whole.get("stages", ["test"]))
    assert found["rows"][cell.row]["figures"] or "dataset=mixture" in str(whole)  # whose columns are its datasets


@pytest.mark.parametrize("budget", ["small", "paper"])
def test_tables_share_their_trainings(budget, tmp_path):
    def trainings(name):
        whole = composed_of(name)[0]
        return {cell.fit.folder.name for cell in plan_cells(whole, [], budget, [0], tmp_path, group_names())}

    maml, protonet = trainings("tasknorm_maml"), trainings("tasknorm_protonet")
    assert trainings("tasknorm_modes") < maml | protonet
    assert trainings("tasknorm_curves") < maml | protonet
    assert len(trainings("tasknorm_alpha") & maml) == 1
    assert len(trainings("unraveling_clustering") & trainings("unraveling_regularizers")) == 2
    assert len(trainings("unraveling_clustering") & trainings("unraveling_figures")) == 2
    assert trainings("unraveling_mini_clustering") < trainings("unraveling_mini_imagenet")


def test_the_command_line_hands_over(composed, monkeypatch, tmp_path):
    typed = ["experiment=unraveling_table1", "seeds=[1,2]", "jobs=3", "trainer.max_steps=4", "data_dir=/private"]
    typed += ["cuda_graph=true", "+trainer.benchmark=true", "data.num_workers=2"]
    chosen = {"mode": RunMode.RUN, "run": {"dir": "here"}, "overrides": {"task": typed}}
    chosen |= {"job": {"config_name": "train", "chdir": None}}
    chosen["overrides"]["hydra"] = ["hydra.run.dir=here", "hydra.searchpath=[file://mine]"]
    sources = [{"provider": "main", "path": str(CONF)}]
    runtime = {"choices": {"experiment": "unraveling_table1"}, "cwd": str(tmp_path), "config_sources": sources}
    hydra = OmegaConf.create(chosen | {"runtime": runtime})
    seen, folders = [], []
    monkeypatch.setattr(
        start, "run_experiment", lambda *arguments: seen.append(arguments) or folders.append(Path.cwd()) or 1
    )
    cfg, _, _ = composed(*typed)
    monkeypatch.setattr(start.HydraConfig, "get", lambda: hydra)
    assert start.start_experiment(cfg) == 1
    ((whole, cells, out, jobs),) = seen
    assert folders == [tmp_path] and whole["flags"] == ["hydra.searchpath=[file://mine]"]
    assert whole["title"].endswith(", with trainer.max_steps=4") and out == Path("here") and jobs == 3
    assert {cell.seed for cell in cells} == {1, 2} and "trainer.max_steps=4" in cells[0].fit.overrides
    assert "data_dir=/private" in cells[0].fit.overrides and "/private" not in json.dumps(collect_results(whole, cells))
    assert {"cuda_graph=true", "++trainer.benchmark=true"} <= {*cells[0].fit.overrides}
    words = [word for word in typed if not word.startswith(("jobs", "data_dir"))]
    assert whole["command"] == " ".join(["python train.py", *words])


@pytest.mark.parametrize("word, code", [("ckpt=some.ckpt", 2), ("-m", 2)])
def test_unsupported_options_are_errors(word, code, tmp_path):
    (tmp_path / "outputs/unraveling_table1").mkdir(parents=True)
    (tmp_path / "outputs/unraveling_table1/results.json").write_text("good")
    done = metafew("experiment=unraveling_table1", word, cwd=tmp_path, code=code)
    assert f"leave out {word.split('=')[0]}" in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("cells"))
    assert (tmp_path / "outputs/unraveling_table1/results.json").read_text() == "good"


@pytest.mark.parametrize(
    "word", ["--config-name=mine", "seeds=3", "seeds=null", "cells=null", "jobs=0", "jobs=two", "seeds=[a]"]
)
def test_options_of_an_experiment_are_checked(word, composed, monkeypatch):
    own = word.startswith("--")
    cfg, _, _ = composed("experiment=tasknorm_maml", *[word] * (not own))
    chosen = {"mode": RunMode.RUN, "run": {"dir": "here"}, "overrides": {"task": [word], "hydra": []}}
    chosen |= {"job": {"config_name": "mine" if own else "train", "chdir": None}}
    runtime = {"choices": {"experiment": "tasknorm_maml"}, "config_sources": []}
    hydra = OmegaConf.create(chosen | {"runtime": runtime})
    monkeypatch.setattr(start, "run_experiment", lambda *_: 0)
    monkeypatch.setattr(start.HydraConfig, "get", lambda: hydra)
    if word == "seeds=3":  # a single seed
        assert start.start_experiment(cfg) == 0
    else:
        with pytest.raises(UsageError, match=f"got {word}: type" if own else f"type {word.split('=')[0]}="):
            start.start_experiment(cfg)


def test_the_page_is_made_from_the_results_beside_it():
    """Every number of the page comes from a results file; remarks may only repeat them."""
    results = ROOT / "docs/results"
    assert (ROOT / "docs/reproduction.md").read_text() == reproduction_page(results)
    for remark in results.glob("*.md"):
        assert remark.stem in NAMES
        rest = reproduction_page(results).replace(remark.read_text().strip(), "")
        for number in re.findall(r"\d+\.\d+", remark.read_text()):
            assert number in rest, f"{number} of {remark.name} stands in no table"


@pytest.mark.parametrize("name", NAMES)
def test_the_stated_time_is_the_measured_one(name):
    minutes = OmegaConf.load(CONF / "experiment" / f"{name}.yaml").experiment.minutes
    for budget, stated in minutes.items():
        report = json.loads(results_file(ROOT / "docs/results", name, budget).read_text())
        seeds = {
            tuple(row["words"]): max((len(figure["seeds"]) for figure in row["figures"].values()), default=0)
            for row in report["rows"].values()
        }
        assert stated == pytest.approx(report["minutes"] / sum(seeds.values()), abs=0.051)


def test_a_claim_has_the_verdict_of_the_largest_budget_that_decided_it(tmp_path):
    small = json.loads((ROOT / "docs/results/tasknorm_rates.json").read_text())
    partly = small["claims"][-1]
    write_json(results_file(tmp_path, "tasknorm_rates", "small"), small)
    paper = small | {"budget": "paper", "figures": ["x"]}
    for verdict, shown in (("not yet run", "partly"), ("reproduced", "reproduced")):
        claims = [partly | {"verdict": verdict}]
        write_json(results_file(tmp_path, "tasknorm_rates", "paper"), paper | {"claims": claims})
        page = reproduction_page(tmp_path)
        scale = r"ours \| – \| [^|]+ \| [^|]+, omniglot, conv4"
        assert re.search(rf"\| {partly['text']} \| {scale} \| {shown} \| tasknorm_rates \|", page)
    assert page.index(", budget=paper\n") < page.index("![x](pictures/tasknorm_rates-paper_x.png)")


def test_a_claim_stands_beside_what_was_published_and_its_scale():
    experiment = {"paper": "A. Author 2020, Table 1", "settings": ["dataset=omniglot", "backbone=conv4"]}
    experiment |= {"budgets": {"small": [], "paper": ["trainer.max_steps=60000"]}, "rows": {"p/a": {}, "p/b": {}}}
    experiment |= {"claims": {"a beats b": ["p/a[x] > p/b[x]"], "later": ["p/a[x] > 1"]}, "ours": ["later"]}
    words, figure = (
        ["dataset=folder", "dataset.root=${data_dir}/birds/all", "backbone=r2d2"],
        {"ci95": 0.01, "seeds": {"0": 0.0, "1": 0.0}},
    )
    rows = {"p/a": {"steps": 1000, "words": words, "figures": {"x": figure | {"mean": 0.5}}}}
    rows |= {"p/b": {"steps": 300, "words": words, "figures": {"x": figure | {"mean": 0.25}}}}
    claims = [{"text": "a beats b", "verdict": "reproduced", "evidence": [{"line": "p/a[x] > p/b[x]"}]}]
    report = {"rows": rows, "claims": claims, "columns": {"x": "percent"}, "budget": "small", "seeds": [0, 1]}
    report |= {"published": {"columns": ["x"], "rows": {"a": ["60 ± 1"]}}}
    (table,) = claims_tables({"e": experiment}, {"e": [report]})
    here, scale = "50.00 ± 1.00 / 25.00 ± 1.00", "300 to 1,000 of 60,000 steps, 2 seeds, birds, r2d2"
    assert table.title == "A. Author 2020" and table.rows == [
        ["a beats b", "Table 1", "60 ± 1 / –", here, scale, "reproduced", "e"],
        ["later", "ours", "–", "–", "–", "not yet run", "e"],
    ]
    report["columns"], report["published"] = {"x": "percent", "y": "percent"}, {"columns": ["y"], "rows": {"a": ["60"]}}
    (table,) = claims_tables({"e": experiment}, {"e": [report]})
    assert table.rows[0][2] == "60 / – (y)", "the column that was published, if it is another"


def test_an_experiment_without_results_is_marked_as_not_run(tmp_path):
    text = reproduction_page(tmp_path)
    assert text.count("Not yet run.") == len(NAMES) and text.count("| not yet run |") >= len(NAMES)
