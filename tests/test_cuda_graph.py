"""Training steps that are captured once and replayed compute what direct steps do."""

import copy
from types import SimpleNamespace

import pytest
import torch
from contracts import files, sampled
from contracts.steps import train, without_loops
from runs import TINY, metafew
from torch import nn
from torch.utils._pytree import tree_leaves

from metafew.commands.device_steps import make_step_learner, make_tasks
from metafew.config.carried import carried
from metafew.data.task_spec import TaskSpec
from metafew.episode import Episode, Labelled
from metafew.errors import UsageError
from metafew.training import cuda_graph
from metafew.training.cuda_graph import GraphedStep, check_capturable, check_graph

HEADS = [param.id for param in files("head")]
NORMS = [param.id for param in files("norm") if param.id not in ("own", "frozen")]
REFUSED = {"logistic", "r2d2", "reptile", "ridge", "svm"}
"""Heads whose solvers read values of the GPU, that torch solves with a library that cannot be captured, or whose steps
depend on the numbers of the tasks."""
GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
DEVICES = [pytest.param("cpu", id="cpu"), pytest.param("cuda", marks=GPU, id="gpu")]
TASKS = TaskSpec("train", way=5, shot=1, query=5, tasks=2, total=10, seed=0)


class Rerun:
    """What a CUDA graph does, on a CPU: computes the step again, into the memory of the first results.

    Attributes that Python sets in a step stay as they were.
    """

    def __init__(self, step, learner):
        self.step, self.learner = step, learner
        self.results = step()

    def replay(self):
        before = [(module, dict(vars(module))) for module in self.learner.modules()]
        found = self.step()
        for module, attributes in before:
            vars(module).update(attributes)
        for kept, value in zip(tree_leaves(self.results), tree_leaves(found), strict=True):
            if kept is not None:
                kept.copy_(value)


def captured_steps(learner, monkeypatch, device: str):
    """Let ``learner`` capture its steps: as a GPU does, or as :class:`Rerun`."""

    def capture(step):
        graph = Rerun(step, learner)
        return graph.results, graph

    if device == "cpu":
        monkeypatch.setattr(cuda_graph, "capture", capture)
    learner.graphed = GraphedStep(learner, learner.batch_loss, learner.objective)
    return learner


def make_batch(number: int, device: str, dtype: torch.dtype, tasks: int = 2, episodes: int = 1) -> list[Episode]:
    """Return a meta-batch that depends on ``number`` in images, labels and numbers of tasks."""
    generator = torch.Generator().manual_seed(number)
    episode = make_tasks(torch.device("cpu"), tasks)

    def another(part: Labelled) -> Labelled:
        order = torch.randperm(part.labels.shape[1], generator=generator)
        noise = torch.rand(part.images.shape, generator=generator)
        return Labelled((part.images + noise)[:, order].to(device, dtype) / 2, part.labels[:, order].to(device))

    index = torch.arange(tasks) + 100 * number
    return [Episode(another(episode.support), another(episode.query), 5, index) for _ in range(episodes)]


def make_pair(head: str, device: str, monkeypatch, *words: str):
    """Return two equal learners of which the second captures its steps, and their dtype."""
    dtype = torch.float64 if device == "cpu" else torch.float32
    learner = make_step_learner(head, [*words, "optimizer=plain_sgd", "optimizer.lr=0.1"]).to(device, dtype)
    for module in learner.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    direct, captured = (without_loops(copy.deepcopy(learner)) for _ in range(2))
    return direct, captured_steps(captured, monkeypatch, device), dtype


def check_equal(captured, direct, dtype: torch.dtype) -> None:
    """Compare weights, buffers and the latest accuracy."""
    tolerance = 1e-12 if dtype == torch.float64 else 1e-4
    found, expected = captured.state_dict(), direct.state_dict()
    for name in (name for name, value in expected.items() if torch.is_tensor(value)):
        torch.testing.assert_close(found[name], expected[name], rtol=tolerance, atol=tolerance, msg=name)
    torch.testing.assert_close(captured.objective.accuracy, direct.objective.accuracy)
    torch.testing.assert_close(captured.task_losses, direct.task_losses, rtol=tolerance, atol=tolerance)


def check_captured_steps(device: str, head: str, monkeypatch, *words: str) -> None:
    """Compare captured steps with direct ones; the second of four has another shape, and is not captured."""
    direct, captured, dtype = make_pair(head, device, monkeypatch, *words)
    for number, tasks in enumerate([2, 3, 2, 2]):
        for learner in (direct, captured):
            train(learner, *make_batch(number, device, dtype, tasks))
        check_equal(captured, direct, dtype)
    assert captured.graphed.captured is not None


@pytest.mark.parametrize("head", sampled(HEADS, 4))
@pytest.mark.parametrize("device", DEVICES)
def test_every_head(device, head, monkeypatch):
    if head in REFUSED:
        pytest.skip("refused")
    check_captured_steps(device, head, monkeypatch)


