"""Workers that load meta-batches."""

import os
import signal
import subprocess
import sys

import pytest
from runs import PATIENCE, ROOT

from metafew.data.loader import start_methods

KILLED = """
import multiprocessing, os, signal, sys
import torch
from metafew.data.loader import make_loader

class Large(torch.utils.data.Dataset):
    def __len__(self):
        return 100

    def __getitem__(self, step):
        return [torch.zeros(100_000)]  # more than a pipe takes without a reader

if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1], force=True)
    batches = iter(make_loader(Large(), 2))
    next(batches)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(
    "method", [pytest.param(m, marks=[pytest.mark.slow] * (m != start_methods()[0])) for m in start_methods()]
)
def test_workers_end_with_a_main_process_that_is_killed(tmp_path, method):
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    # Workers hold its output open: without their end, communicate() waits.
    with subprocess.Popen([sys.executable, script, method], stdout=subprocess.PIPE, env=env) as main:
        main.communicate(timeout=PATIENCE)
    assert main.returncode == -signal.SIGKILL
