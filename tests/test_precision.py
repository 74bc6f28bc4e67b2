"""Mixed precision: every head in every precision, float16 and its scaler, one checkpoint in two precisions."""

import math

import pytest
import torch
from contracts import sampled, takes_steps
from runs import HALF, TINY, curves, state
from smooth import Smooth
from torch import nn
from torch.nn import functional as F

from metafew.config.groups import CONF
from metafew.episode import Episode, Labelled
from metafew.errors import UsageError
from metafew.heads.fast_weights import autograd_gradient, vmap_safe_gradient
from metafew.heads.maml import MAML
from metafew.norms.batch import BatchNorm
from metafew.objectives.episodic import Episodic
from metafew.objectives.objective import in_turn
from metafew.objectives.regularizers import NoRegularizer

HEADS = sorted(file.stem for file in (CONF / "head").glob("*.yaml"))
STEPPING = list(filter(takes_steps, HEADS))
QUICK = [*TINY, "trainer.max_steps=1", "train.query=1", "val.every=1", "val.total=2", "test.total=2", "test.query=1"]


def few(head):
    return [f"head={head}"] + ["head.steps=1", "head.test_steps=1"] * (head in STEPPING)


@pytest.mark.parametrize("head", sampled(HEADS, 6))
def test_every_head_trains_in_bfloat16(launch, head):
    check_training(launch, head, "bf16-mixed")


@pytest.mark.parametrize("precision", ["64", "16-mixed"])
@pytest.mark.parametrize("head", sampled(HEADS, 2))
def test_every_head_trains_in_float64_and_float16(launch, head, precision):
    check_training(launch, head, precision)


def check_training(launch, head, precision):
    words = HALF if precision == "16-mixed" else [f"trainer.precision={precision}"]
    report, out = launch(*QUICK, *few(head), *words)
    assert all(math.isfinite(value["mean"]) for value in report["metrics"].values())
    assert report["precision"] == {"64": "64-true"}.get(precision, precision)
    kinds = {value.dtype for value in state(out).values() if value.is_floating_point()}
    assert kinds == {torch.float64 if precision == "64" else torch.float32}


@pytest.mark.parametrize("typed", ["16", "16-mixed"])
def test_a_cpu_says_once_that_float16_is_bfloat16_here(launch, caplog, recwarn, typed):
    report, _ = launch(*QUICK, f"trainer.precision={typed}")
    assert caplog.text.count("is bf16-mixed here") == 1 and report["precision"] == "bf16-mixed"
    assert not [str(warning.message) for warning in recwarn if "fp16" in str(warning.message)]


def test_output_layers_adapt_in_float32_to_features_in_bfloat16(launch, tmp_path):
    words = ["evaluate=[anil]", "evaluate.anil.optimizer=adam", "evaluate.anil.lr=0.1", "evaluate.anil.test_steps=5"]
    _, fit = launch("trainer.max_steps=1", out=tmp_path / "fit")
    words += ["stages=[test]", f"ckpt={fit}/checkpoints/last.ckpt", "test.total=4", "trainer.precision=bf16-mixed"]
    report, _ = launch(*words, out=tmp_path / "test")
    assert report["metrics"]["test/anil/accuracy"]["failed"] == 0
    assert report["metrics"]["test/anil/loss"]["mean"] != pytest.approx(math.log(5), abs=1e-3)  # it did adapt


def test_a_checkpoint_of_float32_measures_the_same_in_bfloat16(launch, tmp_path):
    words = ["backbone.width=8", "test.total=150", "test.query=5", "test.tasks=10"]
    single, fit = launch(*words, "trainer.max_steps=10", out=tmp_path / "fit")
    words = ["stages=[test]", f"ckpt={fit}/checkpoints/best.ckpt", "trainer.precision=bf16-mixed"]
    half, _ = launch(*words, *["backbone.width=8", "test.total=150", "test.query=5", "test.tasks=10"])
    ours, theirs = (
        [report["metrics"][f"test/protonet/{name}"] for name in ("loss", "accuracy")] for report in (half, single)
    )
    assert half["precision"] == "bf16-mixed" and ours[0] != theirs[0]
    assert ours[0]["mean"] == pytest.approx(theirs[0]["mean"], rel=torch.finfo(torch.bfloat16).eps)
    # Answers that are nearly a tie may change, less than another draw of the tasks changes them.
    assert ours[1]["mean"] == pytest.approx(theirs[1]["mean"], abs=theirs[1]["ci95"])


@pytest.mark.parametrize("differentiate", [autograd_gradient, vmap_safe_gradient])
def test_inner_gradients_do_not_vanish_in_float16(differentiate):
    """A loss whose gradient in the activations is below the smallest number of float16."""
    torch.manual_seed(0)
    x, weight = torch.randn(8, 4), torch.randn(3, 4, requires_grad=True)

    def loss(weights):
        return (F.linear(x, weights["w"]).float().square() * 3e-8).mean()

    exact, _ = differentiate(loss, {"w": weight}, True)
    with torch.autocast("cpu", torch.float16):
        grads, value = differentiate(loss, {"w": weight}, True)
        bare = torch.autograd.grad(loss({"w": weight}), weight)[0]
    assert not bare.any() and grads["w"].dtype == torch.float32
    torch.testing.assert_close(grads["w"], exact["w"], rtol=0, atol=3e-2 * exact["w"].abs().max().item())
    torch.testing.assert_close(value, loss({"w": weight}).detach(), rtol=1e-2, atol=0)
    second, reference = (torch.autograd.grad(3e12 * g["w"].square().sum(), weight)[0] for g in (grads, exact))
    torch.testing.assert_close(second, reference, rtol=2e-2, atol=5e-2 * reference.abs().max().item())


