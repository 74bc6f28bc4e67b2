"""Heads that fit a run: ``evaluate=all`` and ``heads="all"``: and a line on the others."""

import csv
import json
import logging
import re
import sys
from functools import partial
from unittest.mock import patch

import numpy as np
import pytest
import yaml
from hydra.utils import get_class
from image_folders import grow
from omegaconf import OmegaConf
from PIL import Image
from runs import TINY
from scipy import stats

import metafew
from metafew import cli
from metafew.backbones.backbone import Backbone
from metafew.backbones.identity import Identity
from metafew.config.groups import CONF, describe_groups, load_option
from metafew.errors import UsageError
from metafew.evaluation import evaluator
from metafew.evaluation.statistics import format_difference
from metafew.heads.head import FeatureHead, Head
from metafew.heads.protonet import ProtoNet
from metafew.heads.svm import SVM
from metafew.training import checkpoint
from metafew.training.evaluated_heads import fitting_heads, misfit

MEASURED = ("protonet", "svm", "ridge", "pixels_1nn")
OWN = "defaults: [svm, _self_]\nc: 0.5\n"
ONE_STEP = [*(word for word in TINY if "steps" not in word), "trainer.max_steps=1", "val.every=1"]


def feature_heads() -> set[str]:
    """Return the heads of the YAML files whose classes are heads on features that need no training."""
    made = {word: get_class(load_option(CONF / "head" / f"{word}.yaml")._target_) for word in describe_groups()["head"]}
    return {word for word, head in made.items() if issubclass(head, FeatureHead) and not head.requires_training}


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """Words of a run that also finds a head of the user's own, which derives from one of metafew."""
    folder = tmp_path_factory.mktemp("mine")
    (folder / "head").mkdir()
    (folder / "head" / "wide.yaml").write_text(OWN)
    return [f"hydra.searchpath=[file://{folder}]", "evaluate=all", "evaluate.ridge.penalty=7"]


def typed(*words):
    with patch.object(sys, "argv", ["train.py", *map(str, words)]):
        cli.main()


def test_all_heads_that_fit_are_evaluated_and_the_checkpoint_lists_them(words, tmp_path, caplog, capsys):
    caplog.set_level(logging.INFO)
    tiny = [*ONE_STEP, "head=svm"]
    typed(*words, *tiny, f"hydra.run.dir={tmp_path}")
    report = json.loads((tmp_path / "results.json").read_text())
    expected = feature_heads() | {"wide"}
    assert {name.split("/")[1] for name in report["metrics"]} == expected
    assert report["config"]["evaluate"].keys() == expected and report["config"]["evaluate"]["ridge"]["penalty"] == 7
    saved = checkpoint.read(tmp_path / "checkpoints" / "last.ckpt")["metafew"]["config"]["evaluate"]
    assert saved.keys() == expected and saved["wide"]["c"] == 0.5 and saved["wide"]["scale"] == 1.0
    printed = " ".join(capsys.readouterr().out.split())
    (left_out,) = re.findall(r"evaluate=all leaves out heads: ([^.]*?); ([^.]*?) must be trained", printed)
    assert re.fullmatch(r"anil, .*maml.* and \w+ take images, not features", left_out[0])
    assert "cnaps" in left_out[1] and "svm" not in "".join(left_out)


def test_a_sweep_measures_heads_that_a_finished_run_left_out(tmp_path):
    tiny = [*ONE_STEP, "seed=0,1"]
    measured = []
    for choice in ("evaluate=all", "evaluate=[all,anil]"):
        typed("-m", *tiny, choice, f"hydra.sweep.dir={tmp_path}")
        measured.append(json.loads((tmp_path / "1" / "results.json").read_text())["metrics"])
    assert "test/anil/accuracy" not in measured[0] and "test/anil/accuracy" in measured[1]


def test_heads_named_with_all_stay_though_they_take_images(tmp_path, capsys):
    typed("evaluate=[all,maml]", "evaluate.maml.test_steps=1", *ONE_STEP, f"hydra.run.dir={tmp_path}")
    measured = json.loads((tmp_path / "results.json").read_text())["metrics"]
    assert {name.split("/")[1] for name in measured} == feature_heads() | {"maml"}
    (left_out,) = re.findall("leaves out heads: (.*) take images", " ".join(capsys.readouterr().out.split()))
    assert "anil, boil, fomaml, meta_curvature" in left_out


def test_heads_that_use_training_images_are_left_out_where_there_are_none(tmp_path, capsys):
    for number in range(5 * 3):
        file = tmp_path / "images" / "test" / f"class{number // 3}" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((28, 28), 10 * number, np.uint8)).save(file)
    data = ["dataset=folder", f"dataset.root={tmp_path}/images", "stages=[test]", "test.query=2", "test.total=2"]
    typed("evaluate=all", "backbone.width=4", "backbone.freeze=all", *data, f"hydra.run.dir={tmp_path}/out")
    measured = json.loads((tmp_path / "out" / "results.json").read_text())["metrics"]
    assert {name.split("/")[1] for name in measured} == feature_heads() - {"simpleshot"}
    assert "simpleshot uses the mean feature of training images" in " ".join(capsys.readouterr().out.split())


