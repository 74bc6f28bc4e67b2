"""Metrics, intervals and baselines of evaluation."""

import pytest
import torch

from metafew.episode import Episode, Labelled
from metafew.evaluation.baselines import nearest_neighbour
from metafew.evaluation.metrics import PerTask
from metafew.evaluation.statistics import interval


def episode(index, labels, way=2):
    labels = torch.tensor(labels)
    support = Labelled(torch.zeros(len(labels), way, 1, 2, 2), torch.arange(way).expand(len(labels), -1))
    return Episode(support, Labelled(torch.zeros(*labels.shape, 1, 2, 2), labels), way, torch.tensor(index))


def test_rows_are_exact_and_in_the_order_of_tasks():
    metric = PerTask()
    logits = torch.tensor([[[2.0, 0.0], [0.0, 1.0]], [[0.0, 3.0], [0.0, 0.5]]])
    metric.update(logits, episode([7, 2], [[0, 1], [0, 1]]))
    metric.update(logits[:1], episode([4], [[1, 1]]))
    table = metric.compute()
    assert table[:, 0].tolist() == [2, 4, 7]
    assert table[:, 4].tolist() == [0.5, 0.5, 1.0]
    losses = -logits.double().log_softmax(-1)
    assert table[2, 5].item() == pytest.approx((losses[0, 0, 0] + losses[0, 1, 1]).item() / 2, rel=1e-12)
    assert table[:, 1:4].tolist() == [[0, 2, 1]] * 3


def test_interval_is_the_95_percent_normal_interval():
    values = torch.rand(50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    summary = interval(values.numpy())
    assert summary["mean"] == pytest.approx(values.mean().item(), rel=1e-12)
    assert summary["ci95"] == pytest.approx(1.96 * values.std().item() / 50**0.5, rel=1e-12)
    assert summary["tasks"] == 50
    assert interval(values[:1].numpy())["ci95"] is None


def test_baseline_labels_by_the_nearest_support_image():
    support = Labelled(torch.tensor([0.0, 1.0, 5.0, 9.0]).view(1, 4, 1, 1, 1), torch.tensor([[0, 0, 1, 2]]))
    query = torch.tensor([0.9, 4.0, 8.0]).view(1, 3, 1, 1, 1)
    logits = nearest_neighbour(support, query, 3)
    assert logits.argmax(-1).tolist() == [[0, 1, 2]]
    torch.testing.assert_close(logits[0, 0], torch.tensor([-0.1, -4.1, -8.1]), rtol=1e-5, atol=1e-5)
