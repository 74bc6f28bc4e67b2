"""The search: what it tries, what it keeps, and what it says at the end."""

import json
import math
import re
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from omegaconf import OmegaConf
from runs import TINY

from metafew.commands import search
from metafew.commands.search_space import Space
from metafew.errors import UsageError
from metafew.experiments import cells
from metafew.io import write_json

SCRIPTS = Path(__file__).parents[1] / "scripts"
SPACE = ["head=svm", "optimizer.lr=1e-4..1e-1,log", "head.scale=1..20", "norm=batch,tasknorm,layer"]


@pytest.fixture
def started(monkeypatch):
    """Replace runs by a formula, whose best is at optimizer.lr=1e-2 norm=batch; returns the words of each."""
    words = []

    def launch(typed, log, threads):
        words.append(typed)
        values = dict(word.split("=", 1) for word in typed)
        out = Path(values["hydra.run.dir"])
        out.mkdir(parents=True, exist_ok=True)
        if values["norm"] == "layer":
            (out / "results.json").write_text(json.dumps({"error": "layers are closed: type norm=batch"}))
            return SimpleNamespace(wait=lambda: 2)
        accuracy = 0.9 - 0.1 * abs(math.log10(float(values["optimizer.lr"])) + 2) - 0.2 * (values["norm"] != "batch")
        report = {"metrics": {}, "validation": {"val/svm/accuracy": accuracy}}
        (out / "results.json").write_text(json.dumps(report))
        return SimpleNamespace(wait=lambda: 0)

    monkeypatch.setattr(cells, "start_subprocess", launch)
    return words


@pytest.mark.slow
def test_a_search_goes_on_with_its_own_images_only(tmp_path, started, capsys, monkeypatch):
    words = [*SPACE, f"out={tmp_path}/found"]
    assert search.main([*words, "trials=1"]) == 0
    monkeypatch.setattr(search, "data_fingerprints", lambda cfg: {"glyphs": "of other letters"})
    assert search.main([*words, "trials=2"]) == 2 and len(started) == 1
    assert "expected the images with which the search in" in capsys.readouterr().err


def test_the_best_is_found_and_the_same_command_resumes_the_search(tmp_path, started, capsys):
    out = f"out={tmp_path}/found"
    assert search.main([*SPACE, "trials=5", out]) == 0
    assert len(started) == 5
    assert search.main([*reversed(SPACE), "trials=25", out]) == 0
    shown = capsys.readouterr().out.split("┏")[-1]
    # The first, random trials are not those of the first time.
    assert len(started) == 25 and not {frozenset(w[:-1]) for w in started[:5]} & {
        frozenset(w[:-1]) for w in started[5:10]
    }
    assert sorted(path.name for path in (tmp_path / "found/trials").iterdir()) == [f"{n:03d}" for n in range(25)]
    for words in started:
        values = dict(word.split("=", 1) for word in words)
        assert 1e-4 <= float(values["optimizer.lr"]) <= 1e-1 and values["stages"] == "[fit]"
        assert int(values["head.scale"]) in range(1, 21) and len(values["optimizer.lr"]) < 11
    assert sum("norm=batch" in words for words in started) > 12
    closed = [n for n, words in enumerate(started) if "norm=layer" in words]
    assert closed and re.findall(r"trial (\d+) failed: layers are closed: type norm=batch", shown) == [
        f"{n:03d}" for n in closed
    ]
    reports = [json.loads(path.read_text()) for path in (tmp_path / "found/trials").glob("*/results.json")]
    best = max(report["validation"]["val/svm/accuracy"] for report in reports if "error" not in report)
    rows = [line for line in shown.splitlines() if line.startswith("│")]
    assert f"{100 * best:.2f} %" in rows[0] and best > 0.85 and len(rows) == 25
    column = [cell.strip() for cell in re.split("[┃│]", shown.splitlines()[1])].index("norm")
    assert {row.split("│")[column].strip() for row in rows} == {
        "batch",
        "layer",
        "tasknorm",
    }  # whatever the order when typed
    command = shown.split("the best, to be trained and tested:\n")[1].strip()
    assert re.fullmatch(r"python train.py head=svm norm=batch head.scale=\d+ optimizer.lr=0.0\d+", command)
    assert search.main([*SPACE, "trials=25", out]) == 0 and len(started) == 25