def test_heads_that_use_training_images_are_left_out_if_those_of_the_checkpoint_are_not_at_hand(tmp_path, capsys):
    small = ["backbone.width=4", "test.query=2", "test.total=2"]
    typed(*small, *ONE_STEP, f"hydra.run.dir={tmp_path}/fit")
    for split in ("train", "test"):
        grow(tmp_path / "images" / split, [f"{split}{number}" for number in range(5)], images=3)
    for dataset, lacking in (
        (["dataset=folder", f"dataset.root={tmp_path}/images", "dataset.channels=1"], {"simpleshot"}),
        ([], set()),
    ):
        words = ["stages=[test]", "evaluate=all", *small, *dataset, f"ckpt={tmp_path}/fit/checkpoints/last.ckpt"]
        typed(*words, f"hydra.run.dir={tmp_path}/test{len(dataset)}")
        measured = json.loads((tmp_path / f"test{len(dataset)}" / "results.json").read_text())["metrics"]
        assert {name.split("/")[1] for name in measured} == feature_heads() - lacking


def test_the_configuration_shows_all_heads_with_their_options(words, capsys):
    typed(*words, "head=svm", "--cfg", "job")
    shown = yaml.safe_load(capsys.readouterr().out)["evaluate"]
    assert shown["all"] == [] and shown["ridge"]["penalty"] == 7 and shown["wide"]["c"] == 0.5
    assert shown.keys() >= {*describe_groups()["head"]}


def test_all_heads_on_an_array(monkeypatch):
    features = np.random.default_rng(0).normal(size=(40, 4))
    monkeypatch.setattr(SVM, "requires_training", True)
    every = partial(metafew.evaluate, features, np.repeat(np.arange(8), 5), "all", shot=1, query=2, tasks=2)
    found, centred = every(), every(base=features)
    assert "and svm must be trained" in found.left_out and "\nleft out: anil, " in repr(found)
    assert found.left_out in " ".join(repr(found).split())
    assert "simpleshot uses the mean feature" in found.left_out and "simpleshot" not in centred.left_out
    kinds = {kind: [name for name in found.heads if found.measures[name]["transductive"] == kind] for kind in (0, 1)}
    marked = [f"{name} †" for name in kinds[1]]
    names = [row[0] for row in found.table().rows]
    assert names == ["inductive", *kinds[0], "transductive", *marked, "vectors_1nn"] and len(marked) > 3
    assert centred.measures.keys() == found.measures.keys() | {"simpleshot"}
    assert {"protonet", "ridge", "tim"} < found.measures.keys() < feature_heads() | {"vectors_1nn"}


def test_an_option_may_make_a_head_need_training():
    head = SVM()
    assert misfit(head) is None and misfit(SVM) is None and misfit(Head) == "takes images, not features"
    head.requires_training = True
    assert misfit(head) == "must be trained"
    head.requires_training, head.needs_base_mean = False, True
    assert misfit(head) is None and misfit(head, base=False) == "uses the mean feature of training images"


class Picky(FeatureHead):
    def __init__(self, backbone, trained):
        raise UsageError("expected a backbone with maps, got one without: type backbone.readout=map")


def test_a_head_that_does_not_fit_the_backbone_is_left_out():
    nodes = OmegaConf.create({"head": {"picky": {"_target_": "test_all_heads.Picky", "_partial_": True}}}).head
    assert fitting_heads(nodes, Identity(4, 1, None)) == (
        {},
        "picky fits no such backbone (expected a backbone with maps)",
    )
    nodes = OmegaConf.create({"head": {"svm": {"_target_": "metafew.heads.svm.SVM", "c": -1.0}}}).head
    with pytest.raises(UsageError, match="-1"):  # an option is wrong
        fitting_heads(nodes, Identity(4, 1, None))


