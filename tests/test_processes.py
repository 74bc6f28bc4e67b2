"""A run of several ranks equals that of one."""

import io
import json
import logging
import os
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from lightning_fabric.plugins.environments.lightning import find_free_network_port
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from omegaconf import OmegaConf
from pytorch_lightning.strategies.launchers import subprocess_script
from runs import DDP, EXACT, ROOT, TINY, Copy, answers, command, compose_in, curves, metafew, rows, weights
from torch import nn

from metafew.distributed import launcher, report_once, subprocesses
from metafew.errors import UsageError
from metafew.solvers import unsolved
from metafew.training import run

COMMON = [*TINY, "train.tasks=4", "trainer.max_steps=3", "trainer.log_every_n_steps=1", "val.total=5", "test.total=9"]
FEW = ["head.steps=1", "head.test_steps=1", *(f"{split}.way=2" for split in ("train", "val", "test"))]
MIXTURE = ["dataset=mixture", "dataset.sources=[glyphs,{dataset:glyphs,name:b}]", "val.tasks=1", "test.tasks=1"]
MIXTURE += [f"{split}.{word}" for split in ("train", "val", "test") for word in ("way=2..4", "support=12")]
MEASURED = ["analyze.every=2", "analyze.tasks=2"]
DOUBLE = {
    "protonet": [
        "evaluate=[ridge]",
        "trainer.accumulate_grad_batches=2",
        "trainer.max_steps=2",
        *MEASURED,
        "val.at_start=true",
    ],
    "svm": ["head=svm", "norm=batch", "test.way=2", "test.total=120", "test.tasks=12"],
    "maml": ["head=maml", "norm=batch", *FEW],
    "reptile": ["head=reptile", *FEW],
    "weight_clustering": ["head=reptile", "norm=transductive", "regularizer=weight_clustering", *FEW],
    "classical": ["objective=classical", "norm=batch", "train.batch_size=16"],
    "mixture": ["head=svm", *MIXTURE],
    "batch_shared": ["norm=batch_shared"],
    "unsolved": ["head=logistic", "trainer.max_steps=1"],
}
# Adam would take full steps along gradients that are pure rounding.
SINGLE = {"single": ["backbone=module", f"backbone.target={__name__}.Smooth", "evaluate=[svm]", "optimizer=sgd"]}


class Smooth(nn.Sequential):
    """A network in which rounding stays rounding: one that decides a tie of max pooling moves a whole gradient."""

    def __init__(self):
        convs = nn.Conv2d(1, 4, 3, stride=2), nn.Conv2d(4, 4, 3, stride=2)
        super().__init__(convs[0], nn.Tanh(), convs[1], nn.Tanh())


def compose_cases(one):
    """Compose all cases, once for every number of processes; ``one`` will hold the runs of one process."""
    cases = {name: [*COMMON, *words, *EXACT] for name, words in DOUBLE.items()}
    for name, words in SINGLE.items():
        ckpt = one / name / "checkpoints" / "last.ckpt"
        cases[name] = [*(word for word in COMMON if not word.startswith("backbone.")), *words]
        tested = ["stages=[test]", f"ckpt={ckpt}", "test.total=120", "test.tasks=12"]
        cases[f"{name}_tested"] = [*cases[name], *tested]
    return {name: compose_in(one / name, *words) for name, words in cases.items()}


def run_all(cases, folder, world=1, port=0, rank=0):
    """Run all cases as process ``rank`` of ``world``."""
    if world > 1:
        os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for name, (cfg, choices, overrides) in cases.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        cfg.trainer.devices = world
        run.run(cfg, choices, overrides, folder / name)


def launch_all(cases, folder, world):
    """Run all cases in ``world`` processes: copies of this one, which has imported what they need."""
    port = find_free_network_port()
    ranks = [Copy(partial(run_all, cases, folder, world, port, rank), 1, 2) for rank in range(world)]
    assert [rank.wait() for rank in ranks] == [0] * world


def flat(content, path=""):
    """Return the numbers of nested dictionaries by path, and other values in text."""
    if isinstance(content, dict):
        return {key: leaf for name, value in content.items() for key, leaf in flat(value, f"{path}/{name}").items()}
    return {path: content if isinstance(content, float | int) else str(content)}