@pytest.mark.parametrize("differentiate", [autograd_gradient, vmap_safe_gradient])
def test_gradients_of_what_is_computed_in_float32_are_in_float32_too(differentiate):
    torch.manual_seed(0)
    x, weight = torch.randn(64, 64), nn.Parameter(torch.randn(64, 64))

    def loss(weights):
        with torch.autocast("cpu", enabled=False):
            return (x @ (x @ weights["w"])).square().mean()[None]

    (exact,) = torch.autograd.grad(loss({"w": weight}), weight)
    with torch.autocast("cpu", torch.bfloat16):
        inner = differentiate(loss, {"w": weight}, False)[0]["w"]
        in_turn([loss({"w": weight}).sum()], [weight], 1.0).backward()
    for found in (inner, weight.grad):
        torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-5 * exact.abs().max().item())


def meta_gradient(head, inner, scale, dtype):
    """Return the gradient in the last convolution through two inner steps, of a loss multiplied by ``scale``."""
    torch.manual_seed(0)
    backbone = Smooth("tasknorm")
    head = MAML(backbone, True, 3, steps=2, first_order=head == "fomaml", inner=inner)
    images, labels = torch.rand(2, 12, 1, 6, 6), torch.arange(3).repeat(2, 4)
    given, asked = (Labelled(images[:, rows], labels[:, rows]) for rows in (slice(0, 6), slice(6, 12)))
    objective = Episodic(NoRegularizer())
    objective.loss_scale = scale
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        loss, _ = objective(backbone, head, [Episode(given, asked, 3, torch.arange(2))])
    (loss * scale).backward()
    return backbone.body[4].weight.grad / scale


@pytest.mark.parametrize("inner", ["loop", "vmap"])
@pytest.mark.parametrize("head", ["maml", "fomaml"])
def test_the_meta_gradient_in_float16_is_that_of_float32(head, inner):
    exact = meta_gradient(head, inner, 1.0, torch.float32)
    half = meta_gradient(head, inner, 1024.0, torch.float16)
    assert F.cosine_similarity(half.flatten(), exact.flatten(), 0) > 0.999
    assert half.norm().item() == pytest.approx(exact.norm().item(), rel=0.02)


def test_the_scale_of_the_loss_is_no_part_of_the_gradient():
    one, many = (meta_gradient("maml", "loop", scale, torch.float32) for scale in (1.0, 1024.0))
    torch.testing.assert_close(one, many)


def test_moments_that_overflowed_are_left_out():
    norm = BatchNorm(2)
    norm.absorb(torch.tensor([[2.0, 4.0, 2.0], [6.0, 8.0, 2.0]]))
    before = norm.running_mean.clone(), norm.running_var.clone()
    norm.absorb(torch.tensor([[2.0, 4.0, 2.0], [math.inf, 8.0, 2.0]]))
    assert torch.equal(norm.running_mean, torch.tensor([0.1, 0.2])) and torch.equal(before[0], norm.running_mean)
    assert torch.equal(before[1], norm.running_var)


def test_a_fused_optimizer_logs_the_gradient_without_the_scale(launch, tmp_path):
    words = [*HALF, "norm=batch", "trainer.max_steps=1", "trainer.log_every_n_steps=1", "stages=[fit]", "val.total=0"]
    one, other = (
        curves(launch(*words, f"+optimizer.fused={fused}", out=tmp_path / fused)[1])[0]["train/gradient_norm"]
        for fused in ("false", "true")
    )
    assert one == pytest.approx(other, rel=1e-5)


def test_gradients_of_a_fused_optimizer_are_not_clipped_in_float16(launch, tmp_path):
    words = ["trainer.max_steps=1", "stages=[fit]", "trainer.gradient_clip_val=1.0"]
    launch(*words, "+optimizer.fused=true", out=tmp_path / "float32")
    launch(*words, *HALF, out=tmp_path / "apart")
    with pytest.raises(UsageError, match=r"got a fused one: leave out optimizer\.fused, or type trainer\.precision=bf"):
        launch(*words, *HALF, "+optimizer.fused=true", out=tmp_path / "both")


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "gpu", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
        ),
    ],
)
@pytest.mark.parametrize("head", sampled(STEPPING, 2))
def test_training_in_float16_is_that_of_float32(launch, tmp_path, head, device):
    words = [*few(head), "trainer.max_steps=6", "stages=[fit]", "val.every=6", f"trainer.accelerator={device}"]
    if head != "reptile":  # Adam takes a full step along a gradient that is smaller than its rounding
        words += ["optimizer=plain_sgd", "optimizer.lr=3e-4"]
    if head == "boil":  # rounding of second derivatives grows with the inner rate, here 0.5
        words += ["head.lr=0.1"]
    _, single = launch(*words, out=tmp_path / "single")
    _, half = launch(*words, *(HALF if device == "cpu" else ["trainer.precision=16-mixed"]), out=tmp_path / "half")
    _, none = launch(*words, "optimizer.lr=0", out=tmp_path / "none")
    start, exact, ours = (
        torch.cat([p.flatten() for k, p in state(f).items() if k.endswith("weight")]) for f in (none, single, half)
    )
    assert F.cosine_similarity(ours - start, exact - start, 0) > 0.9
