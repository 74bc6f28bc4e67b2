"""A published table: its cells, what is left of them when it is typed again, and what is printed."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TINY
from hydra.types import RunMode
from omegaconf import OmegaConf

from metafew import cli, experiment
from metafew.analysis.sheets import DAGGER, sheets
from metafew.errors import UsageError
from metafew.experiment import conduct, plan

ROOT = Path(__file__).parents[1]
NAMES = [file.stem for file in sorted((cli.CONF / "experiment").glob("*.yaml"))]
COLUMNS = {"ProtoNet": "test/protonet/accuracy", "RR": "test/ridge/accuracy"}
PUBLISHED = {"text": "quoted from a paper", "rows": {"theirs": [62.6, 55.25]}}


def table(**changes):
    cells = {"a/good": ["seed=1"], "a/bad": ["train.way=999"], "b/good": ["norm=layer"]}
    whole = {"title": "tiny", "settings": ["test.total=6", "norm=none"], "cells": cells, "columns": COLUMNS}
    return whole | {"published": PUBLISHED} | changes


@pytest.fixture
def started(monkeypatch):
    """Replace the processes of cells by results made up; returns the words of each."""
    words = []

    def start(typed, log):
        words.append(typed)
        log.write("hello\n")
        out = Path(typed[-1].removeprefix("hydra.run.dir="))
        out.mkdir(parents=True, exist_ok=True)
        if "train.way=999" in typed:
            (out / "results.json").write_text(json.dumps({"error": "too many classes: type train.way=5"}))
            return 2
        if "train.way=crash" in typed:
            return -9
        if "train.way=interrupt" in typed:
            raise KeyboardInterrupt
        measure = {"mean": 0.875, "ci95": 0.0123, "tasks": 6}
        result = {
            "metrics": {"test/protonet/accuracy": measure, "test/protonet/loss": measure},
            "seconds": {"fit": 2.0},
        }
        result |= {"chosen": {"maml": {"lr": 0.05, "test_steps": 10}}, "transductive": "norm=transductive" in typed}
        (out / "results.json").write_text(json.dumps(result))
        return 0

    monkeypatch.setattr(experiment, "start", start)
    return words


def test_a_table_of_real_runs(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    cells = {"panel/good": [], "panel/bad": ["train.way=999"]}
    tiny = table(settings=TINY, cells=cells, test=["head=protonet", "evaluate=[ridge]"])
    assert conduct(tiny, ["dataset=glyphs"], Path("out")) == 1
    report = json.loads(Path("out/results.json").read_text())["cells"]
    good = json.loads(Path("out/cells/panel/good/test/results.json").read_text())
    assert report["panel/good"]["metrics"]["RR"] == good["metrics"]["test/ridge/accuracy"]
    assert report["panel/good"]["metrics"]["RR"]["tasks"] == 6 and not report["panel/good"]["transductive"]
    assert report["panel/good"]["seconds"] > 0
    assert "999" in report["panel/bad"]["error"] and "type" in report["panel/bad"]["error"]
    printed = capfd.readouterr().out
    for text in (printed, Path("out/table.md").read_text()):
        accuracy = good["metrics"]["test/protonet/accuracy"]
        assert f"{100 * accuracy['mean']:.2f} ± {100 * accuracy['ci95']:.2f}" in text
        assert f"bad failed: {report['panel/bad']['error']}" in text and "62.60" in text
    assert "results, figures" in Path("out/cells/panel/good/log.txt").read_text()
    done = [*Path("out/cells/panel/good").rglob("results.json"), Path("out/cells/panel/good/log.txt")]
    times = {file: file.stat().st_mtime_ns for file in done}
    assert len(times) == 3
    assert conduct(tiny | {"cells": {"panel/good": []}}, ["dataset=glyphs"], Path("out")) == 0
    assert times == {file: file.stat().st_mtime_ns for file in times}
    assert "1/1 panel/good: finished before" in capfd.readouterr().out


def test_typed_words_win_and_a_new_group_drops_its_old_options(tmp_path):
    settings = ["dataset=omniglot", "dataset.split=vinyals", "train.tasks=8", "val.total=50"]
    whole = table(settings=settings, cells={"row": ["train.tasks=1"]}, test=["head=protonet", "val.total=50"])
    (cell,) = plan(whole, ["dataset=glyphs", "val.total=4"], tmp_path)
    folder = tmp_path / "cells" / "row"
    typed, ckpt = ["dataset=glyphs", "val.total=4"], f"ckpt={folder}/fit/checkpoints/last.ckpt"
    assert list(cell.commands.values()) == [
        ["train.tasks=1", *typed, "stages=[fit]", f"hydra.run.dir={folder}/fit"],
        ["stages=[test]", ckpt, "head=protonet", *typed, f"hydra.run.dir={folder}/test"],
    ]
    (cell,) = plan(table(cells={"row": []}), ["seed=4"], tmp_path)
    assert cell.commands == {folder: ["test.total=6", "norm=none", "seed=4", f"hydra.run.dir={folder}"]}


def test_only_what_is_not_finished_runs_again(tmp_path, started):
    assert conduct(table(), [], tmp_path) == 1
    assert len(started) == 3
    assert conduct(table(), [], tmp_path) == 1
    assert [words[:-1] for words in started[3:]] == [["test.total=6", "norm=none", "train.way=999"]]
    mended = table(cells=table()["cells"] | {"a/bad": ["seed=2"]})
    assert conduct(mended, [], tmp_path) == 0
    assert len(started) == 5
    (tmp_path / "cells/a/bad/results.json").unlink()
    assert conduct(mended, [], tmp_path) == 0
    assert len(started) == 6


def test_results_of_other_words_are_not_lost(tmp_path, started):
    whole = table(cells={"row": []}, test=["head=protonet"])
    conduct(whole, [], tmp_path)
    before = (tmp_path / "results.json").read_text()
    for other in ({"test": ["head=ridge"]}, {"settings": ["seed=1"]}):
        with pytest.raises(UsageError, match=r"with other words than these, such as .*row: type hydra\.run\.dir="):
            conduct(whole | other, [], tmp_path)
    with pytest.raises(UsageError, match="with other words"):
        conduct(whole, ["test.total=9"], tmp_path)
    assert (tmp_path / "results.json").read_text() == before and len(started) == 2
    assert conduct(whole, ["test.total=9"], tmp_path / "new") == 0
    assert "## tiny, with test.total=9\n" in (tmp_path / "new/table.md").read_text()


def test_a_test_that_is_not_finished_does_not_train_again(tmp_path, started):
    whole = table(cells={"row": []}, test=["head=protonet"])
    conduct(whole, [], tmp_path)
    (tmp_path / "cells/row/test/words.json").unlink()
    conduct(whole, [], tmp_path)
    assert [words[0] == "stages=[test]" for words in started] == [False, True, True]
    assert (tmp_path / "cells/row/log.txt").read_text() == "hello\n" * 3


def test_a_process_that_dies_without_a_word_is_a_sentence(tmp_path, started, capsys):
    assert conduct(table(cells={"row": ["train.way=crash"], "next": []}), [], tmp_path) == 1
    report = json.loads((tmp_path / "results.json").read_text())["cells"]
    assert re.fullmatch(r"it ended with exit code -9: see .*/cells/row/log\.txt", report["row"]["error"])
    assert "error" not in report["next"] and "row failed: it ended" in capsys.readouterr().out


def test_an_interruption_says_how_to_go_on_and_is_not_finished(tmp_path, started, capsys):
    cells = {"first": [], "second": []}
    stopped = cells | {"second": ["train.way=interrupt"]}
    assert conduct(table(cells=stopped), [], tmp_path) == 130
    assert "type the same command" in capsys.readouterr().err
    assert conduct(table(cells=cells), [], tmp_path) == 0
    assert [words[-1].rsplit("/")[-1] for words in started] == ["first", "second", "second"]


def test_every_cell_says_its_command_and_the_time_that_is_left(tmp_path, started, capsys, monkeypatch):
    now = iter(range(0, 6000, 600))
    monkeypatch.setattr(experiment.time, "monotonic", lambda: next(now))
    conduct(table(settings=["evaluate=[ridge,svm]"]), [], tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "1/3 a/good: 10 min so far"
    assert lines[1] == f"  python -m metafew 'evaluate=[ridge,svm]' seed=1 hydra.run.dir={tmp_path}/cells/a/good"
    assert lines[2] == "2/3 a/bad: 20 min so far, about 40 min left"
    assert lines[4] == "3/3 b/good: 30 min so far, about 15 min left"


def test_the_tables(tmp_path, started):
    cells = {"a/one": [], "a/two": ["norm=transductive"], "a/three": ["train.way=999"], "b/one": []}
    conduct(table(cells=cells), [], tmp_path)
    reports = json.loads((tmp_path / "results.json").read_text())["cells"]
    first, second, published = sheets(table(cells=cells), reports)
    assert [sheet.title for sheet in (first, second)] == ["tiny: a", "tiny: b"]
    assert first.columns == ["ProtoNet", "RR"]
    assert first.rows == [["one", "87.50 ± 1.23", "–"], ["two †", "87.50 ± 1.23", "–"], ["three", "failed", "failed"]]
    assert second.rows == [["one", "87.50 ± 1.23", "–"]] and published.rows == [["theirs", "62.60", "55.25"]]
    assert DAGGER in first.notes and DAGGER not in second.notes
    assert "two: lr=0.05 test_steps=10 of head=maml chosen on validation tasks" in first.notes
    assert "three failed: too many classes: type train.way=5" in first.notes
    assert published.notes == ["quoted from a paper"]
    assert "| two † | 87.50 ± 1.23 | – |" in (tmp_path / "table.md").read_text()


def test_it_needs_no_torch():
    code = "import sys; sys.modules['torch'] = sys.modules['pytorch_lightning'] = None; import metafew.experiment"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize("name", NAMES)
def test_every_cell_of_a_published_table_composes(name, composed, tmp_path):
    cfg, _, _ = composed(f"experiment={name}")
    whole = OmegaConf.to_container(cfg.experiment, resolve=True)
    assert set(whole) - {"test"} == {"title", "settings", "cells", "columns", "published"}
    assert all(len(values) == len(whole["columns"]) for values in whole["published"]["rows"].values())
    cells = plan(whole, [], tmp_path / "out")
    for cell in cells:
        assert re.fullmatch(r"[a-z0-9_]+(/[a-z0-9_]+)?", cell.name)  # becomes a folder, which Hydra must take back
        assert "experiment" not in composed(*next(iter(cell.commands.values())))[0]
    composed(*list(cells[0].commands.values())[-1])
    small = plan(whole, ["dataset=glyphs", "trainer.max_steps=10", "test.total=6"], tmp_path / "out")[-1]
    run, _, _ = composed(*next(iter(small.commands.values())))
    assert (run.dataset._target_.split(".")[-1], run.trainer.max_steps, run.test.total) == ("Glyphs", 10, 6)


def test_table_1_of_unraveling(composed, tmp_path):
    table_1 = OmegaConf.to_container(composed("experiment=unraveling_table1")[0].experiment)
    cells = {cell.name: next(iter(cell.commands.values())) for cell in plan(table_1, [], tmp_path)}
    assert [name.split("/")[1] for name in cells] == 2 * ["protonet", "ridge", "svm", "maml", "classical"]
    for panel, norms in (("batch_shared", ["BatchShared", "Transductive"]), ("layer", ["LayerNorm", "LayerNorm"])):
        ridge, maml, classical = (composed(*cells[f"{panel}/{row}"])[0] for row in ("ridge", "maml", "classical"))
        assert [run.norm._target_.split(".")[-1] for run in (classical, maml)] == norms
        assert maml.optimizer.lr == 0.002 and ridge.head.scale == 10 and ridge.train.tasks == 8
        assert (classical.train.batch_size, classical.train.tasks) == (128, 1)


def test_the_command_line_hands_over(composed, monkeypatch):
    typed = ["experiment=unraveling_table1", "seed=3"]
    hydra = OmegaConf.create({"mode": RunMode.RUN, "run": {"dir": "here"}, "overrides": {"task": typed}})
    seen = []
    monkeypatch.setattr(experiment, "conduct", lambda *arguments: seen.append(arguments) or 1)
    cfg, _, _ = composed(*typed)
    monkeypatch.setattr(cli.HydraConfig, "get", lambda: hydra)
    assert cli.conduct_cells(cfg) == 1
    ((whole, words, out),) = seen
    assert words == ["seed=3"] and out == Path("here") and "batch_shared/svm" in whole["cells"]


@pytest.mark.parametrize("word, code", [("ckpt=some.ckpt", 2), ("-m", 1)])
def test_what_an_experiment_cannot_do_is_a_sentence(word, code, tmp_path):
    command = [sys.executable, "-m", "metafew", "experiment=unraveling_table1", word]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    assert f"leave out {word.split('=')[0]}" in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("cells"))