def test_each_head_is_described(launch, monkeypatch, capsys):
    monkeypatch.setattr(SVM, "transductive", True)
    report, out = launch("evaluate=[svm,ridge]", "test.shot=[1,2]", "trainer.max_steps=1", "val.every=1")
    heads = report["heads"]
    assert list(heads) == ["protonet", "svm", "ridge", "protonet/shot2", "svm/shot2", "ridge/shot2"]
    assert [head["transductive"] for head in heads.values()] == [False, True, False] * 2 and report["transductive"]
    assert all(0 < head["seconds_per_task"] < 10 for head in heads.values())
    assert sum(heads[name]["rank"] for name in ("protonet", "svm", "ridge")) == 6
    with (out / "tasks.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["shot"] == "2"]
    tasks = {name: np.array([float(row["accuracy"]) for row in rows if row["head"] == name]) for name in MEASURED}
    best = max(MEASURED[:-1], key=lambda name: tasks[name].mean())
    for name, accuracies in tasks.items():
        gap = report["differences"][f"{name}/shot2"]
        half = stats.t.ppf(0.975, 5) * stats.sem(accuracies - tasks[best])
        assert gap["to"] == best and gap["tasks"] == 6
        assert (gap["mean"], gap["ci95"]) == (pytest.approx((accuracies - tasks[best]).mean()), pytest.approx(half))
    printed = capsys.readouterr().out
    lines = {line.split()[1]: line for line in printed.splitlines() if len(line.split()) > 1}
    for name, gap in report["differences"].items():
        shown = format_difference(gap) if name.split("/")[0] != gap["to"] else "–"
        assert shown in map(str.strip, lines[name].split("│")), name
    rows = ("protonet ", "ridge ", "ridge/shot2", "svm † ", "svm/shot2 †", "pixels_1nn")
    order = [printed.index(word) for word in rows]
    words = " ".join(printed.split())
    assert order == sorted(order) and "tasks, † transductive" in words and "in points, paired by test task" in words


def test_the_time_of_a_head_is_its_own(launch, monkeypatch):
    now = [0.0]

    def takes(seconds, function):
        """Return ``function``, after which it is ``seconds`` later."""
        return lambda *args, **options: (now.append(now.pop() + seconds), function(*args, **options))[1]

    monkeypatch.setattr(Backbone, "embed", takes(10.0, Backbone.embed))
    monkeypatch.setattr(SVM, "classify", takes(3.0, SVM.classify))
    monkeypatch.setattr(ProtoNet, "classify", takes(1.0, ProtoNet.classify))
    monkeypatch.setattr(evaluator, "clock", lambda device: now[0])
    words = ["norm=transductive", "trainer.max_steps=1", "val.total=0", "test.total=4", "test.tasks=2"]
    heads = launch("evaluate=[svm]", *words)[0]["heads"]
    assert {name: head["seconds_per_task"] for name, head in heads.items()} == {"protonet": 0.5, "svm": 1.5}


@pytest.mark.slow
def test_heads_that_nobody_trains_are_named(tmp_path):

    def named(*overrides, out):
        typed(*overrides, f"hydra.run.dir={tmp_path / out}")
        log = (tmp_path / out / "train.log").read_text()
        return re.findall(r"head=(\w+) must be trained, and this run measures its initial weights", log)

    last, test = "ckpt={}/checkpoints/last.ckpt", ["stages=[test]", "test.total=2"]
    assert named(*ONE_STEP, "head=svm", "evaluate=[feat,matching]", "test.total=2", out="svm") == ["feat"]
    assert named(*test, last.format(tmp_path / "svm"), "head=feat", out="other") == ["feat"]
    assert named(*ONE_STEP, "head=feat", "evaluate=[svm]", "test.total=2", out="feat") == []
    assert named(*test, last.format(tmp_path / "feat"), "evaluate=[protonet]", out="own") == []
    assert named(*test, last.format(tmp_path / "feat"), "head=svm", "evaluate=[feat]", out="with_its_weights") == []
    assert named(*ONE_STEP, "head=feat", "objective=classical", "stages=[fit]", out="classical") == ["feat"]
    assert named(*test, last.format(tmp_path / "classical"), out="again") == ["feat"]
    context = ["head=matching", "evaluate=[svm]", "head.context=full"]
    assert named(*ONE_STEP, *context, "stages=[fit]", "objective=classical", out="matching") == ["matching"]


def test_heads_of_the_folder_of_the_users_configuration_are_evaluated_and_suggested(tmp_path, capsys):
    (tmp_path / "head").mkdir()
    (tmp_path / "head" / "wide.yaml").write_text(OWN)
    for flag in (["--config-dir", str(tmp_path)], [f"-cd={tmp_path}"]):
        typed(*flag, "evaluate=[wide]", "--cfg", "job")
        assert "wide:" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        typed("--config-dir", str(tmp_path), "head=wyde")
    assert "got wyde (did you mean wide?)" in capsys.readouterr().err
    (tmp_path / "head" / "wip.yaml").write_text("defaults: [nothing]\n")
    for text in ("defaults: [nothing]\n", "c: [1\n"):
        (tmp_path / "head" / "wip.yaml").write_text(text)
        with pytest.raises(SystemExit):
            typed("--config-dir", str(tmp_path), "evaluate=[svm]")
        (line,) = capsys.readouterr().err.splitlines()
        assert line.endswith(f"{tmp_path}/head/wip.yaml") or "to be a file of options in YAML" in line
