"""Losses against their formulas, and what they train."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from contracts import files
from contracts.objectives import ObjectiveContract
from omegaconf import OmegaConf
from smooth import Smooth, W, three_tasks

from metafew.backbones.conv4 import Conv4
from metafew.config.groups import CONF
from metafew.episode import Episode, Labelled
from metafew.errors import UsageError
from metafew.heads.cnaps import CNAPs
from metafew.heads.maml import MAML
from metafew.heads.protonet import ProtoNet
from metafew.heads.ridge import Ridge
from metafew.norms.running import commit
from metafew.objectives import objective as objective_module
from metafew.objectives.classical import Classical
from metafew.objectives.clustering import draw_pairs, feature_clustering, hyperplane_variation
from metafew.objectives.episodic import Episodic
from metafew.objectives.objective import tasks_per_chunk
from metafew.objectives.regularizers import FeatureClustering, HyperplaneVariation, NoRegularizer, WeightClustering
from metafew.training.instantiate import make

OFF = NoRegularizer()


@pytest.mark.parametrize("file", files("objective"))
class TestContract(ObjectiveContract):
    pass


def test_the_accuracy_is_measured_only_if_it_is_logged(backbone):
    objective = classical(OFF)
    loss = objective(backbone, ProtoNet(), [chunk()]).loss
    assert 0 <= objective.accuracy <= 1
    objective.measures_accuracy = False
    assert objective(backbone, ProtoNet(), [chunk()]).loss == loss and objective.accuracy is None


def test_the_accuracy_is_that_of_the_logits(backbone):
    objective, episode = Episodic(OFF), three_tasks()
    objective(backbone, ProtoNet(), [episode])
    answered = ProtoNet()(backbone, episode.support, episode.query.images, episode.way).argmax(-1)
    right = (answered == episode.query.labels).double().mean(1)
    torch.testing.assert_close(objective.accuracy.double(), right.mean())
    assert right[0] != right.mean() != 0.5


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    return Smooth("tasknorm").double()


def classical(regularizer, **options):
    objective = Classical(regularizer, **options)
    objective.build(SimpleNamespace(features=4), SimpleNamespace(splits=lambda: {"train": range(10)}))
    return objective.double()


def chunk():
    """Two chunks of two pairs of classes with two images each, labelled among ten classes."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 8, 1, 6, 6, generator=generator, dtype=torch.double)
    labels = torch.tensor([[4, 4, 1, 1, 0, 0, 9, 9], [3, 3, 2, 2, 5, 5, 6, 6]])
    task = three_tasks()
    return task._replace(
        support=Labelled(images, labels), query=Labelled(images[:, :0], labels[:, :0]), way=10, index=torch.arange(2)
    )


