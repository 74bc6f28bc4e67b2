"""A small network without kinks and tasks for it, for gradients held against finite differences."""

import torch
from omegaconf import OmegaConf
from torch import nn

from metafew.backbones.backbone import Backbone
from metafew.backbones.task_weights import accept_task_weights
from metafew.config.groups import CONF
from metafew.episode import Episode, Labelled
from metafew.training.instantiate import make

W = 3


class Smooth(Backbone):
    """Two convolutions with norms, softplus and average pooling: no kinks, so that finite differences are exact."""

    features = 4
    task_weights = True

    def __init__(self, word):
        super().__init__(1, 6)
        norm = make(OmegaConf.load(CONF / "norm" / f"{word}.yaml"))
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1, bias=False), norm(4), nn.Softplus(), nn.AvgPool2d(2),
            nn.Conv2d(4, 4, 3, padding=1, bias=False), norm(4), nn.Softplus(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip

        accept_task_weights(self)

    def forward(self, images):
        return self.body(images)


def three_tasks():
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(3, 4 * W, 1, 6, 6, generator=generator, dtype=torch.double)
    labels = torch.arange(W).repeat(3, 4)
    parts = [Labelled(images[:, rows], labels[:, rows]) for rows in (slice(2 * W), slice(2 * W, None))]
    return Episode(*parts, W, torch.arange(3))
