"""MAML's meta-gradient against finite differences, its limits, and what it leaves behind."""

import copy

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn
from torch.func import functional_call

from metafew import cli
from metafew.assemble import make
from metafew.backbones.backbone import Backbone
from metafew.episode import Episode, Labelled
from metafew.errors import UsageError
from metafew.heads.maml import MAML
from metafew.norms.norm import Norm
from metafew.norms.running import commit
from metafew.objectives import Episodic

NORMS = sorted(file.stem for file in (cli.CONF / "norm").glob("*.yaml"))
W = 3


class Smooth(Backbone):
    """Two convolutions with norms, softplus and average pooling: no kinks, so that finite differences are exact."""

    features = 4

    def __init__(self, word):
        super().__init__()
        norm = make(OmegaConf.load(cli.CONF / "norm" / f"{word}.yaml"))
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1, bias=False), norm(4), nn.Softplus(), nn.AvgPool2d(2),
            nn.Conv2d(4, 4, 3, padding=1, bias=False), norm(4), nn.Softplus(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip

    def forward(self, images):
        return self.body(images)


@pytest.fixture
def episode():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 4 * W, 1, 6, 6, generator=generator, dtype=torch.double)
    labels = torch.arange(W).repeat(2, 4)
    support = Labelled(images[:, : 2 * W], labels[:, : 2 * W])
    return Episode(support, Labelled(images[:, 2 * W :], labels[:, 2 * W :]), W, torch.arange(2))


def learner(word, **options):
    torch.manual_seed(0)
    return Smooth(word).double(), MAML(4, **{"trained": True, "way": W, "steps": 2, "lr": 0.3} | options).double()


def parameters(backbone, head):
    return [*backbone.parameters(), *head.parameters()]


@pytest.mark.parametrize("word", [word for word in NORMS if word != "batch_renorm"])
@pytest.mark.parametrize("options", [{}, {"output": "shared", "adapt": "no_norm"}], ids=["all", "no_norm"])
def test_meta_gradient_by_finite_differences(word, options, episode):
    backbone, head = learner(word, **options)
    Episodic()(backbone, head, [episode]).backward()
    generator = torch.Generator().manual_seed(1)
    values = parameters(backbone, head)
    direction = [torch.randn(p.shape, generator=generator, dtype=torch.double) for p in values]
    ours = sum((p.grad * d).sum() for p, d in zip(values, direction, strict=True))

    def moved(step):
        with torch.no_grad():
            for p, d in zip(values, direction, strict=True):
                p += step * d
            loss = Episodic()(backbone, head, [episode])
            for p, d in zip(values, direction, strict=True):
                p -= step * d
        return loss

    h = 1e-4  # fourth-order differences: an error of h^4
    numeric = (8 * (moved(h) - moved(-h)) - (moved(2 * h) - moved(-2 * h))) / (12 * h)
    assert ours.item() == pytest.approx(numeric.item(), rel=1e-6, abs=1e-9)


def test_without_steps_it_is_plain_training(episode):
    backbone, head = learner("transductive", steps=0)
    loss = Episodic()(backbone, head, [episode])
    _, features = backbone.embed(episode.support.images, episode.query.images)
    logits = nn.functional.linear(features, head.weight, head.bias)
    torch.testing.assert_close(loss, nn.functional.cross_entropy(logits.mT, episode.query.labels))


def test_first_order_is_the_gradient_at_the_adapted_weights(episode):
    backbone, head = learner("tasknorm", steps=1, first_order=True)
    first = Labelled(*(part[:1] for part in episode.support))
    loss = Episodic()(
        backbone, head, [episode._replace(support=first, query=Labelled(*(p[:1] for p in episode.query)))]
    )
    loss.backward()

    adapted, top = copy.deepcopy(backbone), copy.deepcopy(head)
    adapted.zero_grad()
    top.zero_grad()
    features, _ = adapted.embed(first.images)
    inner = nn.functional.cross_entropy(nn.functional.linear(features[0], top.weight, top.bias), first.labels[0])
    fast = [p for n, p in adapted.named_parameters() if "alpha" not in n] + [top.weight, top.bias]
    for p, g in zip(fast, torch.autograd.grad(inner, fast), strict=True):
        p.data -= 0.3 * g
    _, features = adapted.embed(first.images, episode.query.images[:1])
    outer = nn.functional.cross_entropy(
        nn.functional.linear(features[0], top.weight, top.bias), episode.query.labels[0]
    )
    outer.backward()
    for p, q in zip(parameters(backbone, head), parameters(adapted, top), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-11)


def test_second_order_differs_from_first(episode):
    gradients = []
    for first_order in (False, True):
        backbone, head = learner("tasknorm", first_order=first_order)
        Episodic()(backbone, head, [episode]).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in backbone.parameters()]))
    assert (gradients[0] - gradients[1]).norm() > 1e-3 * gradients[0].norm()


@pytest.mark.parametrize("word", NORMS)
def test_evaluation_leaves_no_trace_and_builds_no_graph(word, episode):
    backbone, head = learner(word)
    backbone.eval(), head.eval()
    before = copy.deepcopy([backbone.state_dict(), head.state_dict()])
    with torch.no_grad():
        logits = head(backbone, episode.support, episode.query.images, W)
        again = head(backbone, episode.support, episode.query.images, W)
    assert torch.equal(logits, again) and not logits.requires_grad
    for old, new in zip(before, [backbone.state_dict(), head.state_dict()], strict=True):
        assert all(torch.equal(old[key], new[key]) for key in old)
    assert all(p.grad is None for p in parameters(backbone, head))


def test_adaptation_fits_the_support(episode):
    backbone, head = learner("meta_batch", test_steps=100, lr=0.5)
    backbone.eval(), head.eval()
    with torch.no_grad():
        logits = head(backbone, episode.support, episode.support.images, W)
    assert (logits.argmax(-1) == episode.support.labels).all()


def test_running_moments_are_those_of_the_final_pass(episode):
    backbone, head = learner("transductive", steps=3)
    head(backbone, episode.support, episode.query.images, W)
    norm = next(m for m in backbone.modules() if isinstance(m, Norm))
    assert norm.pending[0, -1] == 2  # two tasks, once each, whatever the number of steps
    commit(backbone)
    assert norm.running_mean.abs().sum() > 0


@pytest.mark.parametrize("output", ["shared", "zero"])
def test_outputs_that_take_any_way(output, episode):
    backbone, head = learner("tasknorm", way="2..5", output=output)
    narrow = Labelled(episode.support.images[:, :2], episode.support.labels[:, :2])
    assert head(backbone, narrow, episode.query.images, 2).shape == (2, 2 * W, 2)
    assert head(backbone, episode.support, episode.query.images, W).shape == (2, 2 * W, W)


def test_a_linear_output_wants_one_way(episode):
    with pytest.raises(UsageError, match="one number of classes"):
        learner("none", way="2..5", output="linear")
    backbone, head = learner("none")
    with pytest.raises(UsageError, match="made for 3 classes and a task has 2"):
        head(backbone, episode.support, episode.query.images, 2)


def test_embedding_with_other_weights_needs_no_copy(episode):
    """The functional call that MAML rests on leaves the backbone's own weights alone."""
    backbone, _ = learner("none")
    zeros = {f"backbone.{n}": torch.zeros_like(p) for n, p in backbone.named_parameters()}
    from metafew.heads.maml import Bound

    features, _ = functional_call(Bound(backbone), zeros, (episode.support.images,))
    assert features.std() == 0 and backbone.embed(episode.support.images)[0].std() > 0
