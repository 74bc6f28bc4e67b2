"""Measure each normalization layer, forward and backward, relative to torch.nn.BatchNorm2d on the same tensor."""

from __future__ import annotations

from collections.abc import Callable

import torch
from omegaconf import OmegaConf
from torch import nn

from benchmarks.measure import Bench, Tables
from metafew.config.groups import CONF, options_of
from metafew.norms.fast import accelerate
from metafew.norms.running import commit
from metafew.norms.scope import rows
from metafew.training.instantiate import make


def tables(bench: Bench) -> Tables:
    """Measure every norm on activations with the shape of the first layer's."""
    s = bench.setting
    count = s.way * (s.shot + s.query)
    shape = (s.tasks * count, s.width, s.size, s.size)
    x, slope = (torch.randn(shape, device=bench.device).to(memory_format=torch.channels_last) for _ in range(2))

    def take(norm: nn.Module) -> None:
        images = x.detach().requires_grad_()
        with rows(s.tasks, s.way * s.shot):
            y = norm(images)
        y.backward(slope)
        commit(norm)

    words = [name for name in options_of("norm") if name != "own"]
    makers: dict[str, Callable[[int], nn.Module]] = {"torch.nn.BatchNorm2d": nn.BatchNorm2d}
    makers |= {word: make(OmegaConf.load(CONF / "norm" / f"{word}.yaml")) for word in words}
    layers = {word: accelerate(maker(s.width)).to(bench.device) for word, maker in makers.items()}
    calls = {word: bench.timed(lambda layer=layer: take(layer)) for word, layer in layers.items()}
    return {f"a norm, forward and backward, {shape}": bench.measure("norms", calls)}
