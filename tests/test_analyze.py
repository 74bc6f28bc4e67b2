"""stages=[analyze]: its measures against closed forms, direct computation and other libraries, and its files."""

import csv
import itertools
import json
import math
import xml.etree.ElementTree as ET
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from image_folders import grow
from runs import TINY
from scipy.linalg import eigh
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch.nn import functional as F

from metafew.analysis.features import analyze, measures, plots
from metafew.analysis.features.observer import Observed
from metafew.analysis.features.projection import discriminant, every_second, principal
from metafew.analysis.features.sufficient_condition import bound, epsilon, one_shot_accuracy, published_bound
from metafew.analysis.features.weight_distance import adaptation_distances, adapts_by_gradient, distances
from metafew.backbones.conv4 import Conv4
from metafew.episode import Labelled
from metafew.errors import UsageError
from metafew.heads.maml import MAML
from metafew.norms.layer import LayerNorm
from metafew.objectives.clustering import variance_ratio

ANALYZE = ["analyze.tasks=4", "stages=[analyze]"]


def two_classes(r, n=60, d=400, seed=0):
    """Return two isotropic classes of total variance 3, their means sqrt(3 r) apart."""
    rng = np.random.default_rng(seed)
    x, y = (torch.from_numpy(rng.normal(size=(n, d)) * math.sqrt(3 / d)) for _ in range(2))
    direction = rng.normal(size=d)
    return x, y + torch.from_numpy(direction / np.linalg.norm(direction) * math.sqrt(3 * r))


@pytest.mark.parametrize("r", [0.2, 1, 5, 50])
def test_the_variance_ratio_of_a_pair_on_gaussians(r):
    assert epsilon(*two_classes(r)) == pytest.approx(8 / (4 + r), rel=0.02)


def test_one_shot_accuracy_is_that_of_all_triples():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 4, (5, 2)).astype(float), rng.integers(1, 5, (4, 2)).astype(float)  # with ties

    def share(own, other):
        right = []
        for i, j in itertools.permutations(range(len(own)), 2):  # j is the query, i the example
            for example in other:
                gap = ((own[j] - example) ** 2).sum() - ((own[j] - own[i]) ** 2).sum()
                right.append(1.0 if gap > 0 else 0.5 if gap == 0 else 0.0)
        return np.mean(right)

    found = one_shot_accuracy(torch.from_numpy(x), torch.from_numpy(y))
    assert 0.5 < found < 1 and found == pytest.approx((share(x, y) + share(y, x)) / 2)


def test_no_accuracy_is_below_a_bound_and_both_bounds_are_informative():
    for r in (0.5, 5, 50, 500, 5000):
        x, y = two_classes(r, n=30, d=20)
        eps = torch.tensor(epsilon(x, y))
        assert one_shot_accuracy(x, y) >= bound(eps) >= published_bound(eps)
    assert published_bound(eps) > 0.8 and bound(torch.tensor(0.01)).item() == pytest.approx(1 - 0.16 / 1.99)
    assert published_bound(torch.tensor(0.01)).item() == pytest.approx(1 - 0.32 / 0.99)
    assert (
        bound(torch.tensor([0.2, 1.9, 2.0])).tolist()
        == published_bound(torch.tensor([0.04, 1.0, 2.0])).tolist()
        == [0] * 3
    )


def test_neither_scale_nor_place_nor_order_matters():
    x, y = two_classes(1, n=10, d=8)
    for measure in (epsilon, one_shot_accuracy):
        value = measure(x, y)
        for changed in ((7 * x, 7 * y), (x + 3, y + 3), (y, x), (x.flip(0), y), (x.flip(1), y.flip(1))):
            assert measure(*changed) == pytest.approx(value, abs=1e-12)
    equal = torch.ones(4, 3)
    assert epsilon(equal, equal) == 2.0 and one_shot_accuracy(equal, equal) == 0.5


