"""Measure a training step of every head with two norms: its time relative to only the backbone, and its memory."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import SimpleNamespace

import torch
from peers.plain import backbone
from peers.problem import Problem, Step
from torch import Tensor

from benchmarks.measure import Bench, Tables
from metafew.backbones.backbone import channels_last
from metafew.config.compose import compose_overrides
from metafew.config.groups import CONF
from metafew.episode import Episode, Labelled
from metafew.norms.running import commit
from metafew.training.factory import make_learner

NORMS = ("batch", "tasknorm")
GRADIENT = ("maml", "fomaml", "anil")
"""Heads whose inner steps and learning rate are set."""


def step(problem: Problem, head: str, norm: str, *more: str) -> Step:
    """Return a training step of the Learner, from tasks in memory to the update by Adam; ``more`` are overrides."""
    s = problem.setting
    overrides = [
        f"backbone={s.backbone}",
        f"backbone.width={s.width}",
        f"norm={norm}",
        f"head={head}",
        f"train.way={s.way}",
    ]
    if s.backbone == "resnet12":
        overrides.append("backbone.drop=0")  # plain.py has no DropBlock
    else:
        overrides.append(f"backbone.downsample={s.downsample}")
    if head in GRADIENT:
        overrides += [f"head.steps={s.inner}", f"head.lr={s.rate}"]
    overrides += more
    source = SimpleNamespace(channels=s.channels, image_size=s.size)
    logging.disable(logging.WARNING)  # advice on training does not apply
    learner = make_learner(compose_overrides(overrides), source, {"choices": {"head": head}}, trained=True, fit=True)
    logging.disable(logging.NOTSET)
    learner.to(problem.device).train()
    optimizer = learner.configure_optimizers()["optimizer"]
    tasks = problem.tasks()
    support, query = Labelled(tasks.support, tasks.labels), Labelled(tasks.query, tasks.answers)
    episode = Episode(support, query, s.way, torch.arange(s.tasks))

    def take() -> Tensor:
        optimizer.zero_grad()
        loss = learner.objective(learner.backbone, learner.heads[head], [episode]).loss
        loss.backward()
        commit(learner)
        optimizer.step()
        return loss.detach()

    return Step(take, learner)


def floor(problem: Problem) -> Callable[[], None]:
    """Return a forward and backward pass of only the backbone on the same images, in its fastest form."""
    tasks = problem.tasks()
    return passes(problem, [torch.cat(parts) for parts in zip(tasks.support, tasks.query, strict=True)])


def passes(problem: Problem, batches: list[Tensor]) -> Callable[[], None]:
    """Return a forward and backward pass of only the backbone for each batch, in its fastest form."""
    net = backbone(problem, early=True).to(memory_format=torch.channels_last)
    batches = [channels_last(batch) for batch in batches]

    def take() -> None:
        net.zero_grad()
        for batch in batches:
            net(batch).sum().backward()

    return take


def tables(bench: Bench) -> Tables:
    """Measure every head with every norm."""
    heads = bench.setting.heads or sorted(file.stem for file in (CONF / "head").glob("*.yaml"))
    takes = {"the backbone alone, torch.nn.BatchNorm2d": floor(bench.problem)}
    takes |= {f"{head} {norm}": step(bench.problem, head, norm).take for head in heads for norm in NORMS}
    rows = bench.measure("steps", {name: bench.timed(take) for name, take in takes.items()})
    for name, take in takes.items():
        rows[name]["MiB"] = bench.memory(take)
    return {f"a training step, {bench.setting}": rows}
