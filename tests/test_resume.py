"""A run that is killed at any moment and resumed ends as one that was never interrupted, bit for bit."""

import csv
import json
import multiprocessing
import os
import random
import shutil
import signal
from multiprocessing import active_children
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf, open_dict
from PIL import Image
from runs import PATIENCE, TINY, curves

from metafew import cli
from metafew.config.groups import CONF, describe_groups
from metafew.data.store import build, describe, store_root
from metafew.distributed.launcher import is_restarted, job_of_queue
from metafew.distributed.sweep import error_of, finished
from metafew.errors import UsageError
from metafew.io import is_own, write_json
from metafew.solvers import unsolved
from metafew.training import checkpoint, resume
from metafew.training.factory import make_source
from metafew.training.learner import Learner

# 12 steps, validations after 5 and 10, checkpoints after 3, 5, 6, 9, 10 and 12; the network of protonet has dropout.
WORDS = ["trainer.max_steps=12", "val.every=5", "save.every=3", "trainer.log_every_n_steps=1", "schedule=cosine"]
WORDS += ["val.tasks=2"]
HEADS = {
    "protonet": ["backbone=r2d2", "norm=batch"],
    "maml": ["head=maml", "head.steps=1", "head.test_steps=1"],
}
MOMENTS = {"step": (Learner, "training_step"), "validation": (Learner, "validation_step"), "writing": (os, "fsync")}


def command(*words, out):
    """Do in this process what ``python train.py WORDS hydra.run.dir=OUT`` does."""
    from metafew.training.run import run

    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [*TINY, *WORDS, *words, f"hydra.run.dir={out}"], return_hydra_config=True)
        with open_dict(cfg):
            cfg.hydra.mode, cfg.hydra.runtime.output_dir = RunMode.RUN, str(out)
            HydraConfig.instance().set_config(cfg)
            del cfg["hydra"]
        cfg, overrides = cli.compose_run(cfg)
    out.mkdir(exist_ok=True)
    chosen = HydraConfig.get().runtime.choices
    return run(
        cfg, {group: chosen[group] for group in describe_groups() if isinstance(chosen.get(group), str)}, overrides, out
    )


def interrupted(*words, out, moment, count, act):
    """Run ``command`` in a child that calls ``act`` at the ``count``-th time of ``moment``; return how it ended."""
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1]
    try:
        os.setsid()
        signal.alarm(PATIENCE)
        if multiprocessing.get_start_method() == "forkserver":  # a copy cannot use that of its original
            multiprocessing.set_start_method("fork", force=True)
        owner, name = MOMENTS[moment]
        original, calls = getattr(owner, name), iter(range(1, 10_000))
        setattr(owner, name, lambda *a, **k: (next(calls) == count and act(), original(*a, **k))[1])
        command(*words, out=out)
    except SystemExit as end:
        os._exit(end.code)
    finally:
        os._exit(99)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Compute with one thread: a copy has none of the other threads of its original, and would wait for them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def terminate():
    os.killpg(0, signal.SIGTERM)  # as SLURM does: all processes of the job, workers too


def press_ctrl_c():
    os.killpg(0, signal.SIGINT)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, cache):
    """The folder of a run that was never interrupted, for each head."""
    folders = {}

    def made(head):
        if head not in folders:
            folders[head] = tmp_path_factory.mktemp(head)
            command(*HEADS[head], out=folders[head])
        return folders[head]

    return made


