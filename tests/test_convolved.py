"""A first layer whose output is never whole in memory, against the layers one after the other."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torch import nn

from metafew import cli
from metafew.assemble import make
from metafew.backbones.block import Block
from metafew.norms import norm as norms
from metafew.norms.batch import BatchNorm
from metafew.norms.convolved import PooledConvolution, filtering, output_moments
from metafew.norms.pooling import pooling
from metafew.norms.running import commit
from metafew.norms.scope import rows

SCHEMES = sorted(file.stem for file in (cli.CONF / "norm").glob("*.yaml"))
TASKS, ROWS, WIDTH = 3, 5, 48


@pytest.fixture(autouse=True)
def a_small_cache(monkeypatch):
    """Let the output of two small images fill it."""
    monkeypatch.setattr("metafew.norms.passes.CACHED", 2 * WIDTH * 64)


@pytest.fixture
def images():
    return torch.rand(TASKS * ROWS, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.double)


def block(norm: nn.Module, conv: nn.Module | None = None, pool: nn.Module | None = None) -> Block:
    """Return a first layer with unlike weights, in float64."""
    torch.manual_seed(0)
    layers = Block(conv or nn.Conv2d(1, WIDTH, 3, padding=1, bias=False), norm, pool or nn.MaxPool2d(2)).double()
    with torch.no_grad():
        for value in (*norm.parameters(), *norm.buffers()):
            value.copy_(torch.rand(value.shape) + 0.5)
    return layers


def one_by_one(layers: Block, images: torch.Tensor) -> torch.Tensor:
    """Return what the layers make of the images in their order."""
    conv, norm, pool = layers
    return pool(norm(conv(images)))


@pytest.fixture
def calls(monkeypatch):
    """The calls in which a convolution and its pooling are one."""
    seen = []
    apply = PooledConvolution.apply
    monkeypatch.setattr(PooledConvolution, "apply", lambda *args: seen.append(args) or apply(*args))
    return seen


@pytest.mark.parametrize("word", SCHEMES)
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(("tasks", "context"), [(TASKS, 2), (TASKS, ROWS), (1, 2)])
def test_every_scheme_gives_the_same_to_the_second_derivative(word, train, tasks, context, images, calls):
    found = []
    for f in (Block.__call__, one_by_one):
        norm = make(OmegaConf.load(cli.CONF / "norm" / f"{word}.yaml"))(WIDTH)
        layers = block(norm).train(train)
        images, inputs = images[: tasks * ROWS], [*layers.parameters()]
        with rows(tasks, context):
            y = f(layers, images)
        first = torch.autograd.grad(y.sin().sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum(grad.sin().sum() for grad in first), inputs)
        commit(layers)
        found.append([y, *first, *second, *layers.buffers()])
    assert len(calls) == 1
    for one, other in zip(*found, strict=True):
        scale = other.abs().max().item()  # sums of large terms, which may cancel
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10 + 1e-12 * scale)


@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.MaxPool2d(3, 2, padding=1, ceil_mode=True)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_derivatives_of_three_orders(pool, layout, images):
    torch.manual_seed(0)
    images = torch.rand(5, 2, 5, 6, dtype=torch.double).to(memory_format=layout)
    conv = nn.Conv2d(2, 3, (3, 2), stride=(1, 2), padding=(0, 1), bias=False).double()

    def f(weight):
        return PooledConvolution.apply(images, weight, filtering(conv), pooling(pool))[0]

    def slope(weight):
        return torch.autograd.grad(f(weight).sin().sum(), weight, create_graph=True)[0]

    torch.testing.assert_close(f(conv.weight), pool(conv(images)), rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(f, conv.weight)
    assert torch.autograd.gradcheck(slope, conv.weight)
    assert torch.autograd.gradgradcheck(slope, conv.weight)


@settings(deadline=None, max_examples=50)
@given(
    channels=st.integers(1, 3),
    sides=st.tuples(st.integers(4, 7), st.integers(4, 7)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    groups=st.sampled_from([2, 4, 12]),
    seed=st.integers(0, 99),
)
def test_moments_are_those_of_the_output(channels, sides, kernel, stride, padding, groups, seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(12, channels, *sides, generator=generator, dtype=torch.double)
    conv = nn.Conv2d(channels, 4, kernel, stride, padding, bias=False).double()
    conv.weight.data = torch.randn(conv.weight.shape, generator=generator, dtype=torch.double)
    mean, var = output_moments(images, conv, 2, groups)
    output = conv(images).unflatten(0, (2, groups // 2, -1))
    torch.testing.assert_close(mean, output.mean((2, 4, 5)), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(var, output.var((2, 4, 5), correction=0), rtol=1e-8, atol=1e-12)
    slope = torch.randn(var.shape, generator=generator, dtype=torch.double)
    (one,) = torch.autograd.grad((mean.sin() + slope * var).sum(), conv.weight)
    direct = output.mean((2, 4, 5)).sin() + slope * output.var((2, 4, 5), correction=0)
    (other,) = torch.autograd.grad(direct.sum(), conv.weight)
    torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


def test_an_edge_filter_on_smooth_images_keeps_its_digits():
    slope = torch.linspace(0.9, 1.0, 28).expand(4, 1, 28, 28) + 0.001 * torch.rand(4, 1, 28, 28)
    conv = nn.Conv2d(1, WIDTH, 3, bias=False)
    with torch.no_grad():
        conv.weight.sub_(conv.weight.mean((2, 3), keepdim=True))
    mean, var = output_moments(slope, conv, 1, 1)
    exact = nn.functional.conv2d(slope.double(), conv.weight.double())
    torch.testing.assert_close(mean[0, 0].double(), exact.mean((0, 2, 3)), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(var[0, 0].double(), exact.var((0, 2, 3), correction=0), rtol=1e-6, atol=0)


def test_constant_images_have_no_variance_and_a_gradient():
    layers = block(BatchNorm(WIDTH), nn.Conv2d(1, WIDTH, 3, bias=False))
    with rows(2, 8):
        y = layers(torch.full((16, 1, 8, 8), 0.1, dtype=torch.double))
    torch.testing.assert_close(y, layers[1].bias[:, None, None].expand_as(y), rtol=0, atol=1e-6)
    y.square().sum().backward()
    assert layers[0].weight.grad.abs().max() < 1e-6
    levels = torch.linspace(0.1, 0.9, 16)[:, None, None, None]
    _, var = output_moments(levels.expand(-1, 1, 8, 8), layers[0].float(), 1, 16)
    assert (var >= 0).all()
    assert (var < 1e-12).all()


def test_the_output_is_not_kept_for_the_derivative(images):
    layers, sizes = block(BatchNorm(WIDTH)), []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
        with rows(TASKS, 2, record=False):
            whole = one_by_one(layers, images).numel() * 4  # before pooling
        assert max(sizes) == whole
        sizes.clear()
        with rows(TASKS, 2, record=False):
            layers(images)
    assert max(sizes) == whole // 4


def test_frozen_filters_have_no_gradient_and_the_norm_has(images, calls):
    found = []
    for f in (Block.__call__, one_by_one):
        layers = block(BatchNorm(WIDTH))
        layers[0].requires_grad_(False)
        with rows(TASKS, 2, record=False):
            f(layers, images).square().sum().backward()
        assert layers[0].weight.grad is None
        found.append((layers[1].weight.grad, layers[1].bias.grad))
    assert len(calls) == 1
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


def hooked(layer: nn.Module, register: str = "register_forward_hook") -> nn.Module:
    """Return the layer, with somebody who listens."""
    getattr(layer, register)(lambda *_: None)
    return layer


class OwnPool(nn.MaxPool2d):
    """A pooling of one's own."""


