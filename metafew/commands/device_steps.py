"""Training steps on a device, compared with those of a CPU in float32."""

from __future__ import annotations

import logging
import math
import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from metafew.config.compose import compose_overrides
from metafew.episode import Episode, Labelled
from metafew.errors import UsageError
from metafew.evaluation.evaluator import clock
from metafew.norms.running import commit
from metafew.training.factory import make_learner, make_source
from metafew.training.learner import Learner

DTYPES = {"32": torch.float32, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
"""By ``trainer.precision``."""
SMALLEST = {"32": 0.999, "bf16-mixed": 0.9, "16-mixed": 0.97}
"""The smallest allowed cosine between a gradient and that in float32 on the CPU, by precision: where rounding changes
which values a ReLU or a max-pooling passes, gradients differ by more than rounding."""
LARGEST = {"32": 1e-3, "bf16-mixed": 0.1, "16-mixed": 0.02}
"""The largest allowed relative difference of a loss from that in float32 on the CPU, by precision."""
SCALE = 1024.0
"""The loss scale in float16."""
REPEATED = 5
"""Number of steps that are timed."""
MIB = 2**20


def make_step_learner(head: str, words: list[str]) -> Learner:
    """Return the learner of a run with these overrides, with the same initial weights each time."""
    cfg = compose_overrides([f"head={head}", "backbone.width=16", "train.way=5", *words])
    if "lr" in cfg.head:  # larger inner steps carry weights across kinks of ReLU and pooling, where gradients jump
        cfg.head.steps, cfg.head.lr = 2, 0.001
    torch.manual_seed(0)
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # advice on training does not apply
    try:
        return make_learner(cfg, make_source(cfg), {"choices": {"head": head}}, trained=True, fit=True)
    finally:
        logging.disable(before)


def make_tasks(device: torch.device, tasks: int) -> Episode:
    """Return tasks of 5 classes of one image, with 5 queries each, the same on every device."""
    generator = torch.Generator().manual_seed(0)

    def part(count: int) -> Labelled:
        labels = torch.arange(5).repeat_interleave(count).repeat(tasks, 1)
        noise = torch.rand(tasks, 5 * count, 1, 28, 28, generator=generator)
        # A pattern for each class, so that a query can be classified.
        patterns = torch.rand(5, 1, 28, 28, generator=torch.Generator().manual_seed(1))
        return Labelled((0.5 * noise + 0.5 * patterns[labels]).to(device), labels.to(device))

    return Episode(part(1), part(5), 5, torch.arange(tasks))


class DeviceStep:
    """A training step of a head.

    Args:
        head: the option of the group ``head``.
        device: where the step runs.
        precision: ``32``, ``bf16-mixed`` or ``16-mixed``.
        words: further overrides of the run.
        tasks: tasks of the meta-batch.
    """

    def __init__(self, head: str, device: torch.device, precision: str, words: list[str] | None = None, tasks: int = 2):
        self.learner = make_step_learner(head, words or []).to(device).train()
        self.head, self.device, self.dtype = head, device, DTYPES[precision]
        self.scale = SCALE if precision == "16-mixed" else 1.0
        self.batch = [make_tasks(device, tasks)]

    def loss(self) -> Tensor:
        """Return the loss, with gradients in the weights."""
        objective = self.learner.objective
        objective.loss_scale = self.scale
        self.learner.zero_grad()
        with self.autocast:
            loss = objective(self.learner.backbone, self.learner.heads[self.head], self.batch).loss
        (loss * self.scale).backward()
        commit(self.learner)
        return loss.detach()

    @property
    def autocast(self) -> AbstractContextManager:
        """The context of the forward pass."""
        half = self.dtype != torch.float32
        return torch.autocast(self.device.type, self.dtype) if half else nullcontext()

    @property
    def gradient(self) -> Tensor:
        """The gradient of all weights, on the CPU in float64."""
        grads = [p.grad for p in self.learner.parameters() if p.grad is not None]
        return torch.cat([grad.flatten() for grad in grads]).cpu().double() / self.scale

    def milliseconds(self) -> float:
        """Return the mean time of a step in milliseconds, without the first step, which has already been taken."""
        begin = clock(self.device)
        for _ in range(REPEATED):
            self.loss()
        return 1e3 * (clock(self.device) - begin) / REPEATED

    def peak(self) -> float:
        """Return the peak memory of tensors on a GPU during a step, in MiB above that before the step."""
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        self.loss()
        torch.cuda.synchronize(self.device)
        return (torch.cuda.max_memory_allocated(self.device) - before) / MIB

    def waits(self) -> int:
        """Return how often the host waits for a GPU during a step, as torch reports it."""
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                self.loss()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        return sum("synchronizing" in str(warning.message) for warning in found)


def compare(head: str, device: torch.device, precision: str) -> dict[str, Any]:
    """Return how a step on ``device`` differs from that of a CPU in float32, its time and, on a GPU, memory and waits.

    Raises:
        UsageError: if it differs by more than the precision explains.
    """
    reference, step = DeviceStep(head, torch.device("cpu"), "32"), DeviceStep(head, device, precision)
    exact = reference.loss().item()
    with torch.backends.cudnn.flags(allow_tf32=False):
        found = step.loss().item()
    error = abs(found - exact) / max(abs(exact), 1.0)
    cosine = torch.nn.functional.cosine_similarity(step.gradient, reference.gradient, 0).item()
    if not (math.isfinite(error) and error <= LARGEST[precision] and cosine >= SMALLEST[precision]):
        raise UsageError(
            f"expected the step of head={head} in precision {precision} to have the loss {exact:.6g} to within "
            f"{LARGEST[precision]:g} and a gradient with a cosine of at least {SMALLEST[precision]} to that of the "
            f"CPU, got the loss {found:.6g} and {cosine:.6g}: type trainer.precision=32"
        )
    row = {"loss": found, "relative_error": error, "cosine": cosine, "ms": step.milliseconds()}
    return row | ({"MiB": step.peak(), "waits": step.waits()} if device.type == "cuda" else {})
