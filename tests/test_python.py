"""What metafew offers in Python gives the numbers of the command line, and raises its errors."""

import logging
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from runs import TINY, answers

import metafew
from metafew.backbones import Conv4
from metafew.config.components import component_classes
from metafew.config.groups import CONF
from metafew.config.quoting import overrides
from metafew.data.datamodule import to_model_input
from metafew.data.sources import Category
from metafew.data.sources.omniglot import Omniglot
from metafew.errors import UsageError
from metafew.heads import SVM, FeatureHead, ProtoNet
from metafew.norms import TaskNorm
from metafew.training.factory import make_data, make_learner
from metafew.training.instantiate import make

LIGHT = """
import sys, metafew, metafew.norms
assert metafew.__version__ and metafew.errors.UsageError
assert {"train", "convert", "export", "heads", "__version__"} <= {*dir(metafew)}
assert {"SVM", "ProtoNet"} <= {*dir(metafew.heads)} and "TaskNorm" in dir(metafew.norms)
sys.exit("torch" in sys.modules)
"""


@pytest.fixture(scope="module")
def vectors():
    """Vectors of eight classes, close to one another, and their labels."""
    rng = np.random.default_rng(0)
    labels = np.repeat([f"class {number}" for number in (2, 10, 0, 1, 3, 4, 5, 6)], 20)
    return rng.normal(size=(8, 12)).repeat(20, 0) + 1.5 * rng.normal(size=(160, 12)), labels


# names


def test_names_are_found_without_torch():
    assert subprocess.run([sys.executable, "-c", LIGHT]).returncode == 0


@pytest.mark.parametrize("group, package", [("head", "heads"), ("norm", "norms"), ("backbone", "backbones")])
def test_the_class_of_every_option_is_a_name_of_its_package(group, package):
    room = getattr(metafew, package)
    texts = [file.read_text() for file in (CONF / group).glob("*.yaml")]
    targets = {yaml.safe_load(text)["_target_"] for text in texts if "_target_" in text}
    assert len(targets) > 5 and {*component_classes(group).values()} >= targets
    for target in targets:
        module, _, name = target.rpartition(".")
        assert name in dir(room) and getattr(room, name) is getattr(sys.modules[module], name)
    assert issubclass(ProtoNet, FeatureHead) and "FeatureHead" in dir(metafew.heads)
    assert metafew.export.FORMATS
    with pytest.raises(AttributeError, match=rf"'metafew\.{package}' has no attribute 'Nothing'"):
        _ = room.Nothing
    with pytest.raises(AttributeError, match="'metafew' has no attribute 'nothing'"):
        _ = metafew.nothing


# evaluate and classify


def test_heads_on_an_array_have_the_numbers_of_the_command(launch, vectors, tmp_path):
    features, labels = vectors
    np.savez(tmp_path / "vectors.npz", x_test=features, y_test=labels)
    words = ["head=protonet", "evaluate=[svm,maml]", "test.shot=2", "test.query=5", "test.total=9", "test.seed=3"]
    tiny = [word for word in TINY if word.startswith("trainer")]
    report, out = launch("dataset=features", f"dataset.root={tmp_path}/vectors.npz", *words, tiny=tiny)
    options = {"shot": 2, "query": 5, "tasks": 9, "seed": 3}
    table = metafew.evaluate(torch.from_numpy(features), labels, ["protonet", "svm", "maml"], **options)
    names = ["protonet", "svm", "maml", "vectors_1nn"]
    assert answers(out) == {
        (name, index): str(accuracy) for name in names for index, accuracy in enumerate(table.accuracies[name])
    }
    for name, measures in table.to_dict().items():
        expected = report["metrics"].get(f"test/{name}/accuracy") or report["baselines"][name]
        assert measures == expected | {"transductive": False}
        assert (table.mean[name], table.ci95[name]) == (expected["mean"], expected["ci95"])
    assert [row["head"] for row in table.rows] == names and table.rows[0]["mean"] == table.mean["protonet"]
    found, gaps = table.difference("svm", "protonet"), table.accuracies["svm"] - table.accuracies["protonet"]
    assert found["mean"] == pytest.approx(gaps.mean()) and found["ci95"] < sum(table.ci95.values())
    assert table.best == max(names[:3], key=table.mean.get)
    assert f"{100 * table.mean['svm']:.2f} ± {100 * table.ci95['svm']:.2f}" in repr(table)
    assert f"| {table.best} | **{100 * table.mean[table.best]:.2f} ±" in table._repr_markdown_()


