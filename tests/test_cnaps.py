"""CNAPs: what modulates, what classifies, what is penalised, and what stays as it was."""

import logging

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import nn

from metafew.backbones.backbone import Backbone, target_chunks
from metafew.backbones.conv4 import Conv4
from metafew.backbones.resnet18 import ResNet18
from metafew.config.groups import CONF
from metafew.episode import Episode, Labelled
from metafew.errors import UsageError
from metafew.heads.set_encoder import SetEncoder
from metafew.norms.alpha import Alpha
from metafew.norms.film import modulated
from metafew.training.instantiate import make, make_head

W = 3


def norm(word):
    return make(OmegaConf.load(CONF / "norm" / f"{word}.yaml"))


def cnaps(backbone, trained=True, **changes):
    node = OmegaConf.merge(OmegaConf.load(CONF / "head" / "cnaps.yaml"), {"width": 8}, changes)
    return make_head(OmegaConf.create({"head": node}).head, backbone, trained).double()


def spread(head, std=0.5):
    """Make modulation as strong as after long training."""
    with torch.no_grad():
        for place in head.places:
            place.vectors.normal_(0, std)
    return head


def freeze(backbone):
    for module in backbone.modules():
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(isinstance(module, Alpha))
    return backbone


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    return freeze(Conv4(1, 16, norm("tasknorm"), width=8).double())


@pytest.fixture
def episode():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(W).repeat(2, 5)
    prototypes = torch.rand(2, W, 1, 16, 16, generator=generator, dtype=torch.double)
    noise = torch.rand(2, 5 * W, 1, 16, 16, generator=generator, dtype=torch.double)
    images = 0.6 * prototypes.repeat(1, 5, 1, 1, 1) + 0.4 * noise
    support = Labelled(images[:, : 2 * W], labels[:, : 2 * W])
    return Episode(support, Labelled(images[:, 2 * W :], labels[:, 2 * W :]), W, torch.arange(2))


class TestModulation:
    def test_is_the_identity_where_vectors_are_zero(self, backbone, episode):
        head = cnaps(backbone, init_std=0)
        vectors = head.modulation(backbone, episode.support.images)
        plain = backbone.embed(episode.support.images, episode.query.images)
        with modulated(vectors):
            adapted = backbone.embed(episode.support.images, episode.query.images)
        torch.testing.assert_close(adapted, plain, rtol=0, atol=1e-12)
        expected = head.classifier(plain[0], episode.support.labels, plain[1], W)
        torch.testing.assert_close(head(backbone, episode.support, episode.query.images, W), expected)

    def test_comes_before_classification(self, backbone, episode):
        head = spread(cnaps(backbone))
        with modulated(head.modulation(backbone, episode.support.images)):
            context, targets = backbone.embed(episode.support.images, episode.query.images)
        logits = head(backbone, episode.support, episode.query.images, W)
        torch.testing.assert_close(logits, head.classifier(context, episode.support.labels, targets, W))
        plain = backbone.embed(episode.support.images)[0]
        assert (context - plain).abs().max() > 0.1

    def test_starts_near_the_identity(self, backbone, episode):
        std = torch.cat([place.vectors.flatten() for place in cnaps(backbone, init_std=0.001).places]).std()
        assert 0.0005 < std < 0.002
        for gamma, beta in cnaps(backbone).modulation(backbone, episode.support.images).values():
            assert 0 < (gamma - 1).abs().max() < 0.05 and 0 < beta.abs().max() < 0.05

    def test_reaches_every_place_in_its_channels(self, backbone, episode):
        vectors = cnaps(backbone).modulation(backbone, episode.support.images)
        assert list(vectors) == backbone.films and len(vectors) == 4
        assert all(part.shape == (2, place.channels) for place, pair in vectors.items() for part in pair)

    def test_differs_between_tasks_and_places(self, backbone, episode):
        vectors = spread(cnaps(backbone)).modulation(backbone, episode.support.images)
        for pair in vectors.values():
            for part in pair:
                assert (part[0] - part[1]).abs().max() > 1e-4
        first, second, *_ = (gamma for gamma, _ in vectors.values())
        assert (first - second).abs().max() > 1e-2

    def test_sees_support_images_as_a_set(self, backbone, episode):
        head, order = spread(cnaps(backbone)), torch.randperm(2 * W, generator=torch.Generator().manual_seed(0))
        expected = head.modulation(backbone, episode.support.images)
        for images in (episode.support.images[:, order], episode.support.images.repeat(1, 2, 1, 1, 1)):
            found = head.modulation(backbone, images)
            for place, pair in expected.items():
                torch.testing.assert_close(found[place], pair, rtol=1e-9, atol=1e-9)

    def test_is_the_formula(self, backbone):
        place = spread(cnaps(backbone)).places[0]
        hidden = torch.rand(2, 8, dtype=torch.double)
        for number, found in enumerate(place(hidden)):
            layers = [layer for layer in place.nets[number] if isinstance(layer, nn.Linear)]
            x = hidden
            for depth, layer in enumerate(layers, 1):
                x = x + x @ layer.weight.T + layer.bias
                x = x.clamp(min=0) if depth < len(layers) else x
            assert len(layers) == 3
            torch.testing.assert_close(found, (1 - number) + place.vectors[number] * x)

    def test_does_not_last(self, backbone, episode):
        before = backbone.embed(episode.support.images)[0]
        spread(cnaps(backbone))(backbone, episode.support, episode.query.images, W)
        assert torch.equal(backbone.embed(episode.support.images)[0], before)


