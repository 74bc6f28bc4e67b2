"""Use a trained model in another program: adapt it to tasks, predict labels, and compute features."""

from __future__ import annotations

import logging
import math
from collections.abc import Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from os import PathLike
from typing import Any, cast

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from metafew.backbones.backbone import Backbone, target_chunks
from metafew.config.allowlist import check_called_paths
from metafew.data.augment import as_float
from metafew.data.formats.conversion import Conversion
from metafew.data.formats.names import ordered
from metafew.episode import Episode, Labelled
from metafew.errors import UsageError
from metafew.evaluation import unknown
from metafew.evaluation.calibration import applicable_temperature
from metafew.heads.head import FeatureHead, Head
from metafew.heads.shared_features import SharedFeatures
from metafew.predictions import NO_ANSWER, answers, probabilities
from metafew.training import checkpoint
from metafew.training.factory import make_backbone
from metafew.training.instantiate import make_head

log = logging.getLogger(__name__)

AT_ONCE = 256
"""Maximum number of queries per forward pass, which bounds memory."""
TOLERANCE = 1e-3
"""Tolerance for pixels outside of [0, 1], as resizing in floating point overshoots."""


class Model(nn.Module):
    """A trained backbone with its head, returned by :func:`metafew.load`.

    Attributes:
        backbone: the feature extractor.
        head: the head, which adapts to a support set and classifies queries.
        channels: channels of the images.
        image_size: height and width of the images.
        choices: the option chosen for each group in training, such as ``{"head": "svm", ...}``.
        trained_conversion: the conversion of images in training; None if the dataset had no image files, or if unknown.
        drawings: whether the model was trained on drawings, in bright ink on a dark background.
        conversion: converts a PIL image, an array or an image file as in training: ``model.conversion(file)`` is uint8
            ``(c, h, w)``.
        temperature: divides logits before the softmax. It was fitted on validation tasks in training; 1 without
            validation, for options of the head other than the first, and for checkpoints of earlier versions.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: Head,
        choices: dict[str, str],
        conversion: Mapping[str, Any] | None = None,
        temperature: float = 1.0,
        drawings: bool = False,
    ):
        super().__init__()
        self.temperature = temperature
        self.trained_conversion, self.drawings = conversion, drawings
        self.conversion = Conversion(backbone.channels, backbone.image_size, **(conversion or {}))
        self.backbone, self.head, self.choices = backbone, head, choices
        self.channels, self.image_size = backbone.channels, backbone.image_size

    def adapt(self, images: Tensor | np.ndarray, labels: Sequence[Hashable]) -> Task:
        """Return the task of classifying images into the classes of a support set.

        Args:
            images: ``(n, c, h, w)``, or ``(n, h, w)`` for images of one channel; uint8, or floating point in [0, 1].
                They should look as in training: of the same size, and drawings bright (255 or 1) on a dark background
                (0). :attr:`conversion` takes care of this. Vectors ``(n, d)`` for a model of ``dataset=features``.
            labels: ``n`` strings, numbers or other hashable values; classes may have different numbers of images.

        Raises:
            UsageError: if images are not as in training, or labels do not match them or the head.
        """
        support = self.prepare(images)
        # Tensors with the same value have different hashes.
        labels = [cast(Hashable, label.tolist()) if isinstance(label, Tensor) else label for label in labels]
        if len(labels) != support.shape[1]:
            raise UsageError(
                f"expected one label for each image, and there are {len(labels)} for {support.shape[1]} images: "
                "give as many labels as images"
            )
        classes = ordered(labels)
        if len(classes) < 2:
            raise UsageError(
                f"expected images of two classes or more, and the labels name {len(classes)}: add images of others"
            )
        if self.head.fixed_way not in (None, len(classes)):
            raise UsageError(
                f"expected {self.head.fixed_way} classes for the linear output layer of head={self.choices['head']}, "
                f"and the labels name {len(classes)}: give {self.head.fixed_way} classes, or train with "
                "head.output=zero"
            )
        numbers = {label: number for number, label in enumerate(classes)}
        rows = torch.tensor([[numbers[label] for label in labels]], device=support.device)
        return Task(self, Labelled(support, rows), classes)

    @torch.no_grad()
    def features(self, images: Tensor | np.ndarray) -> Tensor:
        """Return features ``(n, d)`` of ``n`` images, without adaptation. Norms take all images as context.

        Args:
            images: as :meth:`adapt` takes them.

        Raises:
            UsageError: if images are not as in training.
        """
        return self.backbone.embed(self.prepare(images))[0][0].float()

    def prepare(self, images: Tensor | np.ndarray) -> Tensor:
        """Return ``images`` as one task ``(1, n, c, h, w)`` in [0, 1], with the model's precision and device."""
        shape = (self.channels, self.image_size, self.image_size)
        vectors = self.image_size == 1  # whose uint8 values, as in training, are not scaled
        images_of = f"images (n, {', '.join(map(str, shape))}), uint8 or floating point in [0, 1]"
        expected = f"expected {f'vectors (n, {self.channels}) in floating point' if vectors else images_of}"
        try:
            values = images.detach() if isinstance(images, Tensor) else torch.from_numpy(np.array(images, order="C"))
        except (TypeError, ValueError) as error:
            raise UsageError(
                f"{expected}, got a {type(images).__name__} that cannot be converted to an array: "
                f"{'stack the vectors' if vectors else 'resize and stack the images'}"
            ) from error
        given = tuple(values.shape)  # before dimensions are added
        if vectors and values.ndim == 2:
            values = values[..., None, None]
        elif values.ndim == 3 and self.channels == 1:
            values = values.unsqueeze(1)
        if values.shape[1:] != shape:
            if vectors:
                raise UsageError(f"{expected}, got shape {given}: give one row for each")
            raise UsageError(
                f"{expected}, got shape {tuple(values.shape)}: resize them, channels before height and width"
            )
        own = next(self.parameters(), torch.empty(0))  # features and heads without weights
        if values.dtype == torch.uint8 and not vectors:
            return as_float(values.to(own.device), own.dtype).unsqueeze(0)
        if not values.is_floating_point() and values.dtype != torch.uint8:
            advice = "convert them to float32" if vectors else "convert values of 0..255 to uint8"
            raise UsageError(f"{expected}, got {values.dtype}: {advice}")
        if not vectors and values.numel() and not -TOLERANCE <= values.min() <= values.max() <= 1 + TOLERANCE:
            low, high = values.min().item(), values.max().item()
            finite = math.isfinite(low) and math.isfinite(high)
            advice = "divide values of 0..255 by 255" if finite else "replace those that are not finite"
            raise UsageError(f"{expected}, got values from {low:g} to {high:g}: {advice}")
        return values.to(own).unsqueeze(0)


