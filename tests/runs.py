"""Runs for tests: composed configurations, commands in a copy of this process, and what they leave behind."""

import copy
import csv
import io
import logging
import os
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from subprocess import CompletedProcess

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict

from metafew import cli
from metafew.config.groups import CONF, describe_groups

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "scripts"
TINY = [
    "backbone.width=4",
    "trainer.max_steps=4",
    "trainer.accelerator=cpu",
    "trainer.enable_progress_bar=false",
    "train.tasks=2",
    "train.query=2",
    "val.total=4",
    "val.query=2",
    "val.every=2",
    "val.at_start=false",
    "test.total=6",
    "test.query=2",
]

EXACT = ["trainer.precision=64-true"]
DDP = ["trainer.devices=2", "trainer.strategy=ddp"]

# What Lightning makes of 16-mixed on a GPU; on a CPU it would make bf16-mixed of it.
SCALER = "{_target_: torch.amp.GradScaler, device: cpu, init_scale: 1024.0}"
HALF = [
    "trainer.precision=null",
    "+trainer.plugins=[{_target_: pytorch_lightning.plugins.precision.MixedPrecision, precision: 16-mixed, "
    f"device: cpu, scaler: {SCALER}}}]",
]

PATIENCE = 300
"""Seconds after which a command of a test is taken to hang."""
CHOICES = sorted(set(describe_groups()) - {"logger", "experiment"})


@lru_cache(maxsize=32)
def composition(*overrides: str):
    """Return what Hydra composes of overrides; the latest are kept, as tests of one kind often compose the same."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", list(overrides), return_hydra_config=True)


def compose_in(folder: Path, *overrides: str):
    """Compose a configuration as the command line does; returns it, the choices, and the overrides."""
    cfg = copy.deepcopy(composition(*overrides))
    with open_dict(cfg):
        cfg.hydra.runtime.cwd, cfg.hydra.runtime.output_dir = os.getcwd(), str(folder)
        HydraConfig.instance().set_config(cfg)
        choices = {group: cfg.hydra.runtime.choices[group] for group in CHOICES}
        del cfg["hydra"]
    return cfg, choices, list(overrides)


def state(folder: Path, name: str = "last") -> dict:
    """Return the weights in a checkpoint of a run."""
    from metafew.training import checkpoint

    return checkpoint.read(folder / "checkpoints" / f"{name}.ckpt")["state_dict"]


def rows(path):
    """Return the rows of a CSV file."""
    with path.open() as file:
        return list(csv.DictReader(file))


def curves(folder):
    """Return all that metrics.csv holds: the loss of each step, and what validation measured."""
    return [{key: float(value) for key, value in row.items() if value} for row in rows(folder / "metrics.csv")]


def answers(folder):
    """Return the accuracy of each task under each head, which is a count of correct answers."""
    return {(row["head"], int(row["index"])): row["accuracy"] for row in rows(folder / "tasks.csv")}


def weights(folder):
    """Return the tensors in last.ckpt."""
    import torch

    return {key: value for key, value in state(folder).items() if isinstance(value, torch.Tensor)}


class Copy:
    """A function in a copy of this process, which has already imported everything; replaces subprocess.Popen.

    Args:
        function: what the copy does before it ends, with exit code 0 or that of SystemExit.
        output, errors: files or descriptors that take the place of standard output and standard error.
    """

    def __init__(self, function: Callable[[], object], output: int | io.IOBase, errors: int | io.IOBase):
        import metafew.training.run  # noqa: F401 - once, and not in every copy

        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        with warnings.catch_warnings():
            # Python 3.12 warns of threads that hold a lock forever in the copy, which needs none of theirs.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid, self.returncode = os.fork(), None
        if self.pid:
            return
        code = 70
        try:
            for target, stream in ((1, output), (2, errors)):
                os.dup2(stream if isinstance(stream, int) else stream.fileno(), target)
            sys.stdout, sys.stderr = (os.fdopen(target, "w", closefd=False) for target in (1, 2))
            code = self.carry_out(function)
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
        finally:
            os._exit(code)

    @staticmethod
    def carry_out(function: Callable[[], object]) -> int:
        for handler in logging.root.handlers[:]:  # those of pytest
            logging.root.removeHandler(handler)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        signal.alarm(PATIENCE)
        warnings.resetwarnings()
        import torch

        torch.set_num_threads(1)  # threads of the original are not in its copy
        sys.modules["__main__"].__spec__ = None  # Lightning starts sys.argv again, and not pytest
        GlobalHydra.instance().clear()
        try:
            function()
        except SystemExit as end:
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
            return end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
            return 1
        return 0

    def wait(self) -> int:
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode

    def poll(self) -> int | None:
        if self.returncode is None and (ended := os.waitpid(self.pid, os.WNOHANG))[0]:
            self.returncode = os.waitstatus_to_exitcode(ended[1])
        return self.returncode

    def terminate(self) -> None:
        os.kill(self.pid, signal.SIGTERM)


def command(words, cwd: Path, env: dict | None = None) -> Callable[[], None]:
    """Return a function for :class:`Copy` that does what ``python train.py WORDS`` does."""

    def carry_out():
        os.chdir(cwd)
        os.environ.update(env or {})
        sys.argv[:] = [str(ROOT / "train.py"), *map(str, words)]
        cli.main()

    return carry_out


def metafew(*words: str, cwd: Path, code: int = 0, env: dict | None = None, process: bool = False) -> CompletedProcess:
    """Do what ``python train.py WORDS`` does, and check its exit code; returns what it printed.

    Args:
        words: the command line.
        cwd: the folder in which it is typed.
        code: the exit code that is expected.
        env: more variables of the environment.
        process: whether in a new process, which imports all of torch first, and not in a copy of this one.
    """
    env = {"COLUMNS": "120"} | (env or {})
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        if process:
            typed = [sys.executable, str(ROOT / "train.py"), *words]
            place = {"cwd": cwd, "env": os.environ | env}
            ended = subprocess.run(typed, **place, stdout=output, stderr=errors, timeout=PATIENCE).returncode
        else:
            ended = Copy(command(words, cwd, env), output, errors).wait()
        for file in (output, errors):
            file.seek(0)
        done = CompletedProcess(words, ended, output.read(), errors.read())
    assert done.returncode == code, done.stdout + done.stderr
    return done
