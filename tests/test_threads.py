"""Processes that run at the same time share the cores, unless the user sets the number of threads."""

import os
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from metafew.distributed import subprocesses, threads
from metafew.distributed.sweep import ReportFailedCells
from metafew.distributed.threads import threads_of_each, usable_cores


@pytest.fixture
def eight(monkeypatch):
    """Eight cores, and an environment that sets no threads."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # so that what a test sets is undone
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(threads, "usable_cores", lambda: 8)


@pytest.mark.parametrize(
    ("affinity", "quota", "cores"),
    [
        (8, None, 8),
        (8, "max 100000\n", 8),
        (8, "250000 100000\n", 2),
        (2, "800000 100000\n", 2),
        (8, "10000 100000", 1),
    ],
)
def test_cores_that_a_process_may_use(monkeypatch, tmp_path, affinity, quota, cores):
    monkeypatch.setattr(threads, "QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(threads, "sys", SimpleNamespace(platform="linux"))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(affinity)), raising=False)
    if quota is not None:
        (tmp_path / "cpu.max").write_text(quota)
    assert usable_cores() == cores


def test_each_has_its_share_unless_the_user_sets_it(eight, monkeypatch):
    assert [threads_of_each(jobs) for jobs in (1, 2, 3, 9)] == ["8", "4", "2", "1"]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads_of_each(2) == "3"


@pytest.mark.parametrize(
    ("launcher", "jobs", "printed"),
    [
        ("joblib", 2, "2 runs at a time, each with OMP_NUM_THREADS=4\n"),
        ("joblib", -1, "8 runs at a time, each with OMP_NUM_THREADS=1\n"),
        ("joblib", 1, ""),
        ("basic", 2, ""),
    ],
)
def test_a_sweep_sets_and_prints_the_threads_of_its_runs(eight, capsys, tmp_path, launcher, jobs, printed):
    hydra = {"runtime": {"choices": {"hydra/launcher": launcher}}, "launcher": {"n_jobs": jobs}}
    hydra |= {"sweep": {"dir": str(tmp_path)}, "output_subdir": None}
    ReportFailedCells().on_multirun_start(OmegaConf.create({"hydra": hydra}))
    assert capsys.readouterr().out == printed
    assert os.environ.get("OMP_NUM_THREADS", "") == printed.strip().partition("=")[2]


@pytest.mark.parametrize("given", ["2", None])
def test_a_run_starts_with_the_threads_that_it_is_given(eight, monkeypatch, given):
    environments = []
    monkeypatch.setattr(subprocesses.subprocess, "Popen", lambda *_, env, **__: environments.append(env))
    subprocesses.start_subprocess([], threads=given)
    assert environments[0].get("OMP_NUM_THREADS") == given