class Task:
    """A support set to which a model adapts, returned by :meth:`Model.adapt`.

    The head adapts to the support set in each call, by a solver or by gradient steps. One call with many queries is
    faster than many calls, with the same predictions. A prediction depends on the other images of its call only if
    ``model.backbone.transductive`` or ``model.head.transductive``.

    Attributes:
        classes: the labels in sorted order, strings in natural order (``a2`` before ``a10``); in order of first
            occurrence if they cannot be compared.
    """

    def __init__(self, model: Model, support: Labelled, classes: list):
        self.model, self.support, self.classes = model, support, classes

    @torch.no_grad()
    def predict(self, images: Tensor | np.ndarray) -> Tensor:
        """Return probabilities ``(q, w)`` in float32, with one column per class in :attr:`classes`.

        Rows of images with non-finite logits, as from a diverged model, are NaN.

        Args:
            images: ``q`` images, as :meth:`Model.adapt` takes them.

        Raises:
            UsageError: if images are not as in training.
        """
        query = self.model.prepare(images)
        return self._probabilities(query, self.model.backbone)

    @torch.no_grad()
    def distances(self, images: Tensor | np.ndarray) -> Tensor:
        """Return how far each image is from the nearest class, ``(q,)``; above 1, it may belong to none of them.

        This is the distance to the nearest mean of the features of a class, before any adaptation, divided by that of
        the examples themselves (:func:`metafew.evaluation.unknown.limit`).

        Args:
            images: as for :meth:`predict`.
        """
        query = self.model.prepare(images)
        return self._distances(query, self._embedded_once(query))

    @torch.no_grad()
    def predict_with_distances(self, images: Tensor | np.ndarray) -> tuple[Tensor, Tensor]:
        """Return the results of :meth:`predict` and :meth:`distances`; heads on features embed the images once."""
        query = self.model.prepare(images)
        shared = self._embedded_once(query)
        backbone = shared if isinstance(self.model.head, FeatureHead) else self.model.backbone
        return self._probabilities(query, backbone), self._distances(query, shared)

    def _embedded_once(self, query: Tensor) -> Backbone:
        """Return the backbone, which embeds the support set and the queries only once."""
        unlabelled = Labelled(query, torch.empty(query.shape[:2]))
        task = Episode(self.support, unlabelled, len(self.classes), torch.zeros(1))
        return cast(Backbone, SharedFeatures(self.model.backbone, task))

    def _chunks(self) -> AbstractContextManager[None]:
        return target_chunks(None if self.model.backbone.transductive else AT_ONCE)

    def _probabilities(self, query: Tensor, backbone: Backbone) -> Tensor:
        """Return the probabilities of prepared queries."""
        if not query.shape[1]:
            return torch.zeros(0, len(self.classes), device=query.device)
        with self._chunks():
            logits = self.model.head(backbone, self.support, query, len(self.classes))
        return probabilities(logits[0].float() / self.model.temperature)

    def _distances(self, query: Tensor, backbone: Backbone) -> Tensor:
        """Return the distances of prepared queries."""
        if not query.shape[1]:
            return torch.zeros(0, device=query.device)
        with self._chunks():
            support, targets = backbone.embed(self.support.images, query)
        rows = self.support.labels[0]
        return unknown.distances(support[0].float(), rows, targets[0].float(), len(self.classes))

    def label(self, images: Tensor | np.ndarray) -> list:
        """Return the most probable label of each image; None for images with non-finite logits."""
        return self.most_probable(self.predict(images))

    def most_probable(self, found: Tensor) -> list:
        """Return the most probable label of each row of :meth:`predict`'s result; None for rows of NaN."""
        return [None if number == NO_ANSWER else self.classes[number] for number in answers(found).tolist()]


