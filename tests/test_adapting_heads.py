"""Heads that adapt weights in other ways than MAML, against slow references."""

import copy

import pytest
import torch
from contracts import node, norm
from contracts.heads import make_episode
from smooth import Smooth, W, three_tasks
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, linear

from metafew.backbones.conv4 import Conv4
from metafew.backbones.identity import Identity
from metafew.config.groups import CONF
from metafew.errors import UsageError
from metafew.heads.curvature import Curvature
from metafew.heads.fast_weights import SupportSet
from metafew.heads.inner import Shape
from metafew.heads.maml import MAML
from metafew.heads.tsa import TSA
from metafew.meta_parameters import meta_parameters
from metafew.norms.scope import rows
from metafew.objectives.episodic import Episodic
from metafew.objectives.regularizers import NoRegularizer
from metafew.training.instantiate import make_head


def learner(word="tasknorm", **options):
    torch.manual_seed(0)
    backbone = Smooth(word).double().eval()
    return backbone, MAML(backbone, **{"trained": True, "way": W, "test_steps": 2, "lr": 0.3} | options).double().eval()


def one_task():
    task = three_tasks().split(1)[0]
    return task.support, task.query.images, W


@pytest.mark.parametrize("trained", [True, False])
def test_boil_fits_a_network_under_an_output_layer_that_stays(trained):
    backbone, head = learner("none", adapt="body", trained=trained, lr=50)
    support, query, _ = one_task()
    body, labels = copy.deepcopy(backbone), support.labels[0]
    start, logits = body.embed(support.images)[0][0].detach(), head(backbone, support, query, W)
    if trained:
        weight, bias = head.output.weight.detach(), head.output.bias.detach()
    else:  # nearest class mean
        means = torch.stack([start[labels == label].mean(0) for label in range(W)])
        weight, bias = 2 * means, -means.square().sum(1)
    optimizer = torch.optim.SGD(body.parameters(), lr=50)
    for _ in range(2):
        optimizer.zero_grad()
        cross_entropy(linear(body.embed(support.images)[0][0], weight, bias), labels).backward()
        optimizer.step()
    features = body.embed(query)[0][0]
    torch.testing.assert_close(logits[0], linear(features, weight, bias), rtol=1e-10, atol=1e-12)
    assert (body.embed(support.images)[0][0] - start).abs().max() > 1e-3


def test_boil_has_a_learned_layer_only_where_it_fits():
    kinds = [learner(adapt="body", trained=trained, way=way)[1].output.kind
             for trained, way in ((True, W), (False, W), (True, "2..5"))]  # fmt: skip
    assert kinds == ["linear", "prototype", "prototype"]


def test_proto_maml_descends_through_class_means_with_constant_inner_gradients():
    """The layer 2 p, -|p|^2 of the class means p, and the backbone, each plus constants: the inner steps."""
    torch.manual_seed(0)
    backbone, task = Smooth("none").double(), three_tasks().split(1)[0]
    head = make_head(node(CONF / "head" / "proto_maml.yaml"), backbone, trained=True).double()
    head.steps, lr = 2, head.learning_rates[0]
    names, values = zip(*backbone.named_parameters(), strict=True)
    (images, labels), queries = (task.support.images[0], task.support.labels[0]), task.query.images[0]

    def embedded(values, images):
        with rows(1, len(images)):
            return functional_call(backbone, dict(zip(names, values, strict=True)), (images,))

    features = embedded(values, images)
    means = torch.stack([features[labels == label].mean(0) for label in range(W)])
    weights = [*values, 2 * means, -means.square().sum(1)]
    rates = [*(lr * (name in head.names) for name in names), lr, lr]
    for _ in range(head.steps):
        here = [value.detach().requires_grad_() for value in weights]
        loss = cross_entropy(linear(embedded(here[:-2], images), *here[-2:]), labels)
        grads = torch.autograd.grad(loss, here)
        weights = [value - rate * grad for value, rate, grad in zip(weights, rates, grads, strict=True)]
    cross_entropy(linear(embedded(weights[:-2], queries), *weights[-2:]), task.query.labels[0]).backward()
    expected = [value.grad.clone() for value in values]
    backbone.zero_grad()
    Episodic(NoRegularizer())(backbone, head, [task]).loss.backward()
    for value, gradient in zip(values, expected, strict=True):
        torch.testing.assert_close(value.grad, gradient, rtol=1e-9, atol=1e-12)
    assert max(gradient.abs().max() for gradient in expected) > 1e-6