def test_projections_are_those_of_scikit_learn_and_scipy(monkeypatch):
    rng = np.random.default_rng(0)
    labels = np.repeat(range(4), [12, 15, 9, 20])
    features = rng.normal(size=(4, 7))[labels] + rng.normal(size=(56, 7)) @ rng.normal(size=(7, 7))

    def same(ours, theirs):
        return np.allclose(np.abs(ours), np.abs(theirs - theirs.mean(0)), atol=1e-8)

    means = np.stack([features[labels == c].mean(0) for c in range(4)])[labels]
    within, between = np.cov((features - means).T, bias=True), np.cov(means.T, bias=True)
    within = 0.9 * within + 0.1 * np.trace(within) / 7 * np.eye(7)
    every = np.ones(56, bool)
    assert same(discriminant(features, labels, every), features @ eigh(between, within)[1][:, :-3:-1])
    wide = np.concatenate([features, np.zeros((56, 90))], 1) @ np.linalg.qr(rng.normal(size=(97, 97)))[0]
    assert np.allclose(discriminant(wide, labels, every), discriminant(features, labels, every), atol=1e-6)
    assert same(principal(features), PCA(2).fit_transform(features))
    assert (
        principal(features[:, :1]).shape == (56, 2)
        and (discriminant(np.ones((6, 5)), labels[9:15], every[:6]) == 0).all()
    )
    half = every_second(labels)
    assert np.bincount(labels[half]).tolist() == [6, 7, 4, 10]
    changed = np.where(half[:, None], rng.normal(size=features.shape), features)
    ours, theirs = (discriminant(each, labels, ~half)[~half] for each in (features, changed))
    assert np.allclose(np.abs(ours), np.abs(theirs)), "held-out rows do not affect the directions"
    noise = rng.normal(size=(56, 90))
    planes = discriminant(noise, labels, ~half)
    fitted, held_out = (variance_ratio(torch.tensor(planes[r]), torch.tensor(labels[r])) for r in (~half, half))
    assert fitted < 1 < held_out, "classes of noise are separated where the plane was fitted, and nowhere else"
    monkeypatch.setattr("metafew.analysis.features.projection.SHRINKAGE", 0)
    fisher = LinearDiscriminantAnalysis(solver="eigen", n_components=2)
    assert same(discriminant(features, labels, every), fisher.fit_transform(features, labels))


def test_the_weight_distance_of_one_gradient_step_is_that_of_each_filter():
    torch.manual_seed(0)
    backbone = Conv4(channels=1, image_size=28, norm=LayerNorm, width=4).double().eval()
    head = MAML(backbone, True, way=3, test_steps=1, lr=0.3).double().eval()
    support = Labelled(torch.rand(2, 6, 1, 28, 28, dtype=torch.double), torch.arange(3).repeat(2, 2))
    with torch.no_grad():
        found = adaptation_distances(head, backbone, support, 3)
    named = {name: p for name, p in backbone.named_parameters() if p.ndim == 4}
    for task in range(2):
        features, _ = backbone.embed(support.images[task, None])
        logits = F.linear(features[0], head.output.weight, head.output.bias)
        grads = torch.autograd.grad(F.cross_entropy(logits, support.labels[task]), list(named.values()))
        total = 0.0
        for (name, value), grad in zip(named.items(), grads, strict=True):
            ratios = [0.3 * g.norm().item() / w.norm().item() for w, g in zip(value, grad, strict=True)]
            total += sum(ratio**2 for ratio in ratios)
            assert found[task][name.removesuffix(".weight")] == pytest.approx(sum(ratio**2 for ratio in ratios) ** 0.5)
        assert found[task]["all"] == pytest.approx(total**0.5) and len(found[task]) == 5
    assert adapts_by_gradient(head) and not adapts_by_gradient(MAML(backbone, True, way=3, adapt="output"))


def test_weight_distance_is_invariant_to_the_scale_of_a_filter():
    start = {
        "backbone.a.weight": torch.rand(3, 2, 3, 3),
        "backbone.a.bias": torch.zeros(3),
        "weight": torch.zeros(5, 4),
    }
    end = {name: value + torch.rand_like(value) for name, value in start.items()}
    scale = torch.tensor([0.1, 1.0, 30.0])[:, None, None, None]
    scaled = [weights | {"backbone.a.weight": scale * weights["backbone.a.weight"]} for weights in (start, end)]
    assert distances(start, end) == pytest.approx(distances(*scaled)) and distances(start, start) == {"a": 0, "all": 0}