@pytest.mark.parametrize("size", [1, 16, 28, 33])
def test_the_encoder_pools_down_to_a_pixel(size):
    encoder = SetEncoder(1, size, norm("meta_batch"), 4).double()
    images = torch.rand(2, 3, 1, size, size, dtype=torch.double)
    assert encoder(images).shape == (2, 4)
    maps = []
    encoder.blocks.register_forward_hook(lambda module, inputs, output: maps.append(output.shape))
    encoder(images)
    assert maps == [(6, 4, 1, 1)]


def test_the_encoder_is_the_same_in_evaluation(backbone, episode):
    head = spread(cnaps(backbone))
    trained = head.train().encoder(episode.support.images)
    assert torch.equal(head.eval().encoder(episode.support.images), trained)


class TestClassifier:
    def test_is_the_formula(self, backbone):
        classifier = cnaps(backbone).classifier
        support, query = torch.randn(1, 4, 8, dtype=torch.double), torch.randn(1, 5, 8, dtype=torch.double)
        logits = classifier(support, torch.tensor([[1, 0, 1, 1]]), query, 2)
        for c, rows in enumerate(([1], [0, 2, 3])):
            mean = support[0, rows].mean(0)
            outputs = []
            for net in (classifier.weight, classifier.bias):
                first, second, last = (layer for layer in net if isinstance(layer, nn.Linear))
                outputs.append(last(F.elu(second(F.elu(first(mean))))))
            torch.testing.assert_close(logits[0, :, c], query[0] @ (outputs[0] + mean) + outputs[1])

    @pytest.mark.parametrize("way", [2, 5])
    def test_takes_any_way_and_shots(self, backbone, way):
        shots = torch.arange(way) + 1
        labels = torch.arange(way).repeat_interleave(shots).expand(2, -1)
        images = torch.rand(2, labels.shape[1] + 3, 1, 16, 16, dtype=torch.double)
        support, query = Labelled(images[:, :-3], labels), images[:, -3:]
        head = spread(cnaps(backbone))
        logits = head(backbone, support, query, way)
        assert logits.shape == (2, 3, way) and logits.isfinite().all()
        # Only the mean of a class counts: all of its images twice are no more than once.
        context = torch.randn(2, labels.shape[1], 8, dtype=torch.double)
        targets = torch.randn(2, 3, 8, dtype=torch.double)
        twice = labels[0] == way - 1
        torch.testing.assert_close(
            head.classifier(
                torch.cat([context, context[:, twice]], 1), torch.cat([labels, labels[:, twice]], 1), targets, way
            ),
            head.classifier(context, labels, targets, way),
        )


def test_tasks_do_not_see_each_other(backbone, episode):
    head = spread(cnaps(backbone))
    whole = head(backbone, episode.support, episode.query.images, W)
    other = episode.support.images.clone()
    other[1] = torch.rand_like(other[1])
    changed = head(backbone, Labelled(other, episode.support.labels), episode.query.images, W)
    torch.testing.assert_close(changed[0], whole[0], rtol=1e-9, atol=1e-9)
    assert (changed[1] - whole[1]).abs().max() > 1e-3