def losses(folder):
    measured = [value for row in curves(folder) for key, value in row.items() if "loss" in key]
    return {"": torch.tensor(measured, dtype=torch.float64)}


def distance(ours, theirs):
    assert ours.keys() == theirs.keys()
    return max((value - theirs[key]).abs().max().item() for key, value in ours.items())


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_several_processes_train_and_measure_what_one_does(tmp_path, world, monkeypatch):
    monkeypatch.setattr(unsolved, "TOLERANCE", -1)  # no regression converges
    one, many = tmp_path / "one", tmp_path / "many"
    cases = compose_cases(one)
    run_all(cases, one)
    launch_all(cases, many, world)
    for name, (cfg, *_) in cases.items():
        if "fit" in cfg.stages:
            assert len(curves(many / name)) == len(curves(one / name)) >= cfg.trainer.max_steps
        if name in DOUBLE:
            same = {"rtol": 0, "atol": 1e-9, "msg": name}
            torch.testing.assert_close(curves(one / name), curves(many / name), **same)
            torch.testing.assert_close(weights(one / name), weights(many / name), **same)
            assert answers(one / name) == answers(many / name), name
            for key in ("metrics", "baselines", "calibration", "unsolved", "validation", "chosen"):
                ours, theirs = (json.loads((folder / name / "results.json").read_text())[key] for folder in (one, many))
                assert flat(ours) == pytest.approx(flat(theirs), abs=1e-9), (name, key)
        if name in SINGLE:  # values of about 1, which rounding changes by some 1e-7, and other tasks by 0.1
            for read in (weights, losses):
                assert distance(read(one / name), read(many / name)) < 1e-4, name
        measured = Counter(row["head"] for row in rows(many / name / "tasks.csv"))
        assert set(measured.values()) == {cfg.test.total} == {len({index for _, index in answers(many / name)})}


COPIES_OR_PROCESSES = pytest.mark.parametrize(
    "process", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["copies", "processes"]
)
"""Copies of this process have imported everything, which takes a new process seconds."""


@pytest.mark.slow
@COPIES_OR_PROCESSES
def test_a_sweep_over_several_processes_makes_exactly_its_runs(tmp_path, monkeypatch, process):
    """Each of two cells is a process, from which Lightning starts a second one."""

    def start_second(typed, env, cwd):
        return Copy(command(typed[2:], cwd, env), 1, 2)

    if not process:
        monkeypatch.setattr(subprocesses, "run_subprocess", lambda typed: Copy(command(typed, tmp_path), 1, 2).wait())
        monkeypatch.setattr(subprocess_script, "subprocess", SimpleNamespace(Popen=start_second))
    words = [*TINY, *FEW[2:], "trainer.max_steps=1", "head=protonet,maml", "hydra.sweep.dir=sweep"]
    metafew("-m", *words, *DDP, cwd=tmp_path, process=process)
    reports = [json.loads(file.read_text()) for file in sorted(tmp_path.rglob("results.json"))]
    assert [report["choices"]["head"] for report in reports] == ["protonet", "maml"]
    assert [report["metrics"][f"test/{head}/accuracy"]["tasks"] for report, head in zip(
        reports, ("protonet", "maml"), strict=True)] == [6, 6]  # fmt: skip
    assert {path.name for path in tmp_path.iterdir()} == {"sweep"}
    assert {path.name for path in (tmp_path / "sweep").iterdir()} == {"0", "1", "multirun.yaml"}
    assert all((tmp_path / "sweep" / cell / "train_ddp_process_1.log").exists() for cell in "01")  # Lightning's second


def test_a_thread_runs_the_cells_of_a_sweep_over_several_processes(monkeypatch):
    """Only the main thread may set handlers of signals."""
    ended = SimpleNamespace(wait=lambda: 3)
    monkeypatch.setattr(subprocesses, "start_subprocess", lambda typed: ended)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(subprocesses.run_subprocess, []).result() == subprocesses.run_subprocess([]) == 3
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_tasks_must_divide_among_the_ranks(launch):
    with pytest.raises(UsageError, match=r"type train\.tasks=4"):
        launch("train.tasks=3", *DDP)


def test_several_devices_under_joblib_are_a_usage_error(tmp_path):
    hydra = OmegaConf.create({"runtime": {"choices": {"hydra/launcher": "joblib"}}})
    with (
        patch("metafew.distributed.subprocesses.HydraConfig.get", return_value=hydra),
        pytest.raises(UsageError, match=r"type trainer\.devices=1"),
    ):
        subprocesses.run_cell(tmp_path)


