"""The mean feature of training images: its value, and its way from training through checkpoints to heads."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numbered import SIZES, Numbered

import metafew
from metafew.backbones.backbone import Backbone
from metafew.backbones.identity import Identity
from metafew.data.augment import Augmentation
from metafew.data.datamodule import FewShot, to_model_input
from metafew.data.minibatches import Minibatches
from metafew.data.task_spec import TaskSpec
from metafew.errors import UsageError
from metafew.evaluation import base_mean as module
from metafew.evaluation.base_mean import BaseMean, base_mean
from metafew.heads.simpleshot import SimpleShot
from metafew.norms.meta_batch import MetaBatchNorm
from metafew.training import checkpoint
from metafew.training.data_report import check_base_images
from metafew.training.factory import make_data, make_learner, make_source

IMAGES = sum(SIZES)  # 75, which minibatches of five divide
LIKE = torch.empty(0, dtype=torch.double)
QUICK = ["trainer.max_steps=2", "val.total=2", "val.every=1", "test.total=2", "save.every=1", "save.keep=true"]


class Normalized(Backbone):
    """Images normalized by the moments of their context, in which their number and class then are squared."""

    features = 4

    def __init__(self):
        super().__init__(1, 2)
        self.norm = MetaBatchNorm(1, eps=1e-5).double()

    def forward(self, images):
        return self.norm(images).flatten(1).square()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    train, test = (TaskSpec(split, way=5, shot=1, query=1, tasks=4, total=8, seed=0) for split in ("train", "test"))
    made = FewShot(Numbered(), train, test, [test], Augmentation([], {}), tmp_path_factory.mktemp("store"), 0)
    made.prepare_data()
    return made


def test_it_is_the_mean_over_each_image_once(data):
    found = base_mean(Identity(1, 2, None), data, LIKE)
    every = np.array([[c, i, 0, 0] for c, n in enumerate(SIZES) for i in range(n)]) / 255
    torch.testing.assert_close(found, torch.from_numpy(every.mean(0)), rtol=1e-12, atol=0)


def test_datasets_of_a_mixture_have_the_same_weight(data, tmp_path):
    class Bright(Numbered):
        name = "bright"

        def splits(self):
            found = super().splits()
            return found | {"train": found["train"][:5]}

        def read(self, keys):
            yield from (image + 100 for image in super().read(keys))

    few = FewShot(Bright(), data.train, data.val, data.test, Augmentation([], {}), tmp_path, 0)
    few.prepare_data()
    both = SimpleNamespace(
        minibatches=lambda most: [*data.minibatches(most), *few.minibatches(most)],
        transfer_batch_to_device=data.transfer_batch_to_device,
    )
    network = Identity(1, 2, None)
    first, second = (base_mean(network, each, LIKE) for each in (data, few))
    torch.testing.assert_close(base_mean(network, both, LIKE), (first + second) / 2)
    assert (first - second).abs().min() > 0.1 and sum(SIZES[:5]) != IMAGES


def test_images_beyond_a_number_are_left_out_at_random(data, monkeypatch):
    monkeypatch.setattr(module, "IMAGES", 10)
    (sampler,) = data.minibatches(10)
    rows = np.concatenate([sampler.draw(index).support.rows for index in range(sampler.spec.total)])
    assert len({*rows}) == len(rows) == 10 and sorted(rows) != list(range(10))
    some = sampler.split.images[rows].reshape(10, 4).mean(0) / 255
    torch.testing.assert_close(base_mean(Identity(1, 2, None), data, LIKE), torch.from_numpy(some))


def test_norms_take_as_many_images_as_in_training_as_their_context(data):
    backbone, (sampler,) = Normalized().eval(), data.minibatches(IMAGES)
    assert sampler.spec.chunk == 5
    parts = []
    for index in range(IMAGES // 5):
        (episode,) = sampler.batch([index])
        images = to_model_input(episode, torch.double).support.images[0]
        mean, variance = images.mean(), images.var(correction=0)
        parts.append((images - mean).square().flatten(1) / (variance + 1e-5))
    torch.testing.assert_close(base_mean(backbone, data, LIKE), torch.cat(parts).mean(0))


def test_chunks_of_one_image_are_no_minibatches(data, monkeypatch):
    monkeypatch.setattr(data, "train", Minibatches("train", 4, tasks=4, total=8, seed=0, pairs=False))
    (sampler,) = data.minibatches(IMAGES)
    assert (sampler.spec.chunk, sampler.spec.total) == (2, 38)


def test_all_heads_that_use_it_have_it():
    heads = SimpleShot(), SimpleShot("l2n"), SimpleShot()
    mean = BaseMean(heads)
    assert mean.value is None
    mean.value = torch.ones(3)
    assert heads[1].base_mean is None and heads[0].base_mean is heads[2].base_mean is mean.value
    assert "base_mean" not in heads[0].state_dict() and heads[0].double().base_mean.dtype == torch.double


def test_every_checkpoint_has_the_mean_of_its_own_weights_which_tests_use(launch, composed, tmp_path, monkeypatch):
    words = ["head=simpleshot", "norm=batch", "train.shot=4"]
    report, out = launch(*QUICK, *words)
    cfg, choices, _ = composed("backbone.width=4", *words)
    learner = make_learner(cfg, source := make_source(cfg), {"choices": choices}, trained=True, fit=False)
    means = []
    for name in ("step-000001", "last"):
        content = checkpoint.read(out / "checkpoints" / f"{name}.ckpt")
        learner.load_state_dict(content["state_dict"])
        means.append(base_mean(learner.backbone.eval(), make_data(cfg, source, learner.objective), torch.empty(0)))
        torch.testing.assert_close(content["metafew"]["base_mean"], means[-1])
    assert not torch.allclose(*means)
    monkeypatch.setattr(module, "base_mean", None)  # not computed again
    best = out / "checkpoints" / "best.ckpt"
    again, _ = launch(*QUICK, *words, "stages=[test]", f"ckpt={best}", out=tmp_path / "again")
    assert again["metrics"] == report["metrics"]
    assert torch.equal(metafew.load(best).head.base_mean, checkpoint.read(best)["metafew"]["base_mean"])


def test_a_test_under_another_norm_computes_the_mean_again(launch, tmp_path, monkeypatch):
    _, out = launch(*QUICK, "stages=[fit]", "evaluate=[simpleshot]")
    words, calls = ["stages=[test]", f"ckpt={out}/checkpoints/best.ckpt", "evaluate=[simpleshot]"], []
    monkeypatch.setattr(module, "base_mean", lambda *given: calls.append(given) or base_mean(*given))
    launch(*QUICK, *words, "norm=layer", out=tmp_path / "again")
    assert len(calls) == 1


def parts(head, saved, now, categories=("a", "b"), fits=False):
    source = SimpleNamespace(title="cub", splits=lambda: {"train": categories})
    heads = {"simpleshot": head}
    learner = SimpleNamespace(heads=heads, base_mean=BaseMean(heads.values()), provenance={"data": {"cub": now}})
    start = {"metafew": {"choices": {"dataset": "omniglot"}, "data": saved}} if saved else None
    found = SimpleNamespace(components=lambda _: [source])
    return SimpleNamespace(learner=learner, source=found, start=start, fits=fits, config={"ckpt": "a.ckpt"})


@pytest.mark.parametrize(
    ("saved", "categories", "message"),
    [
        ({"cub": "old"}, "ab", "a.ckpt was trained on, .* in dataset=cub: type dataset=omniglot, or train with eval"),
        ({"omniglot": "old"}, "ab", "got a checkpoint without it and other training images"),
        (None, "", "expected training images in dataset=cub, whose mean feature head=simpleshot uses, got none"),
    ],
)
def test_other_training_images_are_not_averaged(saved, categories, message):
    with pytest.raises(UsageError, match=message):
        check_base_images(parts(SimpleShot(), saved, "new", categories))


def test_the_same_training_images_are():
    check_base_images(parts(SimpleShot(), {"cub": "new"}, "new"))
    check_base_images(parts(SimpleShot(), None, "new"))
    check_base_images(parts(SimpleShot("l2n"), {"cub": "old"}, "new"))
    check_base_images(parts(SimpleShot(), {"cub": "old"}, "new", fits=True))
    head = SimpleShot()
    head.base_mean = torch.ones(3)
    check_base_images(parts(head, {"cub": "old"}, "new"))


# arrays


def test_arrays_come_with_features_of_training_classes_or_their_mean():
    rng = np.random.default_rng(0)
    x, y, base = rng.normal(size=(60, 8)) + 5, np.repeat(range(6), 10), rng.normal(size=(30, 8)) + 4.5
    options = {"heads": ["simpleshot"], "query": 5, "tasks": 20}
    found = metafew.evaluate(x, y, base=torch.from_numpy(base), **options)
    assert found.to_dict() == metafew.evaluate(x, y, base=base.mean(0), **options).to_dict()
    centred = metafew.evaluate(x - base.mean(0), y, base=np.zeros(8), **options)
    assert (
        found.mean["simpleshot"]
        == pytest.approx(centred.mean["simpleshot"])
        != pytest.approx(metafew.evaluate(x, y, base=np.zeros(8), **options).mean["simpleshot"])
    )
    head = SimpleShot()
    first = metafew.classify(head, x[::10], y[::10], x, base=base).probabilities
    assert torch.equal(metafew.classify(head, x[::10], y[::10], x).probabilities, first)
    zero = torch.zeros(8)
    assert not torch.equal(metafew.classify(head, x[::10], y[::10], x, base=zero).probabilities, first)
    metafew.evaluate(x, y, heads=[head], query=5, tasks=2, base=zero)
    assert torch.equal(metafew.classify(head, x[::10], y[::10], x).probabilities, first)  # it keeps its own mean


@pytest.mark.parametrize("base", [np.zeros(3), np.zeros((2, 3, 8)), np.zeros((0, 8)), np.full(8, np.nan)])
def test_a_base_of_other_features_is_refused(base):
    with pytest.raises(UsageError, match=r"expected base to be finite features \(n, 8\)"):
        metafew.classify("simpleshot", np.eye(8), range(8), np.eye(8), base=base)


def test_heads_that_centre_are_refused_without_a_base():
    with pytest.raises(UsageError, match="by whose mean simpleshot centres features, got none: pass base="):
        metafew.classify("simpleshot", np.eye(8), range(8), np.eye(8))
    with pytest.raises(UsageError, match="of training images for SimpleShot, got none: set its base_mean"):
        SimpleShot().eval().classify(torch.eye(2)[None], torch.tensor([[0, 1]]), torch.eye(2)[None], 2)
