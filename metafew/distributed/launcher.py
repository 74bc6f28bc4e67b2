"""Find out whether torchrun, SLURM's srun or Lightning launched the processes of a run. Imports no torch."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict, read_write

from metafew.distributed.output_folder import claim, named_by_clock
from metafew.errors import UsageError

if TYPE_CHECKING:
    from pytorch_lightning.plugins.environments import ClusterEnvironment
    from torch.distributed import Store


def is_rank_zero() -> bool:
    """Return whether this process is rank zero of the run, whatever launched it."""
    ranks = ["RANK"] if "RANK" in os.environ else ["NODE_RANK", "LOCAL_RANK", "SLURM_PROCID"]
    return all(os.environ.get(rank, "0") == "0" for rank in ranks)


def launched_world_size() -> int:
    """Return how many processes torchrun or srun launched for this run; 0 if neither did."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return int(os.environ["WORLD_SIZE"])
    if os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive"):  # there Lightning launches its own
        return 0
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", 0))  # SLURM_NTASKS is set in a batch script without srun, too


def job_of_queue() -> str | None:
    """Return the number that a job keeps when its queue stops it and starts it again; None outside of such a job."""
    if "SUBMITIT_LOCAL_JOB_ID" in os.environ:
        return f"local {os.environ['SUBMITIT_LOCAL_JOB_ID']}"
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        return f"SLURM {os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return f"SLURM {os.environ['SLURM_JOB_ID']}" if "SLURM_JOB_ID" in os.environ else None


def is_restarted() -> bool:
    """Return whether this job may have been started before. A job of SLURM, which can be a shell, counts its starts."""
    return "SUBMITIT_LOCAL_JOB_ID" in os.environ or os.environ.get("SLURM_RESTART_COUNT", "0") != "0"


