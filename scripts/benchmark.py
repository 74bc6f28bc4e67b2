"""How long things take, as ratios within one run: python scripts/benchmark.py [norms] [steps] [--help].

norms: forward and backward of each normalization layer, against torch.nn.BatchNorm2d on the same tensor.
steps: a training step of a prototypical network on conv4 with each norm, against the same network with BatchNorm2d.

The candidates take turns, and the median over the rounds is shown. Run it on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from omegaconf import OmegaConf
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn

from metafew.assemble import make
from metafew.backbones.conv4 import Conv4
from metafew.cli import CONF
from metafew.episode import Episode, Labelled
from metafew.files import write_json
from metafew.heads.protonet import ProtoNet
from metafew.norms.running import commit
from metafew.norms.scope import rows
from metafew.objectives.episodic import Episodic
from metafew.regularizers import NoRegularizer
from metafew.results import versions

TASKS, WAY, SHOT, QUERY, CHANNELS, SIZE = 4, 5, 1, 15, 64, 28
ROWS = WAY * (SHOT + QUERY)
REFERENCE = "torch.nn.BatchNorm2d"


def schemes() -> dict[str, Callable[[int], nn.Module]]:
    """Return constructors of every norm, torch's first."""
    words = sorted(file.stem for file in (CONF / "norm").glob("*.yaml"))
    return {REFERENCE: nn.BatchNorm2d} | {w: make(OmegaConf.load(CONF / "norm" / f"{w}.yaml")) for w in words}


def norms(device: torch.device) -> dict[str, Callable[[], None]]:
    """Return one call a norm: forward and backward on the activations of the first layer of conv4."""
    shape = (TASKS * ROWS, CHANNELS, SIZE, SIZE)
    x, slope = (torch.randn(shape, device=device).to(memory_format=torch.channels_last) for _ in range(2))

    def call(norm: nn.Module) -> None:
        images = x.detach().requires_grad_()
        with rows(TASKS, WAY * SHOT):
            y = norm(images)
        y.backward(slope)
        commit(norm)

    layers = {word: scheme(CHANNELS).to(device) for word, scheme in schemes().items()}
    return {word: lambda layer=layer: call(layer) for word, layer in layers.items()}


def steps(device: torch.device) -> dict[str, Callable[[], None]]:
    """Return one call a norm: the loss of a meta-batch, its gradient, and an Adam step."""

    def labelled(count: int) -> Labelled:
        images = torch.rand(TASKS, WAY * count, 1, SIZE, SIZE, device=device)
        return Labelled(images, torch.arange(WAY, device=device).repeat_interleave(count).expand(TASKS, -1))

    episode = Episode(labelled(SHOT), labelled(QUERY), WAY, torch.arange(TASKS))

    def stepper(scheme: Callable[[int], nn.Module]) -> Callable[[], None]:
        backbone = Conv4(1, SIZE, scheme, width=CHANNELS).to(device)
        head, objective = ProtoNet(), Episodic(NoRegularizer())
        optimizer = torch.optim.Adam(backbone.parameters(), lr=1e-3)

        def call() -> None:
            optimizer.zero_grad()
            objective(backbone, head, [episode]).backward()
            commit(backbone)
            optimizer.step()

        return call

    return {word: stepper(scheme) for word, scheme in schemes().items()}


def measure(calls: dict[str, Callable[[], None]], rounds: int, device: torch.device, title: str) -> dict[str, dict]:
    """Return milliseconds (median over rounds) and the ratio to the reference for each call."""
    seconds: dict[str, list[float]] = {word: [] for word in calls}
    for _ in track(range(rounds + 1), title, transient=True):
        for word, call in calls.items():
            begin = time.perf_counter()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds[word].append(time.perf_counter() - begin)
    # The first round warms up.
    medians = {word: statistics.median(values[1:]) for word, values in seconds.items()}
    return {word: {"ms": 1e3 * m, "ratio": m / medians[REFERENCE]} for word, m in medians.items()}


def main() -> None:
    """Measure what was asked for, print a table of each and write a JSON file."""
    sections = {"norms": norms, "steps": steps}
    about, _, rest = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        description=about, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="*", default=list(sections), help=f"any of {', '.join(sections)}; default all")
    parser.add_argument("--rounds", type=int, default=9, help="times that each candidate is measured (default 9)")
    parser.add_argument("--threads", type=int, help="threads of torch (default: as torch decides)")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--out", type=Path, default=Path("benchmark.json"), help="the file to write")
    arguments = parser.parse_args()
    if unknown := set(arguments.what) - set(sections):
        parser.error(f"{', '.join(sorted(unknown))} cannot be measured: type {' or '.join(sections)}")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    device = torch.device(arguments.device)
    report: dict = {"device": str(device), "threads": torch.get_num_threads(), "versions": versions()}
    for name in arguments.what:
        report[name] = measure(sections[name](device), arguments.rounds, device, name)
        table = Table("norm", "ms", "ratio", title=f"{name}: forward and backward, {torch.get_num_threads()} threads")
        for word, row in report[name].items():
            table.add_row(word, f"{row['ms']:.1f}", f"{row['ratio']:.2f}")
        Console().print(table)
    write_json(arguments.out, report)


if __name__ == "__main__":
    main()
