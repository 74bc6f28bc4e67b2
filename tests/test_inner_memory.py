"""How many tasks adapt together: as many as the stated memory allows, in training and in evaluation."""

from types import SimpleNamespace

import pytest
import torch
from smooth import Smooth, W

from metafew.backbones.identity import Identity
from metafew.data.task_spec import TaskSpec
from metafew.episode import Labelled
from metafew.errors import UsageError
from metafew.evaluation.evaluator import Evaluator, adapted_together
from metafew.heads import batching
from metafew.heads.maml import MAML
from metafew.heads.protonet import ProtoNet
from metafew.heads.tsa import TSA

CPU = torch.device("cpu")
SPEC = TaskSpec("test", way=W, shot=1, query=2, tasks=1, total=9, seed=0)


def learner(**options):
    torch.manual_seed(0)
    backbone = Smooth("tasknorm").double()
    head = MAML(backbone, True, W, **{"steps": 1, "test_steps": 2, "lr": 0.3} | options).double()
    return backbone, head


def drawn(tasks, backbone):
    images = torch.rand(tasks, 3 * W, backbone.channels, backbone.image_size, backbone.image_size).double()
    return Labelled(images[:, :W], torch.arange(W).repeat(tasks, 1)), images[:, W:]


@pytest.fixture
def for_three(monkeypatch):
    """Let 1 MiB, by the estimate, be enough for three of the tasks of SPEC, and hardly for four."""
    backbone, head = learner()
    pixels = 3 * W * backbone.channels * backbone.image_size**2
    values = batching.WIDTH * pixels + sum(backbone.get_parameter(name).numel() for name in head.names)
    monkeypatch.setattr(batching, "VALUES_PER_MIB", 4 * values - 1)


@pytest.mark.parametrize("inner", ["batch", "vmap"])
@pytest.mark.parametrize("training", [False, True])
def test_more_tasks_never_fail_where_fewer_ran(for_three, monkeypatch, inner, training):
    """A pass of more than three tasks fails; 2 and 11 tasks give the same results as in a loop."""
    (backbone, head), (_, loop) = learner(inner=inner, memory=1, first_order=True), learner(inner="loop")
    original, sizes = head._batch if inner == "batch" else head._vmap, []

    def scarce(model, way, readout, images, *rest):
        sizes.append(len(images))
        if len(images) > 3:
            raise torch.OutOfMemoryError("out of memory")
        return original(model, way, readout, images, *rest)

    monkeypatch.setattr(head, f"_{inner}", scarce)
    for module in (backbone, head, loop):
        module.train(training)
    for tasks in (2, 11):
        support, query = drawn(tasks, backbone)
        ours, reference = (each(backbone, support, query, W) for each in (head, loop))
        torch.testing.assert_close(ours, reference, rtol=1e-12, atol=1e-12)
    assert sizes == [2, 3, 3, 3, 2]


def test_second_derivatives_keep_the_steps(for_three):
    backbone, head = learner(inner="batch", memory=2)
    support, query = drawn(1, backbone)
    assert [head.train(mode).tasks_per_chunk(backbone, support.images, query) for mode in (False, True)] == [7, 5]


def test_a_step_of_evaluation_has_the_tasks_that_adapt_together(for_three):
    backbone, head = learner(memory=1)
    for other, tasks in (
        (head.eval(), 3), (learner(memory=2)[1].eval(), 7), (learner(inner="loop")[1], 1),
        (learner(inner="chunk", chunk=2)[1], 2), (learner(adapt="output")[1], 1), (ProtoNet(), 1),
    ):  # fmt: skip
        assert adapted_together(other, backbone, SPEC, CPU) == tasks
    larger = TaskSpec("test", way=f"2..{W}", shot="1..3", query=2, tasks=1, total=9, seed=0)
    assert adapted_together(head, backbone, larger, CPU) == 2  # some tasks have 3 W support images


def test_the_linear_map_of_tsa_counts_with_what_a_step_keeps_of_it():
    backbone = Identity(300, 1, None)
    head = TSA(backbone, trained=False, adapt="linear", memory=100)
    support, fits = torch.zeros(64, 5, 300), 100 * batching.VALUES_PER_MIB // (6 * 300**2)
    assert fits / 2 < head.tasks_per_chunk(backbone, support, support) <= fits < len(support)


class Drawing:
    """The specification of a sampler, whose tasks are not drawn."""

    def __init__(self, spec):
        self.spec = spec


def test_heads_on_features_and_larger_steps_are_respected(for_three, monkeypatch):
    backbone, head = learner(memory=1)
    monkeypatch.setattr(Evaluator, "_caches_features", lambda *_: False)
    wide = Drawing(TaskSpec("val", way=W, shot=1, query=2, tasks=5, total=9, seed=0))
    assert Evaluator(backbone, {"maml": head}, "together").tasks_of_a_step(Drawing(SPEC)) == 3
    assert Evaluator(backbone, {"maml": head}, "together").tasks_of_a_step(wide) == 5
    both = Evaluator(backbone, {"maml": head, "protonet": ProtoNet()}, "together")
    assert both.train().tasks_of_a_step(Drawing(SPEC)) == 1 and both.training and head.training


def test_the_memory_of_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=80 * 2**30))
    assert batching.memory_of(torch.device("cuda")) == 20 * 1024 and batching.memory_of(CPU) == 600


@pytest.mark.parametrize("value", [0, "much", 1.5])
def test_memory_that_is_no_number(value):
    with pytest.raises(
        UsageError, match=r"^expected head.memory to be an integer of at least 1, got .*: type head.mem"
    ):
        learner(memory=value)
