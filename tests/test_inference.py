"""A loaded model predicts what its run measured, and checks images and labels."""

import csv
import itertools
import subprocess
import sys
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from runs import TINY

import metafew
from metafew import inference
from metafew.backbones.conv4 import Conv4
from metafew.data.datamodule import to_model_input
from metafew.data.sources.glyphs import Glyphs
from metafew.errors import UsageError
from metafew.evaluation import evaluator, unknown
from metafew.evaluation.calibration import applicable_temperature
from metafew.heads.maml import MAML
from metafew.heads.protonet import ProtoNet
from metafew.norms.tasknorm import TaskNorm
from metafew.norms.transductive import Transductive
from metafew.training import checkpoint, outputs
from metafew.training.factory import make_data, make_learner
from metafew.training.instantiate import make

ULP = torch.finfo(torch.float32).eps
"""What is computed in float64 may differ by when it is predicted in float32."""
QUICK = ["trainer.max_steps=1", "val.total=2", "val.every=1", "test.total=2", "test.query=4"]


def best(out):
    return out / "checkpoints" / "best.ckpt"


def seen(composed, *overrides):
    """Yield the test tasks of a run as its heads see them."""
    cfg, choices, _ = composed(*TINY, *overrides)
    source = make(cfg.dataset)
    learner = make_learner(cfg, source, {"choices": choices}, trained=True, fit=False)
    data = make_data(cfg, source, learner.objective)
    first = data.test_episode(0, torch.float32)
    for index in range(cfg.test.total):
        (episode,) = data.sampler(data.test[0]).batch([index])
        episode = to_model_input(episode, torch.float32)
        assert index or torch.equal(episode.query.images, first.query.images)
        yield episode


