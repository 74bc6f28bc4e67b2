"""What every objective keeps."""

from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from contracts import node, norm, skip_exempt
from metafew.backbones.backbone import Backbone
from metafew.config.groups import CONF
from metafew.episode import Episode, Labelled
from metafew.errors import UsageError
from metafew.heads.protonet import ProtoNet
from metafew.objectives import objective as objective_module
from metafew.objectives.regularizers import FeatureClustering, NoRegularizer
from metafew.training.factory import make_objective
from metafew.training.instantiate import make_head

T, W = 3, 2


class Smooth(Backbone):
    """A convolution without kinks, so that finite differences are exact."""

    features = 4

    def __init__(self, scheme="layer"):
        super().__init__(1, 6)
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 3), norm(scheme)(4), nn.Softplus(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )

    def forward(self, images):
        return self.body(images)


def make_episode():
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(T, 4 * W, 1, 6, 6, generator=generator, dtype=torch.double)
    labels = torch.arange(W).repeat_interleave(2).repeat(T, 2)
    support, query = (Labelled(images[:, rows], labels[:, rows]) for rows in (slice(2 * W), slice(2 * W, None)))
    return Episode(support, query, W, torch.arange(T))


class ObjectiveContract:
    """A subclass provides ``file``, the YAML of an objective."""

    @pytest.fixture
    def episode(self):
        return make_episode()

    @pytest.fixture
    def parts(self, file):
        """Make a backbone, a head that the objective can train, and the objective."""
        torch.manual_seed(0)
        backbone = Smooth().double()
        none = node(CONF / "regularizer" / "none.yaml")
        cfg = OmegaConf.create({"objective": node(file), "regularizer": none})
        source = SimpleNamespace(splits=lambda: {"train": range(W)})
        objective = make_objective(cfg, source, backbone).double()
        head = ProtoNet(divide=True).double()
        try:
            objective.prepare(backbone, head)
        except UsageError as error:
            assert "type head=reptile" in str(error)
            options = OmegaConf.merge(node(CONF / "head" / "reptile.yaml"), {"way": W, "steps": 2})
            head = make_head(options, backbone, trained=True).double()
            objective.prepare(backbone, head)
        return backbone, head, objective

    def gradients(self, parts, batch):
        """Return the gradient of the loss in every weight that trains."""
        backbone, head, objective = parts
        weights = [p for module in parts for p in module.parameters() if p.requires_grad]
        return torch.autograd.grad(objective(backbone, head, batch).loss, weights)

    def test_one_finite_loss_a_task_and_their_mean(self, parts, episode):
        backbone, head, objective = parts
        loss, task_losses = objective(backbone, head, [episode])
        assert task_losses.shape == (T,) and task_losses.isfinite().all() and not task_losses.requires_grad
        assert loss.shape == () and loss.requires_grad
        torch.testing.assert_close(loss.detach(), task_losses.mean() + torch.as_tensor(head.penalty()).double())

    def test_tasks_are_independent(self, parts, episode):
        backbone, head, objective = parts
        together = objective(backbone, head, [episode]).task_losses
        single = torch.cat([objective(backbone, head, [piece]).task_losses for piece in episode.split(1)])
        torch.testing.assert_close(together, single, rtol=1e-9, atol=1e-12)

    def test_the_gradient_is_the_mean_over_tasks(self, parts, episode):
        """Accumulating batches is then one larger batch."""
        together = self.gradients(parts, [episode])
        single = [self.gradients(parts, [piece]) for piece in episode.split(1)]
        for one, *others in zip(together, *single, strict=True):
            torch.testing.assert_close(one, torch.stack(others).mean(0), rtol=1e-8, atol=1e-12)

    def test_tasks_of_other_shapes_weigh_the_same(self, parts, episode):
        narrow = episode._replace(query=Labelled(*(part[:, : 2 * W] for part in episode.query)))
        backbone, head, objective = parts
        both = [objective(backbone, head, [each]).loss for each in (episode, narrow)]
        torch.testing.assert_close(objective(backbone, head, [episode, narrow]).loss, sum(both) / 2)

    def test_a_few_tasks_at_a_time_change_nothing(self, parts, episode, monkeypatch):
        together, sizes, split = self.gradients(parts, [episode]), [], Episode.split
        monkeypatch.setattr(objective_module, "PIXELS", 1)
        monkeypatch.setattr(Episode, "split", lambda self, size: sizes.append(size) or split(self, size))
        for one, other in zip(together, self.gradients(parts, [episode]), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
        assert sizes == ([1] if parts[2].splits_batches else [])

    def test_the_gradient_by_finite_differences(self, parts, episode):
        backbone, head, objective = parts
        skip_exempt(objective, "gradient")
        weights = [p for module in parts for p in module.parameters() if p.requires_grad]
        generator = torch.Generator().manual_seed(1)
        direction = [torch.randn(p.shape, generator=generator, dtype=torch.double) for p in weights]
        ours = sum((g * d).sum() for g, d in zip(self.gradients(parts, [episode]), direction, strict=True))

        @torch.no_grad()
        def moved(step):
            for p, d in zip(weights, direction, strict=True):
                p += step * d
            loss = objective(backbone, head, [episode]).loss
            for p, d in zip(weights, direction, strict=True):
                p -= step * d
            return loss

        numeric = (8 * (moved(1e-4) - moved(-1e-4)) - (moved(2e-4) - moved(-2e-4))) / 12e-4
        assert ours.item() == pytest.approx(numeric.item(), rel=1e-6, abs=1e-9)

    def test_a_gradient_reaches_every_weight_that_trains(self, parts, episode):
        assert all(gradient.abs().sum() > 0 for gradient in self.gradients(parts, [episode]))

    def test_queries_are_needed_only_where_declared(self, parts, episode):
        backbone, head, objective = parts
        full = objective(backbone, head, [episode]).loss
        if objective.needs_queries:
            other = episode._replace(query=episode.query._replace(images=episode.query.images.square()))
            assert (objective(backbone, head, [other]).loss - full).abs() > 1e-6
        else:
            empty = episode._replace(query=Labelled(*(part[:, :0] for part in episode.query)))
            torch.testing.assert_close(objective(backbone, head, [empty]).loss, full)

    def test_a_regularizer_of_features_is_added_or_refused(self, parts, episode):
        backbone, head, objective = parts
        plain = objective(backbone, head, [episode]).task_losses
        objective.regularizer = FeatureClustering(0.5)
        try:
            objective.prepare(backbone, head)
        except UsageError as error:
            assert "regularizer=none" in str(error)
            return
        term = 0.5 * FeatureClustering(1.0)(objective.pairs(backbone, episode))
        torch.testing.assert_close(objective(backbone, head, [episode]).task_losses, plain + term.detach())
        objective.regularizer = NoRegularizer()

    def test_an_optimizer_that_does_not_suit_is_warned_of(self, parts, caplog):
        weights = [nn.Parameter(torch.zeros(1))]
        warned = []
        for optimizer in (torch.optim.Adam(weights), torch.optim.SGD(weights, lr=1.0)):
            parts[2].advise(optimizer)
            warned.append("type optimizer=" in caplog.text)
            caplog.clear()
        assert warned.count(True) == 1  # the outer step of Reptile suits no other objective, and Adam suits all others
