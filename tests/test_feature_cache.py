"""Evaluation on features that are computed once."""

import csv

import numpy as np
import pytest
import torch
from contracts import SCHEMES
from omegaconf import OmegaConf

from metafew.backbones.conv4 import Conv4
from metafew.config.groups import CONF
from metafew.data.augment import Chain, Flip
from metafew.data.sampler import MixtureSampler, Sampler
from metafew.data.sources import Category, Source
from metafew.data.store import Split, build
from metafew.data.task_spec import TaskSpec
from metafew.evaluation import evaluator, feature_cache
from metafew.evaluation.eval_mode import evaluating
from metafew.evaluation.feature_cache import FeatureCache, is_worthwhile, tasks_per_step
from metafew.training.instantiate import make
from metafew.training.learner import Learner


class Turned(Source):
    """Three drawings, each a class, and again a class in each of three more turns."""

    name, channels, image_size = "turned", 1, 16

    def splits(self):
        classes = [Category(f"{c}/{t}", tuple((c, i) for i in range(4)), t) for c in range(3) for t in range(4)]
        return {"train": classes, "val": classes, "test": classes[:1]}

    def fingerprint(self):
        return "turned"

    def read(self, keys):
        return (np.random.default_rng(key).integers(0, 256, (1, 16, 16), np.uint8) for key in keys)


def backbone(norm):
    torch.manual_seed(0)
    model = Conv4(1, 16, make(OmegaConf.load(CONF / "norm" / f"{norm}.yaml")), width=4).double()
    for name, buffer in model.named_buffers():
        buffer.copy_(torch.rand_like(buffer) + ("var" in name))
    return model.eval()


def sampler(folder, views=None, **changes):
    plan = TaskSpec(**{"split": "val", "way": 5, "shot": 1, "query": 2, "tasks": 2, "total": 20, "seed": 0} | changes)
    return Sampler(Split(build(Turned(), folder), plan.split), plan, views)


@pytest.mark.parametrize("norm", SCHEMES)
def test_a_norm_that_says_so_and_no_other_leaves_images_alone(norm):
    model = backbone(norm)
    images = torch.rand(1, 5, 1, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    others = torch.cat([images[:, :1], images[:, 1:].flip(1) ** 3], 1)
    context, targets = ([model.embed(part[:, :2], part[:, 2:]) for part in (images, others)] for _ in range(2))
    first = (context[0][0][:, 0] - context[1][0][:, 0]).abs().max()
    moved = images[:, [2, 1, 0, 3, 4]]  # the first as a target
    asked = (model.embed(moved[:, :2], moved[:, 2:])[1][:, 0] - targets[0][0][:, 0]).abs().max()
    assert model.per_image == (max(first, asked).item() < 1e-12)
    assert not backbone("batch").train().per_image and backbone("layer").train().per_image


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_features_known_beforehand_are_those_of_each_task(tmp_path, norm):
    model, tasks = backbone(norm), sampler(tmp_path)
    with torch.no_grad():
        known = FeatureCache(
            model, MixtureSampler([tasks, tasks], tasks.spec), like=torch.empty(0, dtype=torch.float64)
        )
        for index in range(20):
            episode = tasks.task(index)
            parts = [part.images.double() / 255 for part in (episode.support, episode.query)]
            for features, wanted in zip(known(episode._replace(source=1)), model.embed(*parts), strict=True):
                torch.testing.assert_close(features, wanted, atol=1e-12, rtol=0)
    assert known.tables[0].shape == (4 * 12, model.features)


def test_it_pays_where_images_are_alone_and_tasks_are_many(tmp_path, monkeypatch):
    model = backbone("batch")
    assert is_worthwhile(model, sampler(tmp_path))
    assert is_worthwhile(model, sampler(tmp_path, total=4))  # 4 x 15 images against 48
    assert not is_worthwhile(model, sampler(tmp_path, total=3))
    assert is_worthwhile(model, sampler(tmp_path, split="test", way=2, total=1))  # one class, without turns: 4 images
    assert not is_worthwhile(model, sampler(tmp_path, views=Chain([Flip()])))
    assert not is_worthwhile(backbone("tasknorm"), sampler(tmp_path))
    monkeypatch.setattr(feature_cache, "CACHE_BYTES", 4 * 48 * model.features - 1)
    assert not is_worthwhile(model, sampler(tmp_path))


def test_as_many_tasks_are_looked_up_together_as_their_values_allow(tmp_path, monkeypatch):
    model = backbone("batch")  # 4 features of images with 256 pixels
    monkeypatch.setattr(feature_cache, "STEP_BYTES", 3 * 4 * 15 * (260 + 5 * 5))
    assert tasks_per_step(model, sampler(tmp_path)) == 3 and tasks_per_step(model, sampler(tmp_path, tasks=9)) == 9
    assert tasks_per_step(model, sampler(tmp_path, tasks=1, way="2..5", shot="1..4")) == 1  # some have 30 images


def test_a_module_is_in_its_own_mode_after_it_was_evaluated():
    model = backbone("batch")
    part = next(model.children()).train()
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert not model.training and all(module.training for module in part.modules())


@pytest.mark.parametrize(
    ("precision", "words"),
    [
        ("64", []),
        pytest.param("bf16-mixed", [], marks=pytest.mark.slow),
        pytest.param("64", ["test.shot=[1,2]", "test.queries=single"], marks=pytest.mark.slow),
    ],
)
def test_a_run_measures_the_same_either_way(launch, monkeypatch, precision, words):
    """In float64, or rounding decides answers that are nearly a tie."""
    common = ["dataset.jitter=null", "norm=batch", "evaluate=[svm,ridge]", "val.total=80", "test.total=120"]
    common += [f"trainer.precision={precision}", *words]
    tables, embeddings, sizes, validated, kept = [], [], [], [], []
    once, step = evaluator.FeatureCache, Learner.test_step
    monkeypatch.setattr(evaluator, "FeatureCache", lambda *a, **k: embeddings.append(1) or once(*a, **k))
    monkeypatch.setattr(Learner, "test_step", lambda self, b, *a: sizes.append(len(b[0].index)) or step(self, b, *a))
    validation, trained = Learner.validation_step, Learner.training_step
    monkeypatch.setattr(
        Learner, "training_step", lambda self, b, i: kept.append(self.feature_caches) or trained(self, b, i)
    )
    monkeypatch.setattr(
        Learner, "validation_step", lambda self, b, i: validated.append(len(b[0].index)) or validation(self, b, i)
    )
    for name in ("once", "each"):
        _, out = launch(*common, "test.tasks=10", "val.tasks=10", out=None)
        assert kept and not any(kept)  # no cache takes memory during a training step
        assert (max(sizes) > 10) == (max(validated) > 10) == (name == "once")
        sizes.clear(), validated.clear()
        with (out / "tasks.csv").open() as file:
            tables.append(list(csv.DictReader(file)))
        made, embeddings = embeddings, []
        monkeypatch.setattr(evaluator, "is_worthwhile", lambda *_: False)
        assert len(made) == (3 if name == "once" else 0)  # two validations, and all tests together
    tolerance = 1e-9 if precision == "64" else 0.05
    for once_row, each_row in zip(*tables, strict=True):
        assert once_row["index"] == each_row["index"]
        assert float(once_row["loss"]) == pytest.approx(float(each_row["loss"]), abs=tolerance)
        if precision == "64":
            assert once_row["accuracy"] == each_row["accuracy"]
