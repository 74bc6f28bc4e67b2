"""Contracts that every scheme under conf/norm keeps, formulas transcribed in NumPy, and fast execution against both."""

import copy
import gc
import pickle
import weakref

import numpy as np
import pytest
import torch
from contracts import SCHEMES, files, norms, sampled
from contracts.norms import C, NormContract, Q, S, T, apply, check_fast_execution, slope_after_a_step
from omegaconf import OmegaConf
from torch import nn

from metafew.backbones.backbone import target_chunks
from metafew.backbones.conv4 import Conv4
from metafew.config.groups import CONF
from metafew.errors import UsageError
from metafew.norms.batch import BatchNorm
from metafew.norms.fast import accelerate, decelerate
from metafew.norms.kernels import pieces
from metafew.norms.kernels.group_moments import GroupMoments, moments_of_groups
from metafew.norms.kernels.normalize import Normalize
from metafew.norms.kernels.pooled_moments import PooledMoments, Pooling
from metafew.norms.norm import Norm, pool
from metafew.norms.running import commit
from metafew.norms.scope import rows
from metafew.norms.tasknorm import TaskNorm
from metafew.training.instantiate import make

MAX = torch.nn.MaxPool2d(2)


def scheme(word: str) -> Norm:
    """Return a norm with unlike weights, biases and running moments, in float64."""
    return norms.scheme(CONF / "norm" / f"{word}.yaml")


@pytest.fixture
def x():
    return norms.make_x()


@pytest.mark.parametrize("file", files("norm"))
class TestContract(NormContract):
    pass


@pytest.mark.parametrize("word", SCHEMES)
class TestFast:
    """What :func:`accelerate` brings equals the definition."""

    @pytest.mark.parametrize("train", [True, False])
    @pytest.mark.parametrize("sign", [1, -1])
    @pytest.mark.parametrize(("tasks", "context"), sampled([(T, S), (T, S + Q), (1, S), (1, S + Q)], 2))
    @pytest.mark.parametrize("pool", [None, MAX])
    def test_results_gradients_of_both_orders_and_running_moments(self, word, train, sign, tasks, context, pool, x):
        def make_norm():
            norm = scheme(word).train(train)
            with torch.no_grad():
                norm.weight[0] *= sign
            return norm

        check_fast_execution(make_norm, x[:tasks, :, :, :4, :4], context, pool)

    @pytest.mark.parametrize("train", [True, False])
    def test_vmap_of_second_derivatives(self, word, train, x):
        slow, fast = scheme(word).train(train), accelerate(scheme(word).train(train))
        looped = torch.stack([slope_after_a_step(slow)(task) for task in x[:, :5]])
        torch.testing.assert_close(torch.vmap(slope_after_a_step(fast))(x[:, :5]), looped, rtol=1e-9, atol=1e-9)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_moments_are_precise_in_half_precision(self, word, dtype, x):
        norm, half = scheme(word).float(), (x + 30).to(dtype)
        norms.check_one_rounding(apply(accelerate(copy.deepcopy(norm)), half), apply(norm, half.float()), dtype)


def test_copies_of_an_accelerated_layer_are_layers_of_their_own(x):
    norm = accelerate(scheme("batch"))
    other = copy.deepcopy(norm)
    with torch.no_grad():
        other.weight.zero_()
    torch.testing.assert_close(apply(other, x), other.bias[:, None, None].expand_as(x))
    assert (apply(norm, x) - apply(other, x)).abs().max() > 0.1


def test_an_accelerated_layer_is_pickled_and_is_freed_with_its_last_reference(x):
    layers = accelerate(nn.Sequential(scheme("batch"), MAX))
    other = pickle.loads(pickle.dumps(layers))
    with torch.no_grad():
        other[0].weight.zero_()
    with rows(T, S):
        assert (other(x.flatten(0, 1)) - layers(x.flatten(0, 1))).abs().max() > 0.1
    gone = weakref.ref(layers)
    gc.disable()
    try:
        del layers
        assert gone() is None
    finally:
        gc.enable()


def test_a_decelerated_network_runs_its_definitions(x):
    layers = accelerate(nn.Sequential(scheme("batch"), MAX))
    fast = layers.forward
    assert decelerate(layers) is layers and fast != layers.forward
    assert not any("forward" in vars(module) for module in layers.modules())
    with rows(T, S, record=False):
        torch.testing.assert_close(layers(x.flatten(0, 1)), accelerate(layers)(x.flatten(0, 1)))


def test_hooks_of_norms_and_poolings_fire(x):
    layers, seen = accelerate(nn.Sequential(scheme("transductive"), nn.MaxPool2d(2), nn.ReLU())), []
    for layer in layers:
        layer.register_forward_hook(lambda layer, *_: seen.append(type(layer).__name__))
    with rows(1, S + Q, record=False):
        layers(x[0])
    assert seen.count("Transductive") == seen.count("MaxPool2d") == seen.count("ReLU") == 1


def test_a_forward_of_a_subclass_stays(x):
    class Doubled(BatchNorm):
        def forward(self, x):
            return 2 * super().forward(x)

    norm = accelerate(nn.Sequential(Doubled(C).double(), MAX))
    with rows(1, S + Q, record=False):
        torch.testing.assert_close(norm(x[0]), MAX(2 * BatchNorm(C).double()(x[0])), rtol=1e-12, atol=1e-12)


def run(layers, images):
    with rows(1, len(images), record=False):
        return layers(images)


