"""Clustering measures against Gaussians, loops over the printed formulas, and their limits; pairs; regularizers."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from omegaconf import OmegaConf

from metafew.config.groups import CONF
from metafew.errors import UsageError
from metafew.objectives.clustering import (
    class_clustering,
    draw_pairs,
    feature_clustering,
    hyperplane_ratio,
    hyperplane_variation,
    variance_ratio,
)
from metafew.objectives.regularizers import FeatureClustering, HyperplaneVariation
from metafew.training.instantiate import make

MEASURES = (feature_clustering, hyperplane_variation, hyperplane_ratio)
REGULARIZERS = {"feature_clustering": FeatureClustering, "hyperplane_variation": HyperplaneVariation}


def gaussians(r: float, pairs: int = 50, d: int = 2000) -> torch.Tensor:
    """Return pairs of classes of total variance 3, their means sqrt(3 r) apart."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(pairs, 1, 1, d, generator=generator, dtype=torch.double)
    apart = torch.nn.functional.normalize(
        torch.randn(pairs, 1, 1, d, generator=generator, dtype=torch.double), dim=-1
    ) * math.sqrt(3 * r)
    noise = torch.randn(pairs, 2, 2, d, generator=generator, dtype=torch.double) * math.sqrt(3 / d)
    return centres + torch.cat([torch.zeros_like(apart), apart], 1) + noise


def mixed() -> torch.Tensor:
    return gaussians(0.5, pairs=6, d=5)


@pytest.mark.parametrize("r", [0, 0.195, 0.538, 1, 2.1, 3.35, 20])
def test_expectations_on_gaussians(r):
    pairs = gaussians(r)
    expected = (4 / (1 + r), 4 / (2 + r), 1 / math.sqrt(2 + r))
    for measure, value in zip(MEASURES, expected, strict=True):
        assert measure(pairs).item() == pytest.approx(value, rel=0.015), measure.__name__


def test_transcription_of_the_pair_formulas():
    pairs = mixed().numpy()
    clustering, variation, ratio = [], [], []
    for (x1, x2), (y1, y2) in pairs:
        mx, my = (x1 + x2) / 2, (y1 + y2) / 2
        m = (mx + my) / 2
        within = sum(((f - mu) ** 2).sum() for f, mu in ((x1, mx), (x2, mx), (y1, my), (y2, my)))
        between = sum(((mu - m) ** 2).sum() for mu in (mx, my))
        clustering.append(2 / 2 * within / between)
        d1, d2 = x1 - y1, x2 - y2
        lengths = np.linalg.norm(d1), np.linalg.norm(d2)
        ratio.append(np.linalg.norm(d1 - d2) / sum(lengths))
        variation.append((np.linalg.norm(d1 - d2) / (sum(lengths) / 2 + 1e-4)) ** 2)
    pairs = torch.from_numpy(pairs)
    assert feature_clustering(pairs).mean().item() == pytest.approx(np.mean(clustering), rel=1e-5)
    assert hyperplane_variation(pairs).mean().item() == pytest.approx(np.mean(variation), rel=1e-12)
    assert hyperplane_ratio(pairs).mean().item() == pytest.approx(np.mean(ratio), rel=1e-3)
    for measure in MEASURES:  # whatever stands before the pairs
        torch.testing.assert_close(measure(pairs.view(2, 3, 2, 2, -1)).mean(), measure(pairs))


def test_transcription_of_the_split_formulas():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(5, 7, 3, generator=generator, dtype=torch.double) + torch.arange(5)[:, None, None]
    means, n, c = features.mean(1), 7, 5
    within = sum(((features[i, j] - means[i]) ** 2).sum() for i in range(c) for j in range(n))
    between = sum(((means[i] - means.mean(0)) ** 2).sum() for i in range(c))
    labels = (torch.arange(5) * 3 - 4).repeat_interleave(7)
    order = torch.randperm(35, generator=generator)
    rows = features.flatten(0, 1)[order], labels[order]
    assert class_clustering(*rows).item() == pytest.approx((c / n * within / between).item(), rel=1e-5)
    assert variance_ratio(*rows).item() == pytest.approx(((within / (c * n)) / (between / c)).item(), rel=1e-5)


def test_a_pair_is_a_split_of_two_classes():
    for pair in mixed():
        whole = class_clustering(pair.flatten(0, 1), torch.tensor([0, 0, 1, 1]))
        assert whole.item() == pytest.approx(feature_clustering(pair.unsqueeze(0)).item(), rel=1e-5)


