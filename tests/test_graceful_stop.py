"""After a signal, or out of memory on one rank, all ranks of a run stop together and report it once."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from pytorch_lightning.utilities.exceptions import SIGTERMException
from runs import ROOT, TINY

from metafew import cli
from metafew.callbacks.graceful_stop import GracefulStop
from metafew.distributed import report_once, subprocesses
from metafew.training import checkpoint, resume

LONG = [*TINY, "trainer.max_steps=100000", "val.every=50", "save.every=20", "trainer.log_every_n_steps=1"]
DDP = ["trainer.devices=2", "trainer.strategy=ddp"]


@pytest.fixture
def _handlers():
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_handlers")
def test_a_signal_to_one_rank_stops_all_of_them_between_two_steps():
    ours, theirs = GracefulStop(), GracefulStop()
    reduced = []

    def reduce(flag, reduce_op):
        reduced.append(reduce_op)
        return max(flag, torch.tensor(float(theirs.asked)))

    strategy = SimpleNamespace(root_device="cpu", reduce=reduce)
    trainer = SimpleNamespace(world_size=2, accumulate_grad_batches=2, strategy=strategy)
    ours.on_train_batch_start(trainer, None, None, 0)
    theirs.on_train_start(trainer, None)
    signal.raise_signal(signal.SIGTERM)
    assert theirs.asked and not ours.asked
    ours.on_train_batch_start(trainer, None, None, 1)  # in the middle of a step
    assert reduced == ["max"]
    with pytest.raises(SIGTERMException):
        ours.on_train_batch_start(trainer, None, None, 2)
    with pytest.raises(SIGTERMException):
        ours.on_validation_batch_start(trainer, None, None, 0)
    trainer.world_size = 1
    ours.on_test_batch_start(trainer, None, None, 0)
    ours.on_predict_batch_start(trainer, None, None, 0)
    assert reduced == ["max"] * 3  # one process has nobody to ask
    ours.on_predict_start(trainer, None)
    signal.raise_signal(signal.SIGTERM)
    with pytest.raises(SIGTERMException):
        ours.on_predict_batch_start(trainer, None, None, 0)


@pytest.mark.usefixtures("_handlers")
def test_the_second_ctrl_c_ends_at_once():
    ending = GracefulStop()
    ending.on_train_start(None, None)
    signal.raise_signal(signal.SIGINT)
    ending.on_validation_start(None, None)
    assert ending.asked
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


@pytest.mark.usefixtures("_handlers")
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_of_sbatch_ends_the_run_unless_the_job_has_a_handler_for_it(number):
    ending, seen = GracefulStop(), []
    signal.signal(number, lambda *_: seen.append(True))  # as submitit does
    ending.on_train_start(None, None)
    signal.raise_signal(number)
    assert seen and not ending.asked
    signal.signal(number, signal.SIG_DFL)
    ending.on_validation_start(None, None)
    signal.raise_signal(number)
    assert ending.asked


@pytest.mark.parametrize(("order", "by"), [("01", ""), ("10", "process 1: "), ("0", "")])
def test_an_error_of_all_ranks_is_reported_once_and_that_of_one_by_it(monkeypatch, tmp_path, capsys, order, by):
    shared = torch.distributed.HashStore()
    monkeypatch.setattr(report_once, "default_store", lambda: shared)
    monkeypatch.setattr(report_once, "TIMEOUT", timedelta(milliseconds=50))
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: int(os.environ["RANK"]))
    assert not report_once.already_reported()
    for rank in order:
        monkeypatch.setenv("RANK", rank)
        cli.report_error(tmp_path, "it failed")
        assert report_once.already_reported()
    assert capsys.readouterr().err == f"metafew: {by}it failed\n"
    assert json.loads((tmp_path / "results.json").read_text()) == {"error": f"{by}it failed"}


@pytest.mark.usefixtures("_handlers")
def test_a_signal_before_the_command_of_a_cell_is_known_reaches_it(monkeypatch):
    sent, child = [], SimpleNamespace(wait=lambda: 0, send_signal=lambda number: sent.append(number))

    def start(_):
        os.kill(os.getpid(), signal.SIGTERM)
        return child

    monkeypatch.setattr(subprocesses, "start_subprocess", start)
    signal.signal(signal.SIGTERM, lambda *_: pytest.fail("it was meant for the command"))
    assert subprocesses.run_subprocess([]) == 143 and sent == [signal.SIGTERM]


@pytest.mark.usefixtures("_handlers")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_lets_the_command_of_a_cell_end_in_order(monkeypatch, tmp_path, name):
    end = {"SIGINT": "time.sleep(1)", "SIGTERM": "signal.sigwait([signal.SIGTERM])"}[name]
    script = (
        "import os, pathlib, signal, sys, time; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM]); "
        f"time.sleep(0.2); os.kill(os.getppid(), signal.{name}); {end}; pathlib.Path(sys.argv[1]).touch()"
    )
    monkeypatch.setattr(subprocesses, "PROGRAM", ["-c", script])
    signal.signal(signal.SIGTERM, lambda *_: pytest.fail("it was meant for the command"))
    assert subprocesses.run_subprocess([str(tmp_path / "ended")]) == 143
    assert (tmp_path / "ended").exists()
    monkeypatch.setattr(subprocesses, "PROGRAM", ["-c", "raise SystemExit(3)"])
    assert subprocesses.run_subprocess([]) == 3


def test_a_signal_to_a_cell_stops_the_sweep_and_names_its_folder(monkeypatch, tmp_path, capsys):
    runtime = {"choices": {"hydra/launcher": "basic"}, "config_sources": []}
    chosen = {"runtime": runtime, "overrides": {"hydra": [], "task": ["seed=1"]}}
    chosen = OmegaConf.create(
        chosen | {"sweep": {"dir": str(tmp_path)}, "job": {"chdir": None, "config_name": "train"}}
    )
    monkeypatch.setattr(HydraConfig, "get", lambda: chosen)
    words = []
    monkeypatch.setattr(subprocesses, "run_subprocess", lambda typed: words.extend(typed) or subprocesses.TERMINATED)
    with pytest.raises(SystemExit, match="143"):
        subprocesses.run_cell(tmp_path / "0")
    assert f"hydra.sweep.dir={tmp_path}" in words
    for out, key, folder in ((tmp_path / "0", "sweep", tmp_path), (tmp_path.parent, "run", tmp_path.parent)):
        with pytest.raises(SystemExit, match="143"):
            resume.exit_after_signal(out)
        assert capsys.readouterr().err.endswith(f"ckpt=last hydra.{key}.dir={folder}\n")


@contextlib.contextmanager
def begun(*words, cwd, rows):
    """Start a command in its own process group; yield once its metrics.csv has ``rows`` rows."""
    command = [sys.executable, str(ROOT / "train.py"), *words]
    run = subprocess.Popen(command, cwd=cwd, start_new_session=True, stderr=subprocess.PIPE, text=True)
    try:
        for _ in range(600):
            files = [*cwd.rglob("metrics.csv")]
            if run.poll() is not None or (files and len(files[0].read_text().splitlines()) > rows):
                break
            time.sleep(0.2)
        yield run
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(3))
def test_sigterm_to_all_processes_at_any_moment_ends_them_with_a_checkpoint(tmp_path, number):
    words = [*LONG, *DDP, "hydra.run.dir=out"]
    with begun(*words, cwd=tmp_path, rows=5) as run:
        time.sleep(random.Random(number).uniform(0, 3))
        os.killpg(run.pid, signal.SIGTERM)
        printed = run.communicate(timeout=60)[1]
        assert (
            run.returncode == 143 and printed.count("type the same command again with ckpt=last hydra.run.dir=") == 1
        ), printed
        assert "Traceback" not in printed
    step = checkpoint.read(tmp_path / "out" / "checkpoints" / "last.ckpt")["global_step"]
    rows = (tmp_path / "out" / "metrics.csv").read_text().splitlines()
    assert max(int(row.split(",")[rows[0].split(",").index("step")]) for row in rows[1:]) in (step - 1, step)
    more = [*words, "ckpt=last", f"trainer.max_steps={step + 2}"]
    subprocess.run([sys.executable, str(ROOT / "train.py"), *more], cwd=tmp_path, check=True, timeout=120)
    assert json.loads((tmp_path / "out" / "results.json").read_text())["steps"] == step + 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_sweep_over_several_processes_ends_with_its_cell(tmp_path, name):
    words = ["-m", *LONG, *DDP, "seed=0,1", "hydra.sweep.dir=sweep"]
    with begun(*words, cwd=tmp_path, rows=5) as run:
        if name == "SIGINT":
            os.killpg(run.pid, signal.SIGINT)
        else:
            run.terminate()
        printed = run.communicate(timeout=60)[1]  # no process is left to hold the pipe
        assert run.returncode == 143, printed
    assert printed.count(f"type the same command again with ckpt=last hydra.sweep.dir={tmp_path}/sweep\n") == 1, printed
    assert (tmp_path / "sweep" / "0" / "checkpoints" / "last.ckpt").exists()
    assert not (tmp_path / "sweep" / "1").exists()


@pytest.mark.slow
def test_memory_that_runs_out_on_the_second_rank_only_is_reported(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(
        "import os\nfrom metafew import cli\nfrom metafew.training.learner import Learner\n"
        "def step(*_):\n    raise MemoryError('no room')\n"
        "if os.environ.get('LOCAL_RANK') == '1':\n    Learner.training_step = step\ncli.main()\n"
    )
    command = [sys.executable, str(script), *TINY, *DDP, "hydra.run.dir=out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done
    assert done.stderr.count("process 1: memory ran out in a step of train (no room)") == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "process 1: memory ran out" in json.loads((tmp_path / "out" / "results.json").read_text())["error"]
