"""The command line in its own process."""

import json

import pytest
from image_folders import grow
from runs import ROOT, TINY, metafew

from metafew.commands import report


def test_help_lists_every_group_without_importing_torch(tmp_path):
    hook = "import sys; sys.modules['torch'] = sys.modules['pytorch_lightning'] = None\n"
    (tmp_path / "sitecustomize.py").write_text(hook)
    out = metafew("--help", cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, process=True).stdout
    for file in (ROOT / "conf").glob("*/*.yaml"):
        assert f"{file.parent.name}={file.stem}" in out
    assert "evaluate=[" in out and "python train.py head=svm" in out
    shown = metafew("--cfg", "job", "head=svm", cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, process=True).stdout
    assert "c: 0.1" in shown and "max_steps:" in shown and "momentum" not in shown


@pytest.mark.slow
def test_a_checkpoint_carries_its_choices(tmp_path):
    metafew(*TINY, "head=ridge", "head.penalty=7", "norm=batch", "hydra.run.dir=fit", cwd=tmp_path)
    trained = json.loads((tmp_path / "fit/results.json").read_text())
    ckpt = "ckpt=fit/checkpoints/best.ckpt"
    metafew("stages=[test]", ckpt, "hydra.run.dir=test", cwd=tmp_path)
    tested = json.loads((tmp_path / "test/results.json").read_text())
    assert tested["metrics"] == trained["metrics"] and tested["choices"] == trained["choices"]
    assert tested["config"]["head"]["penalty"] == 7
    metafew("stages=[test]", ckpt, "head=svm", "evaluate=[protonet]", "hydra.run.dir=svm", cwd=tmp_path)
    other = json.loads((tmp_path / "svm/results.json").read_text())
    assert next(iter(other["metrics"])) == "test/svm/accuracy" and "test/protonet/accuracy" in other["metrics"]
    assert other["choices"]["norm"] == "batch" and "penalty" not in other["config"]["head"]
    assert other["baselines"] == trained["baselines"]
    metafew("stages=[test]", ckpt, "head.penalty=9", "hydra.run.dir=other", cwd=tmp_path)
    changed = json.loads((tmp_path / "other/results.json").read_text())
    assert changed["config"]["head"]["penalty"] == 9 and changed["choices"]["head"] == "ridge"
    done = metafew("stages=[test]", ckpt, "head.penaltie=9", "hydra.run.dir=misspelt", cwd=tmp_path, code=2)
    assert "expected overrides that fit the choices" in done.stderr and "head.penaltie" in done.stderr
    done = metafew("stages=[test]", ckpt, "backbone.width=8", "hydra.run.dir=wide", cwd=tmp_path, code=2)
    assert "type backbone=..." in done.stderr and "error" in json.loads((tmp_path / "wide/results.json").read_text())


@pytest.mark.slow
def test_an_error_is_one_line_and_exit_code_2(tmp_path):
    done = metafew(*TINY, "test.way=999", "hydra.run.dir=out", cwd=tmp_path, code=2, process=True)
    assert "Traceback" not in done.stdout + done.stderr
    (message,) = [line for line in done.stderr.splitlines() if line.startswith("metafew: ")]
    assert json.loads((tmp_path / "out/results.json").read_text()) == {"error": message.removeprefix("metafew: ")}


def test_a_refused_command_leaves_the_results_of_its_folder(tmp_path):
    metafew(*TINY, "hydra.run.dir=out", cwd=tmp_path)
    before = (tmp_path / "out/results.json").read_text()
    for words in (["test.way=999"], ["ckpt=last", "optimizer.lr=0.5"]):
        assert metafew(*TINY, "hydra.run.dir=out", *words, cwd=tmp_path, code=2).stderr.startswith("metafew: ")
        assert (tmp_path / "out/results.json").read_text() == before


def test_missing_data_without_network_is_a_usage_error(tmp_path):
    done = metafew(*TINY, "dataset=omniglot", "data_dir=nothing", "dataset.download=false", cwd=tmp_path, code=2)
    assert "Traceback" not in done.stdout + done.stderr
    assert "images_background.zip" in done.stderr and "data_dir" in done.stderr


def cells(sweep):
    """The results of every cell, in the order of their numbers."""
    folders = sorted((folder for folder in sweep.glob("*/") if folder.name.isdecimal()), key=lambda f: int(f.name))
    return [json.loads((folder / "results.json").read_text()) for folder in folders]


BUG = "augment._target_=metafew.data.augment.Augmentation,types.SimpleNamespace"  # has no method check
WORKERS = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]


def test_a_multirun_goes_on_after_failed_cells_names_them_and_keeps_the_others(tmp_path):
    words = ["-m", *TINY, "train.way=5,999", BUG, "seed=0,1", "hydra.sweep.dir=sweep"]
    done = metafew(*words, cwd=tmp_path, code=1)
    first = cells(tmp_path / "sweep")
    assert ["error" in report for report in first] == [False] * 2 + [True] * 6
    assert [report["seed"] for report in first[:2]] == [0, 1] and first[0]["metrics"] != first[1]["metrics"]
    named = done.stderr.split("6 of 8 runs failed:\n")[1].splitlines()
    assert named[2] == f"  sweep/4: {first[4]['error']}" and "type train.way=153" in named[2]
    # What nobody expects leaves its traceback, too.
    assert "AttributeError" in first[2]["error"] and "sweep/2/train.log" in first[2]["error"]
    assert "Traceback" in (tmp_path / "sweep/2/train.log").read_text() and "Traceback" not in done.stderr
    (tmp_path / "sweep/1/results.json").unlink()
    times = [(tmp_path / f"sweep/{cell}/metrics.csv").stat().st_mtime_ns for cell in (0, 1)]
    again = metafew(*words, cwd=tmp_path, code=1)
    second = cells(tmp_path / "sweep")
    assert second[0] == first[0] and second[1]["metrics"] == first[1]["metrics"] and second[2:] == first[2:]
    after = [(tmp_path / f"sweep/{cell}/metrics.csv").stat().st_mtime_ns for cell in (0, 1)]
    assert after[0] == times[0] and after[1] != times[1] and "sweep/0 was finished before" in again.stdout
    assert again.stderr.split("6 of 8 runs failed:\n")[1].splitlines() == named