def test_proto_maml_leaves_scales_and_shifts_of_norms():
    backbone = Smooth("batch")
    head = make_head(node(CONF / "head" / "proto_maml.yaml"), backbone, trained=True)
    assert {*head.names} == {"body.0.weight", "body.4.weight"}


@pytest.mark.parametrize("size", [(4, 3, 2, 2), (4, 3, 1, 1), (1, 3, 2, 2), (4, 3), (5,)])
def test_curvature_is_the_product_with_a_kronecker_product(size):
    generator = torch.Generator().manual_seed(0)
    curvature = Curvature([Shape("layer.weight", torch.Size(size))]).double()
    for matrix in curvature.parameters():
        matrix.data = torch.randn(matrix.shape, generator=generator, dtype=torch.double)
    direction, weight = torch.randn(2, 3, *size, generator=generator, dtype=torch.double)
    factors = [matrix.diag() if matrix.ndim == 1 else matrix for matrix in curvature.parameters()]
    full = factors[0]  # in the order of dimensions: output, input, kernel
    for factor in factors[1:]:
        full = torch.kron(full, factor)
    assert len(full) == direction[0].numel()
    expected = weight - 0.3 * torch.stack([(full @ g.flatten()).view(size) for g in direction])
    found = curvature.descend({"layer.weight": weight}, {"layer.weight": direction}, 0, 0.3)
    torch.testing.assert_close(found["layer.weight"], expected, rtol=1e-12, atol=1e-12)


