"""Complete small runs: what they leave, and that the same overrides give the same numbers."""

import csv
import json
import math
from importlib.metadata import version
from itertools import combinations

import numpy as np
import pytest
import torch
from contracts import sampled
from runs import state as weights

from metafew.analysis import run_plots
from metafew.episode import Episode, Labelled
from metafew.errors import UsageError
from metafew.training import checkpoint

COLUMNS = ["index", "source", "head", "way", "shot", "accuracy", "loss", "failed", "classes"]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.figures
def test_a_run_leaves_what_the_readme_says(launch):
    report, out = launch("evaluate=[ridge,svm,protonet]", "test.shot=[1,2]")
    assert json.loads((out / "results.json").read_text()) == report
    names = ["protonet", "ridge", "svm"]
    expected = [f"test/{n}/{shot}{m}" for n in names for shot in ("", "shot2/") for m in ("accuracy", "loss")]
    assert set(report["metrics"]) == set(expected) and next(iter(report["metrics"])) == "test/protonet/accuracy"
    assert report["metrics"]["test/svm/accuracy"]["tasks"] == 6
    assert set(report["baselines"]) == {"pixels_1nn", "pixels_1nn/shot2"}
    assert report["transductive"] is False and report["queries"] == "together" and report["select"] == "best"
    assert report["choices"]["head"] == "protonet" and report["choices"]["norm"] == "tasknorm_l"
    assert report["steps"] == 4 and report["seed"] == 0 and set(report["seconds"]) == {"fit", "test"}
    assert report["versions"]["torch"] == version("torch")
    assert report["config"]["train"]["way"] == 5
    with (out / "metrics.csv").open() as file:
        measured = [float(row["val/protonet/accuracy"]) for row in csv.DictReader(file) if row["val/protonet/accuracy"]]
    assert report["validation"] == {"val/protonet/accuracy": pytest.approx(max(measured)), "val/protonet/failed": 0}
    with (out / "tasks.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == COLUMNS and len(rows) == 6 * 4 * 2
    ours = [float(r["accuracy"]) for r in rows if r["head"] == "svm" and r["shot"] == "1"]
    assert sum(ours) / 6 == pytest.approx(report["metrics"]["test/svm/accuracy"]["mean"])
    assert list(report["tested_on"]) == ["glyphs"] and report["tested_on"]["glyphs"]["classes"] >= 5
    for name in ("metrics.csv", "learning_curve.png", "episode.png", "checkpoints/best.ckpt", "checkpoints/last.ckpt"):
        assert (out / name).stat().st_size > 0, name
    assert not any(set("=,") & set(path.name) for path in out.rglob("*"))


@pytest.mark.parametrize("head", [pytest.param("protonet", marks=pytest.mark.slow), "svm"])
def test_the_same_words_give_the_same_bits(launch, tmp_path, head):
    first, a = launch(f"head={head}", out=tmp_path / "a")
    again, b = launch(f"head={head}", out=tmp_path / "b")
    workers, c = launch(f"head={head}", "data.num_workers=2", out=tmp_path / "c")
    other, d = launch(f"head={head}", "seed=1", out=tmp_path / "d")
    assert same(weights(a), weights(b)) and same(weights(a), weights(c)) and not same(weights(a), weights(d))
    assert first["metrics"] == again["metrics"] == workers["metrics"] != other["metrics"]
    assert first["baselines"] == other["baselines"]
    assert (a / "tasks.csv").read_text() == (c / "tasks.csv").read_text()


def test_evaluation_heads_change_neither_training_nor_results(launch, tmp_path):
    plain, a = launch(out=tmp_path / "a")
    more, b = launch("evaluate=[svm]", out=tmp_path / "b")
    assert plain["metrics"]["test/protonet/accuracy"] == more["metrics"]["test/protonet/accuracy"]
    ours, theirs = weights(a), weights(b)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_loss_falls(launch):
    _, out = launch("trainer.max_steps=60", "trainer.log_every_n_steps=1", "backbone.width=16", "train.query=5")
    with (out / "metrics.csv").open() as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert len(losses) == 60 and sum(losses[-15:]) < 0.8 * sum(losses[:15])


@pytest.mark.parametrize("norm", sampled(["tasknorm", "batch"], 1))
def test_a_run_that_goes_on_equals_one_that_never_stopped(launch, tmp_path, norm):
    _, whole = launch(f"norm={norm}", "trainer.max_steps=6", out=tmp_path / "whole")
    _, half = launch(f"norm={norm}", "trainer.max_steps=4", "trainer.log_every_n_steps=1", out=tmp_path / "half")
    _, rest = launch(f"norm={norm}", "trainer.max_steps=6", f"ckpt={half}/checkpoints/last.ckpt", out=tmp_path / "rest")
    assert same(weights(whole), weights(rest))


def test_batch_norm_moves_its_running_moments_in_training_only(launch, tmp_path):
    _, out = launch("norm=batch", "trainer.max_steps=2", "val.every=1")
    first, last = weights(out, "best"), weights(out)
    key = "backbone.blocks.0.1.running_mean"
    assert first[key].abs().sum() > 0 and last[key].abs().sum() > 0
    path = out / "checkpoints" / "last.ckpt"
    report, _ = launch("norm=batch", "stages=test", f"ckpt={path}", out=tmp_path / "test")
    again, _ = launch("norm=batch", "stages=test", f"ckpt={path}", out=tmp_path / "again")
    assert report["metrics"] == again["metrics"] and report["select"] is None and report["steps"] == 2


def test_a_checkpoint_holds_plain_values_only(launch):
    _, out = launch("trainer.max_steps=1", "test.seed=3")
    content = checkpoint.read(out / "checkpoints" / "best.ckpt")
    assert "test.seed=3" in content["metafew"]["overrides"]
    assert content["metafew"]["choices"]["head"] == "protonet"
    assert content["optimizer_states"] and content["lr_schedulers"]


def test_best_is_the_first_of_equals(launch):
    _, out = launch("optimizer.lr=0.0", "trainer.max_steps=4", "val.every=1")
    assert checkpoint.read(out / "checkpoints" / "best.ckpt")["global_step"] == 1


@pytest.fixture
def sheets(monkeypatch):
    """Whether the probabilities in each figure of a test task are called calibrated."""
    found = []
    monkeypatch.setattr(run_plots, "episode_sheet", lambda *given: found.append(given[-1]))
    return found


@pytest.mark.figures
def test_a_figure_says_if_its_probabilities_are_uncalibrated(monkeypatch, tmp_path):
    figures = []
    monkeypatch.setattr(run_plots, "save", lambda figure, path: figures.append(figure))
    rows = Labelled(torch.rand(1, 2, 1, 4, 4), torch.tensor([[0, 1]]))
    episode = Episode(rows, rows, way=2, index=torch.zeros(1), source=0)
    for calibrated in (True, False):
        run_plots.episode_sheet(episode, torch.full((1, 2, 2), 0.5), ["a", "b"], tmp_path, calibrated)
    titles = [" ".join(" ".join(axes.get_title(loc="left") for axes in figure.axes).split()) for figure in figures]
    assert ["with the uncalibrated probability" in title for title in titles] == [False, True]


@pytest.mark.figures
def test_queries_have_a_heading_though_the_first_class_has_none(monkeypatch, tmp_path):
    figures = []
    monkeypatch.setattr(run_plots, "save", lambda figure, path: figures.append(figure))
    images = torch.rand(1, 2, 1, 4, 4)
    support, query = Labelled(images, torch.tensor([[0, 1]])), Labelled(images, torch.tensor([[1, 1]]))
    episode = Episode(support, query, way=2, index=torch.zeros(1), source=0)
    run_plots.episode_sheet(episode, torch.full((1, 2, 2), 0.5), ["a", "b"], tmp_path)
    shown = [axes for axes in figures[0].axes if axes.get_title(loc="left")]
    assert [axes.get_title(loc="left").split(",")[0] for axes in shown] == ["support", "queries"]
    assert [axes.axison for axes in shown] == [True, False]


def test_without_validation_the_best_is_the_last(launch, tmp_path, caplog, sheets):
    words = ["val.total=0", "trainer.log_every_n_steps=1"]
    with caplog.at_level("INFO"):
        report, out = launch(*words, out=tmp_path / "a")
    assert sum("no validation took place, as val.total=0" in line for line in caplog.messages) == 1
    assert report["select"] == "last" and report["validation"] == {} and report["steps"] == 4
    assert same(weights(out, "best"), weights(out))
    assert "val/" not in (out / "metrics.csv").read_text()
    again, _ = launch("stages=[test]", f"ckpt={out}/checkpoints/best.ckpt", out=tmp_path / "b")
    assert again["metrics"] == report["metrics"] and sheets == [False, False]


def test_test_select_last_tests_the_last(launch, tmp_path, sheets):
    last, out = launch("optimizer.lr=0.5", "test.select=last", out=tmp_path / "b")
    report, _ = launch("stages=[test]", f"ckpt={out}/checkpoints/last.ckpt", out=tmp_path / "c")
    assert last["select"] == "last" and last["metrics"] == report["metrics"] and sheets == [True, True]


def test_another_training_starts_from_the_weights_and_is_not_resumed(launch, tmp_path):
    _, first = launch(out=tmp_path / "first")
    ckpt = f"ckpt={first}/checkpoints/last.ckpt"
    again, out = launch(ckpt, "optimizer.lr=0.0", out=tmp_path / "again")
    assert again["steps"] == 4 and same(weights(out), weights(first))
    done, _ = launch(ckpt, out=tmp_path / "done")  # nothing is left to train, and the best comes along
    assert done["steps"] == 4 and done["select"] == "best" and "test/protonet/accuracy" in done["metrics"]


def test_one_transductive_model_is_tested_three_ways(launch, tmp_path):
    """CBN, TBN and RN differ only at test (Bronskill et al. 2020, Appendix B.2)."""
    _, fit = launch("norm=transductive", out=tmp_path / "fit")
    ckpt = f"ckpt={fit}/checkpoints/last.ckpt"
    reports = {
        norm: launch("stages=[test]", ckpt, f"norm={norm}", out=tmp_path / norm)[0]
        for norm in ("transductive", "batch", "reptile")
    }
    assert [report["transductive"] for report in reports.values()] == [True, False, False]
    assert len({report["metrics"]["test/protonet/loss"]["mean"] for report in reports.values()}) == 3


@pytest.mark.parametrize("head", sampled(["svm", "maml"], 1))  # by features, and by adapting the backbone
def test_how_many_queries_are_asked_at_once_matters_for_transductive_norms_only(launch, tmp_path, head):
    own, fit = [f"head={head}", "test.total=3"] + ["head.steps=1", "head.test_steps=1"] * (head == "maml"), {}
    for norm in ("tasknorm", "transductive"):
        _, fit[norm] = launch(*own, f"norm={norm}", "trainer.max_steps=1", out=tmp_path / f"fit-{norm}")
    for norm, out in fit.items():
        tables = {}
        for queries in ("together", "single", "class"):
            words = ["stages=[test]", f"ckpt={out}/checkpoints/last.ckpt", *own, f"norm={norm}"]
            report, folder = launch(*words, f"test.queries={queries}", out=tmp_path / f"{norm}-{queries}")
            assert report["queries"] == queries
            with (folder / "tasks.csv").open() as file:
                rows = [row for row in csv.DictReader(file) if row["head"] == head]
            tables[queries] = np.array([(float(row["accuracy"]), float(row["loss"])) for row in rows])
        apart = [np.abs(one - other).max() for one, other in combinations(tables.values(), 2)]
        assert min(apart) > 1e-3 if norm == "transductive" else max(apart) < 1e-4, (norm, tables)


@pytest.mark.figures
def test_alpha_is_logged_and_drawn(launch):
    _, out = launch("train.shot=1..2")
    with (out / "metrics.csv").open() as file:
        logged = [row["alpha/layer1"] for row in csv.DictReader(file) if row.get("alpha/layer1")]
    scale, offset = (weights(out)[f"backbone.blocks.0.1.alpha.{name}"].item() for name in ("scale", "offset"))
    # That of the largest context: of 5 ways with 2 shots.
    assert len(logged) == 2 and float(logged[-1]) == pytest.approx(1 / (1 + math.exp(-10 * scale - offset)), abs=1e-6)
    assert abs(scale) > 1e-4
    assert (out / "alpha.png").stat().st_size > 0


def test_a_context_size_never_trained_warns(launch, caplog):
    launch("trainer.max_steps=1", "test.shot=3")
    assert "contexts of 5 images and is tested with 15: its alpha was never fitted" in caplog.text
    caplog.clear()
    launch("trainer.max_steps=1", "test.shot=3", "norm.alpha=independent")
    assert "alpha was never fitted" not in caplog.text


def test_a_run_that_only_trains_needs_no_tasks_that_suit_a_test(launch, caplog):
    words = ["head=maml", "head.steps=1", "head.test_steps=1", "train.way=3", "val.way=3", "trainer.max_steps=2"]
    report, _ = launch(*words, "stages=[fit]")
    assert report["steps"] == 2 and "alpha was never fitted" not in caplog.text


def test_an_untrained_maml_is_tested_with_another_way(launch, tmp_path):
    _, fit = launch("trainer.max_steps=1", out=tmp_path / "fit")
    words = ["stages=[test]", f"ckpt={fit}/checkpoints/last.ckpt", "evaluate=[maml]", "test.way=3"]
    report, _ = launch(*words, "evaluate.maml.test_steps=1", out=tmp_path / "test")
    assert report["metrics"]["test/maml/accuracy"]["tasks"] == 6


def test_ways_and_shots_may_differ_within_a_batch(launch):
    report, _ = launch(
        "head=svm", "evaluate=[protonet,ridge]", "train.way=2..6", "train.shot=1..3", "test.way=2..6", "val.shot=1..2"
    )
    assert all(math.isfinite(value["mean"]) for value in report["metrics"].values())


def test_tasknorm_scalars_are_kept_out_of_weight_decay(launch, composed):
    from metafew.training.factory import make_learner
    from metafew.training.instantiate import make

    cfg, choices, _ = composed("optimizer.weight_decay=0.1")
    learner = make_learner(cfg, make(cfg.dataset), {"choices": choices}, trained=True, fit=True)
    decayed, exempt = learner.configure_optimizers()["optimizer"].param_groups
    assert decayed["weight_decay"] == 0.1 and exempt["weight_decay"] == 0.0
    assert len(exempt["params"]) == 8 and all(p.ndim == 0 for p in exempt["params"])


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["test.way=500"], "test.way=500 needs 500 classes"),
        (["train.shot=20"], "train.shot=20 and train.query=2 need 22 images of each class, but class"),
        (["ckpt=nowhere.ckpt"], "there is no file nowhere.ckpt"),
        (["stages=[test]"], "type ckpt=PATH"),
        (["stages=[fly]"], "expected stages to be some of fit, test and analyze"),
        (["test.select=worst"], "expected test.select to be best or last"),
        (["trainer.max_steps=0"], "expected trainer.max_steps to be an integer"),
        (["dataset=omniglot", "dataset.split=new"], "split"),
        (["norm=batch", "norm.over=both"], "expected norm.over to be apart or joined"),
        (["trainer.precision=7"], "expected trainer.precision to be"),
        (["dataset.image_size=8"], "expected images of at least 16 pixels.*got 8"),
        (["head=maml", "test.way=3"], "head.output=shared"),
        (["head=maml", "norm=batch_shared"], "one task at a time"),
        (["norm=batch_shared", "train.shot=1..3"], "all of one size"),
        (["norm.alpha=fixed"], "functional or independent"),
        (["norm=group", "norm.groups=0"], "expected norm.groups to divide"),
        (["test.queries=none"], "expected test.queries to be together or single or class"),
        (["optimizer.lr=abc"], "optimizer cannot be made with these options"),
        (["optimizer.lr=-1"], "optimizer cannot be made with these options"),
        (["schedule.factor=2"], "schedule cannot be made with these options"),
        (["schedule=step", "schedule.step_size=0"], "schedule cannot be made with these options"),
        (["schedule=step", "schedule.step_size=null"], "schedule cannot be made with these options"),
        (["schedule=cosine", "schedule.T_max=0"], "schedule cannot be made with these options"),
        (["backbone.width=0"], "expected backbone.width to be an integer of at least 1"),
        (["data.num_workers=-1"], "expected data.num_workers to be an integer"),
        (["seed=-1"], "expected seed to be an integer"),
        (["test.shot=[]"], "got an empty list"),
        (["train.tasks=null"], "expected train.tasks to be an integer"),
        (["test.total=0"], "test.total to be an integer of at least 1, got 0"),
        (["objective.label_smoothing=2"], "expected objective.label_smoothing to be from 0"),
        (["head=ridge", "head.penalty=0"], "expected head.penalty to be positive"),
        (["head=maml", "head.lr=[0.1,0.2]"], "a list of head.lr is for evaluation"),
        (["head._target_=metafew.heads.nope.Head"], "nope"),
        (["head=reptile", "head.lr=[0.1,0.2]"], "a list of head.lr is for evaluation"),
        (["head=svm", "head.c=-1"], "expected head.c to be positive"),
    ],
)
def test_errors_are_raised_before_any_image_is_read(launch, monkeypatch, overrides, said):
    monkeypatch.setattr("metafew.data.datamodule.build", lambda *_: pytest.fail("images were read"))
    with pytest.raises(UsageError, match=said):
        launch(*overrides)


