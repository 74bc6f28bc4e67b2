"""``scripts/device_check.py``: what it measures, and that one row cannot lose the others."""

import json
import subprocess
import sys

import pytest
import torch

from metafew.commands import device_check, device_steps
from metafew.commands.device_check import Failed, Report, main, run_process
from metafew.commands.device_steps import DTYPES, DeviceStep, compare
from metafew.errors import UsageError


@pytest.fixture
def out(tmp_path):
    return tmp_path / "device.json"


@pytest.fixture
def processes(monkeypatch):
    """Run no processes; returns their command lines."""
    commands = []

    def run(command, **_):
        commands.append(command[1:])
        if "--out" in command:
            with open(command[-1], "w", encoding="utf-8") as file:
                json.dump({"solvers": {"a table": {}}}, file)
        return subprocess.CompletedProcess(command, 0, "....\n4 skipped in 1 s\n")

    monkeypatch.setattr(device_check.subprocess, "run", run)
    return commands


def test_a_rehearsal_measures_every_kind_of_row(out, processes, monkeypatch, capsys):
    monkeypatch.setattr(device_check, "QUICK_HEADS", ("protonet",))
    assert main(["--device", "cpu", "--quick", "--out", str(out)]) == 0
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["complete"] and not found["failed"] and found["device"]["name"] == "cpu"
    assert set(found["steps"]) == {f"protonet {precision}" for precision in DTYPES}
    assert found["steps"]["protonet 32"]["cosine"] == pytest.approx(1)
    assert found["tests"]["gpu"]["summary"] == "4 skipped in 1 s" and found["benchmark"]["solvers"] == {"a table": {}}
    tests, benchmark = processes
    assert any(word.endswith("test_gpu.py") for word in tests) and benchmark[1:4] == ["solvers", "--device", "cpu"]
    assert "complete" in capsys.readouterr().out


def test_a_row_that_fails_is_recorded_and_the_others_follow(out, processes, monkeypatch):
    def compared(head, *_):
        if head == "maml":
            raise RuntimeError("CUDA error")
        return {"ms": 1.0}

    monkeypatch.setattr(device_steps, "compare", compared)
    assert main(["--device", "cpu", "--quick", "--out", str(out)]) == 1
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["failed"] == [f"steps maml {precision}" for precision in DTYPES] and found["complete"]
    assert found["steps"]["maml 32"] == {"error": "RuntimeError: CUDA error"} and "svm 16-mixed" in found["steps"]


def test_rows_without_time_are_listed(out):
    report = Report(out, seconds=0.0)
    report.row("steps", "svm 32", pytest.fail)
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["not_measured"] == ["steps svm 32"] and not found["complete"]


def test_every_row_is_written_at_once(out):
    report = Report(out, seconds=60.0)
    for number in range(2):
        report.row("steps", str(number), lambda: {})
        assert len(json.loads(out.read_text(encoding="utf-8"))["steps"]) == number + 1


@pytest.mark.parametrize(
    ("code", "left", "message"),
    [("raise SystemExit(3)", 60, "exit code 3"), ("import time; time.sleep(60)", 0, "more than 1 s")],
)
def test_a_process_that_fails_or_takes_too_long(code, left, message):
    with pytest.raises(Failed, match=message):
        run_process([sys.executable, "-c", code], left)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["--device", "tpu"], "expected --device to be cuda or cpu, got tpu: type --device cuda"),
        (["--device", "cpu", "--minutes", "0"], "expected --minutes to be above 0, got 0: type --minutes 10"),
        (["--fast"], "unrecognized arguments: --fast: type python scripts/device_check.py --help"),
        pytest.param(
            ["--device", "cuda"],
            "expected a GPU, got none: type --device cpu --quick to rehearse",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_device_check_explains_itself(typed, message, capsys):
    assert main(typed) == 2
    assert capsys.readouterr().err == f"metafew: {message}\n"


def test_a_step_that_differs_is_refused(monkeypatch):
    """A device that computes another loss is found."""
    losses = DeviceStep.loss
    wrong = iter([1.0, 1.1])
    monkeypatch.setattr(DeviceStep, "loss", lambda step: losses(step) * next(wrong))
    with pytest.raises(UsageError, match="expected the step of head=protonet in precision 32"):
        compare("protonet", torch.device("cpu"), "32")