def test_one_chosen_gpu_is_one_process():
    chosen = OmegaConf.create([1, "1", [3], 2, "2", [0, 1], -1, "auto", None])
    assert [launcher.is_one_process(devices, 1) for devices in chosen] == [True] * 3 + [False] * 6
    assert not launcher.is_one_process(1, 2)


@pytest.mark.parametrize(
    ("given", "devices", "count"),
    [
        ({}, 2, 0),
        ({"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "4", "SLURM_NTASKS": "2"}, 2, 4),
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_JOB_NAME": "train"}, 2, 2),
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_JOB_NAME": "interactive"}, 2, 2),  # salloc srun
        (
            {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PTY_PORT": "40000", "SLURM_TASK_PID": "1"},
            2,
            0,
        ),  # a shell of srun --pty
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PTY_PORT": "40000", "SLURM_TASK_PID": str(os.getpid())}, 2, 2),
        ({"SLURM_NTASKS": "8"}, 2, 0),  # a batch script's own process
        ({"SLURM_STEP_NUM_TASKS": "8"}, 1, 8),
    ],
)
def test_another_number_of_processes_than_were_launched_is_a_usage_error(monkeypatch, given, devices, count):
    clear(monkeypatch)
    for key, value in given.items():
        monkeypatch.setenv(key, value)
    assert launcher.launched_world_size() == count
    if count in (0, devices):
        launcher.check_world_size(devices, 1, devices)
    else:
        with pytest.raises(UsageError, match=f"started {count}: type trainer.devices={count} "):
            launcher.check_world_size(devices, 1, devices)
    if count > 1:
        with pytest.raises(UsageError, match="a sweep consists of many runs"):
            launcher.require_one_process("a sweep")


SBATCH = {"SLURM_JOB_ID": "7"}


def srun(tasks, layout, **more):
    """Return the variables of a task that srun starts."""
    return SBATCH | {"SLURM_STEP_NUM_TASKS": str(tasks), "SLURM_STEP_TASKS_PER_NODE": layout} | more


@pytest.mark.parametrize(
    ("given", "nodes", "starter"),
    [
        ({}, 1, None),
        ({}, 2, None),
        (SBATCH | {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2"}, 1, None),
        (SBATCH, 1, "LightningEnvironment"),  # without srun
        (SBATCH | {"SLURM_NTASKS": "2", "SLURM_JOB_NAME": "interactive"}, 1, "LightningEnvironment"),
        (SBATCH | {"NODE_RANK": "1"}, 2, "LightningEnvironment"),
        (srun(1, "1"), 1, "LightningEnvironment"),  # submitit
        (srun(2, "2"), 1, "SrunEnvironment"),
        (srun(2, "2", SLURM_JOB_NAME="interactive"), 1, "SrunEnvironment"),
        (srun(4, "2(x2)"), 2, "SrunEnvironment"),
        (SBATCH, 2, "one process"),
        (srun(4, "4"), 1, "4"),
        (srun(4, "4"), 2, "4"),
        (srun(4, "3,1"), 2, "3,1"),
        (srun(2, "1(x2)"), 1, r"1\(x2\)"),
    ],
)
def test_in_a_job_of_slurm_the_processes_are_those_of_srun_or_those_of_lightning(monkeypatch, given, nodes, starter):
    clear(monkeypatch)
    for key, value in given.items():
        monkeypatch.setenv(key, value)
    if starter is not None and not starter.endswith("Environment"):
        with pytest.raises(UsageError, match=f"got {starter}: type srun --nodes={nodes} --ntasks-per-node=2 "):
            launcher.cluster_environment(2, nodes)
        return
    found = launcher.cluster_environment(2, nodes)
    assert [type(each).__name__ for each in found] == ([starter] if starter else [])
    if starter == "LightningEnvironment":
        launcher.check_world_size(2, nodes, 2 * nodes)


def test_a_task_of_srun_knows_its_place(monkeypatch):
    clear(monkeypatch)
    given = {"SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NODEID": "1", "SLURM_STEP_NODELIST": "gpu[07-08]"}
    for key, value in (srun(4, "2(x2)", SLURM_STEP_ID="0") | given).items():
        monkeypatch.setenv(key, value)
    (task,) = launcher.cluster_environment(2, 2)
    assert (task.world_size(), task.global_rank(), task.local_rank(), task.node_rank()) == (4, 3, 1, 1)
    assert task.creates_processes_externally and task.main_address == "gpu07"
    ports = [task.main_port]
    for name, value in (("SLURM_STEP_ID", "1"), ("SLURM_JOB_ID", "8"), ("MASTER_PORT", "29500")):
        monkeypatch.setenv(name, value)
        ports.append(task.main_port)
    assert len({*ports}) == 4 and ports[-1] == 29500 and all(15000 <= port < 25000 for port in ports[:-1])


def test_on_a_machine_with_srun_a_run_is_not_asked_to_use_it(monkeypatch):
    """A warning of Lightning would be an error here."""
    clear(monkeypatch)
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    with warnings.catch_warnings():
        run.silence_lightning()
        SLURMEnvironment.detect()


def test_launched_processes_share_a_folder_whatever_the_overrides(monkeypatch, tmp_path):
    """The checkpoint may set trainer.devices."""
    clear(monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launcher.SharedOutputFolder, "store", None)
    shared, folders = torch.distributed.HashStore(), []
    module = sys.modules["torch.distributed.rendezvous"]  # whose name its function has taken
    monkeypatch.setattr(module, "rendezvous", lambda _, rank, world: iter([(shared, rank, world)]))
    for rank in "01":
        place = {"TORCHELASTIC_RUN_ID": "none", "RANK": rank, "WORLD_SIZE": "2", "MASTER_PORT": "1"}
        for key, value in (place | {"MASTER_ADDR": "127.0.0.1"}).items():
            monkeypatch.setenv(key, value)
        hydra = {"run": {"dir": f"folder{rank}"}, "job": {"name": "train"}, "output_subdir": ".hydra", "mode": "RUN"}
        config = OmegaConf.create({"trainer": {"devices": 1, "num_nodes": 1}, "hydra": hydra})
        launcher.SharedOutputFolder().on_run_start(config)
        folders.append(config.hydra.run.dir)
    assert folders == ["folder0", "folder0"]


@pytest.mark.parametrize(
    ("given", "first"),
    [
        ({}, True),
        ({"RANK": "0", "LOCAL_RANK": "0", "SLURM_PROCID": "1"}, True),  # torchrun, started by srun
        ({"RANK": "2", "LOCAL_RANK": "0"}, False),
        ({"LOCAL_RANK": "1", "NODE_RANK": "0", "SLURM_PROCID": "0"}, False),
        ({"LOCAL_RANK": "0", "NODE_RANK": "0"}, True),
        ({"SLURM_PROCID": "3"}, False),
    ],
)
def test_rank_zero_reports_for_all(monkeypatch, given, first):
    clear(monkeypatch)
    for key, value in given.items():
        monkeypatch.setenv(key, value)
    assert launcher.is_rank_zero() == first


@pytest.mark.parametrize(("rank", "printed"), [("0", ["warning", "error"]), ("1", ["error"])])
def test_warnings_are_printed_once_for_all_ranks(monkeypatch, tmp_path, rank, printed):
    clear(monkeypatch)
    monkeypatch.setenv("RANK", rank)
    console, file = logging.StreamHandler(io.StringIO()), logging.FileHandler(tmp_path / "train.log")
    monkeypatch.setattr(logging.root, "handlers", [console, file])
    report_once.print_on_rank_zero()
    logging.warning("warning")
    logging.error("error")
    file.close()
    assert console.stream.getvalue().split() == printed
    assert (tmp_path / "train.log").read_text().split() == ["warning", "error"]


def test_machines_without_torchrun_or_slurm_are_a_usage_error(monkeypatch):
    clear(monkeypatch)
    with pytest.raises(UsageError, match=r"processes of 2 machines, .*: type torchrun --nnodes=2 in place of python"):
        launcher.check_world_size(1, 2, 2)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")  # one process on each, as Lightning's documentation describes
    launcher.check_world_size(1, 2, 2)


def clear(monkeypatch):
    """Isolate the tests from the environment of whatever launched them."""
    for key in list(os.environ):
        ranks = ("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        if key.startswith(("SLURM_", "TORCHELASTIC_")) or key in ranks:
            monkeypatch.delenv(key)


class Breaks(Smooth):
    """A network that one process has no memory for: to build it, or for the rows of a training step."""

    def __init__(self, at: str):
        super().__init__()
        self.at = at
        self.fail("start")

    def forward(self, images):
        if self.training and torch.is_grad_enabled():
            self.fail("step")
        return super().forward(images)

    def fail(self, at):
        if (at, os.environ.get("RANK")) == (self.at, "1"):
            raise MemoryError("the other machine has no memory left")


def run_on_two_nodes(words, cwd, process):
    """Run a command as torchrun does on two machines; returns their exit codes and what they printed as errors."""
    port, nodes, files = find_free_network_port(), [], [cwd / "first", cwd / "second"]
    for rank, file in enumerate(files):
        with file.open("w", encoding="utf-8") as errors:
            if process:
                place = ["--nnodes=2", "--nproc_per_node=1", "--master_addr=127.0.0.1", f"--master_port={port}"]
                typed = ["-m", "torch.distributed.run", *place, f"--node_rank={rank}", str(ROOT / "train.py"), *words]
                env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
                nodes.append(subprocess.Popen([sys.executable, *typed], cwd=cwd, env=env, stderr=errors))
            else:
                env = {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "none"}
                env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
                nodes.append(Copy(command(words, cwd, env), 1, errors))
    return [node.wait() for node in nodes], [file.read_text(encoding="utf-8") for file in files]


NODES = ["trainer.num_nodes=2", "trainer.devices=1", *EXACT, "trainer.log_every_n_steps=1"]


@COPIES_OR_PROCESSES
def test_two_nodes_measure_what_one_process_does(tmp_path, launch, process):
    codes, _ = run_on_two_nodes([*TINY, *NODES], tmp_path, process)
    assert codes == [0, 0]
    (many,) = tmp_path.glob("outputs/*/*")  # by its own clock, the second node would have a folder of its own
    _, one = launch(*NODES[2:], out=tmp_path / "one")
    assert answers(many) == answers(one)
    torch.testing.assert_close(curves(many), curves(one), rtol=0, atol=1e-9)
    torch.testing.assert_close(weights(many), weights(one), rtol=0, atol=1e-9)
    left = {file.name for file in many.iterdir()} - {"train.log", "train_1.log", ".hydra"}
    assert left >= {file.name for file in one.iterdir()}  # of which the fixture leaves out the figures
    assert {file.name for file in (many / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}


@pytest.mark.parametrize(
    ("at", "process"),
    [pytest.param(*case, marks=pytest.mark.slow) for case in (("start", False), ("start", True), ("step", True))],
)
def test_an_error_of_one_node_ends_both(tmp_path, process, at):
    own = ["backbone=module", f"backbone.target={__name__}.Breaks", f"backbone.arguments={{at:{at}}}"]
    words = [*(word for word in TINY if not word.startswith("backbone.")), *own, *NODES]
    codes, printed = run_on_two_nodes(words, tmp_path, process)
    assert all(codes)
    assert "process 1: " in printed[1]
    (report,) = tmp_path.rglob("results.json")
    assert "no memory left" in json.loads(report.read_text())["error"]


@pytest.mark.slow
@pytest.mark.parametrize(("tasks", "code"), [(2, 0), (3, 2)])
def test_processes_of_slurm_leave_one_folder_and_one_error(tmp_path, tasks, code):
    place = {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "1", "SLURM_NODEID": "0"}
    place |= {
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NAME": "train",
        "SLURM_NODELIST": "127.0.0.1",
    }
    words = [sys.executable, ROOT / "train.py", *TINY, f"train.tasks={tasks}", *DDP]
    ranks = []
    for rank in ("0", "1"):
        env = os.environ | place | {"SLURM_PROCID": rank, "SLURM_LOCALID": rank}
        ranks.append(subprocess.Popen(words, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True))
        time.sleep(2)  # by its own clock each would have a folder of its own
    spoken = [rank.communicate(timeout=300)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [code, code]
    (report,) = tmp_path.rglob("results.json")
    assert [*tmp_path.glob("outputs/*/*")] == [report.parent]
    assert ("error" in json.loads(report.read_text())) == bool(code)
    assert ["train.tasks=4" in text for text in spoken] == [bool(code), False]