def test_checkpoints_that_do_not_fit_are_usage_errors(launch, tmp_path):
    _, out = launch("trainer.max_steps=1", out=tmp_path / "fit")
    path = out / "checkpoints" / "last.ckpt"
    with pytest.raises(UsageError, match=r"of shape .* holds shape"):
        launch("stages=[test]", f"ckpt={path}", "backbone.width=8")
    with pytest.raises(UsageError, match="running moments"):
        launch("stages=[test]", f"ckpt={path}", "norm=batch")
    broken = tmp_path / "broken.ckpt"
    broken.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UsageError, match="cannot be read as one"):
        launch("stages=[test]", f"ckpt={broken}")
    broken.write_text("hello world")
    with pytest.raises(UsageError, match="cannot be read as one"):
        launch("stages=[test]", f"ckpt={broken}")
    torch.save({"weights": 1}, broken)
    with pytest.raises(UsageError, match="is a different file"):
        launch("stages=[test]", f"ckpt={broken}")


class Malice:
    def __reduce__(self):
        return print, ("code in a checkpoint was run",)


def test_loading_runs_no_code(tmp_path, capsys):
    torch.save({"metafew": {}, "state_dict": Malice()}, tmp_path / "evil.ckpt")
    with pytest.raises(UsageError, match="cannot be read as one"):
        checkpoint.read(tmp_path / "evil.ckpt")
    assert "was run" not in capsys.readouterr().out