def same(a, b):
    """Tell whether two nested states are equal to the last bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return all(map(same, a, b)) and len(a) == len(b) if isinstance(a, list) else a == b


def check_equal(ours, theirs):
    """Check that two folders hold the same weights, optimizer, schedule, random state, curves and results."""
    for name in ("best", "last"):
        a, b = (checkpoint.read(out / "checkpoints" / f"{name}.ckpt") for out in (ours, theirs))
        for part in ("global_step", "state_dict", "optimizer_states", "lr_schedulers", "resume"):
            assert same(a[part], b[part]), (name, part)
        assert a["metafew"]["temperatures"] == b["metafew"]["temperatures"]
    for name in ("metrics.csv", "tasks.csv"):
        assert (ours / name).read_text() == (theirs / name).read_text()
    a, b = (json.loads((out / "results.json").read_text()) for out in (ours, theirs))
    assert all(a[key] == b[key] for key in ("metrics", "baselines", "calibration", "steps", "select", "unsolved"))
    assert not list(ours.rglob("*.tmp"))


def trial(whole, out, head, workers, moment, count):
    words = [*HEADS[head], f"data.num_workers={workers}"]
    status = interrupted(*words, out=out, moment=moment, count=count, act=die)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status
    command(*words, "ckpt=last", out=out)
    check_equal(out, whole(head))


@pytest.mark.parametrize(
    ("head", "workers", "moment", "count"),
    [("protonet", 0, "writing", 9), pytest.param("maml", 2, "validation", 2, marks=pytest.mark.slow)],
)
def test_killed_and_typed_again_it_ends_as_if_it_had_never_stopped(whole, tmp_path, head, workers, moment, count):
    trial(whole, tmp_path, head, workers, moment, count)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(20))
def test_killed_at_any_moment_it_ends_as_if_it_had_never_stopped(whole, tmp_path, number):
    draw = random.Random(number)
    moment = list(MOMENTS)[number % 3]
    count = draw.randint(1, {"step": 12, "validation": 2, "writing": 10}[moment])  # MAML has two steps of validation
    trial(whole, tmp_path, ["protonet", "maml"][number // 3 % 2], draw.choice([0, 2]), moment, count)


@pytest.mark.parametrize(
    ("moment", "count", "act", "done"),
    # In the middle of step 8; in the validations after step 5 and, the last, after step 10, which adds nothing to save.
    [("step", 8, terminate, 8), pytest.param("validation", 1, press_ctrl_c, 5, marks=pytest.mark.slow)],
)
def test_asked_to_end_it_saves_says_how_to_go_on_and_goes_on(whole, tmp_path, capfd, moment, count, act, done):
    words = [*HEADS["protonet"], "data.num_workers=2"]
    status = interrupted(*words, out=tmp_path, moment=moment, count=count, act=act)
    assert os.waitstatus_to_exitcode(status) == 143
    message = f"type the same command again with ckpt=last hydra.run.dir={tmp_path}"
    assert message in capfd.readouterr().err
    assert message in json.loads((tmp_path / "results.json").read_text())["error"]
    assert checkpoint.read(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == done
    command(*words, "ckpt=last", out=tmp_path)
    check_equal(tmp_path, whole("protonet"))


def test_a_job_that_its_queue_starts_again_goes_on_by_itself(whole, tmp_path, monkeypatch):
    monkeypatch.setenv("SUBMITIT_LOCAL_JOB_ID", "7")
    interrupted(*HEADS["protonet"], out=tmp_path, moment="step", count=8, act=die)
    last = str(tmp_path / "checkpoints" / "last.ckpt")
    monkeypatch.setenv("SUBMITIT_LOCAL_JOB_ID", "8")  # another job begins anew
    assert resume.newest_of_this_job(tmp_path) is resume.newest_of_this_job(tmp_path / "empty") is None
    monkeypatch.setenv("SUBMITIT_LOCAL_JOB_ID", "7")
    assert resume.newest_of_this_job(tmp_path) == last
    seen, step = [], Learner.training_step
    monkeypatch.setattr(Learner, "training_step", lambda *args: (seen.append(1), step(*args))[1])
    command(*HEADS["protonet"], out=tmp_path)
    assert len(seen) == 6  # of 12
    check_equal(tmp_path, whole("protonet"))


def test_a_job_that_began_from_a_checkpoint_goes_on_from_its_own(whole, tmp_path, monkeypatch):
    monkeypatch.setenv("SUBMITIT_LOCAL_JOB_ID", "7")
    words = [*HEADS["protonet"], "seed=1", f"ckpt={whole('protonet')}/checkpoints/best.ckpt"]
    interrupted(*words, out=tmp_path, moment="step", count=8, act=die)
    seen, step = [], Learner.training_step
    monkeypatch.setattr(Learner, "training_step", lambda *args: (seen.append(1), step(*args))[1])
    command(*words, out=tmp_path)
    assert len(seen) == 6 and not (tmp_path / "checkpoints-1").exists()  # of 12


def test_the_furthest_checkpoint_is_the_newest_whatever_the_times_of_copies(whole, tmp_path):
    out = shutil.copytree(whole("protonet"), tmp_path / "copy")
    last, best = (out / "checkpoints" / f"{name}.ckpt" for name in ("last", "best"))
    os.utime(best, (last.stat().st_mtime + 60,) * 2)
    assert checkpoint.read(best)["global_step"] < checkpoint.read(last)["global_step"]
    assert resume.newest(out) == last
    (out / "checkpoints" / "gone.ckpt").symlink_to(tmp_path / "nowhere")
    assert resume.newest(out) == last
    last.unlink()
    assert resume.newest(out) == best


def test_a_job_of_slurm_counts_its_starts(monkeypatch):
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    assert job_of_queue() is None and not is_restarted()
    monkeypatch.setenv("SLURM_JOB_ID", "31")
    assert job_of_queue() == "SLURM 31" and not is_restarted()  # two runs in one shell are not the same run
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert is_restarted()
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "30")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    assert job_of_queue() == "SLURM 30_2"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("word", "count"),
    [("trainer.accumulate_grad_batches=2", 15), ("trainer.precision=64-true", 8)],
)
def test_steps_of_several_batches_and_of_double_precision_go_on_too(tmp_path, word, count):
    words = [*HEADS["protonet"], word]
    command(*words, out=tmp_path / "whole")
    status = interrupted(*words, out=tmp_path / "cut", moment="step", count=count, act=terminate)
    assert os.waitstatus_to_exitcode(status) == 143
    command(*words, "ckpt=last", out=tmp_path / "cut")
    check_equal(tmp_path / "cut", tmp_path / "whole")


@pytest.mark.slow
def test_a_training_without_validation_goes_on_too(tmp_path):
    words = [*HEADS["protonet"], "val.total=0", "val.every=3"]  # a validation would be due after step 6
    command(*words, out=tmp_path / "whole")
    status = interrupted(*words, out=tmp_path / "cut", moment="step", count=8, act=die)
    assert os.WIFSIGNALED(status) and [*(tmp_path / "cut" / "checkpoints").iterdir()] == [
        tmp_path / "cut" / "checkpoints" / "last.ckpt"
    ]
    command(*words, "ckpt=last", out=tmp_path / "cut")
    check_equal(tmp_path / "cut", tmp_path / "whole")


def test_a_finished_run_is_only_tested_again(whole, tmp_path, monkeypatch):
    out = shutil.copytree(whole("protonet"), tmp_path / "moved")
    before = {path: path.read_bytes() for path in out.rglob("*.c*") if path.is_file()}
    monkeypatch.setattr(Learner, "training_step", lambda *_: pytest.fail("it was trained again"))
    results = json.loads((out / "results.json").read_text())
    again = command(*HEADS["protonet"], "ckpt=last", out=out)
    assert all(results[key] == again[key] for key in ("metrics", "baselines", "steps", "select", "chosen"))
    assert before == {path: path.read_bytes() for path in before} and len(before) == 4
    command("stages=[test]", "ckpt=last", out=out)
    assert all(path.read_bytes() == before[path] for path in before if path.name != "tasks.csv")


def test_a_finished_run_can_be_tested_with_other_heads(whole, tmp_path):
    out = shutil.copytree(whole("protonet"), tmp_path / "moved")
    first = json.loads((out / "results.json").read_text())["metrics"]["test/protonet/accuracy"]
    for heads in (["svm", "cosine"], []):
        metrics = command(*HEADS["protonet"], "ckpt=last", f"evaluate=[{','.join(heads)}]", out=out)["metrics"]
        assert metrics["test/protonet/accuracy"] == first
        assert {f"test/{head}/accuracy" for head in heads} <= metrics.keys()


def test_a_folder_of_checkpoints_may_be_a_link(whole, tmp_path):
    words, out, scratch = HEADS["protonet"], tmp_path / "out", tmp_path / "scratch" / "mine"
    interrupted(*words, out=out, moment="step", count=8, act=die)
    scratch.parent.mkdir()
    (out / "checkpoints").rename(scratch)
    (out / "checkpoints").symlink_to(scratch)
    command(*words, "ckpt=last", out=out)
    assert (out / "checkpoints").is_symlink() and not (out / "checkpoints-1").exists()
    check_equal(out, whole("protonet"))
    assert is_own(str(scratch / "last.ckpt"), out) and not is_own(str(scratch.parent / "last.ckpt"), out)


@pytest.mark.slow
def test_in_another_folder_the_best_and_the_curve_come_along(whole, tmp_path):
    words, first, second = HEADS["maml"], tmp_path / "first", tmp_path / "moved"
    interrupted(*words, "optimizer.lr=0", out=first, moment="step", count=8, act=die)
    first.rename(second)
    command(*words, "optimizer.lr=0", f"ckpt={second}/checkpoints/last.ckpt", out=tmp_path / "third")
    assert checkpoint.read(tmp_path / "third" / "checkpoints" / "best.ckpt")["global_step"] == 5  # the first of equals
    rows = (tmp_path / "third" / "metrics.csv").read_text().splitlines()
    assert len(rows) == len((whole("maml") / "metrics.csv").read_text().splitlines())


def test_from_the_best_checkpoint_the_best_comes_along(tmp_path):
    first = command("optimizer.lr=0", "trainer.max_steps=6", out=tmp_path / "first")
    ckpt = f"ckpt={tmp_path}/first/checkpoints/best.ckpt"
    second = command("optimizer.lr=0", "trainer.max_steps=9", ckpt, out=tmp_path / "second")
    steps = [checkpoint.read(tmp_path / name / "checkpoints/best.ckpt")["global_step"] for name in ("first", "second")]
    assert steps[0] == steps[1] < 6  # the first of equals
    assert first["validation"] == second["validation"]


def test_a_validation_on_other_tasks_does_not_count(tmp_path, caplog):
    easy, best = ["optimizer.lr=0", "val.way=${test.shot}", "test.shot=2"], tmp_path / "checkpoints/best.ckpt"
    command(*easy, "trainer.max_steps=6", out=tmp_path)
    assert checkpoint.read(best)["global_step"] < 6
    command(*easy, "trainer.max_steps=12", "ckpt=last", out=tmp_path)
    assert checkpoint.read(best)["global_step"] < 6 and "differ" not in caplog.text
    hard = [*easy, "val.way=20", "val.total=8"]
    repeated = command(*hard, "trainer.max_steps=12", "ckpt=last", out=tmp_path)  # only tests
    assert "validation tasks differ from those of the checkpoint" in caplog.text
    assert repeated["select"] == "best" and checkpoint.read(best)["global_step"] < 6
    command(*hard, "trainer.max_steps=18", "ckpt=last", out=tmp_path)
    assert checkpoint.read(best)["global_step"] > 12


@pytest.mark.parametrize(
    ("words", "now", "same"),
    [
        ([], ["val.way=3"], False),
        ([], ["val.shot=2"], False),
        ([], ["val.query=3"], False),
        ([], ["val.total=6"], False),
        ([], ["val.balance=dirichlet"], False),
        ([], ["test.seed=5"], False),
        (["val.balance=dirichlet"], ["val.dirichlet=3"], False),
        (["val.shot=natural"], ["val.support=77"], False),
        (["val.way=${test.way}"], ["test.way=3"], False),
        (["val.way=${test.way}", "test.way=3"], ["val.way=3"], True),
        (["test.seed=${seed}"], ["seed=7"], False),
        ([], ["val.dirichlet=3", "val.support=77", "val.every=3", "seed=7", "test.way=3"], True),
    ],
)
def test_validations_on_the_same_tasks_are_comparable(composed, words, now, same):
    saved, config = (OmegaConf.to_container(composed(*words, *more)[0]) for more in ([], now))
    assert resume.has_same_validation({"metafew": {"config": saved}}, config) == same


def test_the_optimizer_of_an_earlier_version_is_refused(tmp_path):
    words = ["head=maml", "head.rates=layer", "head.steps=1", "head.test_steps=1"]
    command(*words, "trainer.max_steps=3", out=tmp_path)
    file = tmp_path / "checkpoints/last.ckpt"
    saved = torch.load(file, weights_only=False)
    groups = saved["optimizer_states"][0]["param_groups"]
    groups[0]["params"] += groups.pop()["params"]
    torch.save(saved, file)
    with pytest.raises(UsageError, match="that exempts learned rates from weight decay, got that"):
        command(*words, "trainer.max_steps=6", "ckpt=last", out=tmp_path)


def test_a_curve_is_set_aside_with_its_checkpoints(tmp_path):
    command("trainer.max_steps=6", out=tmp_path / "a")
    curve = (tmp_path / "a/metrics.csv").read_text()
    command("trainer.max_steps=3", "seed=1", out=tmp_path / "a")
    assert (tmp_path / "a/checkpoints-1/metrics.csv").read_text() == curve != (tmp_path / "a/metrics.csv").read_text()
    command("trainer.max_steps=9", f"ckpt={tmp_path}/a/checkpoints-1/last.ckpt", out=tmp_path / "b")
    assert (tmp_path / "b/metrics.csv").read_text().startswith(curve)


@pytest.mark.parametrize("rule", ["patience:0", "patience:1", "stopping_threshold:1000"])
def test_a_training_that_a_callback_ended_is_finished(tmp_path, rule):
    stopping = f"{{_target_:pytorch_lightning.callbacks.EarlyStopping,monitor:val/protonet/loss,{rule}}}"
    words = ["optimizer.lr=0", "trainer.max_steps=60", f"+trainer.callbacks=[{stopping}]"]
    first = command(*words, out=tmp_path)
    assert 0 < first["steps"] < 60
    again = command(*words, "ckpt=last", out=tmp_path)
    assert again["steps"] == first["steps"] and again["metrics"] == first["metrics"]


def test_a_damaged_checkpoint_is_passed_over(whole, tmp_path, caplog):
    words = HEADS["protonet"]
    interrupted(*words, out=tmp_path, moment="step", count=8, act=die)
    files = {name: tmp_path / "checkpoints" / f"{name}.ckpt" for name in ("best", "last")}
    files["last"].write_bytes(files["last"].read_bytes()[:5000])
    command(*words, "ckpt=last", out=tmp_path)
    assert "last.ckpt cannot be read as one" in caplog.text and "trying the one before it" in caplog.text
    check_equal(tmp_path, whole("protonet"))
    for file in files.values():
        file.write_text("hello world")
    with pytest.raises(UsageError, match="cannot be read as one"):
        command(*words, "ckpt=last", out=tmp_path)
    assert (tmp_path / "metrics.csv").read_text() == (whole("protonet") / "metrics.csv").read_text()


def test_a_checkpoint_of_weights_only_is_passed_over(whole, tmp_path):
    words = HEADS["protonet"]
    interrupted(*words, out=tmp_path, moment="step", count=8, act=die)
    content = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=False)
    del content["resume"], content["optimizer_states"]
    torch.save(content, tmp_path / "checkpoints" / "of-another-callback.ckpt")
    command(*words, "ckpt=last", out=tmp_path)
    check_equal(tmp_path, whole("protonet"))


def test_a_smaller_number_of_steps_than_were_taken_warns(tmp_path, caplog):
    command("trainer.max_steps=4", out=tmp_path)
    assert command("trainer.max_steps=2", "ckpt=last", out=tmp_path)["steps"] == 4
    assert "is after 4 steps, more than trainer.max_steps=2" in caplog.text


def test_a_resumed_training_has_the_patience_that_is_typed(tmp_path):
    stopping = (
        "+trainer.callbacks=[{{_target_:pytorch_lightning.callbacks.EarlyStopping,monitor:val/protonet/loss,{}}}]"
    )
    words = ["optimizer.lr=0", "val.every=1", "trainer.log_every_n_steps=1"]
    command(*words, "trainer.max_steps=2", stopping.format("patience:4"), out=tmp_path)
    more = command(*words, "trainer.max_steps=60", stopping.format("patience:9"), "ckpt=last", out=tmp_path)
    assert 9 <= more["steps"] <= 11


def test_a_training_that_patience_ended_goes_on_with_a_longer_one(tmp_path):
    stopping = "{{_target_:pytorch_lightning.callbacks.EarlyStopping,monitor:val/protonet/loss,patience:{}}}"
    words = ["optimizer.lr=0", "val.every=1", "trainer.max_steps=60"]
    first = command(*words, f"+trainer.callbacks=[{stopping.format(1)}]", out=tmp_path)
    again = command(*words, f"+trainer.callbacks=[{stopping.format(6)}]", "ckpt=last", out=tmp_path)
    assert first["steps"] <= 3 and 7 <= again["steps"] <= 9


def test_from_an_earlier_step_what_is_later_is_undone(tmp_path, caplog):
    command("save.keep=true", "trainer.max_steps=6", out=tmp_path / "a")
    words = [f"ckpt={tmp_path}/a/checkpoints/step-000003.ckpt", "trainer.max_steps=3"]
    for name, best in (("b", "not copied"), ("a", "deleted")):
        command(*words, out=tmp_path / name)
        assert f"where training resumes, so it is {best}" in caplog.text
        assert not (tmp_path / name / "checkpoints/best.ckpt").exists()
        assert [row["step"] for row in curves(tmp_path / name)] == [0, 1, 2]


def test_training_tasks_that_follow_those_of_the_test_are_compared(tmp_path):
    command("train.shot=${test.shot}", "trainer.max_steps=1", out=tmp_path)
    command("train.shot=1", "trainer.max_steps=2", "ckpt=last", out=tmp_path)
    with pytest.raises(UsageError, match="different ones for train than in"):
        command("train.shot=${test.shot}", "test.shot=2", "trainer.max_steps=3", "ckpt=last", out=tmp_path)


def test_without_a_checkpoint_training_starts_and_other_options_are_a_usage_error(tmp_path, caplog):
    command("ckpt=last", "save.keep=true", out=tmp_path)
    assert "which has no checkpoint yet: starting a new training" in caplog.text
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["best.ckpt", "last.ckpt", "step-000003.ckpt", "step-000006.ckpt", "step-000009.ckpt"]
    for words in (["ckpt=last"], [f"ckpt={tmp_path}/checkpoints/best.ckpt"]):
        with pytest.raises(UsageError, match=r"different ones for optimizer than in .* another hydra\.run\.dir"):
            command("optimizer.lr=0.5", *words, out=tmp_path)
    # Options of evaluation may change.
    assert command("test.total=3", "ckpt=last", out=tmp_path)["metrics"]["test/protonet/accuracy"]["tasks"] == 3


@pytest.mark.slow
def test_words_that_name_other_values_are_the_same_words_again(tmp_path):
    words = ["optimizer.weight_decay=${train.query}"]
    first = command(*words, out=tmp_path)
    command(*words, "trainer.max_steps=13", "ckpt=last", out=tmp_path)
    saved = checkpoint.read(tmp_path / "checkpoints" / "last.ckpt")["metafew"]["overrides"]
    assert words[0] in saved
    assert first["config"]["optimizer"]["weight_decay"] == first["config"]["train"]["query"]


@pytest.mark.slow
def test_another_kind_of_step_is_another_training(tmp_path):
    command(out=tmp_path)
    for word in ("accumulate_grad_batches=2", "gradient_clip_val=1.0", "precision=64"):
        with pytest.raises(UsageError, match="different ones for trainer than in"):
            command("trainer.max_steps=20", f"trainer.{word}", "ckpt=last", out=tmp_path)


@pytest.mark.slow
def test_tasks_that_a_solver_gave_up_before_are_counted_after(tmp_path, monkeypatch):
    monkeypatch.setattr(unsolved, "TOLERANCE", -1)
    words = ["head=logistic", "trainer.max_steps=4", "val.every=2", "save.every=1"]
    whole = command(*words, out=tmp_path / "whole")
    assert whole["unsolved"] == {"logistic regression": 4 * 2 + 2 * 4 + 6}
    interrupted(*words, out=tmp_path / "cut", moment="step", count=4, act=die)
    assert command(*words, "ckpt=last", out=tmp_path / "cut")["unsolved"] == whole["unsolved"]


def test_a_cell_without_results_has_failed(tmp_path):
    assert error_of(tmp_path) == "it wrote no results"
    (tmp_path / "results.json").write_text("{")
    assert "got damaged text" in error_of(tmp_path)
    for report, error in (({"error": "too large"}, "too large"), ({"metrics": {}}, None)):
        write_json(tmp_path / "results.json", report)
        assert error_of(tmp_path) == error


def test_a_cell_that_went_on_from_its_own_checkpoint_is_finished_all_the_same(tmp_path):
    report = command("trainer.max_steps=1", out=tmp_path)
    config = report["config"]
    source = make_source(OmegaConf.create(config))
    data = {"glyphs": describe(build(source, store_root(config["cache_dir"])))["fingerprint"]}
    assert finished(tmp_path, config, lambda: data) and not finished(tmp_path / "other", config, pytest.fail)
    assert not finished(tmp_path, config, lambda: {"glyphs": "of other images"})
    for ckpt, done in ((tmp_path / "checkpoints" / "last.ckpt", True), (tmp_path.parent / "last.ckpt", False)):
        assert finished(tmp_path, config | {"ckpt": str(ckpt)}, lambda: data) == done
    assert not finished(tmp_path, config | {"seed": 1}, pytest.fail)
    weights = tmp_path.parent / "weights.ckpt"
    report["config"]["stages"], report["config"]["backbone"]["weights"] = ["test"], str(weights)
    write_json(tmp_path / "results.json", report)
    weights.touch()
    written = (tmp_path / "results.json").stat().st_mtime_ns
    for later, done in ((-1, True), (1, False)):  # in nanoseconds
        os.utime(weights, ns=(written + later, written + later))
        assert finished(tmp_path, report["config"], lambda: data) == done


@pytest.mark.slow
def test_a_training_goes_on_with_its_own_images_only(tmp_path, caplog):
    def draw(name):
        (tmp_path / "d" / name).mkdir(parents=True)
        for i in range(4):
            pixels = torch.randint(256, (8, 8), dtype=torch.uint8).numpy()
            Image.fromarray(pixels).save(tmp_path / "d" / name / f"{i}.png")

    def go(*words, root="d", out="run", steps=1):
        where = [f"dataset.root={tmp_path / root}", f"trainer.max_steps={steps}", f"cache_dir={tmp_path / 'cache'}"]
        return command("dataset=folder", *options, *where, *words, out=tmp_path / out)

    options = ["dataset.image_size=16", *(f"{split}.way=2" for split in ("train", "val", "test"))]
    for name in "abcdefghijkl":
        draw(name)
    report = go()
    saved = checkpoint.read(tmp_path / "run" / "checkpoints" / "last.ckpt")["metafew"]["data"]["folder"]
    assert saved["fingerprint"] == report["data"]["folder"]["fingerprint"]
    assert saved["images"] == report["data"]["folder"]["images"] == {"train": 28, "val": 8, "test": 12}
    shutil.copytree(tmp_path / "d", tmp_path / "copy")
    assert go("ckpt=last", root="copy", steps=2)["steps"] == 2
    assert "another training" not in caplog.text and "other images" not in caplog.text
    draw("m")
    with pytest.raises(UsageError, match=r"dataset=folder has 8 instead of 7 train classes.* 32 instead of 28 .* type"):
        go("ckpt=last", steps=3)
    ckpt = f"ckpt={tmp_path / 'run' / 'checkpoints' / 'last.ckpt'}"
    assert go(ckpt, out="another")["steps"] == 1
    assert "was trained on other images (dataset=folder has 8 instead of 7 train classes" in caplog.text
    caplog.clear()
    go("stages=[test]", ckpt, out="tested")
    assert "the checkpoint was trained with other images (dataset=folder has 8 instead" in caplog.text


@pytest.mark.slow
def test_the_schedule_follows_more_steps(tmp_path, caplog):
    """The learning rate of a longer training goes on as if it had been typed from the beginning."""
    command(out=tmp_path)
    command("trainer.max_steps=20", "ckpt=last", out=tmp_path)
    assert "the learning rate after step 12 was 0 and continues at 0.000345" in caplog.text
    rates = {}
    command("trainer.max_steps=20", out=tmp_path / "whole")
    for file in (tmp_path, tmp_path / "whole"):
        saved = checkpoint.read(file / "checkpoints" / "last.ckpt")
        rates[file] = saved["optimizer_states"][0]["param_groups"][0]["lr"], saved["lr_schedulers"]
    assert len(rates) == 2 and rates[tmp_path] == rates[tmp_path / "whole"]
    with (tmp_path / "metrics.csv").open() as file:
        steps = [int(row["step"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert steps == list(range(20))


@pytest.mark.slow
@pytest.mark.parametrize("steps", [20_000])
def test_memory_handles_and_shared_memory_stay_as_they_are(tmp_path, monkeypatch, steps):
    seen, ended = [], Learner.on_validation_epoch_end

    def look(learner):
        ended(learner)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        owners = tuple(f"torch_{pid}_" for pid in (os.getpid(), *(each.pid for each in active_children())))
        shared = [name for name in os.listdir("/dev/shm") if name.startswith(owners)]  # other files are others'
        mapped = Path("/proc/self/maps").read_text().count(" /dev/shm/")
        seen.append((pages, len(os.listdir("/proc/self/fd")), mapped + len(shared)))

    monkeypatch.setattr(Learner, "on_validation_epoch_end", look)
    words = ["backbone.width=2", "train.tasks=1", "train.way=2", "val.total=8", "data.num_workers=1"]
    command(*words, f"trainer.max_steps={steps}", f"val.every={steps // 40}", "save.every=100", out=tmp_path)
    assert len(seen) == 40
    warm, last = seen[9], seen[-1]
    print(f"pages, handles, shared memory: {warm} after a quarter, {last} at the end")
    assert last[0] < 1.02 * warm[0] and last[1] <= warm[1] and last[2] <= warm[2], (warm, last)
