"""What earlier code wrote holds: its checkpoints load, answer, are tested and trained on, its results are known again.

The files in compatibility/ are of one earlier commit; its README.md says how they were made. They are never made anew
to let these tests pass.
"""

import csv
import json
import sys
from pathlib import Path

import pytest
import torch
from hydra.utils import get_object
from omegaconf import OmegaConf, open_dict

import metafew
from metafew import cli
from metafew.analysis.compare.find import read_run
from metafew.analysis.compare.runs import Run
from metafew.config.compose import compose_overrides
from metafew.distributed.sweep import finished

HERE = Path(__file__).parent / "compatibility"
COMMANDS = {name: words for name, *words in map(str.split, (HERE / "commands.txt").read_text().splitlines())}
CHECKPOINTS = [pytest.param(file, id=file.stem) for file in sorted(HERE.glob("*.ckpt"))]
TRUST = ["torch.nn.Conv2d"]  # the network of module.ckpt


@pytest.fixture(scope="module")
def tensors():
    """The images of a task, their labels, and the logits of each checkpoint on its queries, in double precision."""
    return torch.load(HERE / "tensors.pt", weights_only=True)


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Do in this process what ``python train.py WORDS`` does; returns its results and its folder."""

    def go(*words):
        typed = ["train.py", *words, f"hydra.run.dir={tmp_path}"]
        monkeypatch.setattr(sys, "argv", typed)
        cli.main()
        return json.loads((tmp_path / "results.json").read_text()), tmp_path

    return go


def test_every_checkpoint_has_its_command_and_its_logits(tensors):
    names = {file.stem for file in HERE.glob("*.ckpt")}
    assert names == set(COMMANDS) == set(tensors) - {"support", "labels", "query"}


@pytest.mark.parametrize("file", CHECKPOINTS)
def test_a_checkpoint_gives_the_logits_that_it_gave(file, tensors):
    model = metafew.load(file, trust=TRUST)
    support, labels, query = tensors["support"], tensors["labels"].tolist(), tensors["query"]
    assert model.temperature == 1.0 and model.drawings  # of glyphs, without saying so
    single = model.adapt(support, labels).predict(query)
    model.double()
    task = model.adapt(support, labels)
    with torch.no_grad():
        logits = model.head(model.backbone, task.support, model.prepare(query), len(task.classes))[0]
    torch.testing.assert_close(logits, tensors[file.stem], rtol=1e-9, atol=1e-9)
    expected = tensors[file.stem].softmax(-1).float()
    # In double precision only the last conversion rounds; in single precision every step of adaptation does.
    torch.testing.assert_close(task.predict(query), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(single, expected, rtol=0, atol=3e-5)


@pytest.mark.parametrize("file", CHECKPOINTS)
def test_dotted_paths_of_a_checkpoint_can_be_imported(file):
    model = torch.load(file, weights_only=True)["metafew"]["model"]
    paths = list(dotted([model["backbone"], model["norm"], model["head"]]))
    assert len(paths) >= 3 and all(callable(get_object(path)) for path in paths)


def plain(*words):
    """Return the configuration that these words compose, as plain values."""
    cfg = compose_overrides(words)
    with open_dict(cfg):
        del cfg["hydra"]
    return OmegaConf.to_container(cfg, resolve=True)


def dotted(node):
    """Yield the dotted paths in a nested configuration."""
    if isinstance(node, dict):
        yield from (node[key] for key in ("_target_", "target") if node.get(key))
    for part in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from dotted(part)


@pytest.mark.parametrize(("name", "heads"), [("maml", ["maml", "ridge", "logistic"]), ("resnet12", ["cosine"])])
def test_a_checkpoint_is_tested(command, name, heads):
    report, _ = command("stages=[test]", f"ckpt={HERE / name}.ckpt")
    assert [report["metrics"][f"test/{head}/accuracy"]["tasks"] for head in heads] == [4] * len(heads)
    assert report["steps"] == 2


@pytest.mark.parametrize("name", ["classical", "reptile"])
def test_a_training_goes_on_as_the_same(command, name):
    words = ["stages=[fit]", "trainer.max_steps=4", "trainer.log_every_n_steps=1"]
    report, out = command(*words, f"ckpt={HERE / name}.ckpt")  # its other words are in it
    assert report["steps"] == 4 and "is from another training" not in (out / "train.log").read_text()
    with (out / "metrics.csv").open() as file:
        steps = [int(row["step"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert steps == [2, 3]  # a new training would begin with 0


@pytest.mark.parametrize("word", ["norm=own", "norm=layer"])
def test_results_of_a_network_that_ignored_its_norm_are_those_of_its_own(tmp_path, word):
    words = ["backbone=module", "backbone.target=torch.nn.Flatten"]
    saved, config = (plain(*words, norm) for norm in ("norm=layer", word))
    del saved["backbone"]["norms"]
    report = {"config": saved, "choices": {"norm": "layer"}, "metrics": {"test/svm/accuracy": {"mean": 1.0}}}
    (tmp_path / "results.json").write_text(json.dumps(report))
    assert finished(tmp_path, config, pytest.fail) == (word == "norm=own")
    for run in (Run.in_folder(tmp_path), read_run(tmp_path / "results.json")):
        assert run.values["norm"] == "own" and "norm.eps" not in run.values


@pytest.mark.parametrize(("words", "same"), [([], True), (["seed=1"], False), (["norm.eps=0.1"], False)])
def test_a_finished_cell_is_known_again(monkeypatch, words, same):
    for folder in ("METAFEW_CACHE", "METAFEW_DATA"):
        monkeypatch.delenv(folder, raising=False)
    config = plain(*COMMANDS["protonet"], *words)
    assert finished(HERE, config, pytest.fail) == same  # data are not compared: these results do not have any
