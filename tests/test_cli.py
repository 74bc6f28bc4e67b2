"""The command line in its own process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TINY

ROOT = Path(__file__).parents[1]


def metafew(*arguments, cwd, code=0, env=None):
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    done = subprocess.run(
        command, cwd=cwd, env=os.environ | {"COLUMNS": "120"} | (env or {}), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


def test_help_lists_every_group_without_importing_torch(tmp_path):
    hook = "import sys; sys.modules['torch'] = sys.modules['pytorch_lightning'] = None\n"
    (tmp_path / "sitecustomize.py").write_text(hook)
    out = metafew("--help", cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}).stdout
    for file in (ROOT / "conf").glob("*/*.yaml"):
        assert f"{file.parent.name}={file.stem}" in out
    assert "evaluate=[" in out and "python train.py head=svm" in out
    shown = metafew("--cfg", "job", "head=svm", cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}).stdout
    assert "c: 0.1" in shown and "max_steps:" in shown and "momentum" not in shown


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
    done = metafew("stages=[test]", ckpt, "backbone.width=8", "hydra.run.dir=wide", cwd=tmp_path, code=2)
    assert "type backbone=..." in done.stderr and "error" in json.loads((tmp_path / "wide/results.json").read_text())


def test_an_error_is_one_sentence_and_exit_code_2(tmp_path):
    done = metafew(*TINY, "test.way=999", "hydra.run.dir=out", cwd=tmp_path, code=2)
    assert "Traceback" not in done.stdout + done.stderr
    (sentence,) = [line for line in done.stderr.splitlines() if line.startswith("metafew: ")]
    assert json.loads((tmp_path / "out/results.json").read_text()) == {"error": sentence.removeprefix("metafew: ")}


def test_missing_data_without_network_is_a_sentence(tmp_path):
    done = metafew(*TINY, "dataset=omniglot", "data_dir=nothing", "dataset.download=false", cwd=tmp_path, code=2)
    assert "Traceback" not in done.stdout + done.stderr
    assert "images_background.zip" in done.stderr and "data_dir" in done.stderr


def test_a_multirun_goes_on_after_a_failed_cell_and_names_it(tmp_path):
    done = metafew("-m", *TINY, "train.way=5,999", "seed=0,1", "hydra.sweep.dir=sweep", cwd=tmp_path, code=1)
    reports = {
        cell.name: json.loads((cell / "results.json").read_text()) for cell in (tmp_path / "sweep").glob("[0-9]")
    }
    assert [("error" in reports[cell]) for cell in sorted(reports)] == [False, False, True, True]
    assert "2 of 4 cells failed" in done.stderr and "Traceback" not in done.stderr
    again = metafew("-m", *TINY, "train.way=5", "hydra.sweep.dir=sweep", cwd=tmp_path)
    assert "failed" not in again.stderr
    assert reports["1"]["seed"] == 1 and reports["0"]["metrics"] != reports["1"]["metrics"]


@pytest.mark.slow
def test_the_nine_cells_of_heads_and_norms(tmp_path):
    words = ["head=protonet,ridge,svm", "norm=tasknorm,batch,none"]
    metafew("-m", *TINY, *words, "hydra.sweep.dir=sweep", cwd=tmp_path)
    reports = [json.loads(path.read_text()) for path in (tmp_path / "sweep").glob("*/results.json")]
    assert len({(r["choices"]["head"], r["choices"]["norm"]) for r in reports}) == 9
