"""A SLURM of two nodes on this machine, for tests; ``python tests/slurm_cluster.py COMMAND`` runs a command in it.

It needs slurmctld, slurmd, srun and munged (Debian: ``apt-get install slurm-wlm munge``), but no systemd, no cgroups
and no accounting. All its files are in a temporary folder, and its daemons run in the foreground until it is stopped.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from getpass import getuser
from pathlib import Path

PROGRAMS = ["slurmctld", "slurmd", "sinfo", "sbatch", "srun", "munged"]
NODES = 2
CPUS, GPUS = 16, 4
"""Processors and GPUs of each node, of which this machine may have fewer."""
PATIENCE = 30
"""Seconds in which the nodes must be ready."""

CONFIGURATION = """
ClusterName=metafew
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=2
GresTypes=gpu
MpiDefault=none
ReturnToService=2
JobRequeue=1
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
NodeName=DEFAULT CPUs={cpus} Gres=gpu:{gpus}
NodeName=127.0.0.[1-{nodes}] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{ports[1]}-{ports[2]}]
PartitionName=all Nodes=ALL Default=YES State=UP
"""
"""The nodes are named by addresses, as the name of the first is where the processes of a job meet.

A requeued job waits until its credentials have expired, by default for two minutes.
"""


def missing() -> list[str]:
    """Return the programs that this machine lacks."""
    return [name for name in PROGRAMS if not shutil.which(name)]


def free_ports(count: int) -> list[int]:
    """Return consecutive ports on which nothing listens."""
    while True:
        with ExitStack() as stack, socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            ports = [probe.getsockname()[1] + number for number in range(1, count + 1)]
            try:
                for port in ports:
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except (OSError, OverflowError):
                continue
            return ports


def configure(folder: Path) -> None:
    """Write the configuration, and the key of munged."""
    host = socket.gethostname().split(".")[0]
    values = {"folder": folder, "host": host, "user": getuser(), "nodes": NODES, "cpus": CPUS, "gpus": GPUS}
    (folder / "slurm.conf").write_text(CONFIGURATION.format(ports=free_ports(1 + NODES), **values))
    for number in range(GPUS):
        (folder / f"gpu{number}").touch()  # a file in place of a device
    (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-{GPUS - 1}]\n")
    version = subprocess.run(["slurmctld", "-V"], capture_output=True, text=True, check=True).stdout.split()[-1]
    without = "disabled" if version >= "23.02" else "cgroup/v1"  # which is loaded there, and not used
    (folder / "cgroup.conf").write_text(f"CgroupPlugin={without}\n")
    for name in ("state", *(f"spool-127.0.0.{node}" for node in range(1, NODES + 1))):
        (folder / name).mkdir()
    (folder / "munge.key").touch(mode=0o600)
    (folder / "munge.key").write_bytes(secrets.token_bytes(1024))


@contextmanager
def cluster():
    """Start the cluster, and stop it at the end.

    Yields:
        The variables of the environment with which its commands find it.
    """
    with tempfile.TemporaryDirectory(prefix="slurm-") as name, ExitStack() as stack:
        folder = Path(name)
        folder.chmod(0o755)
        configure(folder)
        munge = {key: folder / f"munge.{key.split('-')[0]}" for key in ("socket", "key-file", "pid-file", "seed-file")}
        environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}

        def start(*command: str) -> None:
            log = stack.enter_context((folder / "daemons.log").open("a"))
            daemon = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
            stack.callback(daemon.wait)
            stack.callback(daemon.terminate)

        start("munged", "--foreground", "--force", *(f"--{key}={file}" for key, file in munge.items()))
        wait_for(munge["socket"].exists, folder)
        start("slurmctld", "-D", "-i")
        for node in range(1, NODES + 1):
            start("slurmd", "-D", "-N", f"127.0.0.{node}")

        def ask(*command: str) -> str:
            return subprocess.run(command, env=environment, capture_output=True, text=True).stdout

        wait_for(lambda: ask("sinfo", "-h", "-N", "-o", "%T").split() == ["idle"] * NODES, folder)
        stack.callback(lambda: wait_for(lambda: not ask("squeue", "-h"), folder))
        stack.callback(ask, "scancel", "--user", getuser())
        yield environment


def wait_for(happened, folder: Path) -> None:
    """Wait until ``happened`` returns true; the error has what the daemons printed."""
    end = time.monotonic() + PATIENCE
    while not happened():
        if time.monotonic() > end:
            raise TimeoutError(f"SLURM is not ready after {PATIENCE} seconds\n{(folder / 'daemons.log').read_text()}")
        time.sleep(0.2)


if __name__ == "__main__":
    with cluster() as variables:
        sys.exit(subprocess.run(sys.argv[1:] or ["bash"], env=variables).returncode)
