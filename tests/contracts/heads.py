"""What every head keeps."""

import pytest
import torch
from omegaconf import OmegaConf

from contracts import files, node, norm, sampled, skip_exempt, with_base_mean
from metafew.backbones.backbone import Backbone
from metafew.backbones.conv4 import Conv4
from metafew.episode import Episode, Labelled
from metafew.heads.head import FeatureHead
from metafew.heads.shared_features import SharedFeatures
from metafew.objectives.episodic import Episodic
from metafew.objectives.regularizers import NoRegularizer
from metafew.objectives.reptile import Reptile
from metafew.training.instantiate import make_head

T, W, Q = 2, 3, 2
SAME = {"rtol": 1e-8, "atol": 1e-8}


class Flat(Backbone):
    """Images are their own features, times a learned matrix that starts from the identity."""

    def __init__(self, features=4):
        super().__init__(1, 1)
        self.features, self.map_shape = features, (features, 1, 1)
        self.matrix = torch.nn.Parameter(torch.eye(features, dtype=torch.double))

    def forward(self, images):
        return images.flatten(1) @ self.matrix


def make_tested(file, backbone, way=W, test_steps=3, **changes):
    """Return the head of a YAML, in float64; one that takes steps takes few in evaluation."""
    options = node(file)
    changes["test_steps" if "test_steps" in options else "steps"] = test_steps
    changes = {key: value for key, value in changes.items() if key in options}
    changes |= {"way": way} if "way" in options else {}
    torch.manual_seed(0)
    return with_base_mean(make_head(OmegaConf.merge(options, changes), backbone, trained=True), backbone).double()


def network(scheme="tasknorm"):
    torch.manual_seed(0)
    return Conv4(1, 16, norm(scheme), width=8).double()


def make_episode():
    generator = torch.Generator().manual_seed(3)
    support = torch.rand(T, W * 2, 1, 16, 16, generator=generator, dtype=torch.double)
    query = torch.rand(T, W * Q, 1, 16, 16, generator=generator, dtype=torch.double)
    labels = torch.arange(W).repeat_interleave(2).expand(T, -1)
    answers = torch.arange(W).repeat_interleave(Q).expand(T, -1)
    return Episode(Labelled(support, labels), Labelled(query, answers), W, torch.arange(T))


