"""Contracts that every scheme under conf/norm keeps, and formulas transcribed in NumPy."""

import copy

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from metafew import cli
from metafew.assemble import make
from metafew.backbones.conv4 import Conv4
from metafew.norms.batch import BatchNorm
from metafew.norms.norm import Norm, pool
from metafew.norms.passes import Instance
from metafew.norms.running import RunningNorm, commit
from metafew.norms.scope import rows
from metafew.norms.tasknorm import TaskNorm

SCHEMES = sorted(file.stem for file in (cli.CONF / "norm").glob("*.yaml"))
T, S, Q, C, H = 3, 4, 5, 6, 7


def scheme(word: str) -> Norm:
    """Return a norm with unlike weights, biases and running moments, in float64."""
    norm = make(OmegaConf.load(cli.CONF / "norm" / f"{word}.yaml"))(C).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in (*norm.parameters(), *norm.buffers()):
            value.copy_(torch.rand(value.shape, generator=generator, dtype=torch.double) + 0.5)
    return norm


def apply(norm: Norm, x: torch.Tensor, context: int = S) -> torch.Tensor:
    with rows(x.shape[0], context):
        return norm(x.flatten(0, 1)).unflatten(0, x.shape[:2])


@pytest.fixture
def x():
    generator = torch.Generator().manual_seed(1)
    scale = torch.rand(T, S + Q, C, 1, 1, generator=generator, dtype=torch.double) + 0.5
    return scale * torch.randn(T, S + Q, C, H, H, generator=generator, dtype=torch.double) + scale


@pytest.mark.parametrize("word", SCHEMES)
class TestContract:
    @pytest.mark.parametrize("train", [True, False])
    def test_tasks_do_not_see_each_other(self, word, train, x):
        norm = scheme(word).train(train)
        whole = apply(norm, x)
        for t in range(T):
            torch.testing.assert_close(apply(norm, x[t : t + 1]), whole[t : t + 1], rtol=1e-12, atol=1e-12)

    def test_targets_do_not_see_each_other_unless_declared(self, word, x):
        norm = scheme(word).eval()
        whole = apply(norm, x)
        alone = [apply(norm, torch.cat([x[:, :S], x[:, q : q + 1]], 1))[:, S:] for q in range(S, S + Q)]
        same = torch.allclose(torch.cat(alone, 1), whole[:, S:], rtol=1e-12, atol=1e-12)
        assert same != norm.transductive

    @pytest.mark.parametrize("train", [True, False])
    def test_context_is_blind_to_targets(self, word, train, x):
        norm = scheme(word).train(train)
        torch.testing.assert_close(apply(norm, x)[:, :S], apply(norm, x[:, :S]), rtol=1e-12, atol=1e-12)

    def test_gradients(self, word, x):
        norm = scheme(word).eval()
        small = x[:2, :3, :, :2, :2].clone().requires_grad_()
        parameters = [p for p in norm.parameters() if p.requires_grad]

        def f(images, *values):
            named = dict(zip([n for n, _ in norm.named_parameters()], values, strict=True))
            with rows(2, 2):
                flat = torch.func.functional_call(norm, named, (images.flatten(0, 1),))
            return flat.unflatten(0, (2, 3))

        assert torch.autograd.gradcheck(f, (small, *parameters))
        assert torch.autograd.gradgradcheck(f, (small, *parameters))

    def test_one_support_row_and_one_pixel(self, word, x):
        y = apply(scheme(word).train(), x[:1, :2, :, :1, :1], context=1)
        assert y.isfinite().all()

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_moments_are_precise_in_half_precision(self, word, dtype, x):
        norm = scheme(word).float()
        half = x.to(dtype)
        y = apply(norm, half)
        assert y.dtype == dtype
        torch.testing.assert_close(y.float(), apply(norm, half.float()), rtol=1e-2, atol=1e-2)

    def test_a_pass_leaves_nothing_behind(self, word, x):
        norm = scheme(word).eval()
        before = copy.deepcopy(norm.state_dict())
        first = apply(norm, x)
        apply(norm, 9 * x)
        assert torch.equal(apply(norm, x), first)
        assert all(torch.equal(before[key], value) for key, value in norm.state_dict().items())


def numpy_moments(a: np.ndarray, axes: tuple[int, ...]):
    return a.mean(axes, keepdims=True), a.var(axes, keepdims=True)


def affine(norm: Norm, x: np.ndarray, mean: np.ndarray, var: np.ndarray) -> np.ndarray:
    weight, bias = (p.detach().numpy()[:, None, None] for p in (norm.weight, norm.bias))
    return weight * (x - mean) / np.sqrt(var + norm.eps) + bias


def instance(x: torch.Tensor):
    _, mean, var = Instance.apply(x.flatten(0, 1))
    return mean.unflatten(0, x.shape[:2]), var.unflatten(0, x.shape[:2])


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


def test_tasknorm_formula(x):
    norm = scheme("tasknorm")
    a = x.numpy()
    alpha = 1 / (1 + np.exp(-(norm.scale.item() * S + norm.offset.item())))
    mean_d, var_d = numpy_moments(a[:, :S], (1, 3, 4))
    mean_x, var_x = numpy_moments(a, (3, 4))
    mean = alpha * mean_d + (1 - alpha) * mean_x
    var = alpha * (var_d + (mean_d - mean) ** 2) + (1 - alpha) * (var_x + (mean_x - mean) ** 2)
    agree(apply(norm, x), affine(norm, a, mean, var))


def test_tasknorm_starts_halfway():
    assert TaskNorm(3).alpha(5) == 0.5


@pytest.mark.parametrize("over", ["apart", "joined"])
def test_batch_norm_formula_in_training(over, x):
    norm = BatchNorm(C, over=over).double()
    a = x.numpy()
    if over == "joined":
        reference = affine(norm, a, *numpy_moments(a, (1, 3, 4)))
    else:
        parts = [affine(norm, part, *numpy_moments(part, (1, 3, 4))) for part in (a[:, :S], a[:, S:])]
        reference = np.concatenate(parts, 1)
    agree(apply(norm, x), reference)


def test_batch_norm_uses_running_moments_in_evaluation(x):
    norm = scheme("batch").eval()
    mean, var = (b.numpy()[:, None, None] for b in (norm.running_mean, norm.running_var))
    agree(apply(norm, x), affine(norm, x.numpy(), mean, var))


def test_none_is_affine(x):
    norm = scheme("none")
    agree(apply(norm, x), affine(norm, x.numpy(), np.zeros(()), np.ones(())))


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


def test_no_scheme_is_forgotten_by_running_norm():
    assert all(
        isinstance(scheme(word), RunningNorm) == ("running_mean" in scheme(word).state_dict()) for word in SCHEMES
    )


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
