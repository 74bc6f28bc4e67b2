"""Draw a meta-batch from its store, relative to the step that consumes it; and the memory of drawing."""

from __future__ import annotations

import collections
import itertools
from pathlib import Path

import torch

from benchmarks.commands import dataset
from benchmarks.measure import Bench, Tables
from benchmarks.steps import step
from metafew.config.compose import compose_overrides
from metafew.data.augment import as_float
from metafew.data.sampler import Sampler
from metafew.data.store import Split, build, store_root
from metafew.data.task_spec import TaskSpec
from metafew.episode import Episode
from metafew.training.factory import make_source


def tables(bench: Bench) -> Tables:
    """Measure a ProtoNet step with TaskNorm, and drawing a meta-batch without and with its transfer to the device."""
    s, word = bench.setting, dataset()
    cfg = compose_overrides([f"dataset={word}"])
    split = Split(build(make_source(cfg), store_root(cfg.cache_dir)), "train")
    plan = TaskSpec("train", s.way, s.shot, s.query, s.tasks, total=10**9, seed=0)
    sampler, numbers = Sampler(split, plan, None), itertools.count()

    def draw() -> list[Episode]:
        first = next(numbers) * s.tasks
        return sampler.batch(range(first, first + s.tasks))

    def deliver() -> None:
        for episode in draw():
            for part in (episode.support, episode.query):
                as_float(part.images.to(bench.device), torch.float32)

    takes = {"protonet step": step(bench.problem, "protonet", "tasknorm").take, "drawn": draw}
    takes["drawn, on the device"] = deliver
    rows = bench.measure("loader", {name: bench.timed(take) for name, take in takes.items()})
    rows["drawn"]["MiB"] = bench.memory(lambda: collections.deque((draw() for _ in range(s.draws)), maxlen=1))
    size = sum(file.stat().st_size for file in Path(split.images.filename).parent.glob("*.npy"))
    return {f"a meta-batch of {word}, MiB after {s.draws} (the store has {size / 2**20:.0f})": rows}
