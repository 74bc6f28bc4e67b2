"""The distance of queries from the classes of a support set."""

import numpy as np
import pytest
import torch

import metafew
from metafew.data.store import Split, store_folder
from metafew.evaluation.unknown import distances, limit
from metafew.training.factory import make_source


def gaussian(count, way, shift=0.0, dim=32, seed=0):
    """Return features and labels of classes with unit variance around means that are far apart."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(way).repeat_interleave(count)
    means = 10 * torch.eye(way, dim)
    return means[labels] + shift + torch.randn(len(labels), dim, generator=generator), labels


def test_about_one_in_twenty_new_images_of_the_classes_is_marked_and_others_are():
    marked = []
    for seed in range(20):
        support, labels = gaussian(5, 5, seed=seed)
        query, _ = gaussian(40, 5, seed=100 + seed)
        marked.append((distances(support, labels, query, 5) > 1).float().mean().item())
        other, _ = gaussian(40, 5, shift=4.0, seed=200 + seed)
        assert (distances(support, labels, other, 5) > 1).all()
    assert 0.01 < sum(marked) / len(marked) < 0.08


def test_examples_stand_for_new_images_with_the_same_expected_square():
    """``E |x - m|^2 = (1 + 1 / n) v`` for a new image, in few dimensions to average over."""
    squares = []
    for seed in range(2000):
        support = torch.randn(2, 3, generator=torch.Generator().manual_seed(seed))
        squares.append(limit(support, torch.zeros(2, dtype=torch.int64), 1).item() ** 2)
    assert sum(squares) / len(squares) == pytest.approx((1 + 1 / 2) * 3, rel=0.05)


def test_the_limit_follows_its_definition_where_classes_differ_in_size():
    support = torch.tensor([[0.0, 0.0], [2.0, 0.0], [9.0, 9.0]])
    labels = torch.tensor([0, 0, 1])
    assert limit(support, labels, 2).item() == pytest.approx(3**0.5)  # the class of one example has no spread
    query = torch.tensor([[1.0, 0.0], [1.0, 3**0.5], [9.0, 10.0]])
    assert distances(support, labels, query, 2).tolist() == pytest.approx([0.0, 1.0, 3**-0.5])


def test_with_many_examples_the_limit_has_the_rank_of_its_definition():
    support, labels = gaussian(20, 5)
    means = torch.stack([support[labels == m].mean(0) for m in range(5)])
    spread = ((support - means[labels]).norm(dim=1) * (21 / 19) ** 0.5).sort().values
    assert limit(support, labels, 5).item() == pytest.approx(spread[95].item(), rel=1e-5)  # 0.95 * 101 is 95.95
    assert spread[95] < 0.999 * spread[99]


def test_with_single_examples_the_limit_is_the_median_distance_between_neighbours():
    support = torch.tensor([[0.0], [1.0], [3.0], [9.0]])
    labels = torch.arange(4)
    assert limit(support, labels, 4).item() == 1.5  # the median of 1, 1, 2, 6
    assert distances(support, labels, torch.tensor([[4.5]]), 4).tolist() == [1.0]


def test_many_queries_are_as_far_as_each_alone_whatever_their_offset():
    support, labels = gaussian(5, 5, shift=1024.0)
    query, _ = gaussian(8, 5, shift=1024.5, seed=1)
    alone = torch.cat([distances(support, labels, each, 5) for each in query.split(1)])
    torch.testing.assert_close(distances(support, labels, query, 5), alone, rtol=1e-6, atol=0)


def test_copies_of_the_examples_are_not_marked():
    support = torch.ones(4, 3)
    found = distances(support, torch.tensor([0, 0, 1, 1]), torch.stack([torch.ones(3), torch.zeros(3)]), 2)
    assert found.tolist() == [0.0, torch.inf]


@pytest.mark.slow
def test_letters_of_other_classes_are_marked(launch, composed, cache, tmp_path):
    launch("stages=[fit]", "val.total=0", tiny=["trainer.max_steps=100", "trainer.accelerator=cpu"])
    model = metafew.load(tmp_path / "checkpoints" / "last.ckpt")
    split = Split(store_folder(make_source(composed("dataset=glyphs")[0]), cache), "test")
    own, other, rng = [], [], np.random.default_rng(0)
    for _ in range(30):
        rows = [rng.permutation(split.rows[c])[:10] for c in rng.permutation(len(split.names))[:10]]
        images = np.stack([split.gather(each, np.zeros(len(each), int)) for each in rows])
        task = model.adapt(images[:5, :5].reshape(-1, 1, 28, 28), np.arange(5).repeat(5).tolist())
        for queries, marked in ((images[:5, 5:], own), (images[5:, 5:], other)):
            marked.append((task.distances(queries.reshape(-1, 1, 28, 28)) > 1).float().mean().item())
    assert np.mean(own) < 0.1 and np.mean(other) > 0.6, (np.mean(own), np.mean(other))