def seen(classes, labels, guesses):
    """Return an observed task with these labels."""
    classes, labels, guesses = map(torch.tensor, (classes, labels, guesses))
    return Observed(0, [], [], torch.empty(0), classes, labels, guesses, {})


def test_confusion_counts_classes_where_they_are_few_and_positions_where_they_are_many():
    tasks = [seen([7, 3, 7, 7, 3, 3], [0, 0, 1, 1], [0, 1, 1, 1]), seen([3, 7, 3, 3, 7, 7], [0, 0, 1, 1], [1, 1, 1, 0])]
    few = measures.confusion(tasks, [f"c{i}" for i in range(9)])
    assert few["by"] == "class" and np.sum(few["counts"]) == 8
    assert few["counts"][7] == [0, 0, 0, 2, 0, 0, 0, 2, 0] and few["counts"][3] == [0, 0, 0, 2, 0, 0, 0, 2, 0]
    many = measures.confusion(tasks, [f"c{i}" for i in range(99)])
    assert many["by"] == "position" and many["counts"] == [[1, 3], [1, 3]] and many["names"] == ["1", "2"]
    assert few["most_confused"] == many["most_confused"]
    assert few["most_confused"][0] == {"true": "c7", "guess": "c3", "queries": 2, "of": 4, "classes": [7, 3]}


def test_pairs_that_are_confused_are_shown_as_images_where_classes_are_many(tmp_path):
    images = np.arange(99 * 8, dtype=np.uint8).repeat(16).reshape(99 * 8, 1, 4, 4)
    rows = np.arange(99 * 8).reshape(99, 8)
    split = SimpleNamespace(images=images, names=[f"c{i}" for i in range(99)], rows=rows, turns=np.zeros(99, int))
    split.gather = lambda own, turns: images[own]
    tasks = [seen([7, 3, 7, 7, 3, 3], [0, 0, 1, 1], [0, 1, 1, 1])]
    ((entry, true, guess),) = analyze.confused_images(
        measures.confusion(tasks, split.names), SimpleNamespace(split=split)
    )
    assert (entry["true"], entry["guess"], entry["queries"], entry["of"]) == ("c7", "c3", 1, 2)
    assert np.array_equal(true, images[rows[7][:6]]) and np.array_equal(guess, images[rows[3][:6]])
    plots.draw_confused_pairs([(entry, true, guess)], "test", tmp_path / "confusion.png")
    assert (tmp_path / "confusion.svg").exists()
    few = measures.confusion(tasks, split.names[:9])
    assert not analyze.confused_images(few, SimpleNamespace(split=split)), "there is a matrix by class"


def test_confusion_counts_queries_without_an_answer_apart():
    task = seen([3, 7, 3, 3, 7, 7], [0, 0, 1, 1], [0, -1, -1, -1])
    few, many = (measures.confusion([task], [f"c{i}" for i in range(count)]) for count in (9, 99))
    assert few["unanswered"] == [0, 0, 0, 1, 0, 0, 0, 2, 0] and np.sum(few["counts"]) == few["counts"][3][3] == 1
    assert many["unanswered"] == [1, 2] and many["counts"] == [[1, 0], [0, 0]] and not many["most_confused"]


