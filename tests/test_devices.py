"""On a device other than the CPU: every step stays on it, the host does not wait, and results are those of the CPU."""

import re
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from contracts import files, node, norm, sampled
from contracts.devices import (
    DEVICE,
    SIZE,
    Block,
    T,
    W,
    another_device,
    make_episode,
    make_learner,
    waits_of,
)
from contracts.norms import Q, S, check_fast_execution, make_x, scheme
from contracts.steps import TRAINER, evaluate, prepare_tables, train
from runs import ROOT
from torch import nn

from metafew.analysis.features.observer import Observer
from metafew.backbones.identity import Identity
from metafew.config.groups import CONF
from metafew.data.augment import Affine
from metafew.data.datamodule import FewShot, to_model_input
from metafew.episode import Episode, Labelled, Views
from metafew.errors import UsageError
from metafew.evaluation.feature_cache import FeatureCache
from metafew.evaluation.metrics import summary
from metafew.inference import Model
from metafew.norms import fast
from metafew.norms.kernels import group_moments, pieces
from metafew.norms.norm import Norm
from metafew.training.instantiate import make

SCHEMES, HEADS, OBJECTIVES, REGULARIZERS = (
    [param.id for param in files(group)] for group in ("norm", "head", "objective", "regularizer")
)
LOCK_STEP = ("reptile", "weight_clustering")
"""A head and a regularizer for ``objective=reptile``, which trains no others."""


def exempt(learner) -> bool:
    """Return whether a part of ``learner`` gives a reason to wait for the device."""
    parts = learner.heads[learner.trained], learner.objective, learner.objective.regularizer
    return any("host_waits" in part.exemptions for part in parts)


def check_steps(*size, **words):
    """Check that a training step and a test step stay on the device, and wait only where a part says why."""
    learner = make_learner(**words)
    training, testing = waits_of(learner, *size)
    assert exempt(learner) or (not training and not testing)


@pytest.mark.parametrize("head", sampled(HEADS, 10))
def test_steps_of_every_head(head):
    check_steps(head=head, objective="reptile" if head in LOCK_STEP else "episodic")


@pytest.mark.parametrize("word", sampled(SCHEMES, 5))
def test_steps_of_every_norm(word):
    check_steps(head="maml", scheme=word)


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("word", SCHEMES)
@pytest.mark.parametrize("head", HEADS)
def test_steps_of_every_combination(head, word, objective):
    if objective == "reptile" and head not in LOCK_STEP:
        with pytest.raises(UsageError, match="expected a head with an inner loop that objective=reptile can drive"):
            make_learner(head, word, objective)
    else:
        check_steps(head=head, scheme=word, objective=objective)


@pytest.mark.parametrize("inner", sampled(["loop", "chunk", "vmap"], 2))  # auto, in the tests above, is batch here
@pytest.mark.parametrize("head", ["maml", "fomaml"])
def test_steps_of_adapting_heads_in_each_execution(head, inner):
    check_steps(head=head, inner=inner)


@pytest.mark.parametrize(
    ("objective", "head", "changes"),
    [
        ("episodic", "ridge", {"learn_penalty": True}),
        ("episodic", "r2d2", {"learn_penalty": True}),
        ("episodic", "protonet", {"divide": True}),
        ("episodic", "nearest", {"k": 3, "metric": "cosine"}),
        ("episodic", "lda", {"covariance": "class"}),
        ("episodic", "matching", {"context": "full"}),
        ("episodic", "anil", {"rates": "weight", "optimizer": "adam"}),
        ("episodic", "maml", {"rates": "layer", "output": "prototype", "adapt": "no_norm"}),
        ("episodic", "anil", {"each_step": True, "output": "zero"}),
        ("classical", "anil", {"lr": (0.1, 0.4)}),  # candidates are for evaluation only
        ("reptile", "reptile", {"fresh": True, "inner": "vmap"}),
        ("reptile", "reptile", {"steps": 0}),
    ],
)
def test_steps_of_options(objective, head, changes):
    check_steps(head=head, objective=objective, **changes)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("regularizer", REGULARIZERS)
def test_steps_of_every_objective_and_regularizer(objective, regularizer):
    words = {"objective": objective, "head": "reptile" if objective == "reptile" else "protonet"}
    if regularizer != "none" and (regularizer in LOCK_STEP) != (objective == "reptile"):
        with pytest.raises(UsageError, match=r"got (a regularizer of features, and|regularizer=weight_clustering)"):
            make_learner(regularizer=regularizer, **words)
    else:
        check_steps(regularizer=regularizer, **words)


