"""Vectors in place of images."""

from functools import partial

import numpy as np
import pytest
from runs import TINY

import metafew
from metafew.errors import UsageError

HEADS = ["protonet", "svm", "ridge", "r2d2", "logistic", "cosine", "nearest", "lda", "baseline_pp", "matching"]


@pytest.fixture
def launch(launch):
    """Vectors have no backbone whose width could be 4."""
    return partial(launch, tiny=[word for word in TINY if not word.startswith("backbone")])


@pytest.fixture
def vectors(tmp_path):
    """Write an .npz file of classes far apart, or as close as asked for; returns its path."""

    def write(splits=("train", "val", "test"), spread=0.1, **changes):
        rng = np.random.default_rng(0)
        arrays = {}
        for split in splits:
            means = rng.normal(size=(8, 12))
            labels = np.repeat([f"class {c}" for c in range(8)], 20)
            arrays |= {f"y_{split}": labels, f"x_{split}": means.repeat(20, 0) + spread * rng.normal(size=(160, 12))}
        np.savez(tmp_path / "vectors.npz", **arrays | changes)
        return tmp_path / "vectors.npz"

    return write


def test_every_feature_head_measures_vectors_without_training(launch, vectors):
    others = [head for head in HEADS if head != "protonet"]
    report, out = launch("dataset=features", f"dataset.root={vectors(('test',))}", f"evaluate=[{','.join(others)}]")
    assert report["choices"]["backbone"] == "identity" and report["steps"] == 0
    assert min(report["metrics"][f"test/{head}/accuracy"]["mean"] for head in HEADS) > 0.9
    assert report["baselines"]["vectors_1nn"]["mean"] == 1.0
    assert (out / "tasks.csv").exists() and not (out / "episode.png").exists()


def test_protonet_on_vectors_is_the_nearest_mean(launch, vectors):
    path = vectors(("test",), spread=2.0)
    report, out = launch("dataset=features", f"dataset.root={path}", "test.shot=3", "test.total=20")
    right = []
    from metafew.data.sampler import Sampler
    from metafew.data.sources.features import Features
    from metafew.data.store import Split, build
    from metafew.data.task_spec import TaskSpec

    split = Split(build(Features(str(path)), out / "cache"), "test")
    with np.load(path) as arrays:
        rows = arrays["x_test"]
    sampler = Sampler(split, TaskSpec("test", way=5, shot=3, query=2, tasks=4, total=20, seed=0), None)
    for index in range(20):
        episode = sampler.task(index)
        support, query = (part.images.numpy()[0, :, :, 0, 0] for part in (episode.support, episode.query))
        assert all(any(np.allclose(row, x, atol=1e-6) for x in rows) for row in support[:2])
        labels = episode.support.labels[0].numpy()
        means = np.stack([support[labels == c].mean(0) for c in range(5)])
        nearest = ((query[:, None] - means) ** 2).sum(-1).argmin(1)
        right.append((nearest == episode.query.labels[0].numpy()).mean())
    assert 0.3 < np.mean(right) < 0.9
    assert report["metrics"]["test/protonet/accuracy"]["mean"] == pytest.approx(np.mean(right))


def test_a_head_that_learns_can_be_trained_on_vectors(launch, vectors):
    path = vectors()
    report, out = launch("dataset=features", f"dataset.root={path}", "stages=[fit,test]", "head=maml", "head.lr=0.1")
    assert report["steps"] == 4 and report["metrics"]["test/maml/accuracy"]["mean"] > 0.5
    model = metafew.load(out / "checkpoints" / "best.ckpt")
    with np.load(path) as arrays:
        vectors, labels = arrays["x_test"][:100].astype(np.float32), arrays["y_test"][:100]
    assert np.allclose(model.features(vectors), vectors)
    assert np.mean(np.array(model.adapt(vectors[::20], labels[::20].tolist()).label(vectors)) == labels) > 0.5
    with pytest.raises(UsageError, match=r"expected vectors \(n, 12\) in floating point"):
        model.features(vectors[:, :5])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"x_test": np.zeros((4, 2, 2))}, r"got float64 \(4, 2, 2\)"),
        ({"x_test": np.zeros((3, 12))}, r"float64 \(3, 12\) and <U7 \(160,\)"),
        ({"x_test": np.full((160, 12), np.nan)}, "or not finite"),
        ({"x_test": np.full((160, 12), 1e300)}, "or not finite"),
        ({"x_test": np.zeros((160, 0))}, "or not finite"),
        ({"x_test": np.zeros((160, 5))}, r"vectors of one length .* x_test \(160, 5\)"),
    ],
)
def test_a_file_that_is_not_as_it_should_be_is_refused(launch, vectors, changes, said):
    with pytest.raises(UsageError, match=said):
        launch("dataset=features", f"dataset.root={vectors(**changes)}")


def test_what_is_no_file_of_vectors_is_refused(launch, tmp_path, vectors):
    with pytest.raises(UsageError, match=r"a path in dataset\.root, got none: type dataset\.root=FILE\.npz"):
        launch("dataset=features")
    with pytest.raises(UsageError, match=r"nowhere\.npz is not a file"):
        launch("dataset=features", "dataset.root=nowhere.npz")
    (tmp_path / "text.npz").write_text("no arrays")
    with pytest.raises(UsageError, match=r"cannot be read as an \.npz file"):
        launch("dataset=features", f"dataset.root={tmp_path}/text.npz")
    with pytest.raises(UsageError, match="dataset=features has vectors: type augment=none"):
        launch("dataset=features", f"dataset.root={vectors()}", "augment=affine", "augment.splits=test")
    with pytest.raises(UsageError, match="the val split of dataset=features has no classes"):
        launch("dataset=features", f"dataset.root={vectors(('train', 'test'))}", "stages=fit", "head=maml")
    with pytest.raises(UsageError, match="expected a parameter to train"):
        launch("dataset=features", f"dataset.root={vectors()}", "stages=[fit,test]")
