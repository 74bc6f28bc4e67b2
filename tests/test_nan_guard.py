"""What stops a run with a message: losses that are not finite, too little memory; and solvers that give up."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from runs import HALF, TINY, metafew, state

from metafew.backbones.backbone import Backbone
from metafew.callbacks import nan_guard
from metafew.callbacks.nan_guard import NanGuard
from metafew.errors import UsageError
from metafew.objectives.episodic import Episodic
from metafew.solvers import unsolved
from metafew.training import checkpoint
from metafew.training.learner import Learner


@pytest.fixture
def ill(monkeypatch):
    """Let the losses of these tasks be NaN, or whatever else they are multiplied by."""

    def make(*tasks, by=float("nan"), objective=Episodic):
        whole = objective.task_losses

        def losses(self, *args):
            chosen = torch.isin(args[-1].index, torch.tensor(tasks))
            return whole(self, *args) * torch.where(chosen, by, 1.0)

        monkeypatch.setattr(objective, "task_losses", losses)

    return make


def same(a, b):
    a, b = state(a), state(b)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize(
    ("words", "task", "step", "kept"),
    [
        (["train.tasks=2"], 5, 3, 2),
        pytest.param(["train.tasks=1", "trainer.accumulate_grad_batches=2"], 4, 3, 2, marks=pytest.mark.slow),
        (["train.tasks=1", "trainer.accumulate_grad_batches=2"], 7, 4, 2),  # within a step: what was there stays
        (["train.tasks=2", "head=maml", "head.steps=1", "head.test_steps=1"], 5, 3, 2),
    ],
)
def test_a_loss_that_is_not_finite_stops_the_run_and_what_was_saved_goes_on(
    launch, tmp_path, ill, monkeypatch, words, task, step, kept
):
    words = [*words, "stages=[fit]"]
    launch(*words, out=tmp_path / "whole")
    ill(task)
    said = rf"training loss of task {task} is not finite in step {step}, with a learning rate of 0.001 \(.*last.ckpt"
    with pytest.raises(UsageError, match=said) as caught:
        launch(*words, out=tmp_path / "ill")
    assert "type optimizer.lr=0.0001" in str(caught.value)
    assert ("head.lr below 0.4" in str(caught.value)) == ("head=maml" in words)
    last = tmp_path / "ill" / "checkpoints" / "last.ckpt"
    assert checkpoint.read(last)["global_step"] == kept
    monkeypatch.undo()
    launch(*words, f"ckpt={last}", out=tmp_path / "on")
    assert same(tmp_path / "on", tmp_path / "whole")


def test_a_weight_that_is_not_finite_is_never_saved(launch, monkeypatch, tmp_path):
    """A gradient may be NaN where the loss is not."""
    whole = Episodic.task_losses

    def losses(self, backbone, *args):
        return whole(self, backbone, *args) + (0 * next(backbone.parameters())).sum().sqrt()

    monkeypatch.setattr(Episodic, "task_losses", losses)
    with pytest.raises(UsageError, match=r"a weight is not finite after step 1, with a learning rate of 0.001: type"):
        launch("val.every=1", "train.tasks=1", out=tmp_path / "a")
    with pytest.raises(UsageError, match="the training loss of task 1 is not finite in step 2"):
        launch("train.tasks=1", out=tmp_path / "b")
    assert not list(tmp_path.glob("*/checkpoints/*"))


def trainer_like(**changes):
    """Return what the guard reads of a trainer before its first step; its strategy is that of a single process."""
    current = SimpleNamespace(ready=3)
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=SimpleNamespace(current=current)))
    whole = {
        "precision_plugin": None,
        "accumulate_grad_batches": 1,
        "global_step": 0,
        "optimizers": [SimpleNamespace(param_groups=[{"lr": 0.5}])],
        "checkpoint_callback": SimpleNamespace(folder=Path("nowhere")),
        "strategy": SimpleNamespace(reduce=lambda value, reduce_op: value),
        "fit_loop": loop,
    }
    return SimpleNamespace(**whole | changes)


def test_losses_of_a_gpu_are_looked_at_together(monkeypatch):
    """Nothing is read, and so the host never waits, before the turn of all."""
    trainer = trainer_like(log_every_n_steps=3)
    learner = SimpleNamespace(
        device=torch.device("cuda"), heads={"a": SimpleNamespace(learning_rates=())}, trained="a",
        state_dict=lambda: {"weight": torch.tensor([torch.nan])},
    )  # fmt: skip
    guard = NanGuard()
    for step, values in enumerate([[1.0, 2.0], [1.0, torch.inf], [torch.nan, torch.nan]]):
        trainer.global_step = step
        guard.on_train_batch_start(trainer, learner, [SimpleNamespace(index=torch.tensor([2 * step, 2 * step + 1]))], 0)
        learner.task_losses = torch.tensor(values)
        if step < 2:
            guard.on_before_backward(trainer, learner, torch.tensor(values).mean())
    with pytest.raises(UsageError, match=r"loss of task 3 is not finite in step 2, with a learning rate of 0.5: type"):
        guard.on_before_backward(trainer, learner, torch.tensor(values).mean())


def test_a_loss_or_a_weight_of_another_rank_stops_this_one_too(monkeypatch):
    lost = SimpleNamespace(reduce=lambda value, reduce_op: torch.maximum(value, torch.ones_like(value)))
    trainer = trainer_like(log_every_n_steps=1, strategy=lost)
    learner = SimpleNamespace(
        device=torch.device("cpu"), heads={"a": SimpleNamespace(learning_rates=())}, trained="a",
        state_dict=lambda: {"weight": torch.zeros(1)}, task_losses=torch.ones(2),
    )  # fmt: skip
    assert not nan_guard.finite(trainer, learner)
    monkeypatch.setattr(nan_guard, "gather_objects", lambda own: [own, [3]])
    guard = NanGuard()
    guard.on_train_batch_start(trainer, learner, [SimpleNamespace(index=torch.tensor([0, 1]))], 0)
    with pytest.raises(UsageError, match="loss of task 3 is not finite in step 1"):
        guard.on_before_backward(trainer, learner, torch.tensor(1.0))


def test_an_overflow_in_float16_is_left_to_the_scaler(launch, tmp_path, ill):
    ill(2, by=float("inf"))
    words = ["train.tasks=1", "trainer.max_steps=4", "norm=batch", "stages=[fit]", *HALF]
    _, out = launch(*words, out=tmp_path / "once")
    assert all(value.isfinite().all() for value in state(out).values())
    assert checkpoint.read(out / "checkpoints" / "last.ckpt")["MixedPrecision"]["scale"] == 512
    ill(*range(100))
    with pytest.raises(UsageError, match="the training loss of task 11 is not finite in step 12"):
        launch(*words, "trainer.max_steps=99", "val.every=99", out=tmp_path / "always")


def test_tasks_that_a_solver_gave_up_are_counted_and_said_once(launch, monkeypatch, caplog, tmp_path):
    words = ["head=logistic", "trainer.max_steps=2", "val.every=1", "val.total=2"]
    assert launch(*words, out=tmp_path / "a")[0]["unsolved"] == {}
    monkeypatch.setattr(unsolved, "TOLERANCE", -1)
    report, out = launch(*words, out=tmp_path / "b")
    assert report["unsolved"] == {"logistic regression": 2 * 2 + 2 * 2 + 6}
    assert json.loads((out / "results.json").read_text())["unsolved"] == report["unsolved"]
    assert caplog.text.count("did not converge") == 1


@pytest.mark.parametrize(
    ("phase", "words", "settings"),
    [
        ("train", ["head=protonet"], ["a smaller train.tasks", "accumulate_grad_batches=2 with half", "bf16-mixed"]),
        ("train", ["head=fomaml"], ["a smaller train.tasks", "head.inner=loop", "trainer.precision=bf16-mixed"]),
        ("train", ["objective=classical"], ["a smaller train.batch_size", "accumulate_grad_batches=2", "bf16-mixed"]),
        ("val", ["head=protonet"], ["val.tasks=1", "a smaller val.query", "trainer.precision=bf16-mixed"]),
        ("test", ["head=protonet"], ["test.tasks=1", "test.queries=class", "trainer.precision=bf16-mixed"]),
        ("analyze", ["stages=[fit,analyze]", "val.total=0"], ["test.tasks=1", "a smaller test.query", "bf16-mixed"]),
        ("test", ["evaluate=[maml]"], ["test.tasks=1", "evaluate.maml.inner=loop", "trainer.precision=bf16-mixed"]),
    ],
)  # fmt: skip
def test_memory_that_runs_out_names_three_settings(launch, monkeypatch, phase, words, settings):
    whole = Backbone._pass

    def scarce(self, *args):
        if self.training == (phase == "train") and (phase != "test" or testing):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total ...")
        return whole(self, *args)

    testing, begin = [], Learner.on_test_epoch_start
    monkeypatch.setattr(Learner, "on_test_epoch_start", lambda self: testing.append(1) or begin(self))
    monkeypatch.setattr(Backbone, "_pass", scarce)
    with pytest.raises(UsageError, match=f"memory ran out in a step of {phase} \\(CUDA out of memory\\)") as caught:
        launch("trainer.max_steps=1", *words)
    assert all(setting in str(caught.value) for setting in settings)
    assert "test.queries" not in str(caught.value) or phase == "test"


@pytest.mark.slow
def test_two_processes_stop_together_and_name_the_tasks_of_both(tmp_path):
    words = [*TINY, "train.tasks=4", "optimizer=plain_sgd", "optimizer.lr=1e30", "trainer.devices=2"]
    done = metafew(*words, "trainer.strategy=ddp", "hydra.run.dir=out", cwd=tmp_path, code=2)
    sentence = json.loads((tmp_path / "out/results.json").read_text())["error"]
    assert sentence.startswith(
        "the training loss of tasks 4, 5, 6, 7 is not finite in step 2, with a learning rate of 1e+30"
    )
    assert (
        "Traceback" not in done.stderr and checkpoint.read(tmp_path / "out/checkpoints/last.ckpt")["global_step"] == 1
    )
