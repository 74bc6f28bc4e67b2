"""What only a real GPU shows; ``scripts/device_check.py`` runs these tests and those of other files."""

import pytest
import torch
from contracts import files
from runs import TINY, metafew, weights

from metafew.commands.device_steps import DTYPES, DeviceStep, compare
from metafew.io import read_json

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
HEADS = [param.id for param in files("head")]
READING = ("logistic", "svm")
"""Heads whose solvers read values."""
MAML_MIB = 230
"""Twice what a step of MAML needs on a CPU (docs/speed.md), whatever the number of tasks."""


@pytest.fixture
def device():
    return torch.device("cuda")


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("head", HEADS)
def test_a_step_is_that_of_the_cpu(head, precision, device):
    """Raises UsageError if it is not."""
    assert compare(head, device, precision)["ms"] > 0


@pytest.mark.parametrize("head", HEADS)
def test_the_host_waits_only_where_a_solver_reads(head, device):
    step = DeviceStep(head, device, "32")
    step.loss()  # the first step loads kernels
    assert (step.waits() > 0) == (head in READING)


def test_the_memory_of_maml_does_not_grow_with_the_tasks(device):
    words = ["backbone.width=64", "head.inner=loop", "head.steps=5"]
    few, many = (DeviceStep("maml", device, "32", words, tasks).peak() for tasks in (2, 16))
    assert many < 1.2 * few + 16 and many < MAML_MIB


def run_on(folder, *words):
    """Return accuracy and loss of a test after a run in a process of its own, and the weights of its backbone."""
    metafew(*TINY, *words, f"hydra.run.dir={folder}", cwd=folder.parent, process=True)
    metrics = read_json(folder / "results.json")["metrics"]
    values = [value.flatten() for name, value in weights(folder).items() if name.startswith("backbone.")]
    return [metrics[f"test/protonet/{measure}"]["mean"] for measure in ("accuracy", "loss")], torch.cat(values).cpu()


def test_a_run_is_that_of_the_cpu_and_of_ddp_with_one_process(tmp_path):
    gpu = ["trainer.accelerator=gpu", "trainer.devices=1"]
    measured, trained = run_on(tmp_path / "gpu", *gpu)
    cpu, on_cpu = run_on(tmp_path / "cpu")
    ddp, by_ddp = run_on(tmp_path / "ddp", *gpu, "trainer.strategy=ddp")
    assert measured == pytest.approx(cpu, abs=0.05)
    assert measured == pytest.approx(ddp, abs=1e-3)
    _, untrained = run_on(tmp_path / "untrained", *gpu, "optimizer.lr=0.0")
    moved = (trained - untrained).norm()
    # Adam takes full steps along gradients near 0, whose sign rounding decides.
    assert moved > 0 and (trained - on_cpu).norm() < 0.3 * moved and (trained - by_ddp).norm() < 0.1 * moved