def test_variance_ratio_counts_neither_classes_nor_images():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(20, 4, generator=generator, dtype=torch.double)
    labels = torch.tensor([0] * 3 + [1] * 7 + [2] * 10)
    value = variance_ratio(features, labels)
    twice = variance_ratio(torch.cat([features, features]), torch.cat([labels, labels + 3]))
    torch.testing.assert_close(twice, value)
    torch.testing.assert_close(
        class_clustering(torch.cat([features, features]), torch.cat([labels, labels + 3])), 6 * value
    )
    # Every class weighs the same: one that has each of its images three times over weighs no more.
    more = torch.cat([features, features[:3], features[:3]]), torch.cat([labels, labels[:3], labels[:3]])
    torch.testing.assert_close(variance_ratio(*more), value)


@pytest.mark.parametrize("measure", MEASURES)
def test_scale_does_not_matter(measure):
    pairs = gaussians(1, pairs=20, d=50)
    pairs = pairs / pairs.norm(dim=-1).min()
    value = measure(pairs)
    for scale in (2.0, 30.0, 1e4):
        torch.testing.assert_close(measure(scale * pairs), value, rtol=1e-3, atol=0)


def test_zero_when_classes_are_points():
    points = gaussians(1, pairs=4, d=6)[:, :, :1].expand(-1, -1, 2, -1).clone()
    for measure in MEASURES:
        assert measure(points) == 0
    for image in range(2):
        for category in range(2):
            moved = points.clone()
            moved[0, category, image] += 0.1
            for measure in MEASURES:
                assert measure(moved) > 1e-4
    rows, labels = points.flatten(0, 2), torch.arange(8).repeat_interleave(2)
    assert variance_ratio(rows, labels) == class_clustering(rows, labels) == 0
    rows[0] += 0.1
    assert variance_ratio(rows, labels) > 1e-4


def test_each_measure_has_its_own_name():
    """The authors' code has them swapped; images of two classes that move alike turn no plane."""
    x, y = torch.tensor([0.0, 0.0]), torch.tensor([4.0, 0.0])
    move = torch.tensor([0.0, 3.0])
    alike = torch.stack([torch.stack([x, x + move]), torch.stack([y, y + move])]).unsqueeze(0)
    against = torch.stack([torch.stack([x, x + move / 2]), torch.stack([y, y - move / 2])]).unsqueeze(0)
    assert feature_clustering(alike) > feature_clustering(against)
    assert hyperplane_variation(alike) < hyperplane_variation(against)
    assert hyperplane_variation(alike) == 0
    assert feature_clustering(alike).item() == pytest.approx(18 / 16, rel=1e-6)


@settings(max_examples=200)
@given(arrays(np.float64, (3, 2, 2, 4), elements=st.floats(-1e3, 1e3)))
def test_range(values):
    pairs = torch.from_numpy(values)
    assert 0 <= hyperplane_variation(pairs) <= 4 + 1e-9
    assert 0 <= hyperplane_ratio(pairs) <= 1 + 1e-9
    assert feature_clustering(pairs) >= 0
    assert feature_clustering(pairs).isfinite()


def test_bounds_are_reached():
    line = torch.tensor([[0.0, 10.0], [10.0, 0.0]]).view(1, 2, 2, 1)  # d1 = -d2
    assert hyperplane_variation(line).item() == pytest.approx(4, rel=1e-4)
    assert hyperplane_ratio(line).item() == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("measure", MEASURES)
def test_gradients(measure):
    assert torch.autograd.gradcheck(measure, mixed()[:2].requires_grad_())


@pytest.mark.parametrize("measure", MEASURES)
def test_gradients_are_finite_where_all_images_are_equal(measure):
    pairs = torch.zeros(1, 2, 2, 3, requires_grad=True)
    measure(pairs).backward()
    assert pairs.grad.isfinite().all()


@pytest.mark.parametrize("measure", MEASURES)
def test_half_precision_does_not_overflow(measure):
    pairs = (30 * gaussians(1, pairs=4)).half()
    assert measure(pairs).dtype == torch.float32
    torch.testing.assert_close(measure(pairs), measure(pairs.float()))


def stack(labels: torch.Tensor) -> torch.Tensor:
    """Return features (t, n, 3) that say their task, label and row."""
    t, n = labels.shape
    tasks, rows = torch.arange(t)[:, None].expand(t, n), torch.arange(n).expand(t, n)
    return torch.stack([tasks, labels, rows], -1)