def network() -> nn.Module:
    """Return a network with PyTorch's own norm."""
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())


BACKBONES = [
    pytest.param(*each.values, id=each.id, marks=[pytest.mark.slow] if each.id.startswith("resnet") else [])
    for each in files("backbone")
]


@pytest.mark.parametrize("file", BACKBONES)
def test_steps_of_every_backbone(file):
    options = node(file)
    for key in ("weights", "freeze"):  # the run reads them
        options.pop(key, None)
    if "width" in options:
        options.width = 4
    if "target" in options:
        options.target = f"{__name__}.network"
    check_steps(16, head="ridge", backbone=make(options, channels=1, image_size=16, norm=norm("tasknorm")))


@pytest.mark.parametrize("queries", ["single", "class"])
@pytest.mark.parametrize("head", ["protonet", "anil"])
def test_queries_that_are_labelled_separately(head, queries):
    check_steps(head=head, queries=queries)


def test_predictions_and_cached_features():
    learner = make_learner(scheme="group")
    cache = FeatureCache.__new__(FeatureCache)
    with another_device() as waits:
        learner.to(DEVICE)
        prepare_tables(learner)
        episode = make_episode()
        cache.tables = [torch.zeros(9, learner.backbone.features, device=DEVICE)]
        learner.feature_caches = [cache]
        waits.places.clear()
        evaluate(learner, episode)
        assert learner.predict(episode).device == DEVICE
    assert not waits.places


def test_features_of_a_network_without_weights_are_cached_on_the_device_of_the_run(monkeypatch):
    monkeypatch.setattr(TRAINER.precision_plugin, "forward_context", nullcontext, raising=False)
    learner = make_learner("nearest", backbone=Identity(1, SIZE, None)).double()
    images, turns = np.zeros((9, 1, SIZE, SIZE), np.uint8), np.zeros(9, int)
    split = SimpleNamespace(images=images, turns=turns, gather=lambda numbers, _: images[numbers])
    sampler = SimpleNamespace(split=split, views=None, spec=SimpleNamespace(total=9, images=(9, 9)))
    assert not [*learner.parameters()]
    with another_device():
        cache = learner.to(DEVICE)._feature_cache(SimpleNamespace(dataset=SimpleNamespace(sampler=sampler)))
        for features in cache(make_episode()):
            assert features.device == DEVICE and features.dtype == torch.double


@pytest.mark.parametrize("head", ["protonet", "maml"])
def test_a_model_in_another_program_answers_on_its_device(head):
    learner = make_learner(head)
    model = Model(learner.backbone, learner.heads[head], {"head": head}).eval()
    with another_device():
        task = model.to(DEVICE).adapt(np.zeros((2 * W, SIZE, SIZE), np.uint8), [*range(W)] * 2)
        for count in (5, 0):
            assert task.predict(np.zeros((count, SIZE, SIZE), np.uint8)).device == DEVICE
        assert task.label(np.zeros((5, SIZE, SIZE), np.float32)) == [0] * 5  # what is read is 0
        assert model.features(np.zeros((5, SIZE, SIZE), np.uint8)).device == DEVICE


@pytest.mark.parametrize("head", ["protonet", "maml"])
def test_analyses_and_tables_are_read_from_the_device(head):
    learner = make_learner(head).eval()
    observer = Observer.__new__(Observer)
    pl.LightningModule.__init__(observer)
    observer.learner, observer.numbers = learner, [torch.zeros(1, dtype=torch.long).expand(W)]
    with another_device(), torch.no_grad():
        learner.to(DEVICE)
        prepare_tables(learner)
        evaluate(learner, make_episode())
        learner.on_test_epoch_end()
        assert summary(learner.tables[0][head], "accuracy")["mean"] >= 0
        assert len(observer.predict_step([make_episode()], 0)) == T


def test_tasks_of_several_shapes_and_sources():
    learner = make_learner()
    with another_device() as waits:
        learner.to(DEVICE)
        one, other = make_episode(), make_episode()._replace(source=1)
        waits.places.clear()
        train(learner, one, other._replace(query=Labelled(*(part[:, :W] for part in other.query))))
    assert not waits.places