def load(path: str | PathLike, trust: str | Sequence[str] = (), chosen: str | None = None) -> Model:
    """Return the model of a checkpoint: :func:`metafew.load`."""
    content = checkpoint.read(path)
    provenance = content["metafew"]
    cfg = OmegaConf.create(provenance["model"])
    trust = [trust] if isinstance(trust, str) else trust
    check_called_paths(cfg, path, trust, lambda targets: f"type trust={sorted({*trust, *targets.values()})} with it")
    # Frozen first, as heads that expect a frozen backbone warn about any other.
    backbone = make_backbone(cfg, cfg.images).requires_grad_(False)
    head, name = make_head(cfg.head, backbone, cfg.trained), provenance["choices"]["head"]
    model = nn.ModuleDict({"backbone": backbone, "heads": nn.ModuleDict({name: head.requires_grad_(False)})})
    used = ("backbone.", f"heads.{name}.")
    state = {key: value for key, value in content["state_dict"].items() if key.startswith(used)}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise UsageError(
            f"expected the weights of the model that {path} describes, but it holds others, since the code has "
            "changed: train again"
        ) from error
    if head.needs_base_mean:
        head.base_mean = provenance["base_mean"]
    choose_candidate(head, name, chosen)
    temperature = applicable_temperature(head, provenance["temperatures"].get(name, 1.0))
    conversion, drawings = provenance["model"].get("conversion"), provenance["model"]["drawings"]
    return Model(backbone, head, provenance["choices"], conversion, temperature, drawings).eval()


def choose_candidate(head: Head, name: str, chosen: str | None) -> None:
    """Set the candidate of ``head`` that is used, or warn that it is the first of several.

    Raises:
        UsageError: if the head has no candidate ``chosen``.
    """
    candidates = list(head.candidates)
    if chosen is None and len(candidates) > 1:
        log.warning(
            "%s of head=%s are chosen on validation tasks, and checkpoints do not contain the choice: "
            "%s of %s is used; type chosen=NAME for another",
            *(" and ".join(head.candidates[candidates[0]]), name, candidates[0], ", ".join(candidates)),
        )
    elif chosen is not None and chosen not in candidates:
        advice = f"type chosen={candidates[0]}" if candidates else "leave chosen out"
        raise UsageError(
            f"expected chosen to be one of {', '.join(candidates) or 'no options'}, got {chosen}: {advice}"
        )
    head.chosen = chosen