@pytest.mark.parametrize("norm", sampled(NORMS, 3))
@pytest.mark.parametrize("device", DEVICES)
def test_every_norm(device, norm, monkeypatch):
    check_captured_steps(device, "maml", monkeypatch, f"norm={norm}")


@pytest.mark.parametrize("device", DEVICES)
def test_several_episodes_and_batch_norms_of_the_network(device, monkeypatch):
    direct, captured, dtype = make_pair("protonet", device, monkeypatch, "norm=none")
    for learner in (direct, captured):
        learner.backbone.blocks[0].insert(1, nn.BatchNorm2d(16).to(device, dtype).train())
    for number in range(3):
        for learner in (direct, captured):
            train(learner, *make_batch(number, device, dtype, episodes=2))
        check_equal(captured, direct, dtype)
    assert captured.graphed.captured.shape[0] == captured.graphed.captured.shape[1]


@pytest.mark.parametrize("device", DEVICES)
def test_running_moments_of_two_meta_batches(device, monkeypatch):
    direct, captured, dtype = make_pair("maml", device, monkeypatch, "norm=batch")
    for learner in (direct, captured):
        learner.train()
        for number in range(2):  # as with trainer.accumulate_grad_batches=2
            learner.training_step(make_batch(number, device, dtype), number).backward()
        learner.on_before_optimizer_step(torch.optim.SGD(learner.parameters(), 0.1))
    check_equal(captured, direct, dtype)
    for (name, expected), found in zip(direct.named_parameters(), captured.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.parametrize("device", DEVICES)
def test_the_backward_pass_of_a_captured_step_is_not_under_autocast(device, monkeypatch):
    direct, captured, _ = make_pair("protonet", device, monkeypatch)
    gradients = []
    for learner in (direct, captured):
        learner.float().train()
        with torch.autocast(device, torch.bfloat16):
            loss = learner.training_step(make_batch(0, device, torch.float32), 0)
        loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in learner.parameters() if p.grad is not None]))
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)


def test_the_memory_of_a_captured_step_is_freed_after_training(monkeypatch):
    _, captured, dtype = make_pair("protonet", "cpu", monkeypatch)
    train(captured, *make_batch(0, "cpu", dtype))
    assert captured.graphed.captured is not None
    captured.on_fit_end()
    assert captured.graphed.captured is None


def test_heads_that_cannot_be_captured_are_refused():
    def refused(*words: str) -> bool:
        try:
            check_capturable(make_step_learner(words[0], [*words[1:]]))
        except UsageError as error:
            assert "type cuda_graph=false" in str(error)
            return True
        return False

    assert {head for head in HEADS if refused(head)} == REFUSED
    assert not refused("fomaml", "evaluate=[ridge,svm]")  # not part of the step
    assert refused("protonet", "backbone=resnet12")
    assert refused("protonet", "regularizer=feature_clustering")


@pytest.mark.parametrize(
    ("device", "scaler", "changes", "message"),
    [
        ("cpu", None, {}, "expected a GPU for cuda_graph=true, got cpu: type cuda_graph=false"),
        ("cuda", object(), {}, "type trainer.precision=bf16-mixed"),
        ("cuda", None, {"way": "5..20"}, "got train.way=5..20 and train.shot=1: type train.way=5"),
        ("cuda", None, {"shot": "natural"}, "got train.way=5 and train.shot=natural: type train.way=5"),
        ("cuda", None, {}, None),
    ],
)
def test_runs_that_cannot_be_captured_are_refused(device, scaler, changes, message):
    learner = make_step_learner("protonet", ["cuda_graph=true"])
    assert learner.graphed is not None
    tasks = TaskSpec(**{**vars(TASKS), **changes})
    strategy, plugin = SimpleNamespace(root_device=torch.device(device)), SimpleNamespace(scaler=scaler)
    trainer = SimpleNamespace(strategy=strategy, precision_plugin=plugin, precision="16-mixed")
    if message is None:
        check_graph(learner, tasks, trainer)
    else:
        with pytest.raises(UsageError, match=message.replace(".", r"\.")):
            check_graph(learner, tasks, trainer)
    learner.graphed = None
    check_graph(learner, tasks, trainer)


def test_a_run_without_a_gpu_is_refused_before_it_starts(tmp_path):
    done = metafew(*TINY, "cuda_graph=true", f"hydra.run.dir={tmp_path / 'one'}", cwd=tmp_path, code=2)
    assert "expected a GPU for cuda_graph=true, got cpu" in done.stderr
    assert not (tmp_path / "one" / "checkpoints").exists()


def test_a_checkpoint_does_not_make_later_runs_capture():
    assert carried({"seed": 1, "cuda_graph": True}) == {"seed": 1}