def test_a_sweep_of_tests_follows_the_images_of_the_training_and_is_finished_once(tmp_path):
    for name in ("photos", "others", "more"):
        for split in ("train", "val", "test"):
            grow(tmp_path / name / split, [f"{split}{number}" for number in range(5)], images=3)
    data = ["dataset=folder", "dataset.image_size=20", "dataset.channels=1", "dataset.fit=stretch"]
    tiny = [*TINY, "trainer.max_steps=1", "val.total=0", "test.total=2"]
    metafew(*tiny, *data, "dataset.root=photos", "stages=[fit]", "hydra.run.dir=fit", cwd=tmp_path)
    ckpt = "ckpt=fit/checkpoints/last.ckpt"
    words = ["-m", "stages=[test]", ckpt, "dataset=folder", "dataset.root=others,more", "hydra.sweep.dir=sweep"]
    for count in (0, 2):
        assert metafew(*words, cwd=tmp_path).stdout.count("was finished before") == count
    shown = metafew("stages=[test]", ckpt, "dataset=folder", "dataset.root=more", "--cfg", "job", cwd=tmp_path).stdout
    assert "image_size: 20" in shown and "fit: stretch" in shown


def test_a_sweep_may_grow_as_long_as_its_runs_keep_their_numbers(tmp_path):
    tiny = [*TINY, "trainer.max_steps=1", "val.total=0", "test.total=2", "hydra.sweep.dir=sweep"]
    metafew("-m", *tiny, "norm=none,layer", "seed=0,1", cwd=tmp_path)
    first = cells(tmp_path / "sweep")
    for words in (["norm=none,layer", "seed=0,1,2"], ["seed=0,1", "norm=none,layer"], ["norm=layer,none", "seed=0,1"]):
        done = metafew("-m", *tiny, *words, "ckpt=last", cwd=tmp_path, code=2)
        assert "so that ckpt=last finds its runs, got others: type hydra.sweep.dir=sweep_2" in done.stderr
    shared = ["norm=none,layer", "seed=0,1", "train.way=4", "ckpt=last"]
    assert "type hydra.sweep.dir=sweep_2" in metafew("-m", *tiny, *shared, cwd=tmp_path, code=2).stderr
    assert cells(tmp_path / "sweep") == first
    done = metafew("-m", *tiny, "norm=none,layer,instance", "seed=0,1", "ckpt=last", cwd=tmp_path)
    grown = cells(tmp_path / "sweep")
    assert grown[:4] == first and [each["choices"]["norm"] for each in grown[4:]] == ["instance", "instance"]
    assert done.stdout.count("was finished before") == 4


@pytest.mark.slow
def test_24_cells_on_two_workers(tmp_path):
    norms = "norm=batch,batch_shared,layer,none,tasknorm,transductive"
    words = ["head=protonet,ridge,svm,maml", norms, "hydra.sweep.dir=sweep"]
    done = metafew("-m", *TINY, *words, *WORKERS, cwd=tmp_path, code=1)
    reports = cells(tmp_path / "sweep")
    assert len(reports) == 24 and sum("metrics" in report for report in reports) == 23
    assert done.stderr.endswith(f"1 of 24 runs failed:\n  sweep/19: {reports[19]['error']}\n")
    assert "one task at a time" in reports[19]["error"] and "Traceback" not in done.stdout + done.stderr
    assert report.main([str(tmp_path / "sweep"), f"out={tmp_path / 'report'}"]) == 0
    table = (tmp_path / "report" / "table.md").read_text()
    assert table.count("head=") >= 23 and reports[19]["error"] in table
    tests = ["stages=[test]", "ckpt=sweep/2/checkpoints/best.ckpt,sweep/8/checkpoints/best.ckpt"]
    metafew("-m", *tests, *WORKERS, "data.num_workers=1", "hydra.sweep.dir=tests", cwd=tmp_path)
    for trained, tested in zip((reports[2], reports[8]), cells(tmp_path / "tests"), strict=True):
        assert trained["metrics"] == tested["metrics"] and trained["choices"] == tested["choices"]


@pytest.mark.slow
def test_the_cells_of_submitit(tmp_path):
    words = ["hydra/launcher=submitit_local", "train.way=5,999", "hydra.sweep.dir=sweep"]
    done = metafew("-m", *TINY, *words, cwd=tmp_path, code=1)
    assert ["error" in report for report in cells(tmp_path / "sweep")] == [False, True]
    assert "1 of 2 runs failed:\n  sweep/1: train.way=999 needs" in done.stderr


@pytest.mark.slow
def test_the_nine_cells_of_heads_and_norms(tmp_path):
    words = ["head=protonet,ridge,svm", "norm=tasknorm,batch,none"]
    metafew("-m", *TINY, *words, "hydra.sweep.dir=sweep", cwd=tmp_path)
    reports = [json.loads(path.read_text()) for path in (tmp_path / "sweep").glob("*/results.json")]
    assert len({(r["choices"]["head"], r["choices"]["norm"]) for r in reports}) == 9