def test_queries_asked_one_at_a_time_have_support_sets_of_their_own(launch, composed, tmp_path):
    """With ``norm.over=joined``, the features of a support set depend on the queries beside it."""
    words = ["norm=transductive", "norm.over=joined", "test.total=4", "test.query=3"]
    _, out = launch(*words, out=tmp_path / "fit")
    tested = ["stages=[test]", f"ckpt={best(out)}", "evaluate=[svm]", "test.queries=single"]
    report, _ = launch(*words, *tested, out=tmp_path / "test")
    model, right = metafew.load(best(out)), []
    for episode in seen(composed, *words):
        queries = episode.query.images.split(1, 1)
        logits = torch.cat([model.head(model.backbone, episode.support, query, episode.way) for query in queries], 1)
        right.append((logits.argmax(-1) == episode.query.labels).double().mean().item())
    assert report["metrics"]["test/protonet/accuracy"]["mean"] == pytest.approx(np.mean(right))


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param(("head=protonet", "norm=tasknorm"), marks=pytest.mark.slow),
        ("head=svm", "norm=batch", "evaluate=[maml]", "evaluate.maml.test_steps=1"),
        ("head=maml", "norm=transductive", "head.lr=0.1", "head.steps=2", "head.test_steps=3"),
        ("head=maml", "train.way=3..5", "head.rates=layer", "head.steps=1", "head.test_steps=[1,3]"),
        pytest.param(("head=anil", "norm=tasknorm", "objective=classical"), marks=pytest.mark.slow),
        pytest.param(("head=reptile", "norm=batch", "head.test_steps=5"), marks=pytest.mark.slow),
        ("head=cnaps", "norm=tasknorm", "head.width=4"),
    ],
    ids=" ".join,
)
def test_predictions_are_what_the_run_measured(launch, composed, monkeypatch, caplog, overrides):
    monkeypatch.setattr(outputs, "run_plots", MagicMock())  # to draw takes half the time of a tiny run
    report, out = launch(*QUICK, *overrides)
    caplog.clear()
    model = metafew.load(best(out))
    name = model.choices["head"]
    chosen = report["chosen"].get(name)
    assert bool(chosen) == ("type chosen=NAME" in caplog.text)
    calibration = report["calibration"][name]
    assert calibration["ece_before"] is not None and calibration["ece_after"] is not None
    if chosen:
        model.head.chosen = f"lr{chosen['lr']:g}_steps{chosen['test_steps']}"
    else:
        assert model.temperature == calibration["temperature"] != 1.0
    model.temperature = 1.0  # losses are without
    with (out / "tasks.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["head"] == name]
    for row, episode in zip(rows, seen(composed, *QUICK, *overrides), strict=True):
        images, truth = episode.query.images[0], episode.query.labels[0]
        task = model.adapt(episode.support.images[0], [f"class {label}" for label in episode.support.labels[0]])
        right = [f"class {label}" == said for label, said in zip(truth, task.label(images), strict=True)]
        assert sum(right) / len(right) == pytest.approx(float(row["accuracy"]), abs=1e-12)
        assert F.nll_loss(task.predict(images).log(), truth).item() == pytest.approx(float(row["loss"]), rel=1e-3)


def test_the_test_of_a_run_uses_the_temperatures_of_the_weights_that_it_tests(launch, monkeypatch):
    fits = itertools.count(1)
    monkeypatch.setattr(evaluator, "fit_temperatures", lambda _: {"protonet": float(next(fits))})
    report, _ = launch("optimizer=plain_sgd", "optimizer.lr=0", "val.every=2", "trainer.max_steps=4")
    assert report["steps"] == 4 and next(fits) == 3, "validated twice, and the first of equals is the best"
    assert report["calibration"]["protonet"]["temperature"] == 1.0


def test_a_test_of_a_checkpoint_uses_its_temperatures(launch, tmp_path):
    _, first = launch(*QUICK, "stages=[fit]", "evaluate=[svm]", out=tmp_path / "first")
    words = ["stages=[test]", f"ckpt={best(first)}", "evaluate=[svm,ridge]"]
    report, _ = launch(*QUICK, *words, out=tmp_path / "second")
    saved = checkpoint.read(best(first))["metafew"]["temperatures"]
    assert saved.keys() == {"protonet", "svm"}
    found = {name: value["temperature"] for name, value in report["calibration"].items()}
    assert found == saved | {"ridge": None}
    assert report["calibration"]["ridge"]["ece_after"] is None


def test_loading_needs_no_data_no_other_checkpoint_and_no_hydra(launch, tmp_path, monkeypatch, caplog):
    _, first = launch(*QUICK, "stages=[fit]", out=tmp_path / "first")
    weights = f"backbone.weights={best(first)}"
    _, out = launch(*QUICK, "stages=[fit]", "head=cnaps", "head.width=4", weights, out=tmp_path / "second")
    content = checkpoint.read(best(out))["state_dict"]
    best(first).unlink()
    monkeypatch.setattr(Glyphs, "__init__", None)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    caplog.clear()
    with initialize_config_dir(str(elsewhere), version_base=None):
        before = GlobalHydra.instance().hydra, HydraConfig.instance().cfg
        model = metafew.load(str(best(out)))
        assert (GlobalHydra.instance().hydra, HydraConfig.instance().cfg) == before
    assert not list(elsewhere.iterdir()) and not caplog.text and not any(m.training for m in model.modules())
    assert (model.channels, model.image_size, model.choices["norm"]) == (1, 28, "tasknorm_l")
    own = {f"backbone.{key}": value for key, value in model.backbone.state_dict().items()}
    own |= {f"heads.cnaps.{key}": value for key, value in model.head.state_dict().items()}
    assert own.keys() == {key for key in content if not key.startswith("objective.")}
    assert all(torch.equal(content[key], value) for key, value in own.items() if isinstance(value, torch.Tensor))
    old = checkpoint.read(best(out))
    del old["state_dict"]["heads.cnaps.stages.0.bias"]
    torch.save(old, "changed.ckpt")
    with pytest.raises(UsageError, match="holds others"):
        metafew.load("changed.ckpt")
    del old["metafew"]["model"]
    torch.save(old, "old.ckpt")
    with pytest.raises(UsageError, match="train again"):
        metafew.load("old.ckpt")


def test_importing_metafew_is_fast():
    script = "import sys, metafew; sys.exit('torch' in sys.modules or not callable(metafew.load))"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


@pytest.fixture
def model():
    """Make a small model of one channel: ``model(norm, head)``."""

    def build(norm=TaskNorm, head=None, channels=1):
        torch.manual_seed(0)
        backbone = Conv4(channels, 16, norm, width=4)
        head = ProtoNet(divide=True) if head is None else head(backbone)
        return inference.Model(backbone, head, {"head": "maml"}).eval()

    return build


def pixels(count, channels=1, seed=0):
    shape = (count, channels, 16, 16)
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def linear(backbone):
    return MAML(backbone, trained=True, way=3, test_steps=2, lr=0.05)


def zero(backbone):
    return MAML(backbone, trained=False, way=3, test_steps=2, lr=0.05)


def test_a_temperature_divides_the_logits(model):
    made = model()
    task, queries = made.adapt(pixels(4), "abab"), pixels(6, seed=1)
    sharp, labels = task.predict(queries), task.label(queries)
    made.temperature = 2.0
    torch.testing.assert_close(task.predict(queries), (sharp.log() / 2).softmax(-1))
    assert task.label(queries) == labels


def test_a_temperature_is_that_of_the_first_candidate(model):
    head = model(head=linear).head
    assert applicable_temperature(head, 2.0) == 2.0
    head.test_steps = (2, 5)
    for chosen, temperature in zip((None, *head.candidates), (2.0, 2.0, 1.0), strict=True):
        head.chosen = chosen
        assert applicable_temperature(head, 2.0) == temperature


def test_distances_come_with_predictions_and_are_those_of_the_definition(model, monkeypatch):
    made = model()
    task, queries = made.adapt(pixels(6), "ababab"), pixels(5, seed=1)
    embed, calls = made.backbone.embed, []
    monkeypatch.setattr(made.backbone, "embed", lambda *images: calls.append(images) or embed(*images))
    found, away = task.predict_with_distances(queries)
    assert len(calls) == 1  # a head on features shares them
    assert found.equal(task.predict(queries)) and away.equal(task.distances(queries))
    support, targets = made.backbone.embed(task.support.images, made.prepare(queries))
    assert away.equal(unknown.distances(support[0], task.support.labels[0], targets[0], 2))
    empty = task.predict_with_distances(queries[:0])
    assert [tuple(each.shape) for each in empty] == [(0, 2), (0,)] and task.distances(queries[:0]).shape == (0,)


def test_distances_for_a_head_that_adapts_the_backbone_are_those_before(model):
    made = model(head=zero)
    task, queries = made.adapt(pixels(6), "abcabc"), pixels(5, seed=1)
    assert task.predict_with_distances(queries)[0].equal(task.predict(queries))
    assert task.distances(queries).shape == (5,)


def test_an_image_without_finite_logits_has_no_label(model, monkeypatch):
    task = model().adapt(pixels(4), "abab")
    labels, logits = task.label(pixels(3)), task.model.head.forward
    ill = torch.tensor([[0.0, 0], [torch.nan, 0], [0, torch.inf]])
    monkeypatch.setattr(task.model.head, "forward", lambda *inputs: logits(*inputs) + ill)
    assert task.label(pixels(3)) == [labels[0], None, None]
    assert task.predict(pixels(3)).isnan().all(1).tolist() == [False, True, True]


def test_images_come_in_many_forms(model):
    task = model().adapt(pixels(4), "abab")
    wanted = task.predict(pixels(5, seed=1))
    byte = pixels(5, seed=1)
    forms = [byte[:, 0], byte.numpy(), byte.numpy()[:, 0], byte.double() / 255, (byte / 255).requires_grad_()]
    for form in [*forms, (byte / 255).numpy(), list(byte.numpy()), np.ascontiguousarray(byte.flip(0).numpy())[::-1]]:
        torch.testing.assert_close(task.predict(form), wanted, rtol=0, atol=1e-6)
    assert wanted.dtype == torch.float32 and wanted.shape == (5, 2) and not wanted.requires_grad
    torch.testing.assert_close(wanted.sum(1), torch.ones(5))
    precise = model().to(torch.float64).adapt(pixels(4), "abab").predict(byte)
    torch.testing.assert_close(precise, wanted, rtol=0, atol=1e-5)
    assert model(channels=3).adapt(pixels(2, 3), [1, 2]).predict(pixels(3, 3)).shape == (3, 2)


@pytest.mark.parametrize("head", [None, zero])
def test_names_and_order_of_the_support_set_do_not_matter(model, head):
    images, labels, query = pixels(6), ["c", "a", "b", "a", "a", "b"], pixels(5, seed=1)
    built = model(head=head).double()
    task = built.adapt(images, labels)
    assert task.classes == ["a", "b", "c"]
    assert task.label(query) == [task.classes[i] for i in task.predict(query).argmax(1)]
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    again = built.adapt(images[order], [labels[i] for i in order])
    torch.testing.assert_close(again.predict(query), task.predict(query), rtol=0, atol=ULP)
    renamed = {"a": ("x",), "b": 3, "c": None}
    other = built.adapt(images, [renamed[label] for label in labels])
    assert other.classes == [None, ("x",), 3]
    torch.testing.assert_close(other.predict(query), task.predict(query)[:, [2, 0, 1]], rtol=0, atol=ULP)
    for numbers in (
        torch.tensor([2, 0, 1, 0, 0, 1]),
        np.array([2, 0, 1, 0, 0, 1]),
        list(torch.tensor([2, 0, 1, 0, 0, 1])),
    ):
        numbered = built.adapt(images, numbers)
        assert numbered.classes == [0, 1, 2]
        torch.testing.assert_close(numbered.predict(query), task.predict(query))


@pytest.mark.parametrize("head", [None, linear])
def test_many_queries_pass_in_parts_with_the_same_numbers(model, monkeypatch, head):
    built = model(head=head).double()
    passes = []
    built.backbone.register_forward_pre_hook(lambda _, images: passes.append(len(images[0])))
    task = built.adapt(pixels(4), "abac")
    whole = task.predict(pixels(20, seed=1))
    assert max(passes) == 24
    passes.clear()
    monkeypatch.setattr(inference, "AT_ONCE", 7)
    torch.testing.assert_close(task.predict(pixels(20, seed=1)), whole, rtol=0, atol=ULP)
    assert [size - 4 for size in passes if size > 4] == [7, 7, 6]
    singly = torch.cat([task.predict(image[None]) for image in pixels(20, seed=1)])
    torch.testing.assert_close(singly, whole, rtol=0, atol=ULP)
    assert task.predict(pixels(0)).shape == (0, 3) and task.label(pixels(0)) == []


def test_transductive_queries_stay_together(model, monkeypatch):
    task = model(Transductive).adapt(pixels(4), "abac")
    whole = task.predict(pixels(20, seed=1))
    monkeypatch.setattr(inference, "AT_ONCE", 7)
    assert torch.equal(task.predict(pixels(20, seed=1)), whole)
    assert (task.predict(pixels(20, seed=1)[:7]) - whole[:7]).abs().max() > 1e-4


@pytest.mark.parametrize(
    "images, labels, message",
    [
        (torch.zeros(2, 3, 16, 16), "ab", r"\(n, 1, 16, 16\).* got shape \(2, 3, 16, 16\): resize"),
        (torch.zeros(2, 28, 28), "ab", r"got shape \(2, 1, 28, 28\)"),
        (torch.zeros(16, 16), "ab", r"got shape \(16, 16\)"),
        (torch.zeros(2, 16, 16).int(), "ab", r"got torch.int32: convert"),
        (torch.full((2, 16, 16), 255.0), "ab", "got values from 255 to 255: divide"),
        (torch.full((2, 16, 16), -0.5), "ab", "got values from -0.5 to -0.5"),
        (torch.full((2, 16, 16), float("nan")), "ab", "got values from nan to nan: replace those"),
        (pixels(2), torch.eye(2), "unhashable"),
        ([np.zeros((16, 16)), np.zeros((9, 9))], "ab", "got a list"),
        (["cat.png", "dog.png"], "ab", "got a list"),
        (pixels(3), "ab", "there are 2 for 3 images"),
        (pixels(2), "aa", "the labels name 1: add"),
        (pixels(0), "", "the labels name 0: add"),
        (pixels(2), [["a"], ["b"]], "unhashable"),
        (pixels(2), "ab", "output layer of head=maml, and the labels name 2: give 3 classes, or train"),
    ],
)
def test_images_and_labels_are_checked(model, images, labels, message):
    with pytest.raises(UsageError, match=message):
        model(head=linear).adapt(images, labels)
