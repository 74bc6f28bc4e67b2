"""Measure a training step of every head with two norms: its time relative to only the backbone, and its memory."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import SimpleNamespace

import torch
from peers.plain import backbone
from peers.problem import Problem, Setting, Step
from torch import Tensor

from benchmarks.measure import BF16, Bench, Tables
from metafew.backbones.backbone import channels_last
from metafew.config.compose import compose_overrides
from metafew.config.groups import options_of
from metafew.episode import Episode, Labelled
from metafew.norms.running import commit
from metafew.training.factory import make_learner

NORMS = ("batch", "tasknorm")
GRADIENT = ("maml", "fomaml", "anil")
"""Heads whose inner steps and learning rate are set."""


def step(problem: Problem, head: str, norm: str, *more: str, bf16: bool = False) -> Step:
    """Return a training step of the Learner, from tasks in memory to the update by its optimizer.

    Args:
        problem: the tasks.
        head: the trained head.
        norm: the norm of the backbone.
        more: further overrides.
        bf16: whether losses are computed as with ``trainer.precision=bf16-mixed``.
    """
    s = problem.setting
    overrides = [
        f"backbone={s.backbone}",
        f"backbone.width={s.width}",
        f"norm={norm}",
        f"head={head}",
        f"train.way={s.way}",
    ]
    # plain.py has no dropout
    overrides.append({"resnet12": "backbone.drop=0", "r2d2": "backbone.dropout=[0,0]"}.get(s.backbone, stride(s)))
    if head in (*GRADIENT, "reptile"):
        overrides.append(f"head.steps={s.inner}")
    if head in GRADIENT:
        overrides.append(f"head.lr={s.rate}")
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
        with autocast(problem, bf16):
            loss = (learner.graphed or learner.batch_loss)([episode]).loss
        loss.backward()
        commit(learner)
        optimizer.step()
        return loss.detach()

    return Step(take, learner)


def stride(setting: Setting) -> str:
    """Return the override of how conv4 halves its maps."""
    return f"backbone.downsample={setting.downsample}"


def autocast(problem: Problem, bf16: bool) -> torch.autocast:
    """Return the context of ``trainer.precision=bf16-mixed``, or one that changes nothing."""
    return torch.autocast(problem.device.type, torch.bfloat16, enabled=bf16)


def floor(problem: Problem, bf16: bool = False) -> Callable[[], None]:
    """Return a forward and backward pass of only the backbone on the same images, in its fastest form."""
    tasks = problem.tasks()
    return passes(problem, [torch.cat(parts) for parts in zip(tasks.support, tasks.query, strict=True)], bf16)


def passes(problem: Problem, batches: list[Tensor], bf16: bool = False, backward: bool = True) -> Callable[[], None]:
    """Return a forward and, by default, backward pass of only the backbone for each batch, in its fastest form."""
    net = backbone(problem, early=True).to(memory_format=torch.channels_last)
    batches = [channels_last(batch) for batch in batches]

    def take() -> None:
        net.zero_grad()
        for batch in batches:
            with autocast(problem, bf16), torch.set_grad_enabled(backward):
                features = net(batch)
            if backward:
                features.sum().backward()

    return take


def tables(bench: Bench) -> Tables:
    """Measure every head with every norm; with ``bench.bf16``, also in that precision, compared with the row in 32."""
    heads = bench.setting.heads or options_of("head")
    takes: dict[str, Callable[[], object]] = {}
    for suffix, bf16 in bench.precisions.items():
        takes["the backbone alone, torch.nn.BatchNorm2d" + suffix] = floor(bench.problem, bf16)
        takes |= {
            f"{head} {norm}{suffix}": step(bench.problem, head, norm, bf16=bf16).take
            for head in heads
            for norm in NORMS
        }
    rows = bench.measure("steps", {name: bench.timed(take) for name, take in takes.items()})
    for name, take in takes.items():
        rows[name]["MiB"] = bench.memory(take)
        if name.endswith(BF16):
            rows[name]["bf16 / 32"] = rows[name]["ms"] / rows[name.removesuffix(BF16)]["ms"]
    return {f"a training step, {bench.setting}": rows}