def test_measures_of_gaussian_features_match_their_closed_forms(launch, tmp_path, monkeypatch):
    monkeypatch.setattr(analyze, "draw_analysis", lambda *_: None)
    rng, r, dim = np.random.default_rng(0), 2.0, 500
    means = rng.normal(size=(30, dim)) * math.sqrt(r / 2 / dim)  # r apart, variance 1
    labels = np.repeat(np.arange(30), 12)
    vectors = (means[labels] + rng.normal(size=(360, dim)) / math.sqrt(dim)).astype(np.float32)
    np.savez(tmp_path / "v.npz", x_test=vectors, y_test=labels.astype(str))
    words = ["dataset=features", f"dataset.root={tmp_path}/v.npz", "stages=analyze", "test.query=5", "analyze.tasks=60"]
    report, out = launch(*words, tiny=[word for word in TINY if not word.startswith("backbone")])
    found = report["analysis"]
    assert json.loads((out / "results.json").read_text()) == report and report["metrics"] == {}
    expected = {
        "feature_clustering": 4 / (1 + r),
        "hyperplane_variation": 4 / (2 + r),
        "hyperplane_ratio": (2 + r) ** -0.5,
    }
    for name, value in expected.items():
        assert found[name]["mean"] == pytest.approx(value, rel=0.03) and found[name]["pairs"] == 120
        assert abs(found[name]["mean"] - value) < 4 * found[name]["ci95"]
    centres = np.stack([vectors[labels == c].mean(0) for c in range(30)])
    within = np.mean([((vectors[labels == c] - centres[c]) ** 2).sum(1).mean() for c in range(30)])
    ratio = within / ((centres - centres.mean(0)) ** 2).sum(1).mean()
    assert found["variance_ratio"] == pytest.approx(ratio, rel=1e-4) and found["whole_split"] is True
    assert found["class_clustering"] == pytest.approx(30 * ratio, rel=1e-4)
    assert (found["images"], found["classes"], found["tasks"], found["split"]) == (360, 30, 60, "test")
    content = json.loads((out / "analysis.json").read_text())
    assert len(content["sufficient_condition"]["points"]) == 120 and content["confusion"]["by"] == "position"
    assert content["alpha"] is content["travel"] is content["distances"] is None and not (out / "travel.png").exists()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Run all stages once; return the report and the folder."""
    from runs import compose_in

    from metafew.training.run import run

    out = tmp_path_factory.mktemp("run")
    words = ["stages=[fit,test,analyze]", "analyze.every=2", "analyze.tasks=4", "head=fomaml", "test.shot=2"]
    return run(*compose_in(out, *TINY, *words), out), out


def test_analysis_writes_numbers_and_figures_in_both_formats(trained):
    report, out = trained
    content = json.loads((out / "analysis.json").read_text())
    for name in ("sufficient_condition", "projection", "confusion", "travel", "alpha", "learning_curve", "episode"):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert ET.parse(out / f"{name}.svg").getroot().tag.endswith("svg")
    assert {"test/fomaml/accuracy"} < set(report["metrics"]) and report["analysis"]["travel"]["tasks"] == 4
    assert set(content["travel"]) == {*(f"blocks.{i}.0" for i in range(4)), "all"}
    squares = [content["travel"][f"blocks.{i}.0"]["mean"] ** 2 for i in range(4)]
    assert content["travel"]["all"]["mean"] == pytest.approx(sum(squares) ** 0.5, rel=0.1)
    assert len(content["alpha"]["layers"]) == 4 and 0.3 < content["alpha"]["layers"][0]["5"] < 0.7
    assert content["clustering"]["whole_split"] is False and content["clustering"]["images"] == 4 * 5 * 4
    assert sum(map(sum, content["confusion"]["counts"])) == 4 * 5 * 2
    assert np.mean(content["distances"]) == pytest.approx(content["travel"]["all"]["mean"], rel=1e-3)
    shown = content["projection"]
    assert len(content["distances"]) == 4 and len(set(shown["names"])) == 5
    assert np.bincount(shown["classes"]).tolist() == [4] * 5
    assert np.shape(shown["points"]["principal"]) == np.shape(shown["points"]["discriminant"]) == (20, 2)


def test_an_analysis_in_the_folder_of_a_run_keeps_its_test(launch, tmp_path, monkeypatch):
    monkeypatch.setattr(analyze, "draw_analysis", lambda *_: None)
    tested, _ = launch("trainer.max_steps=1", "val.total=0")
    ckpt = f"ckpt={tmp_path}/checkpoints/last.ckpt"
    for _ in range(2):
        launch(ckpt, "stages=[analyze]", "analyze.tasks=2")
        assert json.loads((tmp_path / "results.json").read_text())["analysis"]["tasks"] == 2
    assert json.loads((tmp_path / "results-1.json").read_text())["metrics"] == tested["metrics"]
    assert not (tmp_path / "results-2.json").exists(), "the same analysis again"


def test_training_images_are_analyzed_without_their_augmentation(trained, launch, tmp_path, monkeypatch):
    monkeypatch.setattr(analyze, "draw_analysis", lambda *_: None)
    grow(tmp_path / "images" / "train", [f"class{number}" for number in range(6)], images=4)
    words = ["dataset=folder", f"dataset.root={tmp_path}/images", "dataset.image_size=28", "dataset.channels=1"]
    words += ["stages=[fit,analyze]", "analyze.split=train", "trainer.max_steps=1", "val.total=0", "norm=none"]
    report, _ = launch(*words, "augment=standard", "test.query=1", "analyze.tasks=2", out=tmp_path / "out")
    assert report["analysis"]["whole_split"] is True and report["analysis"]["images"] == 24


def test_the_monitor_logs_in_training_what_the_analysis_measures(trained, launch, monkeypatch):
    monkeypatch.setattr(analyze, "draw_analysis", lambda *_: None)
    _, fit = trained
    with (fit / "metrics.csv").open() as file:
        logged = [row for row in csv.DictReader(file) if row["val/feature_clustering"]]
    assert len(logged) == 2 and float(logged[-1]["val/variance_ratio"]) > 0
    ckpt = f"ckpt={fit}/checkpoints/last.ckpt"
    report, _ = launch(ckpt, "head=fomaml", *ANALYZE, "analyze.split=val", "test.shot=1")
    for name in ("feature_clustering", "hyperplane_variation"):
        assert report["analysis"][name]["mean"] == pytest.approx(float(logged[-1][f"val/{name}"]), rel=1e-5)


def test_the_monitor_measures_balanced_tasks(launch):
    words = ["val.balance=dirichlet", "val.way=2", "val.query=1", "val.total=12", "val.every=1", "analyze.every=1"]
    _, out = launch(*words, "trainer.max_steps=1", "stages=[fit]", out=None)
    with (out / "metrics.csv").open() as file:
        assert any(row["val/feature_clustering"] for row in csv.DictReader(file))


def test_a_diverged_checkpoint_logs_a_warning(trained, launch, tmp_path, caplog):
    content = torch.load(trained[1] / "checkpoints" / "last.ckpt", weights_only=True)
    content["state_dict"]["backbone.blocks.0.0.weight"][0] = float("nan")
    torch.save(content, tmp_path / "ill.ckpt")
    report, out = launch(f"ckpt={tmp_path}/ill.ckpt", "norm=tasknorm", *ANALYZE)
    assert report["analysis"] is None and "features of task 0 of the test split are not finite" in caplog.text
    assert not (out / "analysis.json").exists()


def test_features_that_are_too_large_to_be_squared_are_not_measured(trained, launch, tmp_path, caplog):
    content = torch.load(trained[1] / "checkpoints" / "last.ckpt", weights_only=True)
    scales = [v for k, v in content["state_dict"].items() if k.startswith("backbone.blocks.3.") and v.ndim == 1]
    for scale in scales:  # of the last norm
        scale.mul_(1e25)
    torch.save(content, tmp_path / "huge.ckpt")
    report, _ = launch(f"ckpt={tmp_path}/huge.ckpt", "norm=tasknorm", *ANALYZE)
    assert report["analysis"] is None and "or too large to be squared" in caplog.text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["analyze.split=all"], "expected analyze.split to be test or val or train, got all: type analyze.split=test"),
        (["analyze.tasks=0"], "expected analyze.tasks to be an integer of at least 1, got 0: type analyze.tasks=1"),
        (["analyze.every=-1"], "expected analyze.every to be an integer of at least 0, got -1"),
        (["stages=[analyze]"], r"expected a checkpoint for stages=\[analyze\], got none: type ckpt=PATH"),
        (["stages=[fit,draw]"], "expected stages to be some of fit, test and analyze"),
        (
            ["stages=[fit,analyze]", "analyze.split=val", "test.way=99"],
            "test.way=99 needs 99 classes, but the val split .* type test.way=38",
        ),
    ],
)
def test_invalid_settings_raise_before_any_image_is_read(launch, monkeypatch, words, message):
    monkeypatch.setattr("metafew.data.datamodule.build", lambda *_: pytest.fail("images were read"))
    with pytest.raises(UsageError, match=message):
        launch(*words)