def test_curvature_of_an_output_layer_for_any_way_treats_classes_alike():
    backbone, head = learner(rates="curvature", output="shared")
    with torch.no_grad():
        for matrix in head.rates.parameters():
            matrix += 0.1 * torch.randn(matrix.shape, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    support, query, _ = one_task()
    order = torch.tensor([2, 0, 1])
    renamed = head(backbone, support._replace(labels=order[support.labels]), query, W)[..., order]
    torch.testing.assert_close(renamed, head(backbone, support, query, W), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rates", ["curvature", "layer", "weight"])
def test_what_inner_steps_learn_is_exempt_from_weight_decay(rates):
    head = learner(rates=rates)[1]
    assert len([*head.rates.parameters()])
    assert set(map(id, meta_parameters(head).values())) == set(map(id, head.rates.parameters()))


def tsa(backbone, trained=False, **options):
    return TSA(backbone, trained, **{"test_steps": 3} | options).double().eval()


@pytest.mark.parametrize("adapt", ["all", "linear"])
def test_tsa_is_layers_beside_convolutions_fitted_by_the_adadelta_of_torch(adapt):
    torch.manual_seed(0)
    backbone = Conv4(1, 16, norm("none"), width=4, downsample="stride").double().requires_grad_(False)
    task = make_episode().split(1)[0]
    network = copy.deepcopy(backbone)
    adapters = []
    for block in network.blocks:
        adapters.append(Beside(block[0]))
        block[0] = adapters[-1]
    linear_map = nn.Linear(network.features, network.features, bias=False).double()
    nn.init.eye_(linear_map.weight)
    groups = [{"params": linear_map.parameters(), "lr": 0.7}]
    if adapt == "all":
        groups.append({"params": [adapter.beside.weight for adapter in adapters]})
    else:
        for adapter in adapters:
            nn.init.zeros_(adapter.beside.weight)
    optimizer = torch.optim.Adadelta(groups, lr=0.3)

    def logits(images):
        context, features = (linear_map(network.embed(x)[0][0]) for x in (task.support.images, images))
        means = torch.stack([context[task.support.labels[0] == label].mean(0) for label in range(W)])
        return 10 * nn.functional.cosine_similarity(features[:, None], means, dim=-1)

    start = logits(task.query.images)
    for _ in range(3):
        optimizer.zero_grad()
        cross_entropy(logits(task.support.images), task.support.labels[0]).backward()
        optimizer.step()
    found = tsa(backbone, adapt=adapt, lr=0.3, linear_lr=0.7)(backbone, task.support, task.query.images, W)[0]
    torch.testing.assert_close(found, logits(task.query.images), rtol=1e-9, atol=1e-11)
    assert (found - start).abs().max() > 1e-2


class Beside(nn.Module):
    """A convolution with a 1x1 convolution of the same stride beside it, which starts from the identity times 1e-4."""

    def __init__(self, convolution):
        super().__init__()
        self.convolution = convolution
        outputs, inputs = convolution.weight.shape[:2]
        self.beside = nn.Conv2d(inputs, outputs, 1, convolution.stride, bias=False).double()
        self.beside.weight.data = 1e-4 * torch.eye(outputs, inputs, dtype=torch.double)[..., None, None]

    def forward(self, x):
        return self.convolution(x) + self.beside(x)


def test_tsa_gives_the_same_in_every_execution():
    backbone, task = Smooth("tasknorm").double().eval(), three_tasks()
    reference, *others = (
        tsa(backbone, inner=inner, chunk=2, test_steps=2)(backbone, task.support, task.query.images, W)
        for inner in ("loop", "batch", "chunk", "vmap")
    )
    for other in others:
        torch.testing.assert_close(other, reference, rtol=1e-12, atol=1e-12)


def test_training_under_tsa_descends_through_its_steps():
    torch.manual_seed(0)
    backbone, task = Smooth("tasknorm").double(), three_tasks()
    head = tsa(backbone, trained=True, steps=1).train()
    objective = Episodic(NoRegularizer())
    objective(backbone, head, [task]).loss.backward()
    values = list(backbone.parameters())
    direction = [torch.randn(p.shape, generator=torch.Generator().manual_seed(1), dtype=torch.double) for p in values]
    ours = sum((p.grad * d).sum() for p, d in zip(values, direction, strict=True))

    def moved(step):
        with torch.no_grad():
            torch._foreach_add_(values, direction, alpha=step)
            loss = objective(backbone, head, [task]).loss
            torch._foreach_add_(values, direction, alpha=-step)
        return loss

    h = 1e-4
    numeric = (8 * (moved(h) - moved(-h)) - (moved(2 * h) - moved(-2 * h))) / (12 * h)
    assert ours.item() == pytest.approx(numeric.item(), rel=1e-6, abs=1e-9)


def test_adapters_of_tsa_start_from_the_identity_of_each_group():
    class Grouped(Identity):
        def __init__(self):
            super().__init__(1, 6, None)
            self.layers = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 4, 3, groups=2), nn.Conv2d(4, 6, 3))

    head = tsa(Grouped())
    images = torch.zeros(1, 2, 1, 6, 6, dtype=torch.double)
    start = head.start(None, SupportSet(images, torch.tensor([[0, 1]]), 2))
    depthwise, grouped, plain = (start[f"adapter.layers.{i}.weight"][0] / 1e-4 for i in range(3))
    torch.testing.assert_close(depthwise, torch.ones(8, 1).double())
    torch.testing.assert_close(grouped, torch.eye(2, 4).repeat(2, 1).double())
    torch.testing.assert_close(plain, torch.eye(6, 4).double())


def test_tsa_moves_kernels_in_their_centre_only():
    backbone = Smooth("tasknorm").double().eval()
    ((before, after),) = tsa(backbone).adaptation(backbone, one_task()[0], W)
    for name in ("backbone.body.0.weight", "backbone.body.4.weight"):
        change = (after[name] - before[name]).abs().sum((0, 1))
        assert change[1, 1] > 1e-4 and change.sum() == change[1, 1]
    assert backbone.get_parameter("body.0.weight").requires_grad, "the network is used as it is"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"adapt": "norms"}, "expected head.adapt to be all or linear, got norms: type head.adapt=all"),
        ({"linear_lr": 0}, "expected head.linear_lr to be a positive number, got 0: type head.linear_lr=1"),
        ({"test_steps": -1}, "expected head.test_steps to be an integer of .* 0, got -1: type head.test_steps=40"),
    ],
)
def test_bad_options_of_tsa_are_refused(options, said):
    with pytest.raises(UsageError, match=f"^{said}$"):
        tsa(Smooth("none"), **options)
