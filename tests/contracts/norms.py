"""What every norm keeps."""

import copy

import pytest
import torch

from contracts import node, skip_exempt
from metafew.errors import UsageError
from metafew.norms.fast import accelerate
from metafew.norms.norm import Norm
from metafew.norms.running import commit
from metafew.norms.scope import rows
from metafew.training.instantiate import make

T, S, Q, C, H = 3, 4, 5, 8, 7


def scheme(file) -> Norm:
    """Return the norm of a YAML with unlike weights, biases and running moments, in float64."""
    norm = make(node(file))(C).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in (*norm.parameters(), *norm.buffers()):
            value.copy_(torch.rand(value.shape, generator=generator, dtype=torch.double) + 0.5)
    return norm


def apply(norm: Norm, x: torch.Tensor, context: int = S) -> torch.Tensor:
    with rows(x.shape[0], context):
        return norm(x.flatten(0, 1)).unflatten(0, x.shape[:2])


def make_x() -> torch.Tensor:
    """Return images ``(T, S + Q, C, H, H)`` of unlike scales."""
    generator = torch.Generator().manual_seed(1)
    scale = torch.rand(T, S + Q, C, 1, 1, generator=generator, dtype=torch.double) + 0.5
    return scale * torch.randn(T, S + Q, C, H, H, generator=generator, dtype=torch.double) + scale


def check_fast_execution(make_norm, images: torch.Tensor, context: int, pool: torch.nn.Module | None = None) -> None:
    """Compare an accelerated norm with its definition: results, gradients of both orders and running moments.

    Args:
        make_norm: returns the norm, a new one for each execution.
        images: ``(t, n, c, h, w)``.
        context: number of context rows of a task.
        pool: a max-pooling after the norm, or None.
    """
    found = []
    for prepare in (torch.nn.Sequential, lambda *layers: accelerate(torch.nn.Sequential(*layers))):
        norm, x = make_norm(), images.clone().requires_grad_()
        layers = prepare(norm, *([pool] if pool else []))
        inputs = x, *norm.parameters()
        with rows(len(x), context):
            y = layers(x.flatten(0, 1))
        first = torch.autograd.grad(y.sin().sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum(g.sin().sum() for g in first), inputs, materialize_grads=True)
        commit(norm)
        found.append([y, *first, *second, *norm.buffers()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


def check_one_rounding(y: torch.Tensor, exact: torch.Tensor, dtype: torch.dtype) -> None:
    """Check that ``y`` is ``exact``, in float32, rounded once to ``dtype``."""
    assert y.dtype == dtype and exact.dtype == torch.float32
    torch.testing.assert_close(y.float(), exact, rtol=1.01 * torch.finfo(dtype).eps / 2, atol=1e-4)


def as_function(norm: Norm, images: torch.Tensor):
    """Return a pure function of images (2, 3, ...) and parameters, the first two rows of a task context; its inputs."""
    names = [name for name, _ in norm.named_parameters()]

    def f(x, *values):
        with rows(2, 2, record=False):
            return torch.func.functional_call(norm, dict(zip(names, values, strict=True)), (x.flatten(0, 1),))

    return f, (images.clone().requires_grad_(), *norm.parameters())


def slope_after_a_step(norm: Norm):
    """Return a function of images, of second order: the gradient after a gradient step on the norm's weights."""
    names, values = zip(*((name, value.detach()) for name, value in norm.named_parameters()), strict=True)

    def loss(images, *values):
        with rows(1, 2, record=False):
            y = torch.func.functional_call(norm, dict(zip(names, values, strict=True)), (images,))
        return (y.sin() * torch.arange(y.numel()).view_as(y)).sum()

    def stepped(images):
        grads = torch.func.grad(loss, argnums=tuple(range(1, 1 + len(names))))(images, *values)
        return loss(images, *(v - 1e-3 * g for v, g in zip(values, grads, strict=True)))

    return torch.func.grad(stepped)


class NormContract:
    """A subclass provides ``file``, the YAML of a norm."""

    @pytest.fixture
    def x(self):
        return make_x()

    @pytest.mark.parametrize("train", [True, False])
    def test_tasks_do_not_see_each_other(self, file, train, x):
        norm = scheme(file).train(train)
        together = apply(norm, x)
        single = torch.cat([apply(norm, x[t : t + 1]) for t in range(T)])
        assert torch.allclose(single, together, rtol=1e-12, atol=1e-12) != (train and norm.couples_tasks)

    def test_targets_do_not_see_each_other_unless_declared(self, file, x):
        norm = scheme(file).eval()
        together = apply(norm, x)
        single = [apply(norm, torch.cat([x[:, :S], x[:, q : q + 1]], 1))[:, S:] for q in range(S, S + Q)]
        assert torch.allclose(torch.cat(single, 1), together[:, S:], rtol=1e-12, atol=1e-12) != norm.transductive

    @pytest.mark.parametrize("train", [True, False])
    def test_targets_do_not_change_the_context(self, file, train, x):
        norm = scheme(file).train(train)
        torch.testing.assert_close(apply(norm, x)[:, :S], apply(norm, x[:, :S]), rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("train", [True, False])
    def test_gradients_of_both_orders(self, file, train, x):
        norm = scheme(file).train(train)
        if train:
            skip_exempt(norm, "gradients_in_training")
        f, inputs = as_function(norm, x[:2, :3, :, :2, :2])
        assert torch.autograd.gradcheck(f, inputs)
        assert torch.autograd.gradgradcheck(f, inputs, fast_mode=True)  # along random directions

    @pytest.mark.parametrize("train", [True, False])
    def test_vmap_of_gradients_equals_a_loop(self, file, train, x):
        slope = slope_after_a_step(scheme(file).train(train))
        looped = torch.stack([slope(task) for task in x[:, :5]])
        torch.testing.assert_close(torch.vmap(slope)(x[:, :5]), looped, rtol=1e-9, atol=1e-9)

    def test_one_support_row_and_one_pixel(self, file, x):
        norm, pixel = scheme(file).train(), x[:1, :2, :, :1, :1]
        if norm.needs_positions:
            with pytest.raises(UsageError, match="of several positions"):
                apply(norm, pixel, context=1)
            pixel = x[:1, :2, :, :1, :2]
        assert apply(norm, pixel, context=1).isfinite().all()

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_moments_are_precise_in_half_precision(self, file, dtype, x):
        norm, half = scheme(file).float(), (x + 30).to(dtype)
        check_one_rounding(apply(norm, half), apply(norm, half.float()), dtype)

    def test_a_pass_leaves_nothing_behind(self, file, x):
        norm = scheme(file).eval()
        before = copy.deepcopy(norm.state_dict())
        first = apply(norm, x)
        apply(norm, 9 * x)
        assert torch.equal(apply(norm, x), first)
        assert all(torch.equal(before[key], value) for key, value in norm.state_dict().items())
