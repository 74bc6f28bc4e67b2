"""Training steps that are recorded once and replayed compute what direct steps do."""

import copy

import pytest
import torch
from contracts import files, sampled
from contracts.steps import train, without_loops
from torch.utils._pytree import tree_leaves

from metafew.commands.device_steps import make_step_learner, make_tasks
from metafew.episode import Episode, Labelled
from metafew.errors import UsageError
from metafew.training import cuda_graph
from metafew.training.cuda_graph import GraphedStep, check_recordable

HEADS = [param.id for param in files("head")]
NORMS = [param.id for param in files("norm") if param.id not in ("own", "frozen")]
GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
DEVICES = [pytest.param("cpu", id="cpu"), pytest.param("cuda", marks=GPU, id="gpu")]


class Rerun:
    """What a CUDA graph does, on a CPU: calls the step again, and copies its results into the memory of the first."""

    def __init__(self, step):
        self.step, self.results = step, step()

    def replay(self):
        for kept, value in zip(tree_leaves(self.results), tree_leaves(self.step()), strict=True):
            if kept is not None:
                kept.copy_(value)

    def pool(self):
        return None


@pytest.fixture
def recorder(monkeypatch, request):
    """Record steps on ``device`` as a GPU does, or as :class:`Rerun`."""

    def record(step, pool):
        graph = Rerun(step)
        return graph.results, graph

    if request.getfixturevalue("device") == "cpu":
        monkeypatch.setattr(cuda_graph, "record", record)


def make_batch(number: int, device: str, tasks: int, dtype: torch.dtype) -> list[Episode]:
    """Return a meta-batch whose images depend on ``number``."""
    episode = make_tasks(torch.device(device), tasks)

    def another(part: Labelled) -> Labelled:
        noise = torch.rand(part.images.shape, generator=torch.Generator().manual_seed(number))
        return part._replace(images=(part.images + noise.to(device)).to(dtype) / 2)

    return [episode._replace(support=another(episode.support), query=another(episode.query))]


def weights_after(learner, batches) -> dict[str, torch.Tensor]:
    """Return weights and buffers after a step with each meta-batch."""
    for batch in batches:
        train(learner, *batch)
    return {name: value for name, value in learner.state_dict().items() if torch.is_tensor(value)}


def check_recorded_steps(device: str, head: str, *words: str) -> None:
    """Compare recorded steps, of two shapes in turns, with direct ones."""
    dtype = torch.float64 if device == "cpu" else torch.float32
    learner = make_step_learner(head, [*words, "optimizer=plain_sgd", "optimizer.lr=0.1"]).to(device, dtype)
    direct, recorded = (without_loops(copy.deepcopy(learner)) for _ in range(2))
    try:
        check_recordable(recorded)
    except UsageError as error:
        pytest.skip(str(error))
    recorded.graphed = GraphedStep(recorded, recorded.batch_loss)
    batches = [make_batch(number, device, tasks, dtype) for number, tasks in enumerate([2, 3, 2, 3])]
    expected, found = (weights_after(learner, batches) for learner in (direct, recorded))
    assert len(recorded.graphed.recorded) == 2
    tolerance = 1e-12 if dtype == torch.float64 else 1e-4
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize("head", sampled(HEADS, 6))
@pytest.mark.parametrize("device", DEVICES)
def test_every_head(device, head, recorder):
    check_recorded_steps(device, head)


@pytest.mark.parametrize("norm", sampled(NORMS, 4))
@pytest.mark.parametrize("device", DEVICES)
def test_every_norm(device, norm, recorder):
    check_recorded_steps(device, "maml", f"norm={norm}")