@pytest.mark.parametrize("file", files("augment"))
@pytest.mark.parametrize("channels", [1, 3])
def test_a_batch_is_moved_and_its_views_are_applied_without_a_wait(file, channels):
    chain = make(node(file)).chain("train", jitter=Affine(15, 0.25, (0.7, 1.05), 2.5))
    classes, rng = np.arange(W), np.random.default_rng(0)
    images = torch.zeros(1, W, channels, 28, 28, dtype=torch.uint8)
    parameters = torch.from_numpy(chain.draw(rng, classes))[None]
    part = Labelled(images, torch.arange(W)[None])
    ids = torch.arange(W)[None], torch.arange(W)[None]
    batch = [Episode(part, part, W, torch.arange(1), Views(chain, parameters, parameters), 0, ids)]
    with another_device() as waits:
        (moved,) = FewShot(None, None, None, [], None, None, 0).transfer_batch_to_device(batch, DEVICE, 0)
        moved = to_model_input(moved, torch.float32).grouped_by_class()
        for images, labels in (moved.support, moved.query):
            assert images.device == labels.device == moved.ids[0].device == DEVICE and images.is_floating_point()
        assert moved.index.tolist() == [0]
    assert not waits.places


# what other devices execute


@pytest.fixture
def elsewhere(monkeypatch):
    """Execute on the CPU what other devices execute."""
    for module in (pieces, group_moments, fast):
        monkeypatch.setattr(module, "on_cpu", lambda _: False)


@pytest.mark.parametrize("context", [S, S + Q])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("word", SCHEMES)
def test_what_other_devices_execute_is_the_definition(word, training, context, elsewhere):
    check_fast_execution(
        lambda: scheme(CONF / "norm" / f"{word}.yaml").train(training),
        make_x()[..., :4, :4],
        context,
        nn.MaxPool2d(2),
    )


# what the checks find


class Mixes(Norm):
    """Uses a constant that lies on the CPU."""

    fixed_moments = True

    def moments(self, own, context):
        return torch.zeros(len(self.weight)), torch.ones(len(self.weight), device=self.weight.device)


class Reads(Norm):
    """Reads a value in every pass."""

    fixed_moments = True

    def moments(self, own, context):
        return self.weight * float(self.bias.detach().sum()), torch.ones_like(self.weight)


def test_a_mix_of_devices_raises():
    block = Block()
    block.layers[1] = Mixes(4)
    with pytest.raises(RuntimeError, match="device"):
        waits_of(make_learner(backbone=block))


def test_a_wait_is_recorded_with_its_line():
    block = Block()
    block.layers[1] = Reads(4)
    training, testing = waits_of(make_learner(backbone=block))
    assert training.total() == testing.total() == 1


@pytest.mark.parametrize(
    ("code", "count"),
    [
        ("x.sum().item()", 1),
        ("bool(x.sum() > 0)", 1),
        ("x.cpu()", 1),
        ("torch.zeros(3).to(x.device)", 1),
        ("torch.tensor([1.0, 2.0], device=x.device)", 1),
        ("x.new_tensor([1.0, 2.0])", 1),
        ("torch.zeros(3).to(x.device, non_blocking=True)", 0),
        ("torch.zeros(3, device=x.device) + 1", 0),
        ("torch.linalg.cholesky(x)", 1),
    ],
)
def test_waits_that_are_recorded(code, count):
    with another_device() as waits:
        x = torch.ones(3, 3, device=DEVICE)
        eval(code, {"torch": torch, "x": x})
    assert waits.count == count


def test_the_page_lists_every_wait():
    """The table holds what is counted, for every choice that is exempt, and no other."""
    page = (ROOT / "docs" / "gpus.md").read_text(encoding="utf-8")
    listed = {(group, word): (int(a), int(b)) for group, word, a, b in re.findall(ROW, page)}
    counted = {}
    for group, words in {"head": HEADS, "regularizer": REGULARIZERS}.items():
        for word in words:
            others = {"head": "reptile", "objective": "reptile"} if word in LOCK_STEP else {"objective": "episodic"}
            learner = make_learner(**others | {group: word})
            if exempt(learner):
                counted[group, word] = tuple(places.total() for places in waits_of(learner))
    assert listed == counted and all(sum(waits) for waits in counted.values())


ROW = re.compile(r"^\| `(\w+)=(\w+)` \| (\d+) \| (\d+) \|", re.MULTILINE)
"""A row of the table: a choice, and its waits in a training step and in a test step."""
