"""Create environments for scripts/benchmark.py --peers DIR: python scripts/make_peers.py DIR [NAME ...].

Each environment DIR/NAME is created from scratch, with one other library from the package registry and the installed
release of torch. Only those requirements of the library are installed that its steps import, as some would install
another torch or an old NumPy. A failed environment is reported in one line and does not stop the others.
"""

from __future__ import annotations

import argparse
import subprocess
import venv
from importlib.metadata import version
from pathlib import Path

PEERS: dict[str, tuple[str, ...]] = {
    "torchopt==0.7.3": ("optree", "graphviz"),
    "higher==0.2.1": (),
    "torchcross==0.0.6": (
        "torchopt==0.7.3",
        "optree",
        "graphviz",
    ),  # it also requires another version of Lightning, unused here
    "iteryne==0.1.0": (),
    "parallel-metalearn==0.5.6": ("tqdm",),
    # It requires torchvision, whose wheels require the torch that they were built with.
    "meta-learning-toolkit==2.5.0": ("scipy", "scikit-learn", "pyyaml", "requests", "rich", "tqdm", "pillow"),
    "qpth==0.0.18": ("cvxpy",),  # it requires NumPy 1
}
"""The packages that the steps of each library import besides torch and NumPy."""
NAMES = {requirement.partition("==")[0]: requirement for requirement in PEERS}


class Failure(Exception):
    """An environment cannot be created; the message is the reason, in one line."""


def run(*command: str | Path) -> None:
    """Run a command.

    Raises:
        Failure: it failed; the message is the last error that it printed, or else its last line.
    """
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        lines = [line for line in done.stdout.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")] or lines or [f"exit code {done.returncode}"]
        raise Failure(errors[-1])


def create(folder: Path, name: str) -> str:
    """Create the environment of one library and return its requirement."""
    requirement = NAMES[name]
    venv.create(folder / name, clear=True, with_pip=True)
    python = folder / name / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    torch = f"torch=={version('torch').partition('+')[0]}"
    run(*pip, torch, "numpy", *PEERS[requirement])
    run(*pip, "--no-deps", requirement)
    return requirement


def main() -> None:
    """Create the environments."""
    about, _, rest = __doc__.partition(": ")
    parser = argparse.ArgumentParser(description=f"{about}.", epilog=rest.partition("\n\n")[2])
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of the environments, each a few hundred MB")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {', '.join(NAMES)}; default all")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - NAMES.keys():
        parser.error(f"expected names of peers, got {', '.join(sorted(unknown))}: type {' or '.join(NAMES)}")
    for name in arguments.names or NAMES:
        try:
            print(f"{name}: created with {create(arguments.folder, name)}", flush=True)
        except (Failure, OSError, subprocess.CalledProcessError) as failure:
            print(f"{name}: failed, {failure}", flush=True)


if __name__ == "__main__":
    main()