def test_classical_is_the_cross_entropy_of_one_linear_layer(backbone):
    objective = classical(OFF)
    episode = chunk()
    features, _ = backbone.embed(episode.support.images)
    reference = F.cross_entropy(objective.classifier(features).flatten(0, 1), episode.support.labels.flatten())
    torch.testing.assert_close(objective(backbone, ProtoNet(), [episode]).loss, reference)
    smooth = classical(OFF, label_smoothing=0.1)
    smooth.load_state_dict(objective.state_dict())
    weights = torch.full((16, 10), 0.1 / 9, dtype=torch.double)
    weights[torch.arange(16), episode.support.labels.flatten()] = 0.9
    reference = -(weights * objective.classifier(features).flatten(0, 1).log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(smooth(backbone, ProtoNet(), [episode]).loss, reference)


@pytest.mark.parametrize(
    ("regularizer", "measure"),
    [(FeatureClustering(0.5), feature_clustering), (HyperplaneVariation(0.5), hyperplane_variation)],
)
def test_classical_adds_the_measure_of_its_pairs(backbone, regularizer, measure):
    plain, regularized = (classical(r) for r in (OFF, regularizer))
    regularized.load_state_dict(plain.state_dict(), strict=False)
    episode = chunk()
    features, _ = backbone.embed(episode.support.images)
    pairs = torch.stack([f.view(2, 2, 2, -1) for f in features])
    assert (episode.support.labels.view(2, 2, 2, 2).diff(dim=-1) == 0).all()
    torch.testing.assert_close(
        regularized(backbone, ProtoNet(), [episode]).loss,
        plain(backbone, ProtoNet(), [episode]).loss + 0.5 * measure(pairs).mean(),
    )


@pytest.mark.parametrize("head", [ProtoNet(), None])
def test_classical_takes_one_pass_whatever_the_head(backbone, head, monkeypatch):
    monkeypatch.setattr("metafew.objectives.objective.PIXELS", 1)
    head = head or MAML(backbone, True, 3, inner="loop")
    passes = []
    backbone.register_forward_pre_hook(lambda _, images: passes.append(len(images[0])))
    episode = chunk()
    classical(OFF)(backbone, head, [episode])
    assert passes == [episode.support.images.shape[:2].numel()]


def test_classical_leaves_the_head_alone(backbone):
    head = Ridge()
    classical(OFF).prepare(backbone, head)
    assert not any(p.requires_grad for p in head.parameters()) and all(p.requires_grad for p in backbone.parameters())


@pytest.mark.parametrize("adapting", [False, True])
def test_episodic_adds_the_measure_of_pairs_from_support_and_query(backbone, adapting):
    task = three_tasks()
    head = MAML(backbone, trained=True, way=W, steps=1).double() if adapting else ProtoNet()
    features = torch.cat(backbone.embed(task.support.images, task.query.images), 1)
    pairs = draw_pairs(features, torch.cat([task.support.labels, task.query.labels], 1), task.index)
    plain = Episodic(OFF)(backbone, head, [task]).loss
    regularized = Episodic(FeatureClustering(2.0))(backbone, head, [task]).loss
    torch.testing.assert_close(regularized, plain + 2 * feature_clustering(pairs).mean())


@pytest.mark.parametrize("adapting", [False, True])
def test_pairs_of_a_regularizer_are_not_counted_in_running_moments(adapting):
    pending = []
    for regularizer in (OFF, FeatureClustering(2.0)):
        torch.manual_seed(0)
        backbone = Smooth("batch").double()
        head = MAML(backbone, trained=True, way=W, steps=1).double() if adapting else ProtoNet()
        Episodic(regularizer)(backbone, head, [three_tasks()])
        pending.append([layer.pending for layer in backbone.norms])
    assert len(pending[0]) == 2 and all(torch.equal(one, other) for one, other in zip(*pending, strict=True))
    assert pending[0][0][0, -1] == 3  # each task once


def test_the_loss_is_a_mean_over_tasks_of_whatever_shape(backbone):
    task = three_tasks()
    narrow = task._replace(query=Labelled(*(part[:, :W] for part in task.query[:2])))
    losses = [Episodic(OFF)(backbone, ProtoNet(), [part]).loss for part in (*task.split(1), *narrow.split(1))]
    torch.testing.assert_close(Episodic(OFF)(backbone, ProtoNet(), [task, narrow]).loss, torch.stack(losses).mean())


@pytest.mark.parametrize("objective", [lambda r: Episodic(r), lambda r: classical(r)])
def test_weight_clustering_belongs_to_reptile(objective, backbone):
    with pytest.raises(UsageError, match="type head=reptile"):
        objective(WeightClustering()).prepare(backbone, ProtoNet())


@pytest.mark.parametrize("norm", ["batch", "batch_shared", "tasknorm"])
@pytest.mark.parametrize("head", ["protonet", "svm"])
@pytest.mark.parametrize("size", [1, 2])
def test_a_few_tasks_at_a_time_have_the_gradients_and_moments_of_all_at_once(norm, head, size, monkeypatch):
    monkeypatch.setattr(objective_module, "PIXELS", size * 2 * 6 * 16 * 16)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 6, 1, 16, 16, generator=generator, dtype=torch.float64)
    support, query = (Labelled(part, torch.arange(3).repeat(3, 2)) for part in images)
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(Conv4(1, 16, make(OmegaConf.load(CONF / "norm" / f"{norm}.yaml")), width=4).double())
    fitted = make(OmegaConf.load(CONF / "head" / f"{head}.yaml"))
    episode = Episode(support, query, 3, torch.arange(3))
    assert tasks_per_chunk(models[0], fitted, episode) == (None if norm == "batch_shared" else size)
    Episodic(OFF)(models[0], fitted, [episode]).loss.backward()
    logits = fitted(models[1], support, query.images, 3)
    F.cross_entropy(logits.flatten(0, 1), query.labels.flatten()).backward()
    for model in models:
        commit(model)
    for (name, one), whole in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one.grad, whole.grad, rtol=1e-9, atol=1e-12, msg=name)
    for one, whole in zip(models[0].buffers(), models[1].buffers(), strict=True):
        torch.testing.assert_close(one, whole, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("side", "channels", "queries", "size"),
    [(28, 1, 75, 4), (28, 3, 75, 4), (28, 1, 400, 1), (84, 3, 75, 1), (16, 1, 0, 204)],
)
def test_on_a_cpu_tasks_are_embedded_together_up_to_a_number_of_pixels(side, channels, queries, size):
    images = torch.zeros(1, 5 + queries, channels, side, side)
    support, query = (Labelled(part, part[:, :, 0, 0, 0]) for part in images.split([5, queries], 1))
    norm = make(OmegaConf.load(CONF / "norm" / "batch.yaml"))
    backbone = Conv4(channels, side, norm, width=4)
    assert tasks_per_chunk(backbone, ProtoNet(), Episode(support, query, 5, torch.arange(1))) == size


def test_what_a_head_asks_for_is_added():
    norm = make(OmegaConf.load(CONF / "norm" / "meta_batch.yaml"))
    backbone = Conv4(1, 16, norm, width=4)
    costs = []
    for penalty in (0.0, 0.5):
        torch.manual_seed(0)
        head = CNAPs(backbone, trained=True, norm=norm, width=4, penalty=penalty, init_std=0.5)
        images, labels = torch.rand(2, 4, 1, 16, 16, generator=torch.Generator().manual_seed(0)), torch.arange(2)
        part = Labelled(images, labels.repeat(2, 2))
        costs.append(Episodic(OFF)(backbone, head, [Episode(part, part, 2, torch.arange(2))]).loss)
    torch.testing.assert_close(costs[1] - costs[0], head.penalty(), rtol=1e-4, atol=1e-5)
    assert head.penalty() > 0
