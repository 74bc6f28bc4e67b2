"""Contracts that every head under conf/head keeps."""

import pytest
import torch
from omegaconf import OmegaConf

from metafew import cli
from metafew.backbones.backbone import Backbone
from metafew.backbones.conv4 import Conv4
from metafew.episode import Episode, Labelled
from metafew.heads.protonet import ProtoNet
from metafew.heads.ridge import Ridge
from metafew.objectives.episodic import Episodic
from metafew.objectives.regularizers import NoRegularizer
from metafew.objectives.reptile import Reptile
from metafew.solvers.ridge import ridge
from metafew.training.factory import make, make_head

HEADS = sorted(file.stem for file in (cli.CONF / "head").glob("*.yaml"))
NORMS = sorted(file.stem for file in (cli.CONF / "norm").glob("*.yaml"))
LINEAR = {"maml", "fomaml", "anil", "reptile"}
# A minibatch of Reptile depends on the order of rows, unless it holds them all.
OPTIONS = {"reptile": {"test_batch": 100, "test_steps": 3, "lr": 0.01}}
T, W, Q = 2, 3, 2


class Flat(Backbone):
    """Images are their own features, times a learned gain."""

    features = 4

    def __init__(self):
        super().__init__(1, 1)
        self.gain = torch.nn.Parameter(torch.ones((), dtype=torch.double))

    def forward(self, images):
        return self.gain * images.flatten(1)


def head(word: str, backbone: Backbone, way: int = W, **changes):
    node = OmegaConf.merge(
        {"seed": 0, "train": {"way": way}}, {"head": OmegaConf.load(cli.CONF / "head" / f"{word}.yaml")}
    ).head
    node.pop("defaults", None)
    return make_head(OmegaConf.merge(node, OPTIONS.get(word, {}) | changes), backbone, trained=True).double()


def objective(word: str):
    return Reptile(NoRegularizer()) if word == "reptile" else Episodic(NoRegularizer())


def norm(word: str):
    return make(OmegaConf.load(cli.CONF / "norm" / f"{word}.yaml"))


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    return Conv4(1, 16, norm("tasknorm"), width=8).double().eval()


@pytest.fixture
def episode():
    generator = torch.Generator().manual_seed(3)
    support = torch.rand(T, W * 2, 1, 16, 16, generator=generator, dtype=torch.double)
    query = torch.rand(T, W * Q, 1, 16, 16, generator=generator, dtype=torch.double)
    labels = torch.arange(W).repeat_interleave(2).expand(T, -1)
    answers = torch.arange(W).repeat_interleave(Q).expand(T, -1)
    return Episode(Labelled(support, labels), Labelled(query, answers), W, torch.arange(T))