def test_a_trial_with_failed_validation_tasks_is_the_last(tmp_path, monkeypatch, capsys):
    found = {"0": (0.9, 2), "1": (0.2, 0), "2": (0.8, 1)}

    def launch(typed, log, threads):
        values = dict(word.split("=", 1) for word in typed)
        accuracy, failed = found[values["seed"]]
        validation = {"val/svm/accuracy": accuracy, "val/svm/failed": failed}
        write_json(Path(values["hydra.run.dir"]) / "results.json", {"validation": validation})
        return SimpleNamespace(wait=lambda: 0)

    monkeypatch.setattr(cells, "start_subprocess", launch)
    search.search(["seed=0,1,2", "trials=12", f"out={tmp_path}"])
    rows = [re.sub("[│ ]+", " ", row).split(" ", 3)[2:] for row in capsys.readouterr().out.splitlines() if "│" in row]
    order = list(dict.fromkeys(seed for seed, _ in rows))
    assert order == sorted(order, key="120".index) and ["0", "90.00 % (2 failed) "] in rows


def test_a_trial_without_validation_is_worse_than_one_with_failed_tasks(tmp_path, monkeypatch):
    def launch(typed, log, threads):
        values = dict(word.split("=", 1) for word in typed)
        validation = {"val/svm/accuracy": 0.9, "val/svm/failed": 2}
        report = {"error": "not finite"} if values["seed"] == "0" else {"validation": validation}
        write_json(Path(values["hydra.run.dir"]) / "results.json", report)
        return SimpleNamespace(wait=lambda: 0)

    monkeypatch.setattr(cells, "start_subprocess", launch)
    monkeypatch.setattr(search, "data_fingerprints", lambda _: {})
    search.search(["seed=0,1", "trials=12", f"out={tmp_path}"])
    study = search.open_study(tmp_path, ["seed=0,1"], {})
    assert {str(trial.params["seed"]) for trial in study.trials} == {"0", "1"}
    assert str(study.best_params["seed"]) == "1"


def test_the_command_of_the_best_trial_trains_it(tmp_path, monkeypatch, capsys):
    np.savez(tmp_path / "v.npz", x_train=np.ones((9, 2)), y_train=np.arange(9) % 3)
    monkeypatch.setattr(search, "data_fingerprints", lambda _: {})

    def launch(typed, log, threads):
        values = dict(word.split("=", 1) for word in typed)
        write_json(Path(values["hydra.run.dir"]) / "results.json", {"validation": {"val/maml/accuracy": 0.5}})
        return SimpleNamespace(wait=lambda: 0)

    monkeypatch.setattr(cells, "start_subprocess", launch)
    words = ["dataset=features", f"dataset.root={tmp_path}/v.npz", "head=maml", "head.lr=0.01..1,log"]
    search.search([*words, "trials=1", f"out={tmp_path}/out"])
    assert capsys.readouterr().out.rstrip().endswith("'stages=[fit,test]'")


