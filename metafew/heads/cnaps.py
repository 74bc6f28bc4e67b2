"""Conditional neural adaptive processes, CNAPs (Requeima et al. 2019), as used by Bronskill et al. (2020)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from metafew.backbones.backbone import Backbone
from metafew.config.option_values import check_integer
from metafew.episode import Labelled
from metafew.errors import UsageError
from metafew.heads.head import Head, class_means
from metafew.heads.modulation import Modulation
from metafew.heads.set_encoder import SetEncoder
from metafew.norms.film import FiLM, modulated
from metafew.precision import precise

log = logging.getLogger(__name__)


class Classifier(nn.Module):
    """A linear classifier generated from class means ``nu_c``: ``logit_c = f(x) . (nu_c + w(nu_c)) + b(nu_c)``.

    ``w`` and ``b`` are three dense layers each, with ELU between them, and shared by all classes; the layers of ``b``
    are one unit wide. The last layers have no bias, which would shift the logits of all classes equally.

    Args:
        features: dimension ``d`` of the features.
    """

    def __init__(self, features: int):
        super().__init__()

        def net(size: int) -> nn.Sequential:
            first, second, last = nn.Linear(features, size), nn.Linear(size, size), nn.Linear(size, size, bias=False)
            return nn.Sequential(first, nn.ELU(), second, nn.ELU(), last)

        self.weight, self.bias = net(features), net(1)

    def forward(self, support: Tensor, labels: Tensor, query: Tensor, way: int) -> Tensor:
        """Return logits ``(t, q, w)`` from features ``(t, s, d)``, their labels ``(t, s)``, and ``(t, q, d)``."""
        means = class_means(support, labels, way)
        return query @ (means + self.weight(means)).mT + self.bias(means).mT


class CNAPs(Head):
    """Scale and shift the channels of a backbone, and generate a linear classifier, from the support set.

    A set encoder maps the support images to one vector. From it, a dense layer with ReLU per stage of the backbone,
    followed by a :class:`~metafew.heads.modulation.Modulation` per FiLM layer, computes gamma and beta; the classifier
    is generated from the class means of the modulated features. There are no gradient steps per task, and tasks may
    have any number of classes. The backbone is meant to be pretrained and frozen, except for the alphas of TaskNorm.

    The published code adds 0.001 times the penalty, the default here, to a sixteenth of the cross-entropy of each task,
    which it sums over queries. Relative to the mean over queries, its weight is 0.016 divided by their number, less
    than here in tasks of more than 16. It also initializes all vectors of a residual block with the same draw, whereas
    each is drawn separately here. The auto-regressive variant is not implemented. The norm of the set encoder, by
    default MetaBN, takes all support images as context, whatever the norm of the backbone.

    Args:
        backbone: the backbone to modulate; only its dimensions and FiLM layers are used here.
        trained: whether the head is, or will be, trained.
        norm: ``norm(channels)`` makes a normalization layer of the set encoder.
        width: channels of the set encoder.
        penalty: weight of the sum of squares of the vectors ``v`` of all FiLM layers.
        init_std: standard deviation of the initial values of these vectors.
    """

    requires_training = True
    exemptions: ClassVar = {"separable_classes": "its classifier is a network, which must be trained first"}

    def __init__(
        self,
        backbone: Backbone,
        trained: bool,
        norm: Callable[[int], nn.Module],
        width: int = 64,
        penalty: float = 0.001,
        init_std: float = 0.001,
    ):
        super().__init__()
        if not backbone.films:
            raise UsageError(
                f"expected a backbone with FiLM layers for head=cnaps, got {type(backbone).__name__}: "
                "type backbone=conv4 or backbone=resnet18"
            )
        check_integer("head.width", width, 1, example=64)
        for key, value in (("penalty", penalty), ("init_std", init_std)):
            if not value >= 0:
                raise UsageError(f"expected head.{key} to be at least 0, got {value}: type head.{key}=0.001")
        convolutions = [module for module in backbone.modules() if isinstance(module, nn.Conv2d)]
        if trained and any(p.requires_grad for module in convolutions for p in module.parameters()):
            log.warning("head=cnaps is meant for a pre-trained, frozen backbone: type backbone.weights=CKPT")
        self.strength = penalty
        self.encoder = SetEncoder(backbone.channels, backbone.image_size, norm, width)
        sizes = {str(place.stage): place.channels for place in backbone.films}
        self.stages = nn.ModuleDict({stage: nn.Linear(width, channels) for stage, channels in sizes.items()})
        self.places = nn.ModuleList(Modulation(place.channels, init_std) for place in backbone.films)
        self.classifier = Classifier(backbone.features)

    def penalty(self) -> Tensor:
        """Return the penalty on modulation: its weight times the sum of squares of the vectors."""
        return (
            self.strength * torch.stack([cast(Modulation, place).vectors.square().sum() for place in self.places]).sum()
        )

    def modulation(self, backbone: Backbone, images: Tensor) -> dict[FiLM, tuple[Tensor, Tensor]]:
        """Return gamma and beta ``(t, c)`` for each FiLM layer, from support images ``(t, s, c, h, w)``."""
        task = self.encoder(images)
        hidden = {stage: layer(task).relu() for stage, layer in self.stages.items()}
        places = zip(backbone.films, self.places, strict=True)
        return {place: generate(hidden[str(place.stage)]) for place, generate in places}

    def forward(self, backbone: Backbone, support: Labelled, query: Tensor, way: int) -> Tensor:
        """Return logits ``(t, q, w)`` of the images ``query`` ``(t, q, c, h, w)``."""
        with modulated(self.modulation(backbone, support.images)):
            context, targets = backbone.embed(support.images, query)
        with torch.autocast(context.device.type, enabled=False):
            return self.classifier(precise(context), support.labels, precise(targets), way)
