"""Jobs of a real SLURM: started by srun, requeued, and submitted by a sweep."""

import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from pytorch_lightning.callbacks import Callback
from runs import DDP, EXACT, ROOT, TINY, answers, curves, metafew, weights
from slurm_cluster import cluster, missing

pytestmark = [
    pytest.mark.slow,
    pytest.mark.slurm,
    pytest.mark.skipif(bool(missing()), reason=f"it needs SLURM, and there is no {', '.join(missing())}"),
]
WORDS = [*TINY, *EXACT, "optimizer=sgd", "trainer.max_steps=8", "train.tasks=4", "val.every=4", "save.every=1"]
WORDS += ["trainer.log_every_n_steps=1"]
PAUSE = f"+trainer.callbacks=[{{_target_: {__name__}.Pause}}]"
PATIENCE = 240
"""Seconds after which a job is taken to hang."""


class Pause(Callback):
    """Wait in each step, for a signal to come before the last one."""

    def on_train_batch_start(self, *_):
        time.sleep(0.5)


@pytest.fixture(scope="module")
def slurm(cache):
    """The variables with which commands find a cluster, and jobs this Python and these packages."""
    with cluster() as variables:
        path = os.pathsep.join([str(Path(sys.executable).parent), variables["PATH"]])
        packages = os.pathsep.join(map(str, [ROOT, ROOT / "tests"]))
        yield variables | {"PATH": path, "PYTHONPATH": packages, "COLUMNS": "120"}


@pytest.fixture
def place(tmp_path, slurm, monkeypatch):
    """An empty folder with train.py, from which jobs are submitted to the cluster."""
    (tmp_path / "train.py").symlink_to(ROOT / "train.py")
    monkeypatch.chdir(tmp_path)
    for key, value in slurm.items():
        monkeypatch.setenv(key, value)
    return tmp_path


def ask(*words):
    return subprocess.run(words, check=True, capture_output=True, text=True, timeout=PATIENCE).stdout


def submit(script, *options):
    """Submit a job script, and return the number of its job."""
    Path("job.sh").write_text(script)
    return ask("sbatch", "--parsable", "--output=job.log", *options, "job.sh").strip()


def end_of(job):
    """Wait for a job, and return its state, the exit code of its script, how often it was requeued, and its log."""
    fields = until(lambda: dict(re.findall(r"(\w+)=(\S+)", ask("scontrol", "show", "job", job))), has_ended, job)
    return (
        fields["JobState"],
        int(fields["ExitCode"].split(":")[0]),
        int(fields["Restarts"]),
        Path("job.log").read_text(),
    )


def has_ended(fields):
    return fields["JobState"] not in ("PENDING", "CONFIGURING", "RUNNING", "SUSPENDED", "COMPLETING", "REQUEUED")


def until(read, good, job):
    """Return what ``read`` returns as soon as it is ``good``."""
    end = time.monotonic() + PATIENCE
    while not good(value := read()):
        assert time.monotonic() < end, (value, Path("job.log").exists() and Path("job.log").read_text())
        time.sleep(0.3)
    return value


def trained_for(folder, steps):
    """Return a function that finds out whether the training in ``folder`` has made so many steps."""
    return lambda: (folder / "metrics.csv").exists() and len((folder / "metrics.csv").read_text().splitlines()) > steps


def equal(ours, theirs):
    """Check that two runs trained the same, whatever the number of their processes."""
    same = {"rtol": 0, "atol": 1e-9}
    torch.testing.assert_close(curves(ours), curves(theirs), **same)
    torch.testing.assert_close(weights(ours), weights(theirs), **same)
    assert answers(ours) == answers(theirs)


