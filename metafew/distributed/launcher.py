"""Detect whether torchrun, SLURM's srun or Lightning launched the processes of a run. Imports no torch."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from metafew.distributed.output_folder import claim, named_by_clock, require_named
from metafew.errors import UsageError, reason

if TYPE_CHECKING:
    from pytorch_lightning.plugins.environments import ClusterEnvironment
    from torch.distributed import Store


def is_rank_zero() -> bool:
    """Return whether this process is rank zero of the run, with any launcher."""
    ranks = ["RANK"] if "RANK" in os.environ else ["NODE_RANK", "LOCAL_RANK", "SLURM_PROCID"]
    return all(os.environ.get(rank, "0") == "0" for rank in ranks)


def is_one_process(devices: Any, nodes: int) -> bool:
    """Return whether a run has one process, given ``trainer.devices``, a number or a list, and ``num_nodes``."""
    return nodes == 1 and (len(devices) == 1 if OmegaConf.is_list(devices) else str(devices) == "1")


def launched_world_size() -> int:
    """Return the number of processes that torchrun or srun launched for this run; 0 if neither did."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return int(os.environ["WORLD_SIZE"])
    # A shell of srun --pty has these variables, too, but a command in it is a single process unless srun starts it.
    if "SLURM_PTY_PORT" in os.environ and os.environ.get("SLURM_TASK_PID") != str(os.getpid()):
        return 0
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", 0))  # SLURM_NTASKS is also set in a batch script without srun


def job_of_queue() -> str | None:
    """Return the job number, which a job keeps when it is requeued; None outside of a job."""
    if "SUBMITIT_LOCAL_JOB_ID" in os.environ:
        return f"local {os.environ['SUBMITIT_LOCAL_JOB_ID']}"
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        return f"SLURM {os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return f"SLURM {os.environ['SLURM_JOB_ID']}" if "SLURM_JOB_ID" in os.environ else None


def is_restarted() -> bool:
    """Return whether this job may have been started before. SLURM jobs can be shells, so its restart count decides."""
    return "SUBMITIT_LOCAL_JOB_ID" in os.environ or os.environ.get("SLURM_RESTART_COUNT", "0") != "0"


def cluster_environment(devices: int | str | list, nodes: int) -> list[ClusterEnvironment]:
    """Return the Lightning plugin for a run inside a SLURM job, srun's or Lightning's own; none elsewhere.

    By default Lightning assumes that srun launched every process of a SLURM job, and requeues jobs from its own
    checkpoints.

    Args:
        devices: ``trainer.devices``.
        nodes: ``trainer.num_nodes``.

    Raises:
        UsageError: if srun launched different processes from what the run needs, or none for a run on several nodes.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ or not {"SLURM_JOB_ID", "SLURM_NTASKS"} & {*os.environ}:
        return []
    from pytorch_lightning.plugins.environments import LightningEnvironment

    from metafew.distributed.srun import SrunEnvironment

    if launched_world_size() < 2 and (nodes == 1 or "NODE_RANK" in os.environ):  # NODE_RANK: the user starts each node
        return [LightningEnvironment()]
    count = launched_world_size()
    each = devices if isinstance(devices, int) and devices > 0 else max(1, count // nodes)
    layout = f"{each}(x{nodes})" if nodes > 1 else str(each)
    started = os.environ.get("SLURM_STEP_TASKS_PER_NODE", layout if count == each * nodes else count)
    if count < 2 or started != layout:
        raise UsageError(
            f"expected srun to start a process for each of trainer.devices={devices} on trainer.num_nodes={nodes}, "
            f"{layout} in its notation, got {started if count > 1 else 'one process'}: type srun --nodes={nodes} "
            f"--ntasks-per-node={each} before python, or trainer.devices={each} trainer.num_nodes={nodes} with the "
            "numbers of processes that srun starts"
        )
    return [SrunEnvironment()]


def check_world_size(devices: int | str | list, nodes: int, world_size: int) -> None:
    """Check that torchrun or SLURM, if it launched this run, launched ``world_size`` processes.

    Args:
        devices: ``trainer.devices``.
        nodes: ``trainer.num_nodes``.
        world_size: number of processes of the Trainer.

    Raises:
        UsageError: if the number differs, or nothing launched the processes of the other machines.
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
    """Check that torchrun or srun did not launch several processes of a command that starts many runs.

    Args:
        what: the command, such as ``a sweep``.

    Raises:
        UsageError: if it did, as each process would repeat all runs.
    """
    if (count := launched_world_size()) > 1:
        raise UsageError(
            f"expected one process, as {what} consists of many runs, each of which launches its own processes, and "
            f"torchrun or SLURM started {count}: type python train.py in place of torchrun or srun"
        )


class SharedOutputFolder(Callback):
    """Hydra callback that claims the output folder of a run or a sweep.

    All ranks launched by torchrun or SLURM use the folder of rank zero, as the default name contains the time, which
    differs between processes and machines.

    Attributes:
        store: the key-value store of these ranks, to which Lightning connects too; None without them.
    """

    store: ClassVar[Store | None] = None

    def claim_folder(self, config: DictConfig, **_: Any) -> None:
        """Claim the folder, or exit if torchrun or srun would run the complete sweep in each process."""
        sweep = config.hydra.mode == RunMode.MULTIRUN
        key, node = ("hydra.sweep.dir", config.hydra.sweep) if sweep else ("hydra.run.dir", config.hydra.run)
        several, by_clock = launched_world_size() > 1 and not sweep, named_by_clock(config, key)
        try:
            if sweep and config.hydra.runtime.choices["hydra/launcher"] == "basic":
                require_one_process("a sweep")
            require_named(key, by_clock, config.get("ckpt"))
        except UsageError as error:
            exit_with(error)
        if by_clock and is_restarted() and is_rank_zero():
            print(
                f"metafew: SLURM started this job again, and its training starts anew, as {key} is named after the "
                f"time: type {key}=outputs/$SLURM_JOB_ID",
                file=sys.stderr,
            )
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
        """Claim a folder on rank zero, before any other rank creates one, and return it on every rank."""
        from pytorch_lightning.plugins.environments import TorchElasticEnvironment
        from torch.distributed.rendezvous import rendezvous

        from metafew.distributed.srun import SrunEnvironment

        cluster = TorchElasticEnvironment() if TorchElasticEnvironment.detect() else SrunEnvironment()
        os.environ |= {"MASTER_ADDR": cluster.main_address, "MASTER_PORT": str(cluster.main_port)}
        # Lightning connects to the same store later, so rank zero keeps it open.
        meeting = rendezvous("env://", cluster.global_rank(), cluster.world_size())
        try:
            SharedOutputFolder.store, self.rank, _ = next(meeting)
        except RuntimeError as error:
            exit_with(
                UsageError(
                    f"expected processes to meet at {cluster.main_address}:{cluster.main_port}, got {reason(error)}: "
                    "set MASTER_PORT=29501 in front of srun, or --master_port 29501 after torchrun"
                )
            )
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
    """Claim a folder, or exit: Hydra turns any other exception in a callback into a warning."""
    try:
        return str(claim(key, Path(folder), by_clock))
    except UsageError as error:
        exit_with(error)


def exit_with(error: UsageError) -> NoReturn:
    """Print an error on rank zero, and exit; ``metafew.train`` raises the cause instead."""
    if is_rank_zero():
        print(f"metafew: {error}", file=sys.stderr)
    raise SystemExit(2) from error
