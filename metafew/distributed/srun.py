"""The processes that SLURM's srun starts, for Lightning."""

from __future__ import annotations

import os

from lightning_fabric.plugins.environments import ClusterEnvironment, SLURMEnvironment

STRIDE = 1009
"""Distance between the ports of a job's steps: prime, so that they rarely collide with those of later jobs."""


class SrunEnvironment(ClusterEnvironment):
    """The tasks of one step of a SLURM job.

    Lightning's own class relies on what the job requested: it rejects ``--ntasks`` without ``--ntasks-per-node``,
    ignores srun in an interactive allocation, and gives all steps of a job the same port, although they may run
    concurrently. This class relies on the variables that srun sets for each task.
    """

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        """The first node of the step, unless ``MASTER_ADDR`` names another."""
        return os.environ.get("MASTER_ADDR") or SLURMEnvironment.resolve_root_node_address(
            os.environ.get("SLURM_STEP_NODELIST", os.environ.get("SLURM_NODELIST", "127.0.0.1"))
        )

    @property
    def main_port(self) -> int:
        """A port between 15000 and 24999, derived from job and step, unless ``MASTER_PORT`` names another."""
        job, step = (int(os.environ.get(f"SLURM_{name}_ID", 0)) for name in ("JOB", "STEP"))
        return int(os.environ.get("MASTER_PORT") or 15000 + (job + STRIDE * step) % 10_000)

    @staticmethod
    def detect() -> bool:
        return "SLURM_STEP_NUM_TASKS" in os.environ

    def world_size(self) -> int:
        return int(os.environ["SLURM_STEP_NUM_TASKS"])

    def set_world_size(self, size: int) -> None:
        """Ignore the size, which srun has set."""

    def global_rank(self) -> int:
        return int(os.environ["SLURM_PROCID"])

    def set_global_rank(self, rank: int) -> None:
        """Ignore the rank, which srun has set."""

    def local_rank(self) -> int:
        return int(os.environ["SLURM_LOCALID"])

    def node_rank(self) -> int:
        return int(os.environ["SLURM_NODEID"])
