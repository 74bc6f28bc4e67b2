"""Heads that adapt weights in other ways than MAML, against slow references."""

import copy

import pytest
import torch
from contracts import node
from smooth import Smooth, W, three_tasks
from torch.func import functional_call
from torch.nn.functional import cross_entropy, linear

from metafew.config.groups import CONF
from metafew.heads.curvature import Curvature
from metafew.heads.inner import Shape
from metafew.heads.maml import MAML
from metafew.meta_parameters import meta_parameters
from metafew.norms.scope import rows
from metafew.objectives.episodic import Episodic
from metafew.objectives.regularizers import NoRegularizer
from metafew.training.factory import make_head


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
    for _ in range(head.steps):
        here = [value.detach().requires_grad_() for value in weights]
        loss = cross_entropy(linear(embedded(here[:-2], images), *here[-2:]), labels)
        grads = torch.autograd.grad(loss, here)
        weights = [value - lr * grad for value, grad in zip(weights, grads, strict=True)]
    cross_entropy(linear(embedded(weights[:-2], queries), *weights[-2:]), task.query.labels[0]).backward()
    expected = [value.grad.clone() for value in values]
    backbone.zero_grad()
    Episodic(NoRegularizer())(backbone, head, [task]).loss.backward()
    for value, gradient in zip(values, expected, strict=True):
        torch.testing.assert_close(value.grad, gradient, rtol=1e-9, atol=1e-12)
    assert max(gradient.abs().max() for gradient in expected) > 1e-6


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


def test_curvature_is_exempt_from_weight_decay():
    head = learner(rates="curvature")[1]
    assert set(map(id, meta_parameters(head).values())) == set(map(id, head.rates.parameters()))
