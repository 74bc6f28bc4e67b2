"""Accumulated batches equal one larger meta-batch, and what does not says so; clipping reaches every objective."""

import pytest
import torch
from contracts import sampled
from runs import state

EXACT = ["trainer.precision=64", "trainer.max_steps=2", "val.every=2", "stages=[fit]", "val.total=2"]
STEPS = ["head.steps=1", "head.test_steps=1"]
CLASSICAL = ["objective=classical", "regularizer=feature_clustering"]


def assert_same(one, two):
    for key, value in one.items():
        torch.testing.assert_close(value, two[key], rtol=1e-10, atol=1e-10, msg=key)


@pytest.mark.parametrize(
    "words",
    sampled(
        [
            ["head=protonet"],
            ["head=svm", "norm=batch", "schedule=linear", "train.way=2..4", "trainer.gradient_clip_val=0.1"],
            ["head=maml", "norm=batch_renorm", *STEPS],
            ["head=reptile", "norm=transductive", *STEPS, "head.steps=2"],
            ["head=cnaps", "head.width=4", "norm=tasknorm_r"],
        ],
        3,
    ),
    ids=lambda words: words[0],
)
def test_accumulated_batches_equal_one_larger_batch(launch, tmp_path, caplog, words):
    """Running moments and inner optimizers too, which change with the step and not with each batch."""
    _, one = launch(*words, *EXACT, "train.tasks=4", out=tmp_path / "one")
    more = ["train.tasks=2", "trainer.accumulate_grad_batches=2"]
    _, two = launch(*words, *EXACT, *more, out=tmp_path / "two")
    assert_same(state(one), state(two))
    assert "is not the same as a larger train.tasks" not in caplog.text


def test_accumulated_minibatches_equal_one_larger_minibatch(launch, tmp_path):
    words = [*CLASSICAL, "norm=batch", *EXACT]
    _, one = launch(*words, "train.batch_size=32", "train.tasks=4", out=tmp_path / "one")
    more = ["train.batch_size=16", "train.tasks=2", "trainer.accumulate_grad_batches=2"]
    _, two = launch(*words, *more, out=tmp_path / "two")
    assert_same(state(one), state(two))


@pytest.mark.parametrize("words", [["norm=batch_shared"], ["head=reptile", "regularizer=weight_clustering", *STEPS]])
def test_tasks_that_change_one_another_are_said_not_to_accumulate(launch, caplog, words):
    launch(*words, *EXACT, "trainer.accumulate_grad_batches=2")
    assert caplog.text.count("is not the same as a larger train.tasks") == 1


@pytest.mark.parametrize("head", sampled(["protonet", "maml", "reptile"], 1))
def test_clipping_bounds_the_step_of_every_objective(launch, tmp_path, head):
    words = [f"head={head}", "optimizer=plain_sgd", "optimizer.lr=1", "schedule=constant", "stages=[fit]"]
    words += STEPS if head != "protonet" else []
    paths = {}
    for clip in (0.0, 1e-3, 1e-9):
        more = [f"trainer.gradient_clip_val={clip}", "trainer.max_steps=1", "trainer.precision=64"]
        _, out = launch(*words, *more, out=tmp_path / f"{clip:g}")
        kept = [v.flatten() for k, v in state(out).items() if "/" not in k]  # inner moments are no step
        paths[clip] = torch.cat(kept)
    assert (paths[1e-3] - paths[1e-9]).norm().item() == pytest.approx(1e-3, rel=1e-4)
    assert (paths[0.0] - paths[1e-9]).norm().item() > 1.1e-3