def wider(norm, own, context):
    mean, var = BatchNorm.moments(norm, own, context)
    return mean, 4 * var


class Mixin:
    moments = wider


class Mixed(Mixin, BatchNorm):
    pass


class Overriding(BatchNorm):
    moments = wider


class Further(Overriding):
    pass


class Named(BatchNorm):
    pass


@pytest.mark.parametrize("kind", [Mixed, Overriding, Further, Named])
def test_who_overrides_moments_is_asked_for_them(kind, x):
    with rows(1, S + Q, record=False):
        ours, plain = (accelerate(norm(C, eps=0.0).double())(x[0]) for norm in (kind, BatchNorm))
    torch.testing.assert_close(ours if kind is Named else 2 * ours, plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("large", [1, 2**14])
@pytest.mark.parametrize("x", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weight", [torch.float64, torch.float32, torch.bfloat16])
def test_weights_and_images_of_any_precision(x, weight, large, monkeypatch):
    monkeypatch.setattr(pieces, "LARGE", large)
    images = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    with rows(1, 4, record=False):
        y = accelerate(nn.Sequential(BatchNorm(3).to(weight), MAX))(images.to(x))
        reference = MAX(BatchNorm(3)(images))
    assert y.dtype == x
    torch.testing.assert_close(y.float(), reference, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("large", [1, 2**14])
@pytest.mark.parametrize("cached", [1, 2**19])
@pytest.mark.parametrize("word", ["batch", "tasknorm"])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("pool", [nn.Identity(), MAX])
def test_bfloat16_is_rounded_once_forward_and_three_times_backward(word, pool, memory, cached, large, x, monkeypatch):
    monkeypatch.setattr(pieces, "CACHED", cached)
    monkeypatch.setattr(pieces, "LARGE", large)
    layers, images = accelerate(nn.Sequential(scheme(word).float(), pool)), x.flatten(0, 1).bfloat16()
    results = []
    for dtype in (torch.bfloat16, torch.float32):
        leaf = images.to(dtype, memory_format=memory).requires_grad_()
        with rows(T, S, record=False):
            y = layers(leaf)
        v = torch.randn(y.shape, generator=torch.Generator().manual_seed(0)).bfloat16()
        (grad,) = torch.autograd.grad(y, leaf, v.to(dtype))
        assert y.dtype == grad.dtype == dtype
        results.append((y.float(), grad.float()))
    (y, grad), (exact_y, exact_grad) = results
    torch.testing.assert_close(y, exact_y, rtol=2**-8, atol=1e-5)
    # Three roundings: of the scaled gradient, of the gradient through the moments, and of their sum.
    torch.testing.assert_close(grad, exact_grad, rtol=2**-7, atol=2**-8 * exact_grad.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stacked", [(0, None, None), (None, 0, None), (None, None, 0)])
def test_vmap_over_images_or_weights_or_biases(stacked, dtype):
    layers = accelerate(nn.Sequential(BatchNorm(3), MAX))
    values = torch.randn(2, 4, 3, 6, 6).to(dtype), torch.rand(2, 3), torch.rand(2, 3)

    def f(images, weight, bias):
        with rows(1, 4, record=False):
            return torch.func.functional_call(layers, {"0.weight": weight, "0.bias": bias}, (images,))

    together = torch.vmap(f, stacked)(*(v if dim == 0 else v[0] for v, dim in zip(values, stacked, strict=True)))
    for i in range(2):
        alone = f(*(v[i] if dim == 0 else v[0] for v, dim in zip(values, stacked, strict=True)))
        torch.testing.assert_close(together[i], alone)


def test_a_pooling_of_ones_own_is_called(x):
    class Own(torch.nn.MaxPool2d):
        def forward(self, x):
            return super().forward(x) + 100

    norm, mean = BatchNorm(C).double(), nn.AvgPool2d(2)
    own, plain, average = (accelerate(nn.Sequential(norm, pool)) for pool in (Own(2), MAX, mean))
    with rows(1, S + Q, record=False):
        assert (own(x[0]) - plain(x[0])).min() > 10
        torch.testing.assert_close(average(x[0]), mean(norm(x[0])), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_moments_of_groups_and_their_gradients_of_both_orders(groups):
    x = torch.randn(6, 2, 3, 3, dtype=torch.double, requires_grad=True)
    handed, mean, var = GroupMoments.apply(x, 1, groups)
    assert torch.equal(handed, x)
    parts = x.detach().unflatten(0, (groups, -1)).numpy()
    agree(mean[0], parts.mean((1, 3, 4)))
    agree(var[0], parts.var((1, 3, 4)))

    def f(x):
        handed, mean, var = GroupMoments.apply(x, 1, groups)
        return Normalize.apply(handed, mean, var.exp(), mean.mean((0, 1)), var.mean((0, 1)), 1e-5)

    assert torch.autograd.gradcheck(f, x)
    assert torch.autograd.gradgradcheck(f, x, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("rows_of_piece", [1, 2, 6])
@pytest.mark.parametrize("width", [4, 5])  # of five columns
@pytest.mark.parametrize("large", [1, 2**14])
def test_half_precision_agrees_with_float64(large, width, rows_of_piece, groups, memory, dtype, monkeypatch):
    monkeypatch.setattr(pieces, "CACHED", rows_of_piece * 3 * 5 * width)
    monkeypatch.setattr(pieces, "LARGE", large)  # 1: torch's kernels of batch normalization
    torch.manual_seed(0)
    x, dense = (torch.randn(6, 3, 5, 5).to(dtype).to(memory_format=memory)[..., :width] for _ in range(2))
    mean_slope = torch.randn(6, 3, 1, 1).to(dtype).expand(x.shape)  # the gradient of a mean over positions
    scale, shift = torch.randn(2, 1, groups, 3)
    parts = x.double().unflatten(0, (groups, -1))

    def agree(ours, exact, one_rounding=False):
        tolerance = torch.finfo(dtype).eps if one_rounding else 1e-5
        assert ours.dtype == (dtype if one_rounding else torch.float32)
        torch.testing.assert_close(ours.double(), exact.double().view(ours.shape), rtol=tolerance, atol=1e-5)

    for v in (dense, mean_slope):
        dots, sums = pieces.group_sums(v, x, scale)
        of_groups = v.double().unflatten(0, (groups, -1))
        agree(dots, (of_groups * parts).sum((1, 3, 4)))
        agree(sums, of_groups.sum((1, 3, 4)))
    mean, var = moments_of_groups(x, groups)
    agree(mean, parts.mean((1, 3, 4)))
    agree(var, parts.var((1, 3, 4), correction=0))
    scales, shifts = (each.double().view(groups, 1, 3, 1, 1) for each in (scale, shift))
    agree(pieces.scale_shift(x, scale), scales * parts, one_rounding=True)
    agree(pieces.scale_shift(x, scale, shift), scales * parts + shifts, one_rounding=True)


def test_values_of_tasks_and_of_all_tasks_and_of_any_precision(monkeypatch):
    monkeypatch.setattr(pieces, "LARGE", 1)
    torch.manual_seed(0)
    x, of_all, of_tasks = torch.randn(4, 3, 5, 5).bfloat16(), torch.randn(3), torch.randn(2, 1, 3)
    rows_of_tasks = of_tasks.repeat_interleave(2, 0).view(4, 3, 1, 1)
    for scale, shift, exact in [
        (of_all, of_tasks, of_all.view(3, 1, 1) * x.float() + rows_of_tasks),
        (of_tasks, of_all, rows_of_tasks * x.float() + of_all.view(3, 1, 1)),
    ]:
        for dtype in (torch.float32, torch.float64):
            y = pieces.scale_shift(x, scale, shift.to(dtype))
            torch.testing.assert_close(y.float(), exact, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_moments_of_many_values_in_half_precision_are_precise(memory):
    x = torch.randn(64, 3, 84, 84, generator=torch.Generator().manual_seed(0)).relu_().bfloat16()
    mean, var = moments_of_groups(x.to(memory_format=memory), 1)
    torch.testing.assert_close(mean.flatten().double(), x.double().mean((0, 2, 3)), rtol=1e-4, atol=0)
    torch.testing.assert_close(var.flatten().double(), x.double().var((0, 2, 3), correction=0), rtol=1e-4, atol=0)


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("pool", [nn.Identity(), MAX])
def test_batched_gradients_in_half_precision(pool, memory, monkeypatch):
    monkeypatch.setattr(pieces, "LARGE", 1)
    layers = accelerate(nn.Sequential(BatchNorm(3), pool))
    images = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0)).bfloat16()
    leaf = images.to(memory_format=memory).requires_grad_()
    with rows(2, 2, record=False):
        y = layers(leaf)
        weights = torch.randn(2, *y.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
        (batched,) = torch.autograd.grad(y, leaf, weights, is_grads_batched=True, retain_graph=True)
        looped = [torch.autograd.grad(y, leaf, weight, retain_graph=True)[0] for weight in weights]

        def slope(scale):
            return torch.func.grad(lambda x: (scale * layers(x)).float().square().sum())(leaf.detach())

        scales = torch.tensor([1.0, 2.0])
        slopes = torch.vmap(slope)(scales), torch.stack([slope(scale) for scale in scales])
    for one, other in ((batched, torch.stack(looped)), slopes):
        torch.testing.assert_close(one.float(), other.float(), rtol=2**-6, atol=2**-7 * other.abs().max().item())


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("pool", [MAX, nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(5, 1, 2)], ids=str)
def test_gradients_of_overlapping_maxima_are_added_up_precisely(pool, memory, monkeypatch):
    monkeypatch.setattr(pieces, "LARGE", 1)
    monkeypatch.setattr(pieces, "CACHED", 1)
    x = torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(0)).bfloat16().to(memory_format=memory)
    of_x = []
    for leaf in (x.requires_grad_(), x.detach().double().requires_grad_()):
        maxima, *_ = PooledMoments.apply(leaf, 1, 1, Pooling.of(pool))
        v = torch.randn(maxima.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
        of_x.append(torch.autograd.grad(maxima, leaf, v.to(maxima.dtype))[0].double())
    assert (of_x[0] - of_x[1]).norm() < 2e-3 * of_x[1].norm()


POOLINGS = [
    nn.MaxPool2d(np.int64(2)),
    nn.MaxPool2d(3, 2, 1),
    nn.MaxPool2d((2, 1), (3, 2), dilation=(2, 1), ceil_mode=True),
]


@pytest.mark.parametrize("pool", POOLINGS, ids=str)
@pytest.mark.parametrize("groups", [1, 2, 10])
@pytest.mark.parametrize("rows_of_piece", [1, 2, 10])
def test_pooled_moments_are_moments_and_maxima_with_derivatives_of_both_orders(
    pool, groups, rows_of_piece, monkeypatch
):
    monkeypatch.setattr(pieces, "CACHED", rows_of_piece * 2 * 5 * 5)
    torch.manual_seed(0)
    x = torch.randn(10, 2, 5, 5, dtype=torch.double).to(memory_format=torch.channels_last).requires_grad_()
    scales = torch.rand(2, 1, groups, 2, dtype=torch.double)

    def derivatives(maxima, mean, var):
        y = maxima.sin().sum() + (scales[0] * mean).sin().sum() + (scales[1] * var).sin().sum()
        (first,) = torch.autograd.grad(y, x, create_graph=True)
        (plain,) = torch.autograd.grad(y, x, retain_graph=True)  # by pieces
        return maxima, mean, var, first, plain, *torch.autograd.grad(first.sin().sum(), x)

    maxima, *moments, _ = PooledMoments.apply(x, 1, groups, Pooling.of(pool))
    parts = x.unflatten(0, (groups, -1))
    mean, var = parts.mean((1, 3, 4)), parts.var((1, 3, 4), correction=0)
    references = derivatives(pool(x), mean[None], var[None])
    for one, other in zip(derivatives(maxima, *moments), references, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("used", range(3), ids=["maxima", "mean", "variance"])
@pytest.mark.parametrize("create_graph", [False, True])
def test_pooled_moments_of_which_one_is_used(used, create_graph):
    torch.manual_seed(0)
    x = torch.randn(4, 2, 6, 6, dtype=torch.double, requires_grad=True)
    parts = x.unflatten(0, (2, -1))
    reference = [MAX(x), parts.mean((1, 3, 4))[None], parts.var((1, 3, 4), correction=0)[None]][used]
    slopes = [
        torch.autograd.grad(result.sin().sum(), x, create_graph=create_graph)[0]
        for result in (PooledMoments.apply(x, 1, 2, Pooling.of(MAX))[used], reference)
    ]
    torch.testing.assert_close(*slopes, rtol=1e-12, atol=1e-12)


def test_a_norm_and_a_pooling_in_transforms_of_something_else(x):
    layers = accelerate(nn.Sequential(BatchNorm(C).double(), MAX))

    def f(images):
        with rows(1, S + Q, record=False):
            return layers(images)

    images, scales = x[0].clone().requires_grad_(), torch.rand(3, dtype=torch.double)
    y = f(images)
    torch.testing.assert_close(torch.vmap(lambda scale: scale * f(images))(scales), scales.view(-1, 1, 1, 1, 1) * y)
    slope = torch.func.grad(lambda scale: (scale * f(images)).sum())(scales[0])
    torch.testing.assert_close(slope, y.sum())
    weights = torch.rand(3, *y.shape, dtype=torch.double)
    (batched,) = torch.autograd.grad(y, images, weights, is_grads_batched=True, retain_graph=True)
    for one, weight in zip(batched, weights, strict=True):
        torch.testing.assert_close(one, *torch.autograd.grad(y, images, weight, retain_graph=True))


def test_a_pooling_with_hooks_or_indices_or_a_forward_of_its_own_comes_after_the_norm(x):
    norm, seen = BatchNorm(C).double(), []
    hooked, indexed, changed = nn.MaxPool2d(2), nn.MaxPool2d(2, return_indices=True), nn.MaxPool2d(2)
    hooked.register_forward_pre_hook(lambda layer, inputs: seen.append(*inputs))
    changed.forward = lambda maps: MAX(maps) + 100
    with rows(1, S + Q, record=False):
        normalized = norm(x[0])
        accelerate(nn.Sequential(norm, hooked))(x[0])
        results = [accelerate(nn.Sequential(norm, indexed))(x[0])[0], accelerate(nn.Sequential(norm, changed))(x[0])]
        norm.register_forward_hook(lambda layer, inputs, result: -result)
        results.append(accelerate(nn.Sequential(norm, MAX))(x[0]))
    references = normalized, MAX(normalized), MAX(normalized) + 100, MAX(-normalized)
    for one, other in zip((*seen, *results), references, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


SHAPES = [((3,), (3,)), ((2, 2, 3), (2, 2, 3)), ((2, 2, 1), (2, 2, 1)), ((2, 1, 3), (2, 1, 3)), ((2, 4, 3), (2, 4, 3))]


@pytest.mark.parametrize("shapes", SHAPES)
def test_normalize_and_its_derivatives_of_three_orders(shapes):
    torch.manual_seed(0)
    x, mean, deviation, weight, bias = (
        torch.randn(s, dtype=torch.double, requires_grad=True) for s in ((8, 3, 2, 2), *shapes, (3,), (3,))
    )
    inputs = (x, mean, deviation.square().detach().requires_grad_(), weight, bias)
    rows = [m.expand(-1, -1, 3).flatten(0, 1).repeat_interleave(8 // m[..., 0].numel(), 0) if m.dim() == 3 else m
            for m in inputs[1:3]]  # fmt: skip
    m, v = (r.reshape(-1, 3, 1, 1) for r in rows)
    reference = weight[:, None, None] * (x - m) / (v + 0.1).sqrt() + bias[:, None, None]
    torch.testing.assert_close(Normalize.apply(*inputs, 0.1), reference, rtol=1e-12, atol=1e-12)

    def slope(*inputs):
        y = Normalize.apply(*inputs, 0.1)
        return torch.autograd.grad(y.sin().sum(), inputs, create_graph=True)

    assert torch.autograd.gradcheck(lambda *a: Normalize.apply(*a, 0.1), inputs)
    assert torch.autograd.gradcheck(slope, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(slope, inputs, fast_mode=True)


@pytest.mark.parametrize("shapes", [((3,), (1, 4, 3)), ((4, 3), (4, 3)), ((2, 4, 3), (1, 4, 3)), ((2, 4, 3), (3,))])
def test_moments_of_a_scheme_of_ones_own_broadcast(shapes):
    mean, var = torch.randn(shapes[0], dtype=torch.double), torch.rand(shapes[1], dtype=torch.double)

    class Own(Norm):
        def moments(self, own, context):
            return mean + 0 * own[0].mean(), var + 0 * own[0].mean()

    x = torch.randn(2, 4, 3, 2, 2, dtype=torch.double, requires_grad=True)
    with rows(2, 2, record=False):
        y = Own(3)(x.flatten(0, 1))
    m, v = (torch.broadcast_to(each, (2, 4, 3)).flatten(0, 1)[..., None, None] for each in (mean, var))
    agree(y, ((x.flatten(0, 1) - m) / (v + 1e-5).sqrt()).detach().numpy())
    y.square().sum().backward()
    agree(x.grad.flatten(0, 1), (2 * (x.flatten(0, 1) - m) / (v + 1e-5)).detach().numpy())


def embedded(word: str, train: bool) -> list[torch.Tensor]:
    """Return features, gradients and running moments of a network after one pass."""
    torch.manual_seed(0)
    images = torch.rand(T, S + Q, 1, 16, 16, dtype=torch.double)
    network = Conv4(1, 16, make(OmegaConf.load(CONF / "norm" / f"{word}.yaml")), width=3).double().train(train)
    features = torch.cat(network.embed(images[:, :S], images[:, S:]), 1)
    features.square().sum().backward()
    commit(network)
    return [features, *(p.grad for p in network.parameters()), *network.buffers()]


@pytest.mark.parametrize("word", ["batch", "batch_renorm", "batch_shared", "reptile", "transductive"])
@pytest.mark.parametrize("train", [True, False])
def test_context_and_targets_may_pass_one_after_the_other(word, train, monkeypatch):
    norm = scheme(word).train(train)
    assert norm.context_and_targets_separate == (train or word == "transductive")
    ours = embedded(word, train)
    monkeypatch.setattr(Conv4, "context_and_targets_separate", False)
    for one, other in zip(ours, embedded(word, train), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def numpy_moments(a: np.ndarray, axes: tuple[int, ...]):
    return a.mean(axes, keepdims=True), a.var(axes, keepdims=True)


def affine(norm: Norm, x: np.ndarray, mean: np.ndarray, var: np.ndarray) -> np.ndarray:
    weight, bias = (p.detach().numpy()[:, None, None] for p in (norm.weight, norm.bias))
    return weight * (x - mean) / np.sqrt(var + norm.eps) + bias


def instance(x: torch.Tensor):
    _, *moments = GroupMoments.apply(x.flatten(0, 1), x.shape[0], x.shape[0] * x.shape[1])
    return moments


def agree(ours: torch.Tensor, reference: np.ndarray):
    np.testing.assert_allclose(ours.detach().numpy(), reference, rtol=1e-11, atol=1e-11)


def test_pool_is_the_moments_of_the_union(x):
    mean, var = pool(*instance(x))
    reference = numpy_moments(x.numpy(), (1, 3, 4))
    agree(mean, reference[0][..., 0, 0])
    agree(var, reference[1][..., 0, 0])


def test_pool_survives_a_large_mean():
    far = torch.randn(1, 8, 2, 5, 5) + 1e4
    reference = far.double().var((1, 3, 4), correction=0)
    torch.testing.assert_close(pool(*instance(far))[1][:, 0].double(), reference, rtol=1e-3, atol=0)


def axes_of(word: str):
    """Transcriptions: the mean and variance that each scheme uses in evaluation, from arrays (t, n, c, h, w)."""

    def context(a, norm):
        return numpy_moments(a[:, :S], (1, 3, 4))

    def running(a, norm):
        return tuple(b.numpy()[:, None, None] for b in (norm.running_mean, norm.running_var))

    def own(a, norm):
        return numpy_moments(a, (3, 4))

    def image(a, norm):
        return numpy_moments(a, (2, 3, 4))

    def blended(other):
        def moments(a, norm):
            offset, scale = norm.alpha.offset.detach().numpy(), norm.alpha.scale
            slope = 0 if scale is None else scale.detach().numpy()
            alpha = (1 / (1 + np.exp(-(slope * S + offset)))).reshape(-1, 1, 1)
            (mean_d, var_d), (mean_x, var_x) = context(a, norm), other(a, norm)
            mean = alpha * mean_d + (1 - alpha) * mean_x
            var = alpha * (var_d + (mean_d - mean) ** 2) + (1 - alpha) * (var_x + (mean_x - mean) ** 2)
            return mean, var

        return moments

    def apart(a, norm):
        parts = [numpy_moments(part, (1, 3, 4)) for part in (a[:, :S], a[:, S:])]
        sizes = (S, Q)
        return tuple(
            np.concatenate([np.repeat(p[k], n, 1) for p, n in zip(parts, sizes, strict=True)], 1) for k in (0, 1)
        )

    def with_itself(a, norm):
        """Reptile's: a target is normalized by the union of the context and itself."""
        mean, var = (np.repeat(m, S + Q, 1) for m in context(a, norm))
        mean, var = np.copy(mean), np.copy(var)
        for q in range(S, S + Q):
            union = np.concatenate([a[:, :S], a[:, q : q + 1]], 1)
            mean[:, q : q + 1], var[:, q : q + 1] = numpy_moments(union, (1, 3, 4))
        return mean, var

    def groups(a, norm):
        split = a.reshape(*a.shape[:2], norm.groups, -1, *a.shape[3:])
        return tuple(np.repeat(m[:, :, :, 0], C // norm.groups, 2) for m in numpy_moments(split, (3, 4, 5)))

    def nothing(a, norm):
        return np.zeros(()), np.ones(())

    return {
        "batch": running,
        "batch_renorm": running,
        "batch_shared": running,
        "frozen": running,
        "group": groups,
        "instance": own,
        "layer": image,
        "meta_batch": context,
        "none": nothing,
        "reptile": with_itself,
        "tasknorm": blended(own),
        "tasknorm_l": blended(image),
        "tasknorm_r": blended(running),
        "transductive": apart,
    }[word]


@pytest.mark.parametrize("word", SCHEMES)
def test_formula_in_evaluation(word, x):
    norm, a = scheme(word).eval(), x.numpy()
    agree(apply(norm, x), affine(norm, a, *axes_of(word)(a, norm)))


@pytest.mark.parametrize("word", [word for word in SCHEMES if word != "none"])
@pytest.mark.parametrize("train", [True, False])
def test_eps_is_added_to_the_variance(word, train, x):
    norm = make(OmegaConf.load(CONF / "norm" / f"{word}.yaml"), eps=0.3)(C).double().train(train)
    norm.load_state_dict(scheme(word).state_dict())
    assert norm.eps == 0.3
    a = x.numpy()
    if train and word in ("batch", "batch_renorm", "batch_shared", "reptile"):  # trained with moments of the batch
        axes = (0, 1, 3, 4) if word == "batch_shared" else (1, 3, 4)
        parts = [(part, *numpy_moments(part, axes)) for part in (a[:, :S], a[:, S:])]
        if word == "batch_renorm":
            parts = [(part, *renormalized(norm, mean, var)) for part, mean, var in parts]
        reference = np.concatenate([affine(norm, *part) for part in parts], 1)
    else:
        reference = affine(norm, a, *axes_of(word)(a, norm))
    agree(apply(norm, x), reference)


def renormalized(norm: Norm, mean: np.ndarray, var: np.ndarray):
    """Return moments with which plain normalization equals batch renormalization, transcribed."""
    mean_r, var_r = (b.numpy()[:, None, None] for b in (norm.running_mean, norm.running_var))
    s, s_r = np.sqrt(var + 0.3), np.sqrt(var_r + 0.3)
    r, d = np.clip(s / s_r, 1 / 3, 3), np.clip((mean - mean_r) / s_r, -5, 5)
    return mean - d * s / r, (s / r) ** 2 - 0.3


@pytest.mark.parametrize("word", ["tasknorm", "tasknorm_l", "tasknorm_r"])
@pytest.mark.parametrize(("form", "channelwise"), [("functional", True), ("independent", True), ("independent", False)])
def test_every_form_of_alpha_follows_its_formula(word, form, channelwise, x):
    norm = make(OmegaConf.load(CONF / "norm" / f"{word}.yaml"), alpha=form, channelwise=channelwise)(C).double().eval()
    with torch.no_grad():
        norm.alpha.offset.copy_(torch.linspace(-1, 2, C)[slice(None) if channelwise else 0])
        if form == "functional":
            norm.alpha.scale.copy_(torch.linspace(0.3, -0.2, C))
        if word == "tasknorm_r":
            norm.running_mean.uniform_(0.2, 0.8)
            norm.running_var.uniform_(0.5, 1.5)
    reference = affine(norm, x.numpy(), *axes_of(word)(x.numpy(), norm))
    for layer in (norm, accelerate(copy.deepcopy(norm))):
        agree(apply(layer, x), reference)


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("word", ["batch", "batch_renorm", "reptile", "transductive"])
def test_running_moments_of_joined_rows_are_those_of_both_together(word, fast, x):
    norm = make(OmegaConf.load(CONF / "norm" / f"{word}.yaml"), momentum=0.3, over="joined")(C).double().train()
    norm.load_state_dict(scheme(word).state_dict())
    before = norm.running_mean.numpy().copy(), norm.running_var.numpy().copy()
    norm = accelerate(norm) if fast else norm
    apply(norm, x)
    commit(norm)
    joined = numpy_moments(x.numpy(), (1, 3, 4))
    for old, now, moment in zip(before, (norm.running_mean, norm.running_var), joined, strict=True):
        agree(now, 0.7 * old + 0.3 * moment.mean(0).squeeze())


@pytest.mark.parametrize("word", ["batch", "batch_renorm", "batch_shared", "reptile", "tasknorm_r", "transductive"])
def test_momentum_is_the_weight_of_a_step(word, x):
    norm = make(OmegaConf.load(CONF / "norm" / f"{word}.yaml"), momentum=0.3)(C).double().train()
    norm.load_state_dict(scheme(word).state_dict())
    before = norm.running_mean.numpy().copy(), norm.running_var.numpy().copy()
    apply(norm, x)
    commit(norm)
    groups = [numpy_moments(part, (1, 3, 4)) for part in (x.numpy()[:, :S], x.numpy()[:, S:])]
    for old, now, *parts in zip(before, (norm.running_mean, norm.running_var), *groups, strict=True):
        mean = sum(size / (S + Q) * part.mean(0).squeeze() for size, part in zip((S, Q), parts, strict=True))
        agree(now, 0.7 * old + 0.3 * mean)


@pytest.mark.parametrize("word", ["batch", "transductive", "reptile"])
@pytest.mark.parametrize("over", ["apart", "joined"])
def test_formula_in_training(word, over, x):
    norm = make(OmegaConf.load(CONF / "norm" / f"{word}.yaml"), over=over)(C).double()
    a = x.numpy()
    if over == "joined":
        reference = affine(norm, a, *numpy_moments(a, (1, 3, 4)))
    else:
        parts = [affine(norm, part, *numpy_moments(part, (1, 3, 4))) for part in (a[:, :S], a[:, S:])]
        reference = np.concatenate(parts, 1)
    agree(apply(norm, x), reference)


def test_formula_of_batch_shared_in_training(x):
    norm = scheme("batch_shared").train()
    a = x.numpy()
    parts = [affine(norm, part, *numpy_moments(part, (0, 1, 3, 4))) for part in (a[:, :S], a[:, S:])]
    agree(apply(norm, x), np.concatenate(parts, 1))


@pytest.mark.parametrize("over", ["apart", "joined"])
def test_formula_of_batch_renorm_in_training_and_its_stopped_gradient(over, x):
    norm = make(OmegaConf.load(CONF / "norm" / "batch_renorm.yaml"), r_max=1.2, d_max=0.3, over=over)(C).double()
    slices = [slice(S), slice(S, None)] if over == "apart" else [slice(None)]
    with torch.no_grad():
        norm.running_mean.uniform_(0.2, 0.8)
        norm.running_var.uniform_(0.5, 1.5)
    mean_r, s_r = norm.running_mean[:, None, None], (norm.running_var + norm.eps).sqrt()[:, None, None]

    def corrections(part):
        mean, s = (
            part.mean((1, 3, 4), keepdim=True),
            (part.var((1, 3, 4), correction=0, keepdim=True) + norm.eps).sqrt(),
        )
        return (s / s_r).clamp(1 / 1.2, 1.2), ((mean - mean_r) / s_r).clamp(-0.3, 0.3)

    held = [corrections(x[:, part]) for part in slices]
    assert {bool(((r == 1.2) | (r == 1 / 1.2)).any()) for r, _ in held} == {True}

    def reference(images):
        parts = []
        for where, (r, d) in zip(slices, held, strict=True):
            part = images[:, where]
            mean, var = part.mean((1, 3, 4), keepdim=True), part.var((1, 3, 4), correction=0, keepdim=True)
            parts.append((part - mean) / (var + norm.eps).sqrt() * r + d)
        return torch.cat(parts, 1)

    images = x.clone().requires_grad_()
    y, z = apply(norm, images), reference(images)
    torch.testing.assert_close(y, z, rtol=1e-11, atol=1e-11)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=torch.double)
    ours, theirs = (torch.autograd.grad((out * weights).sum(), images)[0] for out in (y, z))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_bounds_of_batch_renorm_that_make_no_sense_are_refused():
    for options in ({"r_max": 0.5}, {"d_max": -1.0}):
        with pytest.raises(UsageError, match=f"expected norm.{next(iter(options))} to be"):
            make(OmegaConf.load(CONF / "norm" / "batch_renorm.yaml"), **options)(C)


def with_alpha(norm: Norm, alpha: float) -> Norm:
    """Return ``norm`` with its alpha set for any context size, and weight 1 and bias 0."""
    with torch.no_grad():
        norm.alpha.offset.fill_(np.log(alpha / (1 - alpha)) if 0 < alpha < 1 else 1e3 * (2 * alpha - 1))
        norm.alpha.scale.zero_()
        norm.weight.fill_(1)
        norm.bias.zero_()
    return norm.eval()


def plain(word: str) -> Norm:
    return make(OmegaConf.load(CONF / "norm" / f"{word}.yaml"))(C).double().eval()


@pytest.mark.parametrize(("word", "other"), [("tasknorm", "instance"), ("tasknorm_l", "layer")])
def test_limits_of_tasknorm(word, other, x):
    torch.testing.assert_close(
        apply(with_alpha(scheme(word), 1), x), apply(plain("meta_batch"), x), rtol=1e-12, atol=1e-12
    )
    torch.testing.assert_close(apply(with_alpha(scheme(word), 0), x), apply(plain(other), x), rtol=1e-12, atol=1e-12)


def test_tasknorm_with_alpha_n_over_n_plus_1_is_reptiles_norm_on_targets(x):
    ours = apply(with_alpha(scheme("tasknorm"), S / (S + 1)), x)[:, S:]
    torch.testing.assert_close(ours, apply(plain("reptile"), x)[:, S:], rtol=1e-12, atol=1e-12)


def test_reptiles_norm_equals_the_authors_loop_in_the_first_layer_only(x):
    """The authors pass each target through the network together with the context, under batch moments."""
    norm, joined = plain("reptile"), make(OmegaConf.load(CONF / "norm" / "transductive.yaml"), over="joined")(C)
    one_layer, two_layers = (lambda n, a: apply(n, a)), (lambda n, a: apply(n, apply(n, a).relu()))

    def loop(layers):
        whole = [layers(joined.double().eval(), torch.cat([x[:, :S], x[:, q : q + 1]], 1)) for q in range(S, S + Q)]
        return torch.cat([task[:, S:] for task in whole], 1)

    torch.testing.assert_close(one_layer(norm, x)[:, S:], loop(one_layer), rtol=1e-12, atol=1e-12)
    gap = (two_layers(norm, x)[:, S:] - loop(two_layers)).abs().max()
    assert 1e-4 < gap < 2


@pytest.mark.parametrize(
    ("word", "axes", "part"),
    [
        ("instance", (3, 4), slice(None)),
        ("layer", (2, 3, 4), slice(None)),
        ("transductive", (1, 3, 4), slice(S)),
        ("transductive", (1, 3, 4), slice(S, None)),
        ("meta_batch", (1, 3, 4), slice(S)),
        ("reptile", (1, 3, 4), slice(S)),
    ],
)
def test_zero_mean_and_unit_variance(word, axes, part, x):
    y = apply(plain(word), x)[:, part]
    torch.testing.assert_close(y.mean(axes), torch.zeros_like(y.mean(axes)), rtol=0, atol=1e-12)
    var = y.var(axes, correction=0)
    torch.testing.assert_close(var, torch.ones_like(var), rtol=1e-3, atol=0)


def test_one_group_is_layer_norm_and_c_groups_instance_norm(x):
    for groups, word in ((1, "layer"), (C, "instance")):
        norm = make(OmegaConf.load(CONF / "norm" / "group.yaml"), groups=groups)(C).double()
        torch.testing.assert_close(apply(norm, x), apply(plain(word), x), rtol=1e-12, atol=1e-12)
    with pytest.raises(UsageError, match=r"expected norm\.groups to divide"):
        make(OmegaConf.load(CONF / "norm" / "group.yaml"), groups=3)(C)


@pytest.mark.parametrize("word", ["tasknorm", "tasknorm_l", "tasknorm_r"])
@pytest.mark.parametrize(("form", "channelwise"), [("functional", True), ("independent", False), ("independent", True)])
def test_forms_of_alpha(word, form, channelwise, x):
    norm = make(OmegaConf.load(CONF / "norm" / f"{word}.yaml"), alpha=form, channelwise=channelwise)(C).double()
    assert norm.alpha.offset.shape == ((C,) if channelwise else ())
    assert (norm.alpha(S) == 0.5).all() and apply(norm, x).isfinite().all()
    with torch.no_grad():
        norm.alpha.offset += 1
    assert torch.equal(norm.alpha(1), norm.alpha(500))
    if form == "functional":
        with torch.no_grad():
            norm.alpha.scale += 0.1
        assert (norm.alpha(500) > norm.alpha(1)).all()


def test_checkpoints_of_batch_transductive_and_reptile_are_exchangeable():
    states = [
        scheme(word).state_dict().keys() for word in ("batch", "transductive", "reptile", "batch_renorm", "frozen")
    ]
    assert all(keys == states[0] for keys in states)


def test_running_moments_change_once_a_step_by_the_mean_over_tasks(x):
    norm = BatchNorm(C, momentum=0.1).double()
    apply(norm, x)
    assert torch.equal(norm.running_mean, torch.zeros(C))
    with rows(1, S, record=False):
        norm(9 * x[0])
    apply(norm, x[:1] + 1)
    commit(norm)
    a = np.concatenate([x.numpy(), x.numpy()[:1] + 1])
    weights = [S / (S + Q), Q / (S + Q)]
    groups = [numpy_moments(part, (1, 3, 4)) for part in (a[:, :S], a[:, S:])]
    mean = sum(w * m.squeeze() for w, (m, _) in zip(weights, groups, strict=True)).mean(0)
    var = sum(w * v.squeeze() for w, (_, v) in zip(weights, groups, strict=True)).mean(0)
    agree(norm.running_mean, 0.1 * mean)
    agree(norm.running_var, 0.9 + 0.1 * var)
    before = norm.running_mean.clone()
    commit(norm)
    assert torch.equal(norm.running_mean, before)


def test_a_norm_outside_a_scope_says_what_is_missing(x):
    with pytest.raises(RuntimeError, match="outside a scope"):
        TaskNorm(C)(x[0].float())


def test_embed_gives_the_same_for_one_task_and_many():
    torch.manual_seed(0)
    backbone = Conv4(1, 28, TaskNorm, width=4).double()
    images = torch.rand(3, 6, 1, 28, 28, dtype=torch.double)
    context, targets = backbone.embed(images[:, :2], images[:, 2:])
    assert context.shape == (3, 2, 4) and targets.shape == (3, 4, 4)
    for t in range(3):
        one = backbone.embed(images[t : t + 1, :2], images[t : t + 1, 2:])
        torch.testing.assert_close(one[1], targets[t : t + 1], rtol=1e-12, atol=1e-12)
    assert backbone.embed(images)[1].shape == (3, 0, 4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("word", SCHEMES)
def test_asking_one_or_some_at_once_changes_nothing_unless_transductive(word, dtype):
    torch.manual_seed(0)
    backbone = Conv4(1, 28, make(OmegaConf.load(CONF / "norm" / f"{word}.yaml")), width=8).to(dtype)
    images = torch.rand(2, 9, 1, 28, 28, dtype=dtype)
    backbone.embed(images[:, :3], images[:, 3:])
    commit(backbone)
    backbone.eval()
    context, together = backbone.embed(images[:, :3], images[:, 3:])
    for count in (1, 2):
        with target_chunks(count):
            same_context, targets = backbone.embed(images[:, :3], images[:, 3:])
        torch.testing.assert_close(same_context, context, rtol=0, atol=1e-10 if dtype == torch.float64 else 1e-4)
        gap = (targets - together).abs().max()
        assert gap > 0.01 if backbone.transductive else gap < (1e-10 if dtype == torch.float64 else 1e-4)