def test_overrides_are_fixed_or_searched():
    space = Space(["train.way=5..20", "test.shot=[1,5]", "evaluate=[svm,ridge]", *SPACE, "head.c=0.5..1"])
    assert space.fixed == ["train.way=5..20", "test.shot=[1,5]", "evaluate=[svm,ridge]", "head=svm"]
    kinds = {key: type(value).__name__ for key, value in space.distributions.items()}
    assert kinds == {
        "optimizer.lr": "FloatDistribution",
        "head.scale": "IntDistribution",
        "norm": "CategoricalDistribution",
        "head.c": "FloatDistribution",
    }
    assert [value.log for key, value in space.distributions.items() if key != "norm"] == [True, False, False]
    tried = [words[-4:] for words in space.bounds()]
    assert tried[0] == ["optimizer.lr=0.0001", "head.scale=1", "norm=batch", "head.c=0.5"] and len(tried) == 3


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        (["head=svm"], "expected a range or a list to search, got head=svm"),
        (["optimizer.lr=0..1e-1,log"], "above 0 on a logarithmic scale, got 0..1e-1,log"),
        (["head.scale=20..1"], "expected head.scale to have a range from low to high"),
        (["optimizer.lr=interval(0,1)"], "expected a range LOW..HIGH, got optimizer.lr=interval(0,1)"),
        (["norm=batch,tasknrm"], "did you mean tasknorm?"),
        (["head.scael=1..2"], "got head.scael: type --cfg job"),
        (["seed=0,1", "trials=many"], "expected trials to be an integer of at least 1, got many"),
        (["seed"], "missing EQUAL"),
        (["seed=0,1", "stages=[test]"], "expected no stages, as a search trains, got stages=[test]: leave it out"),
        (["seed=0,1", "experiment=heads"], "expected no experiment, as a search trains"),
        (["seed=0,1", "hydra.run.dir=mine"], "expected out=DIR for the folder of several runs, got hydra.run.dir=mine"),
        (["seed=0,1", "++hydra.sweep.dir=mine"], "got ++hydra.sweep.dir=mine: type out=DIR instead"),
        (["seed=0,1", "ckpt=a.ckpt"], "got ckpt=a.ckpt: leave it out, or type backbone.weights=PATH"),
    ],
)
def test_what_cannot_be_searched_is_an_error_before_any_run(tmp_path, started, capsys, typed, sentence):
    assert search.main([*typed, f"out={tmp_path}/out"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("metafew: ") and error.count("\n") == 1 and sentence in error
    assert not started and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_other_overrides_in_the_same_folder_and_only_failures_are_errors(tmp_path, started):
    search.search([*SPACE, "trials=1", f"out={tmp_path}"])
    with pytest.raises(UsageError, match=r"was started \(head=svm .*type out="):
        search.search([*SPACE, "seed=1", f"out={tmp_path}"])
    with pytest.raises(UsageError, match="got 2 that failed"):
        search.search(["seed=0,1", "norm=layer", "trials=2", f"out={tmp_path}/closed"])


def test_a_search_without_optuna_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(search, "find_spec", lambda name: None)
    assert search.main(SPACE) == 2
    assert "pip install 'metafew[sweep]'" in capsys.readouterr().err


def test_the_overrides_of_the_wandb_sweep_compose(composed):
    sweep = OmegaConf.to_container(OmegaConf.load(SCRIPTS / "wandb_sweep.yaml"), resolve=False)
    choices = []
    for key, given in sweep["parameters"].items():
        values = given.get("values") or ([given["value"]] if "value" in given else [given["min"], given["max"]])
        choices.append([f"{key}={value}" for value in values])
    for words in product(*choices):
        cfg, chosen, _ = composed(*words, *(word for word in sweep["command"] if "=" in word))
        assert sweep["metric"]["name"] == f"val/{chosen['head']}/accuracy"
        assert set(cfg.logger) == {"wandb"}
    assert (SCRIPTS.parent / sweep["program"]).is_file()


@pytest.mark.slow
def test_a_search_of_real_runs(tmp_path, capsys):
    assert search.main([*TINY, "train.way=5,999", "optimizer.lr=1e-4..1e-1,log", "trials=4", f"out={tmp_path}"]) == 0
    folders = sorted((tmp_path / "trials").iterdir())
    reports = [json.loads((folder / "results.json").read_text()) for folder in folders]
    ways = [report["config"]["train"]["way"] for report in reports if "error" not in report]
    assert len(reports) == 4 and set(ways) == {5} and all(report.get("metrics", {}) == {} for report in reports)
    assert all((folder / "log.txt").stat().st_size for folder in folders)
    assert "python train.py" in capsys.readouterr().out