def script_of_the_docs(*words):
    """Return the job script that docs/gpus.md has for its reader, with more words for each run."""
    text = (ROOT / "docs" / "gpus.md").read_text()
    (script,) = re.findall(r"^`job.sh`:\n\n```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return script.replace("python train.py", f"python train.py {shlex.join(words)}")


def test_the_job_of_the_docs_is_requeued_before_its_time_is_over_and_goes_on(place):
    """SLURM sends USR2 to the script, by --signal, two minutes before the end."""
    job = submit(script_of_the_docs(*WORDS, PAUSE))
    out = place / "outputs" / job
    until(trained_for(out, 3), bool, job)
    ask("scancel", "--batch", "--signal=USR2", job)
    state, code, restarts, log = end_of(job)
    assert (state, code, restarts) == ("COMPLETED", 0, 1), log
    assert [path.name for path in (place / "outputs").iterdir()] == [job]
    assert "a signal stopped the run before its end" in log and log.count(f"checkpoints are in {out}") == 1, log
    metafew(*WORDS, "head=svm", "train.tasks=8", "hydra.run.dir=one", cwd=place)
    equal(out, place / "one")


def train(*words):
    """Return the command of a run in a job script."""
    return f"python train.py {shlex.join([*WORDS, *words])}"


def test_two_steps_of_a_job_side_by_side_are_two_runs(place):
    """Each has two processes; the job asks for tasks, and not for tasks on each node."""
    runs = [f"srun --exact --ntasks=2 {train(*DDP, f'seed={seed}', f'hydra.run.dir={seed}')} &" for seed in (1, 2)]
    state, _, _, log = end_of(submit("\n".join(["#!/bin/bash", *runs, "wait"]), "--nodes=1", "--ntasks=4"))
    assert state == "COMPLETED" and "Warning" not in log, log
    for seed in (1, 2):
        metafew(*WORDS, f"seed={seed}", "hydra.run.dir=one", cwd=place)
        equal(place / str(seed), place / "one")


def test_other_processes_than_the_run_needs_are_a_usage_error(place):
    """The job has three tasks on one node, and one on the other."""
    runs = {
        "2": f"srun --overlap --nodes=1 --ntasks=2 {train()}",
        "one process": train("trainer.num_nodes=2"),
        "3,1": f"srun --overlap {train('trainer.num_nodes=2', *DDP)}",
    }
    lines = [f"({run}; echo code $?) &> '{got}.log' &" for got, run in runs.items()]
    job = submit("\n".join(["#!/bin/bash", *lines, "wait"]), "--nodes=2", "--ntasks=4")
    end_of(job)
    for got in runs:
        line, code = (line for line in Path(f"{got}.log").read_text().splitlines() if not line.startswith("srun: "))
        assert line.startswith("metafew: expected srun to start a process for each of trainer.devices=")
        assert f", got {got}: type srun --nodes=" in line and code == "code 2"


def test_in_an_interactive_allocation_srun_starts_all_processes_and_a_shell_one(place):
    words = ["python", "train.py", *WORDS, "trainer.max_steps=1"]
    shell = ["bash", "-c", f"[ ${{SLURM_PROCID:-0}} != 0 ] || {shlex.join(words)}; true"]
    for command in (["srun", *words, *DDP], shell, ["srun", "--pty", *shell]):
        typed = shlex.join(["salloc", "--ntasks=2", *command])
        ask("script", "--quiet", "--return", "--command", typed, "/dev/null")
    first, *others = (file.parent for file in sorted(place.rglob("results.json")))
    assert len(others) == 2
    for out in others:
        equal(out, first)


def test_a_cell_of_submitit_is_requeued_and_goes_on(place):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason='it needs "metafew[sweep]"')
    sweep = ["-m", "hydra/launcher=submitit_slurm", *WORDS, PAUSE, "head=protonet,ridge", "hydra.sweep.dir=sweep"]
    with Path("job.log").open("w") as log:
        main = subprocess.Popen([sys.executable, "train.py", *sweep], stdout=log, stderr=log)
    until(trained_for(place / "sweep" / "1", 2), bool, "the sweep")
    (job,) = (path.name for path in (place / "sweep" / ".submitit").glob("*_1"))
    ask("scancel", "--signal=USR2", job)
    assert main.wait(timeout=PATIENCE) == 0, Path("job.log").read_text()
    assert len([*(place / "sweep").rglob("results.json")]) == 2
    for number, head in enumerate(("protonet", "ridge")):
        metafew(*WORDS, f"head={head}", "hydra.run.dir=one", cwd=place)
        equal(place / "sweep" / str(number), place / "one")
