"""The command ``metafew``: its name, version, commands and help, and all of it in a wheel."""

import importlib.util
import json
import os
import subprocess
import sys
from importlib.metadata import version

import numpy as np
import pytest
from PIL import Image
from runs import ROOT, TINY

from metafew.__main__ import COMMANDS, main
from metafew.config.groups import CONF, describe_groups
from metafew.config.mistakes import keys_of
from metafew.config.option_comments import commented, describe_option


@pytest.fixture
def typed(monkeypatch, capsys, tmp_path):
    """Type a command line in an empty folder; returns what it prints to both outputs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def run(*words, code=0):
        monkeypatch.setattr(sys, "argv", ["metafew", *words])
        try:
            main()
        except SystemExit as end:
            assert (end.code or 0) == code
        else:
            assert code == 0
        return capsys.readouterr()

    return run


def test_help_names_the_commands_and_itself(typed):
    shown = typed("--help").out
    for name in ("train", *COMMANDS):
        (line,) = [line for line in shown.splitlines() if line.startswith(f"  metafew {name} ")]
        assert line.endswith(".") and len(line) > 40
    assert "python train.py" not in shown and "  metafew head=svm --cfg job" in shown
    for group, options in describe_groups().items():
        for option, text in options.items():
            assert [line for line in shown.splitlines() if line.split()[:1] == [f"{group}={option}"] and text in line]
    assert typed("train", "--help").out == shown


def test_version_is_that_of_the_package(typed):
    assert typed("--version").out == f"metafew {version('metafew')}\n"


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("reprot", "got reprot (did you mean report?): type metafew report"),
        ("trian", "got trian (did you mean train?): type metafew train"),
        ("walrus", "got walrus: type metafew --help"),
    ],
)
def test_an_unknown_command_is_refused_with_the_nearest(typed, word, said):
    shown = typed(word, code=2)
    assert shown.err == f"metafew: expected a command of train, {', '.join(COMMANDS)}, {said}\n" and not shown.out


def test_the_first_word_chooses_the_command(typed):
    assert typed("predict").out.startswith("Label images with a trained model")
    assert typed("report", "nowhere", code=2).err.startswith("metafew: ")
    for words in (["train", "head=svm"], ["head=svm"]):
        assert "c: 0.1" in typed(*words, "--cfg", "job", "--package", "head").out


def test_help_shows_what_one_word_can_set(typed):
    shown = typed("--help", "head=anil", "evaluate=[svm,cosine]").out
    assert shown.startswith("head=anil: almost no inner loop: MAML on the output layer only (Raghu et al. 2020)\n")
    assert "  head.adapt=output       all weights; no_norm: " in shown and "  head.steps=5            gradient" in shown
    assert "  evaluate.svm.c=0.1  " in shown and "  evaluate.cosine.scale=10.0  initial value; learned" in shown
    assert "metafew report" not in shown
    assert "got smv (did you mean svm?): type head=svm" in typed("--help", "head=smv", code=2).err
    assert "with objective=reptile optimizer=plain_sgd schedule=linear" in typed("head=reptile", "-h").out
    assert "+trainer.max_time=00:12:00:00          time limit" in typed("--help", "trainer=default").out


@pytest.mark.parametrize("group", sorted(describe_groups()))
def test_every_value_of_every_option_is_shown(group):
    for option, text in describe_groups()[group].items():
        file = CONF / group / f"{option}.yaml"
        assert describe_option(CONF, group, option).startswith(f"{group}={option}: {text}\n")
        if group != "experiment" and "# @package" not in file.read_text():
            keys = {*keys_of(group, option)}
            parts = {key for key in keys if any(other.startswith(f"{key}.") for other in keys)}
            assert keys - parts <= commented(file, group).keys() <= keys


@pytest.mark.parametrize("group", ["head", "norm", "backbone"])
def test_every_value_of_a_model_has_a_comment(group):
    for option in describe_groups()[group]:
        values = commented(CONF / group / f"{option}.yaml", group)
        assert not [key for key, value in values.items() if value.text and not value.comment], option


def test_a_file_may_end_with_a_text_of_several_lines(tmp_path):
    (tmp_path / "a.yaml").write_text("_target_: mine.Head\nscale: 2  # of the logits\ntext: |\n  one\n  two\n")
    found = commented(tmp_path / "a.yaml", "head")
    assert found["head.scale"].comment == "of the logits" and found["head.text"].comment == ""


def test_help_finds_words_of_the_users_own(typed, tmp_path):
    for name, text in {
        "head/mine.yaml": "# the head of a test\n_target_: mine.Head\nscale: [1, 2]   # of the logits\n",
        "preset/fast.yaml": "# @package _global_\ntrain:\n  way: 2  # a comment\n",
        "norm/plain.yaml": "_target_: mine.Plain\n",
        "norm/layer.yaml": "# never found, as metafew has one\n_target_: mine.Layer\n",
    }.items():
        (tmp_path / "own" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "own" / name).write_text(text)
    for words in (["hydra.searchpath=[file://own]"], ["--config-dir", "own"]):
        lines = [" ".join(line.split()) for line in typed("--help", *words).out.splitlines()]
        assert {"head=mine the head of a test", "norm=plain mine.Plain", "+preset=fast no description"} <= {*lines}
    assert "norm=layer layer norm: moments" in " ".join(typed("--help", "hydra.searchpath=[file://own]").out.split())
    (tmp_path / "own" / "head" / "wide.yaml").write_text("defaults: [svm, _self_]\nc: 0.5  # wider\n")
    shown = " ".join(typed("--help", "hydra.searchpath=[file://own]", "head=wide").out.split())
    assert "head.c=0.5 wider" in shown and "head.scale=1.0" in shown
    shown = typed("--help", "hydra.searchpath=[file://own]", "head=mine", "+preset=fast").out
    assert shown.startswith("head=mine: the head of a test\n\n  head.scale=[1,2]  of the logits\n")
    assert "  train.way=2  a comment" in shown


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The folder in which a wheel of this checkout is installed, without its dependencies."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    own = ["--no-build-isolation"] if importlib.util.find_spec("hatchling") else []
    words = [*pip, "wheel", "--no-deps", *own, "-w", str(folder), str(ROOT)]
    built = subprocess.run(words, capture_output=True, text=True, cwd=folder)
    if built.returncode and "hatchling" in built.stderr:
        pytest.skip("this needs hatchling, to be installed or found by pip")
    assert not built.returncode, built.stderr
    (file,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "-q", "--target", str(folder / "site"), str(file)], check=True)
    return folder / "site"


@pytest.mark.slow
def test_a_wheel_has_every_command(wheel, tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"PYTHONPATH": str(wheel)}

    def run(*words):
        command = [sys.executable, str(wheel / "bin" / "metafew"), *words]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert not done.returncode, done.stdout + done.stderr
        return done.stdout

    code = "import metafew; print(metafew.__file__)"
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert found.stdout.startswith(str(wheel))
    assert run("--version") == f"metafew {version('metafew')}\n" and "metafew export" in run("--help")
    for name in COMMANDS:
        assert f"metafew {name} " in run(name, "--help")
    run("train", *TINY, "norm=batch", "hydra.run.dir=run")
    rng = np.random.default_rng(0)
    for number in range(6):
        file = tmp_path / "examples" / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (28, 28), np.uint8)).save(file)
    ckpt = "ckpt=run/checkpoints/best.ckpt"
    run("predict", ckpt, "support=examples", "query=examples", "out=labels.csv")
    run("report", "run", "out=report")
    run("prepare", "dataset=glyphs", "out=glyphs.png")
    run("search", *TINY, "norm=batch", "optimizer.lr=1e-4..1e-1,log", "trials=1", "out=search")
    run("export", ckpt, "out=features.pt2")
    run("export", ckpt, "support=examples", "out=task.pt2")
    run("reproduce", "page")
    run("dashboard", "out=dashboard.json")
    files = ("labels.csv", "report/table.md", "glyphs.png", "features.pt2", "task.pt2", "dashboard.json")
    assert all((tmp_path / file).stat().st_size for file in (*files, "docs/reproduction.md", "search/study.log"))
    assert "accuracy" in str(json.loads((tmp_path / "run" / "results.json").read_text())["metrics"])
