"""A device other than the CPU, without one: what mixes devices raises, and where the host waits is recorded.

Tensors of the device are fake ones on ``meta``, which have shapes and no values; those on the CPU are real. An
operation on tensors of both raises, as with a GPU, and so does one whose shape depends on values, such as boolean
indexing.
"""

import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

import metafew
from contracts import node, norm, steps, with_base_mean
from contracts.steps import evaluate, prepare_tables, train, without_loops
from metafew.backbones.backbone import Backbone
from metafew.config.groups import CONF
from metafew.episode import Episode
from metafew.norms.fast import accelerate
from metafew.norms.film import FiLM
from metafew.training.factory import make_objective
from metafew.training.instantiate import make_head
from metafew.training.learner import Learner

DEVICE = torch.device("meta")
PACKAGE = Path(metafew.__file__).parent
T, W, SHOT, QUERY, SIZE = 2, 4, 2, 2, 8
READING = {"aten::_local_scalar_dense", "aten::equal", "aten::is_nonzero"}
"""Operations that return a value of the device."""
CHECKING = {"aten::cholesky_inverse", "aten::_linalg_check_errors"}
"""Operations after which torch reads whether they failed."""
COPYING = {"aten::_to_copy": 0, "aten::copy_": 1}
"""Operations that may copy from another device, and which of their arguments is copied."""


class HostWaits(TorchDispatchMode):
    """Record every wait of the host for the device, and answer what it reads.

    Numbers that it reads are 0; copies to the CPU are labels, 0, 1, ..., ``W - 1`` in turns along the last dimension. A
    copy to the device waits too, unless it is made with ``non_blocking=True``.

    Attributes:
        places: the lines of the package that waited, with the number of times.
    """

    def __init__(self):
        super().__init__()
        self.places: Counter[str] = Counter()

    @property
    def count(self) -> int:
        """The number of waits."""
        return self.places.total()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, func._schema.name
        if FakeTensor not in types and kwargs.get("device") != DEVICE:
            with _disable_current_modes():  # on the CPU, where tensors have values
                return func(*args, **kwargs)
        if name in READING | CHECKING:
            self.record()
        if name in READING:
            return False if args[0].dtype == torch.bool else 0.0 if args[0].dtype.is_floating_point else 0
        result = func(*args, **kwargs)
        copied = args[COPYING[name]] if name in COPYING else None
        if not isinstance(copied, Tensor) or copied.device == result.device:
            return result
        blocking = not (kwargs.get("non_blocking") or True in args[2:])
        if copied.device == DEVICE or blocking:
            self.record()
        return labels_in_turns(result) if copied.device == DEVICE else result

    def record(self) -> None:
        """Record the line of the package that is running."""
        frames = [frame for frame in traceback.extract_stack() if PACKAGE in Path(frame.filename).parents]
        frame = frames[-1] if frames else traceback.extract_stack()[0]
        self.places[f"{Path(frame.filename).name}:{frame.lineno}: {frame.line}"] += 1


@_disable_current_modes()
def labels_in_turns(like: Tensor) -> Tensor:
    """Return a tensor on the CPU with the shape of ``like``."""
    return (torch.arange(like.shape[-1] if like.ndim else 1) % W).to(like.dtype).expand(like.shape).clone()


def autocast(device: str, *args, real=torch.autocast, **options):
    """Return torch's autocast; for ``meta``, which has none, a context that does nothing."""
    return nullcontext() if device == DEVICE.type else real(device, *args, **options)


def is_autocast_enabled(*device: str, real=torch.is_autocast_enabled) -> bool:
    """Return what torch does, and False for ``meta``."""
    return device != (DEVICE.type,) and real(*device)


def tensor(waits: HostWaits, *args, device=None, real=torch.tensor, **options) -> Tensor:
    """Return what torch does, which copies from the CPU and waits."""
    if device == DEVICE:
        waits.record()
    return real(*args, device=device, **options)


def new_tensor(like: Tensor, *args, **options) -> Tensor:
    """Return what torch does, which is :func:`tensor` with the dtype and device of ``like``."""
    return torch.tensor(*args, **{"dtype": like.dtype, "device": like.device} | options)


@contextmanager
def another_device() -> Iterator[HostWaits]:
    """Make :data:`DEVICE` usable inside; returns the record of waits."""
    waits = HostWaits()
    functions = {"autocast": autocast, "is_autocast_enabled": is_autocast_enabled, "tensor": partial(tensor, waits)}
    replaced = patch.multiple(torch, **functions), patch.object(Tensor, "new_tensor", new_tensor)
    with replaced[0], replaced[1], FakeTensorMode(allow_non_fake_inputs=True), waits:
        yield waits


class Block(Backbone):
    """One block like those of the networks."""

    def __init__(self, scheme: str = "tasknorm"):
        super().__init__(1, SIZE)
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 3), norm(scheme)(4), FiLM(4, 0), nn.MaxPool2d(2), nn.ReLU())
        self.features, self.map_shape = 36, (4, 3, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images).flatten(1)


def options_of(word: str) -> OmegaConf:
    """Return the options of a head with few steps on few classes."""
    options = node(CONF / "head" / f"{word}.yaml")
    few = {"way": W, "steps": 1, "test_steps": 1, "width": 4}
    return OmegaConf.merge(options, {key: value for key, value in few.items() if key in options})


def make_learner(
    head: str = "protonet", scheme: str = "tasknorm", objective: str = "episodic", regularizer: str = "none",
    backbone: Backbone | None = None, queries: str = "together", **changes,
) -> Learner:  # fmt: skip
    """Return what a run trains, of the YAML files of these words; ``changes`` are options of the head."""
    backbone = accelerate(backbone or Block(scheme))
    made = with_base_mean(make_head(OmegaConf.merge(options_of(head), changes), backbone, trained=True), backbone)
    nodes = {group: node(CONF / group / f"{word}.yaml") for group, word in
             (("objective", objective), ("regularizer", regularizer))}  # fmt: skip
    source = SimpleNamespace(splits=lambda: {"train": range(W)})
    goal = make_objective(OmegaConf.create(nodes), source, backbone)
    goal.prepare(backbone, made)
    schedule = partial(torch.optim.lr_scheduler.ConstantLR, factor=1.0)
    return without_loops(Learner(backbone, {head: made}, goal, torch.optim.Adam, schedule, queries, {}))


def make_episode(size: int = SIZE) -> Episode:
    """Return tasks on the device."""
    return steps.make_episode(DEVICE, T, W, SHOT, QUERY, size)


def waits_of(learner: Learner, size: int = SIZE) -> tuple[Counter[str], Counter[str]]:
    """Return where the host waits in a training step and in a test step."""
    with another_device() as waits:
        learner.to(DEVICE)
        prepare_tables(learner)
        episode = make_episode(size)
        waits.places.clear()  # of the setup
        train(learner, episode)
        training = waits.places.copy()
        waits.places.clear()
        evaluate(learner, episode)
    return training, waits.places