@pytest.mark.parametrize(("way", "size"), [(2, 2), (5, 16), (6, 3), (20, 2)])
def test_pairs_are_disjoint_classes_and_two_images(way, size):
    order = torch.stack([torch.randperm(way * size, generator=torch.Generator().manual_seed(i)) for i in range(30)])
    labels = torch.arange(way).repeat_interleave(size)[order]
    pairs = draw_pairs(stack(labels), labels, torch.arange(30))
    assert pairs.shape == (30, way // 2, 2, 2, 3)
    for t, task in enumerate(pairs):
        assert (task[..., 0] == t).all()
        assert torch.equal(task[..., 0, 1], task[..., 1, 1])  # two images of one class
        assert len(set(task[..., 0, 1].flatten().tolist())) == way // 2 * 2
        assert (task[..., 0, 2] != task[..., 1, 2]).all()
        assert torch.equal(labels[t][task[..., 2]], task[..., 1])


def test_pairs_of_a_task_depend_on_its_number_alone():
    labels = torch.arange(5).repeat_interleave(6).expand(8, -1)
    features, index = stack(labels)[..., 1:], torch.arange(8) + 40
    whole = draw_pairs(features, labels, index)
    torch.manual_seed(1)
    again = [draw_pairs(features[t : t + 1], labels[t : t + 1], index[t : t + 1]) for t in reversed(range(8))]
    assert torch.equal(torch.cat(again[::-1]), whole)
    assert len({tuple(task.flatten().tolist()) for task in whole}) == 8


def test_pairs_are_drawn_evenly():
    labels = torch.arange(5).repeat_interleave(4).expand(2000, -1)
    pairs = draw_pairs(stack(labels), labels, torch.arange(2000))
    classes = torch.bincount(pairs[..., 0, 1].flatten(), minlength=5).double()
    # Leaving one of five out shrinks the variance by (1 - 4/5) * 5/4 = 1/4.
    assert ((classes - 1600) ** 2 / 1600).sum() * 4 < 23.5  # chi-square, 4 degrees of freedom: one in 10,000
    images = torch.bincount(pairs[..., 2].flatten(), minlength=20).double()
    assert ((images - 800) ** 2 / 800).sum() < 51.0  # 19 degrees of freedom, and less variance
    partners = {tuple(sorted(pair)) for pair in pairs[..., 0, 1].flatten(0, 1).tolist()}
    assert len(partners) == 10


def test_classes_of_one_row_take_no_part_and_pairs_are_as_many_in_every_task():
    labels = torch.tensor([[0, 0, 1, 2, 2, 3, 3, 3, 4, 4], [0, 0, 1, 1, 1, 1, 1, 2, 3, 4]])
    pairs = draw_pairs(stack(labels), labels, torch.arange(2))
    assert pairs.shape == (2, 1, 2, 2, 3)
    alone = draw_pairs(stack(labels)[:1], labels[:1], torch.arange(1))
    assert alone.shape == (1, 2, 2, 2, 3) and set(alone[..., 1].flatten().tolist()) == {0, 2, 3, 4}
    assert set(pairs[1, ..., 1].flatten().tolist()) == {0, 1}
    with pytest.raises(UsageError, match="two images of each of two classes"):
        draw_pairs(stack(labels), torch.arange(10).expand(2, -1), torch.arange(2))


def test_gradients_flow_through_pairs():
    labels = torch.tensor([[0, 0, 1, 1, 2]])
    features = torch.randn(1, 5, 3, requires_grad=True)
    feature_clustering(draw_pairs(features, labels, torch.tensor([3]))).backward()
    assert (features.grad[0, :4].abs().sum(1) > 0).all() and (features.grad[0, 4] == 0).all()


@pytest.mark.parametrize("word", REGULARIZERS)
def test_regularizers_weigh_their_measure(word):
    node = OmegaConf.load(CONF / "regularizer" / f"{word}.yaml")
    measure, term = globals()[word], make(OmegaConf.create({"regularizer": node}).regularizer)
    assert type(term) is REGULARIZERS[word] and term.on_features and term.weight == 1
    pairs = mixed()
    assert torch.equal(term(pairs), measure(pairs))
    assert torch.equal(REGULARIZERS[word](0.25)(pairs), 0.25 * measure(pairs))
    assert REGULARIZERS[word](0)(pairs) == 0


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("kind", REGULARIZERS.values())
def test_a_weight_that_makes_no_sense_is_refused(kind, weight):
    with pytest.raises(UsageError, match=r"at least 0, got .*: type regularizer.weight=1.0"):
        kind(weight)


def test_no_regularizer_has_no_term():
    node = OmegaConf.create({"regularizer": OmegaConf.load(CONF / "regularizer" / "none.yaml")})
    assert not make(node.regularizer).on_features