def cluster_environment(devices: int | str | list, nodes: int) -> list[ClusterEnvironment]:
    """Return the Lightning plugin for a run inside a SLURM job: srun's or Lightning's own. Elsewhere, none.

    By default Lightning assumes that srun launched every process of a SLURM job, and requeues jobs from its own
    checkpoints.

    Args:
        devices: ``trainer.devices``.
        nodes: ``trainer.num_nodes``.

    Raises:
        UsageError: if srun launched another number of processes than the run needs.
    """
    from pytorch_lightning.plugins.environments import LightningEnvironment, SLURMEnvironment

    if "TORCHELASTIC_RUN_ID" in os.environ or not SLURMEnvironment.detect():
        return []
    count = launched_world_size()
    if count < 2 and nodes == 1:
        return [LightningEnvironment()]
    try:
        slurm = SLURMEnvironment(auto_requeue=False)
        slurm.validate_settings(devices if isinstance(devices, int) else count // nodes, nodes)
    except (RuntimeError, ValueError) as error:
        raise UsageError(
            f"expected SLURM to have that many nodes for trainer.devices={devices} trainer.num_nodes={nodes}, with a "
            f"task for each device, got {os.environ.get('SLURM_NNODES')} nodes with "
            f"{os.environ.get('SLURM_NTASKS_PER_NODE')} tasks on each: type --nodes={nodes} "
            f"--ntasks-per-node={devices} for sbatch"
        ) from error
    return [slurm]


def check_world_size(devices: int | str | list, nodes: int, world_size: int) -> None:
    """Check that torchrun or SLURM launched ``world_size`` processes, if one of them launched this run.

    Args:
        devices: ``trainer.devices``.
        nodes: ``trainer.num_nodes``.
        world_size: number of processes of the Trainer.

    Raises:
        UsageError: if it launched another number, or nothing launched the processes of the other machines.
    """
    count = launched_world_size()
    if nodes > 1 and not count and not {"MASTER_ADDR", "NODE_RANK"} & set(os.environ):
        raise UsageError(
            f"expected torchrun or SLURM to start the processes of {nodes} machines, got a process that neither of "
            f"them has started: type torchrun --nnodes={nodes} in place of python on each, or trainer.num_nodes=1"
        )
    lightning_launches = count == 1 and nodes == 1 and "TORCHELASTIC_RUN_ID" not in os.environ
    if count not in (0, world_size) and not lightning_launches:
        raise UsageError(
            f"expected {world_size} processes for trainer.devices={devices} trainer.num_nodes={nodes}, and "
            f"torchrun or SLURM started {count}: type trainer.devices={max(1, count // nodes)} "
            "trainer.strategy=ddp, or launch as many as expected"
        )


def require_one_process(what: str) -> None:
    """Check that torchrun or srun does not launch several processes of a command that starts many runs.

    Args:
        what: the command, such as ``a sweep``.

    Raises:
        UsageError: if it does, as each process would repeat all runs.
    """
    if (count := launched_world_size()) > 1:
        raise UsageError(
            f"expected one process, as {what} is many runs, each of which launches its own processes, and torchrun or "
            f"SLURM started {count}: type python train.py in place of torchrun or srun"
        )


class SharedOutputFolder(Callback):
    """Hydra callback that claims the output folder of a run or a sweep.

    All ranks launched by torchrun or SLURM get that of rank zero, as the default folder is named after the time, which
    differs between processes and machines.

    Attributes:
        store: the key-value store of these ranks, to which Lightning connects too; None without them.
    """

    store: ClassVar[Store | None] = None

    def claim_folder(self, config: DictConfig, **_: Any) -> None:
        """Claim the folder; exit if torchrun or srun would run a complete sweep in each process."""
        sweep = config.hydra.mode == RunMode.MULTIRUN
        if sweep and config.hydra.runtime.choices["hydra/launcher"] == "basic":
            try:
                require_one_process("a sweep")
            except UsageError as error:
                exit_with(error)
        key, node = ("hydra.sweep.dir", config.hydra.sweep) if sweep else ("hydra.run.dir", config.hydra.run)
        several, by_clock = launched_world_size() > 1 and not sweep, named_by_clock(config, key)
        folder = (self.share if several else claim_or_exit)(key, node.dir, by_clock)
        with read_write(config), open_dict(config):
            if sweep and folder != node.dir:  # Hydra composes each cell from these overrides again
                config.hydra.overrides.hydra.append(f'{key}="{folder}"')
            node.dir = folder
            if several and self.rank:
                config.hydra.output_subdir = None
                config.hydra.job.name += f"_{self.rank}"

    on_run_start = on_multirun_start = claim_folder

    def share(self, key: str, folder: str, by_clock: bool) -> str:
        """Claim a folder on rank zero, before any other rank creates its own, and return it on every rank."""
        from pytorch_lightning.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
        from torch.distributed.rendezvous import rendezvous

        cluster = next(kind for kind in (TorchElasticEnvironment, SLURMEnvironment) if kind.detect())()
        os.environ |= {"MASTER_ADDR": cluster.main_address, "MASTER_PORT": str(cluster.main_port)}
        # Lightning connects to the same store later, so rank zero keeps it open.
        SharedOutputFolder.store, self.rank, _ = next(rendezvous("env://", cluster.global_rank(), cluster.world_size()))
        store = SharedOutputFolder.store
        if self.rank == 0:
            claimed = ""
            try:
                claimed = claim_or_exit(key, folder, by_clock)
            finally:
                store.set("folder", claimed)
        elif not (claimed := store.get("folder").decode()):
            sys.exit(2)  # rank zero has printed the reason
        return claimed


def claim_or_exit(key: str, folder: str, by_clock: bool) -> str:
    """Claim a folder, or exit: Hydra makes a warning of any other exception in a callback."""
    try:
        return str(claim(key, Path(folder), by_clock))
    except UsageError as error:
        exit_with(error)


def exit_with(error: UsageError) -> NoReturn:
    """Print an error on rank zero, and exit."""
    if is_rank_zero():
        print(f"metafew: {error}", file=sys.stderr)
    sys.exit(2)