def test_a_checkpoint_evaluates_under_another_head(launch, tmp_path):
    _, out = launch("head=svm", "trainer.max_steps=1", out=tmp_path / "fit")
    report, _ = launch("head=protonet", "stages=[test]", f"ckpt={out}/checkpoints/last.ckpt", out=tmp_path / "test")
    assert "test/protonet/accuracy" in report["metrics"]


def test_what_diverged_is_nothing_in_the_results_and_a_warning(launch, caplog):
    words = ["evaluate=[maml]", "evaluate.maml.lr=1e30", "evaluate.maml.test_steps=3"]
    report, out = launch("trainer.max_steps=1", *words)
    assert report["metrics"]["test/maml/loss"]["mean"] is None
    assert [report["metrics"][f"test/{head}/accuracy"]["failed"] for head in ("maml", "protonet")] == [6, 0]
    assert "6 of 6 tasks failed in test/maml/accuracy" in caplog.text and "in test/protonet" not in caplog.text
    assert json.loads((out / "results.json").read_text()) == report


def test_heads_on_features_share_one_embedding(launch, monkeypatch):
    from metafew.backbones.backbone import Backbone

    passes, whole = [], Backbone.embed
    monkeypatch.setattr(Backbone, "embed", lambda *a, **k: passes.append(1) or whole(*a, **k))
    counts = {}
    for words in ((), ("evaluate=[svm,ridge,cosine]",)):
        passes.clear()
        launch("trainer.max_steps=1", *words)
        counts[words] = len(passes)
    assert len(set(counts.values())) == 1, counts


