"""Convolutions and linear layers with weights for each task, against the same layers called task by task."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from smooth import Smooth, W, three_tasks
from torch import nn

from metafew.backbones import task_convolution
from metafew.backbones.backbone import channels_last
from metafew.backbones.task_convolution import Convolve, Geometry, InputGradient, WeightGradient
from metafew.backbones.task_weights import accept_task_weights, obstacles
from metafew.config.compose import compose_overrides
from metafew.config.groups import CONF
from metafew.episode import Labelled
from metafew.errors import UsageError
from metafew.heads.fast_weights import adapting_names
from metafew.heads.maml import MAML
from metafew.norms.layer import LayerNorm as Layer
from metafew.training.factory import make_learner

TASKS, ROWS = 3, 2
SMALL = (0, 10**9)
"""Limits that make every convolution a loop, and every one a product of matrices."""


def called(layer, weights, x):
    return torch.func.functional_call(layer, weights, (x,))


def stacked(layer, generator, shared=False):
    """Draw weights for each task, or the same for all, as an inner loop starts from."""
    weights = {}
    for name, p in layer.named_parameters():
        value = torch.randn(1 if shared else TASKS, *p.shape, generator=generator, dtype=torch.double)
        weights[name] = value.expand(TASKS, *p.shape).requires_grad_()
    return weights


def results(x, y, weights):
    """Return maps and gradients of a function that is not linear in them."""
    inputs = [x, *weights.values()]
    return [y, *torch.autograd.grad(y.sin().sum(), inputs)]


def compare(layer, x, weights):
    together = results(x, called(layer, weights, x), weights)
    rows = x.chunk(TASKS)
    one_by_one = [called(layer, {k: w[i] for k, w in weights.items()}, rows[i]) for i in range(TASKS)]
    for ours, reference in zip(together, results(x, torch.cat(one_by_one), weights), strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-11, atol=1e-11)


@given(
    kernel=st.sampled_from([1, 2, 3, (1, 3)]), stride=st.sampled_from([1, 2, 3, (2, 1)]),
    padding=st.sampled_from([0, 1, 2, (0, 1)]), dilation=st.sampled_from([1, 2]), groups=st.sampled_from([1, 2]),
    bias=st.booleans(), size=st.integers(5, 9), small=st.sampled_from(SMALL), shared=st.booleans(),
    last=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_a_convolution_is_that_of_each_task(
    kernel, stride, padding, dilation, groups, bias, size, small, shared, last, seed
):
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Conv2d(2, 4, kernel, stride, padding, dilation, groups, bias).double()
    accept_task_weights(layer)
    x = torch.randn(TASKS * ROWS, 2, size, size + 1, generator=generator, dtype=torch.double)
    x = (channels_last(x) if last else x).requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task_convolution, "SMALL", small)
        compare(layer, x, stacked(layer, generator, shared))


@pytest.mark.parametrize("shape", [(6,), (4, 6)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_is_that_of_each_task(shape, bias):
    generator = torch.Generator().manual_seed(0)
    layer = accept_task_weights(nn.Linear(6, 5, bias)).double()
    x = torch.randn(TASKS * ROWS, *shape, generator=generator, dtype=torch.double).requires_grad_()
    compare(layer, x, stacked(layer, generator))


@pytest.mark.parametrize("small", SMALL)
@pytest.mark.parametrize("shared", [False, True])
def test_derivatives_of_both_orders_by_finite_differences(small, shared, monkeypatch):
    monkeypatch.setattr(task_convolution, "SMALL", small)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 1, 3, 3, generator=generator, dtype=torch.double)
    weight = torch.randn(1 if shared else 2, 2, 1, 3, 3, generator=generator, dtype=torch.double)
    geometry = Geometry((2, 2), (1, 1), (1, 1), 1)
    grad = torch.randn(4, 2, 2, 2, generator=generator, dtype=torch.double)

    def kernels(x, weight, grad):
        weight = weight.expand(2, *weight.shape[1:])
        return (
            Convolve.apply(x, weight, geometry),
            InputGradient.apply(grad, weight, x.detach(), geometry),
            WeightGradient.apply(grad, x, weight.detach(), geometry),
        )

    inputs = tuple(value.requires_grad_() for value in (x, weight, grad))
    assert torch.autograd.gradcheck(kernels, inputs)
    assert torch.autograd.gradgradcheck(kernels, inputs, fast_mode=True)


@pytest.mark.parametrize("small", SMALL)
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("layer", [nn.Conv2d(2, 4, 3), nn.Linear(5, 4)], ids=["convolution", "linear"])
def test_layers_under_autocast_are_in_its_precision(layer, shared, small, monkeypatch):
    monkeypatch.setattr(task_convolution, "SMALL", small)
    layer = accept_task_weights(layer)
    weights = {
        n: (p[None].detach() if shared else p.expand(TASKS, *p.shape).clone()) for n, p in layer.named_parameters()
    }
    weights = {name: value.expand(TASKS, *value.shape[1:]).requires_grad_() for name, value in weights.items()}
    x = torch.rand(TASKS, 2, 5, 5)
    with torch.autocast("cpu", torch.bfloat16):
        y = called(layer, weights, x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), layer(x), rtol=0.05, atol=0.05)
    grads = torch.autograd.grad(y.float().square().sum(), [*weights.values()])
    exact = torch.autograd.grad(called(layer, weights, x).square().sum(), [*weights.values()])
    for grad, reference in zip(grads, exact, strict=True):
        assert grad.dtype == torch.float32
        torch.testing.assert_close(grad, reference, rtol=0.1, atol=0.05 * reference.abs().max().item())


class Scaled(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, 2 * weight, bias)


def changed(layer):
    """A Smooth network with another second layer."""
    backbone = Smooth("tasknorm")
    backbone.body[1] = layer
    return accept_task_weights(backbone)


class Mixing(Layer):
    def __init__(self, channels):
        super().__init__(channels)
        self.mix = nn.Parameter(torch.zeros(2))


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (nn.GroupNorm(2, 4), "GroupNorm"),
        (nn.BatchNorm2d(4, affine=False), "BatchNorm2d"),  # the rows of all tasks would share its moments
        (Scaled(4, 4, 1), "Scaled"),
        (nn.utils.parametrizations.spectral_norm(nn.Conv2d(4, 4, 1)), "ParametrizationList"),
        (nn.Conv2d(4, 4, 3, padding="same"), "Conv2d"),
        (Mixing(4), "Mixing"),
        (nn.PReLU(), "PReLU"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_layers_that_cannot_have_weights_for_each_task_are_named(layer, name):
    backbone = changed(layer)
    assert name in obstacles(backbone, adapting_names(backbone))
    assert not obstacles(changed(nn.Conv2d(4, 4, 1)), ["body.1.weight", "body.1.bias"])
    assert not obstacles(backbone, [])


@pytest.mark.parametrize("freeze", ["body.1.weight", "body.1.bias"])
def test_a_layer_of_which_a_part_adapts_is_left_to_the_loop(freeze):
    backbone, task = Smooth("tasknorm").double(), three_tasks()
    auto, loop = (MAML(backbone, True, W, inner=inner, freeze=[freeze]).double() for inner in ("auto", "loop"))
    auto.load_state_dict(loop.state_dict())
    assert obstacles(backbone, auto.names) == ["TaskNorm"]
    results = [head(backbone, task.support, task.query.images, W) for head in (auto, loop)]
    torch.testing.assert_close(*results, rtol=1e-12, atol=0)


def test_networks_declare_that_they_leave_their_weights_to_layers():
    class Own(Smooth):
        task_weights = False

    backbone = Own("tasknorm")
    assert obstacles(backbone, adapting_names(backbone)) == ["Own"]


def test_a_batch_is_refused_where_the_network_cannot_take_it():
    backbone, task = Smooth("tasknorm").double(), three_tasks()
    backbone.body[1] = nn.GroupNorm(2, 4).double()
    arguments = backbone, task.support, task.query.images, W
    auto, batch = (MAML(backbone, True, W, inner=inner).double() for inner in ("auto", "batch"))
    assert auto.execution(backbone, torch.device("cpu")) == "loop"
    assert auto(*arguments).isfinite().all()
    with pytest.raises(UsageError, match=r"for head.inner=batch, got GroupNorm: type head.inner=loop$"):
        batch(*arguments)


BACKBONES = sorted(path.stem for path in (CONF / "backbone").glob("*.yaml") if path.stem not in ("identity", "module"))


@pytest.mark.parametrize("word", BACKBONES)
def test_every_backbone_gives_the_same_logits_in_a_batch(word):
    source = SimpleNamespace(channels=1, image_size=16)
    words = [f"backbone={word}", "backbone.width=4", "head=maml", "head.test_steps=2", "train.way=3"]
    learner = make_learner(compose_overrides(words), source, {"choices": {"head": "maml"}}, trained=True, fit=False)
    head = learner.double().eval().heads["maml"]
    images = torch.rand(2, 9, 1, 16, 16, dtype=torch.double)
    labels = torch.arange(3).repeat(2, 1)
    arguments = learner.backbone, Labelled(images[:, :3], labels), images[:, 3:], 3
    assert head.execution(learner.backbone, torch.device("cpu")) == "batch"
    batch = head(*arguments)
    head.inner = "loop"
    torch.testing.assert_close(batch, head(*arguments), rtol=1e-6, atol=1e-7)  # 18 layers amplify rounding


class Direct(Smooth):
    """A network whose code reads the weights of a layer."""

    def forward(self, images):
        return self.body[1:](nn.functional.conv2d(images, self.body[0].weight, padding=1))


def test_auto_is_loop_for_code_that_reads_the_weights_of_a_layer(caplog):
    backbone, task = Direct("tasknorm").double(), three_tasks()
    arguments = backbone, task.support, task.query.images, W
    auto, loop, batch = (MAML(backbone, True, W, inner=inner).double() for inner in ("auto", "loop", "batch"))
    auto.load_state_dict(loop.state_dict())
    torch.testing.assert_close(auto(*arguments), loop(*arguments), rtol=1e-12, atol=0)
    assert "head.inner=auto is loop from here on, as batch cannot process this network (" in caplog.text
    assert auto.execution(backbone, torch.device("cpu")) == "loop"
    with pytest.raises(UsageError, match=r"that batch can process for head.inner=batch, .*: type head.inner=loop$"):
        batch(*arguments)


def test_a_batch_has_fewer_tasks_the_larger_they_are():
    backbone = Smooth("tasknorm")
    head = MAML(backbone, True, W, steps=3)
    small, large = (torch.zeros(2, 5, 1, size, size) for size in (28, 512))
    assert head.tasks_per_chunk(backbone, small, small) > 1 == head.tasks_per_chunk(backbone, large, large)
    trained = head.tasks_per_chunk(backbone, small, small)
    assert head.eval().tasks_per_chunk(backbone, small, small) > trained, "no history of inner steps is kept"
