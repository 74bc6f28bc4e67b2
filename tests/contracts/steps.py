"""Single steps of training and of a test, without the loops of Lightning around them."""

from types import SimpleNamespace

import torch
from pytorch_lightning.trainer.states import TrainerFn
from torchmetrics import MeanMetric

from contracts import with_base_mean
from metafew.episode import Episode, Labelled
from metafew.evaluation.calibration import CalibrationError
from metafew.evaluation.metrics import PerTask
from metafew.training.learner import Learner

TRAINER = SimpleNamespace(
    state=SimpleNamespace(fn=TrainerFn.TESTING), precision_plugin=SimpleNamespace(), world_size=1, global_step=0,
    log_every_n_steps=1,
)  # fmt: skip


def without_loops(learner: Learner) -> Learner:
    """Return ``learner`` with what its steps read of a trainer."""
    learner.trainer = TRAINER
    learner.log = lambda *_, **__: None
    return learner


def make_episode(device: torch.device, tasks: int, way: int, shot: int, query: int, size: int) -> Episode:
    """Return tasks on the device, with their numbers on the CPU, as the data module leaves them."""

    def labelled(rows: int) -> Labelled:
        labels = torch.arange(way, device=device).repeat_interleave(rows).expand(tasks, -1)
        return Labelled(torch.rand(tasks, way * rows, 1, size, size, device=device), labels)

    ids = torch.zeros(tasks, way * shot, dtype=torch.long, device=device)
    return Episode(labelled(shot), labelled(query), way, torch.arange(tasks), ids=(ids, ids))


def train(learner: Learner, *batch: Episode) -> torch.Tensor:
    """Take a training step, and return its loss."""
    learner.train()
    optimizers = learner.configure_optimizers()  # the schedule must outlive the step
    loss = learner.training_step([*batch], 0)
    assert loss.device == learner.task_losses.device == batch[0].support.images.device
    loss.backward()
    learner.on_before_optimizer_step(optimizers["optimizer"])
    optimizers["optimizer"].step()
    return loss.detach()


def prepare_tables(learner: Learner) -> None:
    """Make the tables of a test, and the mean feature of training images for heads that use it."""
    for head in learner.heads.values():
        if head.base_mean is None:
            with_base_mean(head, learner.backbone)
    learner.feature_caches = [None]
    device = next(learner.parameters()).device
    learner.test_tasks = [{name: PerTask().to(device) for name in (*learner.measured, learner.baseline)}]
    learner.test_errors = [{name: CalibrationError(1.0).to(device) for name in learner.heads}]
    learner.test_seconds = [{name: MeanMetric(nan_strategy="disable").to(device) for name in learner.heads}]


@torch.no_grad()
def evaluate(learner: Learner, episode: Episode) -> dict[str, PerTask]:
    """Take a step of a test, and return its tables."""
    learner.eval().test_step([episode], 0)
    for table in learner.test_tasks[0].values():
        assert table.rows[-1].device == episode.support.images.device
        assert table.rows[-1].shape == (len(episode.index), len(PerTask.columns))
    return learner.test_tasks[0]