def test_queries_do_not_see_each_other(backbone, episode):
    head = spread(cnaps(backbone))
    whole = head(backbone, episode.support, episode.query.images, W)
    with target_chunks(2):
        parts = head(backbone, episode.support, episode.query.images, W)
    torch.testing.assert_close(parts, whole, rtol=1e-9, atol=1e-9)
    changed = episode.query.images.clone()
    changed[:, 1:] = 0
    torch.testing.assert_close(head(backbone, episode.support, changed, W)[:, 0], whole[:, 0], rtol=1e-9, atol=1e-9)


def test_penalty_is_the_weighted_sum_of_squares(backbone):
    head = spread(cnaps(backbone, penalty=0.25))
    vectors = [place.vectors for place in head.places]
    penalty = head.penalty()
    assert penalty.shape == ()
    assert penalty.item() == pytest.approx(0.25 * sum(value**2 for v in vectors for value in v.flatten().tolist()))
    penalty.backward()
    for vector in vectors:
        torch.testing.assert_close(vector.grad, 0.5 * vector.detach())
    assert sum(p.grad is not None for p in head.parameters()) == len(vectors) == 4
    assert cnaps(backbone, init_std=0).penalty() == 0


def test_a_frozen_backbone_trains_its_alphas_and_the_head(backbone, episode):
    head = cnaps(backbone)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    alphas = [p for p in backbone.parameters() if p.requires_grad]
    assert len(alphas) == 8
    optimizer, losses = torch.optim.Adam([*alphas, *head.parameters()], lr=0.01), []
    for _ in range(20):
        optimizer.zero_grad()
        logits = head(backbone, episode.support, episode.query.images, W)
        loss = F.cross_entropy(logits.mT, episode.query.labels) + head.penalty()
        loss.backward()
        assert all(alpha.grad.abs() > 1e-8 for alpha in alphas)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0], losses
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, before[name]) != name.endswith(("alpha.scale", "alpha.offset")), name


def test_the_backbone_is_no_part_of_the_head(backbone):
    head = cnaps(backbone)
    assert not {id(p) for p in head.parameters()} & {id(p) for p in backbone.parameters()}
    assert {name.split(".")[0] for name in head.state_dict()} == {"encoder", "stages", "places", "classifier"}
    assert not any(module is backbone for module in head.modules())


def test_state_goes_from_head_to_head(backbone, episode):
    first, second = spread(cnaps(backbone)), cnaps(backbone)
    second.load_state_dict(first.state_dict())
    images = episode.query.images
    assert torch.equal(first(backbone, episode.support, images, W), second(backbone, episode.support, images, W))


class TestSentences:
    def test_no_film_places(self):
        class Plain(Backbone):
            features = 4

        with pytest.raises(UsageError, match=r"FiLM layers .*got Plain.*type backbone=conv4 or backbone=resnet18"):
            cnaps(Plain(1, 16))

    @pytest.mark.parametrize(
        "change", [{"width": 0}, {"width": 1.5}, {"width": True}, {"penalty": -1.0}, {"init_std": -0.1}]
    )
    def test_bad_values(self, backbone, change):
        with pytest.raises(UsageError, match=rf"head\.{next(iter(change))} to be .*: type head\."):
            cnaps(backbone, **change)

    def test_running_moments_in_the_encoder(self, backbone):
        with pytest.raises(UsageError, match=r"without running moments.*BatchNorm"):
            cnaps(backbone, norm={"_target_": "metafew.norms.batch.BatchNorm"})

    def test_a_backbone_that_trains_along(self, backbone, caplog):
        with caplog.at_level(logging.WARNING):
            cnaps(backbone)
            cnaps(Conv4(1, 16, norm("tasknorm"), width=4), trained=False)
            assert not caplog.messages
            cnaps(Conv4(1, 16, norm("tasknorm"), width=4))
        assert len(caplog.messages) == 1 and "type backbone.weights=CKPT" in caplog.text


def test_the_stages_of_a_residual_network():
    torch.manual_seed(0)
    backbone = ResNet18(1, 32, norm("tasknorm")).double()
    head = spread(cnaps(backbone, trained=False))
    images = torch.rand(1, 4, 1, 32, 32, dtype=torch.double)
    vectors = head.modulation(backbone, images)
    assert list(vectors) == backbone.films
    assert len(head.stages) == len({place.stage for place in backbone.films}) > 1
    assert all(gamma.shape == (1, place.channels) for place, (gamma, _) in vectors.items())
    logits = head(backbone, Labelled(images[:, :2], torch.tensor([[0, 1]])), images[:, 2:], 2)
    assert logits.shape == (1, 2, 2) and logits.isfinite().all()