class HeadContract:
    """A subclass provides ``file``, the YAML of a head."""

    @pytest.fixture
    def backbone(self):
        return network().eval()

    @pytest.fixture
    def episode(self):
        return make_episode()

    @pytest.fixture
    def head(self, file, backbone):
        return make_tested(file, backbone).eval()

    def test_shape(self, head, backbone, episode):
        logits = head(backbone, episode.support, episode.query.images, W)
        assert logits.shape == (T, W * Q, W) and logits.isfinite().all()

    def test_order_of_support_does_not_matter(self, head, backbone, episode):
        skip_exempt(head, "support_order")
        order = torch.randperm(W * 2, generator=torch.Generator().manual_seed(0))
        shuffled = Labelled(episode.support.images[:, order], episode.support.labels[:, order])
        torch.testing.assert_close(
            head(backbone, shuffled, episode.query.images, W),
            head(backbone, episode.support, episode.query.images, W),
            **SAME,
        )

    @pytest.mark.parametrize("scheme", ["tasknorm", "transductive"])
    def test_order_of_queries_does_not_matter(self, file, scheme, episode):
        backbone = network(scheme).eval()
        head = make_tested(file, backbone).eval()
        order = torch.randperm(W * Q, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(
            head(backbone, episode.support, episode.query.images[:, order], W),
            head(backbone, episode.support, episode.query.images, W)[:, order],
            rtol=1e-9,
            atol=1e-9,
        )

    def test_classes_are_exchangeable(self, head, backbone, episode):
        skip_exempt(head, "exchangeable_classes")
        order = torch.tensor([2, 0, 1])
        renamed = Labelled(episode.support.images, order[episode.support.labels])
        torch.testing.assert_close(
            head(backbone, renamed, episode.query.images, W)[..., order],
            head(backbone, episode.support, episode.query.images, W),
            **SAME,
        )

    def test_tasks_are_independent(self, head, backbone, episode):
        together = head(backbone, episode.support, episode.query.images, W)
        for piece, logits in zip(episode.split(1), together.split(1), strict=True):
            single = head(backbone, piece.support, piece.query.images, W)
            torch.testing.assert_close(single, logits, rtol=1e-9, atol=1e-9)

    def test_queries_are_independent_unless_declared(self, head, backbone, episode):
        together, queries = head(backbone, episode.support, episode.query.images, W), episode.query.images.split(1, 1)
        single = torch.cat([head(backbone, episode.support, query, W) for query in queries], 1)
        assert torch.allclose(single, together, rtol=1e-9, atol=1e-9) != head.transductive

    def test_twice_is_the_same_and_leaves_no_trace(self, head, backbone, episode):
        before = {key: value.clone() for key, value in head.state_dict().items()}
        with torch.no_grad():
            first = head(backbone, episode.support, episode.query.images, W)
            assert torch.equal(first, head(backbone, episode.support, episode.query.images, W))
        assert not first.requires_grad
        assert all(torch.equal(before[key], value) for key, value in head.state_dict().items())

    def test_readings_hold_the_result(self, head, backbone, episode):
        readings = head.readings(backbone, episode.support, episode.query.images, W)
        assert sorted(readings) == sorted(["", *head.extra_readings])
        assert torch.equal(readings[""], head(backbone, episode.support, episode.query.images, W))

    def test_shared_features_give_the_same(self, head, backbone, episode):
        if not isinstance(head, FeatureHead):
            pytest.skip("it does not work on the features of the backbone as it is")
        images = episode.support, episode.query.images, W
        assert torch.equal(head(SharedFeatures(backbone, episode), *images), head(backbone, *images))

    @pytest.mark.parametrize("scheme", sampled(files("norm"), 5))
    def test_gradient_reaches_every_weight(self, file, scheme, episode):
        backbone = network(scheme.stem)
        head = make_tested(file, backbone)
        objective = (Reptile if head.lock_step else Episodic)(NoRegularizer())
        objective.prepare(backbone, head)
        objective(backbone, head, [episode]).loss.backward()
        for name, value in [*backbone.named_parameters(), *head.named_parameters()]:
            if value.requires_grad:
                assert value.grad is not None and value.grad.abs().sum() > 0, name
            else:
                assert head.lock_step and "alpha" in name, name

    def test_unbalanced_support(self, head, backbone, episode):
        labels = torch.tensor([0, 0, 0, 0, 1, 2]).expand(T, -1)
        support = Labelled(episode.support.images, labels)
        assert head(backbone, support, episode.query.images, W).isfinite().all()

    def test_separable_classes_are_all_right(self, file):
        centres = 5 * torch.eye(4, dtype=torch.double).repeat_interleave(3, 0)
        noise = 0.1 * torch.randn(2, 12, 4, generator=torch.Generator().manual_seed(0), dtype=torch.double)
        images = (centres + noise)[..., None, None]
        labels = torch.arange(4).repeat_interleave(3).expand(2, -1)
        skip_exempt(make_tested(file, network()), "separable_classes")
        flat = Flat()
        head = make_tested(file, flat, 4, test_steps=100, lr=0.1).eval()
        logits = head(flat, Labelled(images, labels), images.flip(1), 4)
        assert (logits.argmax(-1) == labels.flip(1)).all()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_precisions_agree(self, file, dtype, backbone, episode):
        if dtype == torch.bfloat16:
            skip_exempt(make_tested(file, backbone), "bfloat16")
        # One step: rounding grows with every step.
        exact = make_tested(file, backbone, test_steps=1).eval()(backbone, episode.support, episode.query.images, W)
        support = episode.support._replace(images=episode.support.images.float())
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            single = make_tested(file, backbone, test_steps=1).float().eval()
            logits = single(backbone.float(), support, episode.query.images.float(), W)
        assert logits.isfinite().all()
        error = (logits.double().softmax(-1) - exact.softmax(-1)).abs().max()
        assert error < (1e-4 if dtype == torch.float32 else 0.1), error
