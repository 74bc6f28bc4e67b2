"""Several processes that carry out one run together: who started them, and one folder for all. Imports no torch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, open_dict, read_write

from metafew.config.overrides import verbatim
from metafew.errors import UsageError
from metafew.io import read_json

if TYPE_CHECKING:
    from pytorch_lightning.plugins.environments import ClusterEnvironment

PROGRAM = ["-m", "metafew"]
ENDED = 128 + signal.SIGTERM  # exit code of a run that a signal ended


def is_rank_zero() -> bool:
    """Tell whether this process prints and writes for all of a run, whatever launched them."""
    ranks = ["RANK"] if "RANK" in os.environ else ["NODE_RANK", "LOCAL_RANK", "SLURM_PROCID"]
    return all(os.environ.get(rank, "0") == "0" for rank in ranks)


def several(trainer: DictConfig) -> bool:
    """Tell whether a run may want more than one process."""
    return (trainer.devices, trainer.num_nodes) != (1, 1)


def launched() -> int:
    """Return how many processes torchrun or srun started for a run; 0 where neither did."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return int(os.environ["WORLD_SIZE"])
    if os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive"):  # where Lightning starts its own
        return 0
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", 0))  # a batch script has SLURM_NTASKS too, without srun


def environment(trainer: DictConfig) -> list[ClusterEnvironment]:
    """Return who starts the processes of a run in a job of SLURM: srun if it did, else Lightning; elsewhere nothing.

    Lightning itself takes any job for one of srun, and would requeue it from checkpoints of its own.

    Raises:
        UsageError: srun started other processes than the run wants.
    """
    from pytorch_lightning.plugins.environments import LightningEnvironment, SLURMEnvironment

    if "TORCHELASTIC_RUN_ID" in os.environ or not SLURMEnvironment.detect():
        return []
    count, devices, nodes = launched(), trainer.devices, trainer.num_nodes
    if count < 2 and nodes == 1:
        return [LightningEnvironment()]
    try:
        slurm = SLURMEnvironment(auto_requeue=False)
        slurm.validate_settings(devices if isinstance(devices, int) else count // nodes, nodes)
    except (RuntimeError, ValueError) as error:
        raise UsageError(
            f"trainer.devices={devices} trainer.num_nodes={nodes} wants that many nodes, with a task for each device, "
            f"and SLURM was asked for {os.environ.get('SLURM_NNODES')} nodes, with "
            f"{os.environ.get('SLURM_NTASKS_PER_NODE')} tasks on each: type --nodes={nodes} "
            f"--ntasks-per-node={devices} for sbatch"
        ) from error
    return [slurm]


def check(trainer: DictConfig, wanted: int) -> None:
    """Raise a sentence where torchrun or SLURM started another number of processes than the ``wanted`` ones."""
    count = launched()
    own = count == 1 and trainer.num_nodes == 1 and "TORCHELASTIC_RUN_ID" not in os.environ  # Lightning starts the rest
    if count not in (0, wanted) and not own:
        raise UsageError(
            f"trainer.devices={trainer.devices} trainer.num_nodes={trainer.num_nodes} wants {wanted} processes, and "
            f"torchrun or SLURM started {count}: type trainer.devices={max(1, count // trainer.num_nodes)} "
            "trainer.strategy=ddp, or let it start as many as are wanted"
        )


def alone(what: str) -> None:
    """Raise a sentence where torchrun or srun would carry out ``what``, which is many runs, once for each process."""
    if (count := launched()) > 1:
        raise UsageError(
            f"{what} is many runs, each of which starts its own processes, and torchrun or SLURM started {count} for "
            "one: type python train.py in place of torchrun or srun"
        )


def launch(words: list[str], log: TextIO | None = None, threads: int | None = None) -> subprocess.Popen:
    """Start one command, with what it prints in ``log`` if there is one, on ``threads`` cores unless the user said."""
    # The command uses this very package, wherever the user's folder is.
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(Path(__file__).parents[1])]))
    environment = os.environ | {"PYTHONPATH": path}
    if threads:
        environment.setdefault("OMP_NUM_THREADS", str(threads))
    command = [sys.executable, *PROGRAM, *words]
    return subprocess.Popen(command, stdout=log, stderr=log and subprocess.STDOUT, env=environment)


@contextmanager
def left_to(children: Collection[subprocess.Popen]) -> Iterator[list[int]]:
    """Leave signals to commands, which end in order: SIGTERM is handed on, and Ctrl-C reaches them anyway.

    Yields:
        The signals that came.
    """
    signals: list[int] = []

    def hand_on(number: int, _: Any) -> None:
        signals.append(number)
        if number == signal.SIGTERM:
            for child in list(children):
                child.terminate()

    before = {number: signal.signal(number, hand_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def start(words: list[str]) -> int:
    """Run one command to its end and return its exit code, ``ENDED`` after a signal."""
    child = launch(words)
    with left_to([child]) as signals:
        code = child.wait()
    return ENDED if signals else code


def carry_out_cell(out: Path) -> None:
    """Carry out a cell of a sweep that wants several processes in one of its own, from which Lightning starts the rest.

    Lightning repeats the words that its process was started with, and leaves a process group behind: those of the
    sweep would start all of the sweep again in every process, and its second cell would meet the group of the first.

    Args:
        out: folder of the cell.

    Raises:
        UsageError: the launcher is joblib, or the cell ended without a sentence of its own.
    """
    hydra = HydraConfig.get()
    if hydra.runtime.choices["hydra/launcher"] == "joblib":
        raise UsageError(
            "hydra/launcher=joblib shares out runs of one process, and this one wants several: type trainer.devices=1, "
            "or leave out hydra/launcher=joblib"
        )
    (out / "results.json").unlink(missing_ok=True)
    own = ["hydra.mode=RUN", f'hydra.run.dir="{out}"', "hydra.output_subdir=null"]
    own.append(f'hydra.sweep.dir="{Path(hydra.sweep.dir).absolute()}"')
    code = start([*verbatim(hydra.overrides.hydra), *verbatim(hydra.overrides.task), *own])
    if code == ENDED:
        sys.exit(ENDED)
    if code and "error" not in read_json(out / "results.json"):
        raise UsageError(f"the processes of this run ended with exit code {code}: see what they printed")


class OneFolder(Callback):
    """Gives the processes of torchrun or SLURM, whose clocks and starts differ, the output folder of the first."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Let the first process tell its folder, and the others take it, before any makes its own."""
        if launched() < 2:
            return
        from pytorch_lightning.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
        from torch.distributed.rendezvous import rendezvous

        place = next(kind for kind in (TorchElasticEnvironment, SLURMEnvironment) if kind.detect())()
        os.environ |= {"MASTER_ADDR": place.main_address, "MASTER_PORT": str(place.main_port)}
        # Kept, as Lightning will meet the same store: the first process must not close it before.
        self.store, rank, _ = next(rendezvous("env://", place.global_rank(), place.world_size()))
        if rank == 0:
            self.store.set("folder", config.hydra.run.dir)
            return
        with read_write(config), open_dict(config):
            config.hydra.run.dir = self.store.get("folder").decode()
            config.hydra.output_subdir = None
            config.hydra.job.name += f"_{rank}"

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """End where torchrun or srun would begin the whole sweep in each process."""
        if config.hydra.runtime.choices["hydra/launcher"] != "basic":
            return
        try:
            alone("a sweep")
        except UsageError as error:
            if is_rank_zero():
                print(f"metafew: {error}", file=sys.stderr)
            sys.exit(2)