def test_numbers_of_numpy_are_numbers(vectors):
    counts = {"way": 4, "shot": 2, "query": 3, "tasks": 2, "seed": 7}
    evaluate = partial(metafew.evaluate, *vectors, heads="protonet")
    assert evaluate(**{key: np.int64(value) for key, value in counts.items()}).mean == evaluate(**counts).mean
    drawn = [
        next(metafew.episodes(*vectors, steps=kind(1), seed=kind(3), way=kind(2), tasks=kind(2)))
        for kind in (int, np.int32)
    ]
    assert torch.equal(drawn[0].support.images, drawn[1].support.images)
    assert overrides({"seed": np.arange(3)[2], "lr": np.float64(0.5)}) == ["seed=2", "lr=0.5"]


def test_heads_are_evaluated_in_a_job_of_slurm(vectors, monkeypatch):
    for name, value in {"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "compare", "SLURM_JOB_ID": "1"}.items():
        monkeypatch.setenv(name, value)
    assert metafew.evaluate(*vectors, heads="protonet", query=2, tasks=2).mean["protonet"] > 0


def test_heads_are_words_objects_or_a_dictionary_of_them(vectors):
    evaluate = partial(metafew.evaluate, *vectors, tasks=3, query=2)
    table = evaluate({"small c = 1e-3": SVM(c=1e-3), "svm": "svm"})
    assert list(table.mean) == ["small c = 1e-3", "svm", "vectors_1nn"]
    assert evaluate([SVM()]).mean["SVM"] == evaluate("svm").mean["svm"] == table.mean["svm"]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"heads": ["svmm"]}, r"got svmm \(did you mean svm\?\)"),
        ({"heads": ["svm", "svm"]}, "got svm twice: pass a dictionary"),
        ({"heads": []}, "got none"),
        ({"heads": [SVM, ProtoNet]}, r"got <class '.*SVM'>: pass 'svm' or metafew.heads.SVM\(\)"),
        ({"heads": SVM}, "expected heads as words or objects, got <class"),
        ({"seed": -1}, "expected seed to be an integer of at least 0, got -1"),
        ({"features": [[1.0, 2.0], [3.0]]}, "expected rows of equal length"),
        ({"way": 9}, "needs 9 classes, .* has 8: pass way=8"),
        ({"shot": 10, "query": 15}, "has 20: pass query=10"),
        ({"tasks": 0}, r"test\.total to be an integer of at least 1"),
        ({"features": np.zeros((160, 3, 2))}, r"\(n, d\) and n classes, got float64 \(160, 3, 2\)"),
        ({"features": np.full((160, 3), np.nan)}, "or not finite: give an array of vectors"),
        ({"labels": [0, 1]}, r"int64 \(2,\), or not finite"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(vectors, changes, message):
    with pytest.raises(UsageError, match=message):
        metafew.evaluate(**{"features": vectors[0], "labels": vectors[1], **changes})


def test_a_head_that_must_be_trained_is_measured_with_a_warning(vectors, caplog):
    metafew.evaluate(*vectors, ["svm", "feat"], tasks=2)
    assert caplog.messages == ["head=feat must be trained, but its initial weights are used: pass a trained head"]


@pytest.mark.parametrize("head", ["svm", SVM()], ids=["word", "object"])
def test_classify_names_the_most_probable_class(vectors, head):
    features, labels = vectors
    found = metafew.classify(head, features[::4], labels[::4], torch.from_numpy(features))
    numbers = torch.tensor([found.classes.index(label) for label in labels[::4].tolist()])
    support, query = (torch.from_numpy(rows).float().unsqueeze(0) for rows in (features[::4], features))
    with torch.no_grad():
        (logits,) = SVM().classify(support, numbers.unsqueeze(0), query, 8)
    torch.testing.assert_close(found.probabilities, logits.softmax(-1))
    assert found.labels == [found.classes[number] for number in logits.argmax(-1)] and type(found.labels[0]) is str
    assert np.mean(np.array(found.labels) == labels) > 0.5
    assert metafew.classify("protonet", features[::20], [(c,) for c in range(8)], features).classes[2] == (2,)


def test_classify_runs_a_head_in_eval_mode_and_leaves_it_as_it_was():
    class Recording(ProtoNet):
        def classify(self, *arguments):
            modes.append(self.training)
            return super().classify(*arguments)

    modes, head = [], Recording()
    metafew.classify(head, np.eye(2), "ab", np.eye(2))
    assert modes == [False] and head.training


@pytest.mark.parametrize(
    "support, labels, message",
    [
        (np.zeros((4, 2)), "abc", "there are 3 for 4 images"),
        (np.zeros((4, 3)), "abab", r"vectors \(n, 3\)"),
        (np.zeros((4, 1, 2)), "abab", r"features \(n, d\), got an array of shape \(4, 1, 2\)"),
        (np.zeros((4, 2)), "aaaa", "two classes or more"),
    ],
)
def test_what_cannot_be_classified_is_refused(support, labels, message):
    with pytest.raises(UsageError, match=message):
        metafew.classify("svm", support, labels, np.zeros((3, 2)))


# episodes


def test_episodes_of_a_dataset_are_those_of_the_command(composed):
    cfg, choices, _ = composed("dataset=glyphs", "train.way=3", "augment=affine", "seed=5", "train.tasks=2")
    source = make(cfg.dataset)
    learner = make_learner(cfg, source, {"choices": choices}, trained=True, fit=False)
    data = make_data(cfg, source, learner.objective)
    data.prepare_data()
    drawn = metafew.episodes("glyphs", way=3, tasks=2, steps=2, seed=5, augment="affine")
    for step, episode in enumerate(drawn):
        (expected,) = data.sampler(data.train).batch([2 * step, 2 * step + 1])
        expected = to_model_input(expected, torch.float32)
        assert torch.equal(episode.support.images, expected.support.images) and episode.query.labels.shape == (2, 21)
        assert torch.equal(episode.query.images, expected.query.images) and episode.index[0] == 2 * step
    assert step == 1


def test_episodes_of_an_array_are_rows_of_their_classes(vectors):
    images = np.arange(160, dtype=np.uint8).reshape(160, 1, 1).repeat(4, 1).repeat(4, 2)
    labels = np.arange(160) // 20
    drawn = metafew.episodes(images, labels, split="val", way="2..3", shot=2, query=3, tasks=2)
    for episode in [next(drawn) for _ in range(4)]:
        rows = (255 * torch.cat([episode.support.images, episode.query.images], 1)[..., 0, 0, 0]).round().long()
        classes, numbers = rows // 20, torch.cat([episode.support.labels, episode.query.labels], 1)
        for task, number in zip(classes, numbers, strict=True):
            assert all(len(task[number == label].unique()) == 1 for label in range(episode.way))
            assert len(task.unique()) == episode.way
        assert all(len(task.unique()) == 5 * episode.way for task in rows)
    assert next(metafew.episodes(*vectors)).support.images.shape == (4, 5, 12, 1, 1)


def test_a_loop_of_ones_own_trains():
    torch.manual_seed(0)
    backbone, head = Conv4(1, 28, TaskNorm, width=8), SVM()
    optimizer = torch.optim.Adam([*backbone.parameters(), *head.parameters()], lr=1e-3)
    (episode,) = metafew.episodes("glyphs", steps=1)
    losses = []
    for _ in range(6):
        logits = head(backbone, episode.support, episode.query.images, episode.way)
        losses.append(loss := F.cross_entropy(logits.mT, episode.query.labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    "data, options, message",
    [
        ("omniglott", {}, r"got omniglott \(did you mean omniglot\?\)"),
        ("glyphs", {"split": "training"}, "got training: pass split='train'"),
        ("glyphs", {"way": 1000}, "needs 1000 classes, .* pass way=153"),
        ("glyphs", {"augmentation": "affine"}, "did you mean"),
        ("glyphs", {"labels": "test"}, "expected labels with an array, .* pass split='train' by name"),
        ("glyphs", {"test.seed": 5}, "train.query, train.support, got test.seed: leave it out"),
        ("glyphs", {"split": "test", "test": {"queries": "single"}}, "test.dirichlet, got test.queries: leave it out"),
        ("glyphs", {"head": "svm"}, "got head: leave it out"),
        ("omniglot", {"dataset": {"download": "no"}}, "dataset.download to be true or false, got no"),
        ("glyphs", {"seed": -1}, "expected seed to be an integer of at least 0"),
        ("glyphs", {"steps": 2.5}, "expected steps to be an integer of at least 1"),
        (
            "omniglot",
            {"augment": "rotate_class", "dataset": {"split": "vinyals", "root": "."}},
            "are rotations of others",
        ),
        (np.zeros((160, 4)), {"augment": "affine"}, "augment with the name of a dataset"),
        (np.zeros((159, 4)), {}, "got 160 for 159 images"),
        (np.zeros((160, 4), int), {}, r"got int64 \(160, 4\)"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_the_first_episode(monkeypatch, vectors, data, options, message):
    labels = options.pop("labels", None) if isinstance(data, str) else vectors[1]
    rotated = [Category(f"a/{n}/rot090", range(20), 1) for n in range(9)]
    monkeypatch.setattr(Omniglot, "splits", lambda _: {"train": rotated})
    with pytest.raises(UsageError, match=message):
        metafew.episodes(data, labels, **options)


def test_episodes_have_the_balance_of_the_command():
    def queries(**options):
        episode = next(metafew.episodes("glyphs", split="test", steps=1, **options))
        return episode.query.labels.flatten().bincount(minlength=5).tolist()

    assert len({*queries()}) == 1 < len({*queries(test={"balance": "dirichlet"})})


def test_features_in_bfloat16_have_the_numbers_of_their_values(vectors):
    x, y = vectors
    rounded = torch.from_numpy(np.asarray(x)).to(torch.bfloat16)
    found = metafew.evaluate(rounded, y, heads=["protonet"], query=2, tasks=5)
    assert found.to_dict() == metafew.evaluate(rounded.float(), y, heads=["protonet"], query=2, tasks=5).to_dict()


def test_values_of_vectors_are_not_scaled():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 10)
    values = rng.integers(0, 200, (4, 8))[labels] + rng.integers(0, 56, (40, 8))
    for head in ("protonet", "svm"):
        found = [
            metafew.classify(head, v[::5], labels[::5], v[1::5]) for v in (values.astype("u1"), values.astype("f"))
        ]
        assert torch.equal(found[0].probabilities, found[1].probabilities)
    with pytest.raises(UsageError, match=r"expected vectors \(n, 8\) .*, got torch.int64: convert them to float32"):
        metafew.classify("svm", values, labels, values)
    with pytest.raises(UsageError, match=r"got shape \(40, 3\): give one row for each"):
        metafew.classify("svm", values.astype("f"), labels, values[:, :3].astype("f"))


# train


def test_train_does_what_the_command_does(launch, tmp_path):
    words = ["head=svm", "evaluate=[ridge]", "trainer.max_steps=2", "val.every=1"]
    expected, _ = launch(*words, out=tmp_path / "command")
    before = logging.root.handlers[:]
    with initialize_config_dir(str(tmp_path), version_base=None):  # as in an application of Hydra
        outer = GlobalHydra.instance().hydra
        out, tiny = tmp_path / "o = 1", [word for word in TINY if not word.startswith("trainer.max_steps")]
        folder = {"hydra.run.dir": str(out)}
        run = metafew.train(*tiny, head="svm", evaluate=["ridge"], trainer={"max_steps": 2}, val={"every": 1}, **folder)
        assert GlobalHydra.instance().hydra is outer
    assert logging.root.handlers == before and run.folder == out
    assert run.metrics == expected["metrics"] and run.results["choices"] == expected["choices"]
    assert "test/svm/accuracy: " in repr(run) and f"run in {out}" in repr(run)
    assert metafew.load(run.checkpoint).choices["head"] == "svm"
    assert {"results.json", "tasks.csv", "train.log", ".hydra"} <= {path.name for path in out.iterdir()}
    again = metafew.train(
        "stages=[test]", ckpt=run.checkpoint, test={"total": 6}, **{"hydra.run.dir": tmp_path / "again"}
    )
    assert again.metrics == run.metrics


@pytest.mark.parametrize(
    "words, options, message",
    [
        (["head=svn"], {}, r"got svn \(did you mean svm\?\)"),
        (["-m", "head=svm,ridge"], {}, "got -m: call metafew.train once for each run"),
        (["head=svm,ridge"], {}, "expected one value of head in a run"),
        (["head=svm,maml"], {}, "got svm,maml: type head=svm$"),
        (["experiment=tasknorm_modes"], {}, "type python train.py experiment=tasknorm_modes"),
        ([], {"trainer": {"devices": 2}}, "expected one process"),
        ([], {"head": {"c": -1.0}, "backbone.width": 4}, r"expected an option of the head .* type head="),
        (["train.way=1000"], {}, "type train.way=153"),
        (["train.way=1000"], {"trainer": {"devices": "1"}}, "type train.way=153"),
        (["hydra.run.dir=file/out"], {}, "a folder that can be created"),
    ],
    ids=str,
)
def test_train_raises_the_errors_of_the_command(words, options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=message):
        metafew.train(*words, **options)