@pytest.mark.parametrize("word", HEADS)
class TestContract:
    def logits(self, word, backbone, support, query, way=W):
        torch.manual_seed(0)
        return head(word, backbone, way).eval()(backbone, support, query, way)

    def test_shape(self, word, backbone, episode):
        logits = self.logits(word, backbone, episode.support, episode.query.images)
        assert logits.shape == (T, W * Q, W) and logits.isfinite().all()

    def test_order_of_support_does_not_matter(self, word, backbone, episode):
        order = torch.randperm(W * 2, generator=torch.Generator().manual_seed(0))
        shuffled = Labelled(episode.support.images[:, order], episode.support.labels[:, order])
        torch.testing.assert_close(
            self.logits(word, backbone, shuffled, episode.query.images),
            self.logits(word, backbone, episode.support, episode.query.images),
            rtol=1e-8,
            atol=1e-8,
        )

    def test_classes_are_exchangeable(self, word, backbone, episode):
        if word in LINEAR:
            pytest.skip("a linear output layer has a row for each class")
        order = torch.tensor([2, 0, 1])
        renamed = Labelled(episode.support.images, order[episode.support.labels])
        torch.testing.assert_close(
            self.logits(word, backbone, renamed, episode.query.images)[..., order],
            self.logits(word, backbone, episode.support, episode.query.images),
            rtol=1e-8,
            atol=1e-8,
        )

    def test_tasks_are_independent(self, word, backbone, episode):
        whole = self.logits(word, backbone, episode.support, episode.query.images)
        for t in range(T):
            support = Labelled(*(part[t : t + 1] for part in episode.support))
            alone = self.logits(word, backbone, support, episode.query.images[t : t + 1])
            torch.testing.assert_close(alone, whole[t : t + 1], rtol=1e-9, atol=1e-9)

    def test_queries_are_independent(self, word, backbone, episode):
        whole = self.logits(word, backbone, episode.support, episode.query.images)
        alone = [self.logits(word, backbone, episode.support, episode.query.images[:, q : q + 1]) for q in range(W * Q)]
        torch.testing.assert_close(torch.cat(alone, 1), whole, rtol=1e-9, atol=1e-9)

    def test_twice_is_the_same(self, word, backbone, episode):
        first = self.logits(word, backbone, episode.support, episode.query.images)
        assert torch.equal(first, self.logits(word, backbone, episode.support, episode.query.images))

    @pytest.mark.parametrize("scheme", NORMS)
    def test_gradient_reaches_every_weight(self, word, scheme, episode):
        torch.manual_seed(0)
        backbone = Conv4(1, 16, norm(scheme), width=8).double()
        trained = head(word, backbone)
        loss = objective(word)
        loss.prepare(backbone, trained)
        loss(backbone, trained, [episode]).loss.backward()
        for name, value in [*backbone.named_parameters(), *trained.named_parameters()]:
            if value.requires_grad:
                assert value.grad is not None and value.grad.abs().sum() > 0, name
            else:
                assert word == "reptile" and "alpha" in name, name

    def test_unbalanced_support(self, word, backbone, episode):
        labels = torch.tensor([0, 0, 0, 0, 1, 2]).expand(T, -1)
        support = Labelled(episode.support.images, labels)
        assert self.logits(word, backbone, support, episode.query.images).isfinite().all()

    def test_separable_classes_are_all_right(self, word):
        if word == "cnaps":
            pytest.skip("its classifier is a network, which must be trained, and modulates a backbone")
        few = {"test_steps": 100, "lr": 0.1} if word == "reptile" else {}
        centres = 5 * torch.eye(4, dtype=torch.double).repeat_interleave(3, 0)
        noise = 0.1 * torch.randn(2, 12, 4, generator=torch.Generator().manual_seed(0), dtype=torch.double)
        images = (centres + noise)[..., None, None]
        labels = torch.arange(4).repeat_interleave(3).expand(2, -1)
        flat = Flat()
        logits = head(word, flat, 4, **few).eval()(flat, Labelled(images, labels), images.flip(1), 4)
        assert (logits.argmax(-1) == labels.flip(1)).all()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_precisions_agree(self, word, dtype, backbone, episode):
        few = {"test_steps": 1} if word in LINEAR else {}  # rounding grows with every step
        torch.manual_seed(0)
        exact = head(word, backbone, **few).eval()(backbone, *episode[:1], episode.query.images, W)
        support = episode.support._replace(images=episode.support.images.float())
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            torch.manual_seed(0)
            single = head(word, backbone, **few).float().eval()
            logits = single(backbone.float(), support, episode.query.images.float(), W)
        assert logits.isfinite().all()
        tolerance = 1e-4 if dtype == torch.float32 else 0.1
        error = (logits.double().softmax(-1) - exact.softmax(-1)).abs().max()
        assert error < tolerance, error


def test_protonet_is_the_distance_to_class_means(episode):
    support, query = episode.support.images.flatten(2), episode.query.images.flatten(2)
    means = torch.stack([support[:, 2 * c : 2 * c + 2].mean(1) for c in range(W)], 1)
    reference = -(query.unsqueeze(2) - means.unsqueeze(1)).square().sum(-1)
    torch.testing.assert_close(ProtoNet().classify(support, episode.support.labels, query, W), reference)
    divided = ProtoNet(divide=True).classify(support, episode.support.labels, query, W)
    torch.testing.assert_close(divided, reference / 256)


def test_protonet_keeps_digits_far_from_the_origin():
    near = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[0, 1]])
    reference = ProtoNet().classify(near[:, :2].double(), labels, near[:, 2:].double(), 2)
    far = ProtoNet().classify(near[:, :2] + 1000, labels, near[:, 2:] + 1000, 2)
    torch.testing.assert_close(far.double(), reference, rtol=1e-3, atol=1e-2)


def test_metaoptnet_ridge_is_twice_the_ridge(episode):
    """MetaOptNet minimises 1/2 a'(K + 50 I)a - 2 Y'a; its solution is twice the regression's."""
    support, query = episode.support.images.flatten(2), episode.query.images.flatten(2)
    onehot = torch.nn.functional.one_hot(episode.support.labels, W).double()
    alpha = 2 * torch.linalg.solve(support @ support.mT + 50 * torch.eye(2 * W), onehot)
    torch.testing.assert_close(query @ support.mT @ alpha, 2 * ridge(support, onehot, 50.0, query))
    ours = Ridge().classify(support, episode.support.labels, query, W)
    torch.testing.assert_close(2 * ours, query @ support.mT @ alpha)


def test_label_smoothing_spares_the_true_class(episode):
    """Lee et al. (2019): 1 - eps on the true class, eps / (way - 1) on each other."""
    backbone, trained = Flat(), ProtoNet()
    logits = trained(backbone, episode.support, episode.query.images, W)
    weights = torch.full((T, W * Q, W), 0.1 / (W - 1), dtype=torch.double)
    weights.scatter_(2, episode.query.labels.unsqueeze(-1), 0.9)
    reference = -(weights * logits.log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(
        Episodic(NoRegularizer(), label_smoothing=0.1)(backbone, trained, [episode]).loss, reference
    )