class OwnConv(nn.Conv2d):
    """A convolution of one's own."""


conv = partial(nn.Conv2d, 1, WIDTH, 3, bias=False)
OTHERS = {
    "conv hooked": lambda: (hooked(conv()), None),
    "conv hooked before": lambda: (hooked(conv(), "register_forward_pre_hook"), None),
    "conv hooked behind": lambda: (hooked(conv(), "register_full_backward_hook"), None),
    "pool hooked": lambda: (None, hooked(nn.MaxPool2d(2))),
    "conv of one's own": lambda: (OwnConv(1, WIDTH, 3, bias=False), None),
    "pool of one's own": lambda: (None, OwnPool(2)),
    "bias": lambda: (nn.Conv2d(1, WIDTH, 3), None),
    "dilated": lambda: (conv(dilation=2), None),
    "mirrored": lambda: (conv(padding=1, padding_mode="reflect"), None),
    "same": lambda: (conv(padding="same"), None),
    "large filters": lambda: (nn.Conv2d(1, WIDTH, 4, bias=False), None),
    "few filters": lambda: (nn.Conv2d(1, 40, 3, bias=False), None),
    "parametrized": lambda: (nn.utils.parametrizations.weight_norm(conv()), None),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_layers_pass_one_after_the_other(name, images, calls):
    own_conv, own_pool = OTHERS[name]()
    layers = block(BatchNorm(own_conv.out_channels if own_conv else WIDTH), own_conv, own_pool)
    with rows(TASKS, 2, record=False):
        torch.testing.assert_close(layers(images), one_by_one(layers, images), rtol=1e-10, atol=1e-10)
    assert not calls


def test_other_images_pass_one_after_the_other(images, calls, monkeypatch):
    layers = block(BatchNorm(WIDTH))
    with rows(TASKS, 2, record=False):
        (wanted,) = torch.autograd.grad(layers(images.requires_grad_()).square().sum(), images)
        assert wanted.abs().max() > 0
        images = images.detach()
        with torch.autocast("cpu", torch.bfloat16):
            layers.float()(images.float())
        layers.bfloat16()(images.bfloat16())
        layers.double()
        layers[1].weight.data[0] *= -1
        layers(images)
        layers[1].weight.data[0] *= -1
        assert not calls
        layers(images)
        assert len(calls) == 1
        monkeypatch.setattr("metafew.norms.passes.CACHED", WIDTH * 64 * TASKS * ROWS)
        layers(images)
        assert len(calls) == 1


def test_rows_of_one_task_are_one_group_first(images, calls, monkeypatch):
    used = []
    apply = norms.OneGroup.apply
    monkeypatch.setattr(norms.OneGroup, "apply", lambda *args: used.append(args) or apply(*args))
    layers = block(BatchNorm(WIDTH))
    with rows(1, len(images), record=False):
        y = layers(images)
        assert (len(used), len(calls)) == (1, 0)
        torch.testing.assert_close(y, one_by_one(layers, images), rtol=1e-10, atol=1e-10)
        hooked(layers[2])
        used.clear()
        layers(images)
        assert not used


@pytest.mark.parametrize("stacked", [(0, None), (None, 0)])
def test_vmap_over_images_or_filters(stacked, images, calls):
    layers = block(BatchNorm(WIDTH))
    values = torch.stack([images, 2 * images]), torch.stack([layers[0].weight, -layers[0].weight]).detach()

    def f(images, weight):
        with rows(TASKS, 2, record=False):
            return torch.func.functional_call(layers, {"0.weight": weight}, (images,))

    together = torch.vmap(f, stacked)(*(v if dim == 0 else v[0] for v, dim in zip(values, stacked, strict=True)))
    assert not calls
    for i in range(2):
        alone = f(*(v[i] if dim == 0 else v[0] for v, dim in zip(values, stacked, strict=True)))
        torch.testing.assert_close(together[i], alone, rtol=1e-9, atol=1e-10)
    assert len(calls) == 2