@pytest.mark.slow
def test_what_only_matters_in_training_does_not_stop_a_test(launch, tmp_path):
    """Any head evaluates a backbone that another trained, however it was trained."""
    trainings = {
        "shared": ["norm=batch_shared"],
        "reptile": [
            "head=reptile",
            "train.query=0",
            "train.shot=2",
            "head.steps=1",
            "regularizer=weight_clustering",
            "head.test_steps=1",
        ],
        "classical": ["objective=classical", "train.batch_size=8", "train.tasks=1", "regularizer=feature_clustering"],
    }
    for name, words in trainings.items():
        _, fit = launch(*words, "trainer.max_steps=1", "val.every=1", out=tmp_path / name)
        for head, few in (("maml", ["head.test_steps=1"]), ("svm", [])):
            words = ["stages=[test]", f"ckpt={fit}/checkpoints/last.ckpt", f"head={head}", *few, "test.total=2"]
            report, _ = launch(*words, out=tmp_path / f"{name}-{head}")
            assert report["metrics"][f"test/{head}/accuracy"]["tasks"] == 2


def test_heads_that_only_measured_have_the_values_of_their_yaml(launch, tmp_path):
    _, fit = launch("evaluate=[ridge]", "trainer.max_steps=1", out=tmp_path / "fit")
    losses = []
    for scale in (1.0, 10.0):
        words = ["stages=[test]", f"ckpt={fit}/checkpoints/last.ckpt", "evaluate=[ridge]"]
        report, _ = launch(*words, f"evaluate.ridge.scale={scale}", out=tmp_path / f"{scale:.0f}")
        losses.append(report["metrics"]["test/ridge/loss"]["mean"])
    assert losses[0] != losses[1]


def test_backbone_weights_replace_those_of_a_checkpoint(launch, tmp_path):
    _, a = launch("norm=batch", "trainer.max_steps=1", out=tmp_path / "a")
    _, b = launch("norm=batch", "trainer.max_steps=1", "seed=1", out=tmp_path / "b")
    words = ["norm=batch", f"ckpt={a}/checkpoints/last.ckpt", "head=ridge", "trainer.max_steps=1"]
    _, both = launch(*words, f"backbone.weights={b}/checkpoints/last.ckpt", out=tmp_path / "both")
    key = "backbone.blocks.0.0.weight"
    assert torch.equal(weights(both)[key], weights(b)[key]) and not torch.equal(weights(both)[key], weights(a)[key])
    # A checkpoint of that run holds them itself: the other file may be gone.
    (b / "checkpoints" / "last.ckpt").unlink()
    words = ["stages=[test]", f"ckpt={both}/checkpoints/last.ckpt", f"backbone.weights={b}/checkpoints/last.ckpt"]
    launch(*words, "norm=batch", "head=ridge", out=tmp_path / "again")


def test_the_seed_is_that_of_the_initial_weights(launch, tmp_path):
    words = ["optimizer=plain_sgd", "optimizer.lr=0", "stages=[fit]", "trainer.max_steps=1", "val.total=0"]
    first, again, other = (
        weights(launch(*words, f"seed={seed}", out=tmp_path / str(number))[1])["backbone.blocks.0.0.weight"]
        for number, seed in enumerate((0, 0, 1))
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_frozen_norm_without_moments_of_a_training_warns(launch, tmp_path, caplog):
    launch("norm=frozen", "trainer.max_steps=1", "val.total=0", "stages=[fit]")
    assert "running moments of no training" in caplog.text
    caplog.clear()
    _, fit = launch("norm=batch", "trainer.max_steps=1", "val.total=0", "stages=[fit]", out=tmp_path / "fit")
    words = ["norm=frozen", f"backbone.weights={fit}/checkpoints/last.ckpt", "backbone.freeze=none", "val.total=0"]
    launch(*words, "stages=[fit]", "trainer.max_steps=1", out=tmp_path / "frozen")
    assert "of no training" not in caplog.text


def test_frozen_norm_needs_running_moments(launch, tmp_path):
    _, fit = launch("trainer.max_steps=1", out=tmp_path / "fit")
    for word in ("backbone.weights", "ckpt"):
        with pytest.raises(UsageError, match="expected a checkpoint with running moments"):
            launch("norm=frozen", "head=ridge", f"{word}={fit}/checkpoints/last.ckpt", out=tmp_path / "frozen")


def test_learned_rates_are_not_replaced_when_they_are_tested(launch, tmp_path):
    words = ["head=maml", "head.rates=layer", "head.steps=1", "head.test_steps=1", "test.total=2"]
    _, fit = launch(*words, "head.lr=0.1", "trainer.max_steps=1", out=tmp_path / "fit")
    tested = ["stages=[test]", f"ckpt={fit}/checkpoints/last.ckpt"]
    launch(*words, "head.lr=0.1", *tested, out=tmp_path / "same")
    with pytest.raises(UsageError, match=r"as the checkpoint contains learned rates, got head\.lr=5: leave it out"):
        launch(*words, "head.lr=5", *tested, out=tmp_path / "other")
    with pytest.raises(UsageError, match=r"as the checkpoint contains learned rates, got head\.lr=5"):
        launch(*words, "head.lr=5", "seed=1", tested[1], out=tmp_path / "further")


def test_a_trained_head_may_choose_its_rate_when_it_is_tested(launch, tmp_path):
    words = ["head=maml", "head.steps=1", "head.test_steps=1"]
    _, fit = launch(*words, "trainer.max_steps=1", out=tmp_path / "fit")
    words = ["stages=[test]", f"ckpt={fit}/checkpoints/last.ckpt", "head.lr=[0.1,0.2]"]
    report, _ = launch("head=maml", "head.steps=1", "head.test_steps=1", *words, out=tmp_path / "test")
    assert report["chosen"]["maml"]["lr"] in (0.1, 0.2)


def test_the_validation_that_chooses_a_rate_is_no_point_of_the_curve(launch):
    words = [
        "evaluate=[maml]",
        "evaluate.maml.lr=[0.1,0.2]",
        "evaluate.maml.test_steps=1",
        "val.total=4",
        "val.every=1",
    ]
    report, out = launch(*words, "trainer.max_steps=2", out=None)
    with (out / "metrics.csv").open() as file:
        steps = [row["step"] for row in csv.DictReader(file) if row["val/protonet/accuracy"]]
    assert steps == ["0", "1"] and report["chosen"]["maml"]["lr"] in (0.1, 0.2)


@pytest.mark.figures
def test_no_score_is_better_than_what_was_predicted(launch, caplog, capsys):
    # Training does not adapt; in evaluation all logits are NaN.
    words = ["head=maml", "norm=transductive", "head.steps=0", "head.test_steps=1", "head.lr=1e30"]
    report, _ = launch(*words, "trainer.max_steps=1", "val.every=1", "val.total=3")
    accuracy, loss = (report["metrics"][f"test/maml/{measure}"] for measure in ("accuracy", "loss"))
    assert accuracy == {"mean": 0, "ci95": 0, "tasks": 6, "failed": 6} and loss["mean"] is None and loss["failed"] == 6
    assert report["validation"] == {"val/maml/accuracy": 0, "val/maml/failed": 3}
    assert "every validation had failed tasks" in caplog.text and "(3 of 3 tasks failed)" in caplog.text
    assert "6 of 6 tasks failed in test/maml/accuracy" in caplog.text
    shown = capsys.readouterr().out
    assert "0.00 ± 0.00 % (6 failed)" in shown
    images = report["tested_on"]["glyphs"]
    assert f"test: {images['classes']} classes, {images['images']} images" in " ".join(shown.split())


def test_a_step_of_reptile_that_descends_a_loss_warns(launch, caplog):
    words = ["head=reptile", "objective=episodic", "head.test_steps=1", "stages=[fit]", "trainer.max_steps=1"]
    launch(*words)
    assert "plain SGD with a learning rate of 1 is the outer step of objective=reptile" in caplog.text
    caplog.clear()
    launch(*words, "optimizer=adam")
    assert "plain SGD" not in caplog.text


@pytest.mark.slow
def test_another_way_of_evaluating_goes_on_with_the_training(launch, tmp_path):
    words = ["head=maml", "head.steps=1", "head.test_steps=1", "norm=batch"]
    _, whole = launch(*words, "trainer.max_steps=4", out=tmp_path / "whole")
    _, half = launch(*words, "trainer.max_steps=2", out=tmp_path / "half")
    words = ["head=maml", "head.steps=1", "norm=batch", "trainer.max_steps=4", "head.test_steps=2"]
    _, rest = launch(*words, f"ckpt={half}/checkpoints/last.ckpt", out=tmp_path / "rest")
    assert same(weights(whole), weights(rest))
