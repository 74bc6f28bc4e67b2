"""Minibatches of classical training: every image once an epoch, or pairs of classes; pure functions of (seed, i)."""

from collections import Counter

import numpy as np
import pytest
import torch

from metafew.data.augment import Affine, Chain
from metafew.data.loader import MetaBatches
from metafew.data.minibatches import Minibatches, MinibatchSampler
from metafew.data.sources import Category, Source
from metafew.data.store import Split, build
from metafew.errors import UsageError

SIZES = (3, 7, 5, 4, 6, 5, 9)
IMAGES = sum(SIZES)  # 39
JITTER = Chain([Affine(15, 0.25, (0.7, 1.05), 2.5)])


class Numbered(Source):
    """Seven classes of 3 to 9 images of 4 pixels; an image holds its class, its number, and 0 twice."""

    name, channels, image_size = "numbered", 1, 2

    def splits(self):
        return {
            "train": [Category(f"class {c}", tuple(f"{c}/{i}" for i in range(n))) for c, n in enumerate(SIZES)],
            "turned": [Category(f"turn {t}", tuple(f"0/{i}" for i in range(3)), t) for t in range(4)],
        }

    def fingerprint(self):
        return "numbered"

    def read(self, keys):
        for key in keys:
            yield np.array([[list(map(int, key.split("/"))), [0, 0]]], np.uint8)


@pytest.fixture
def split(tmp_path):
    return Split(build(Numbered(), tmp_path), "train")


def plan(**changes):
    return Minibatches(**{"split": "train", "size": 16, "tasks": 2, "total": 20, "seed": 0, "pairs": False} | changes)


def identities(episode):
    """Return (class, number) of every image of an episode."""
    return [tuple(map(int, image[0, 0])) for image in episode.support.images.flatten(0, 1)]


@pytest.mark.parametrize(("size", "tasks"), [(16, 2), (2, 1), (39, 1), (13, 1), (4, 4), (100, 1)])
def test_every_image_once_an_epoch(split, size, tasks):
    sampler = MinibatchSampler(split, plan(size=size, tasks=tasks), None)
    chunk, epochs = size // tasks, 6
    seen = [i for k in range(-(-epochs * IMAGES // chunk)) for i in identities(sampler.task(k))]
    orders = [tuple(seen[e * IMAGES : (e + 1) * IMAGES]) for e in range(epochs)]
    every = {(c, i) for c, n in enumerate(SIZES) for i in range(n)}
    assert all(len(order) == len(set(order)) and set(order) == every for order in orders)
    assert len(set(orders)) == epochs


def test_first_places_are_evenly_shared(split):
    firsts = Counter(
        identities(MinibatchSampler(split, plan(size=2, tasks=1, seed=seed), None).task(0))[0] for seed in range(1950)
    )
    assert sum((firsts[c, i] - 50) ** 2 / 50 for c, n in enumerate(SIZES) for i in range(n)) < 79.0  # 38 degrees


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("jitter", [None, JITTER])
def test_a_chunk_depends_on_seed_and_number_only(split, pairs, jitter):
    def same(one, other):
        assert identities(one) == identities(other) and torch.equal(one.support.labels, other.support.labels)
        assert jitter is None or torch.equal(one.views.support, other.views.support)

    sampler = MinibatchSampler(split, plan(pairs=pairs), jitter)
    forward = [sampler.task(i) for i in range(30)]
    for i in np.random.default_rng(0).permutation(30):
        same(sampler.task(int(i)), forward[i])
        same(MinibatchSampler(split, plan(pairs=pairs, total=99, size=32, tasks=4), jitter).task(int(i)), forward[i])
    other = MinibatchSampler(split, plan(pairs=pairs, seed=1), jitter)
    assert identities(other.task(0)) != identities(forward[0])
    assert len({tuple(identities(episode)) for episode in forward}) == 30


@pytest.mark.parametrize("pairs", [False, True])
def test_a_chunk_is_a_task_of_all_classes_without_queries(split, pairs):
    sampler = MinibatchSampler(split, plan(pairs=pairs), JITTER)
    for index in range(20):
        episode = sampler.task(index)
        assert episode.way == len(SIZES) and episode.index.tolist() == [index]
        assert episode.support.images.shape == (1, 8, 1, 2, 2) and episode.support.images.dtype == torch.uint8
        assert episode.support.labels.dtype == torch.int64
        assert episode.support.labels[0].tolist() == [c for c, _ in identities(episode)]
        assert episode.query.images.shape == (1, 0, 1, 2, 2) and episode.query.labels.shape == (1, 0)
        assert [view.shape for view in episode.views[1:]] == [(1, 8, 6), (1, 0, 6)]
        assert len(episode.views.support[0].unique(dim=0)) == 8
    assert MinibatchSampler(split, plan(pairs=pairs), None).task(0).views is None


def test_jitter_does_not_change_what_is_drawn(split):
    for pairs in (False, True):
        plain, jittered = (MinibatchSampler(split, plan(pairs=pairs), jitter).task(3) for jitter in (None, JITTER))
        assert identities(plain) == identities(jittered)


def test_rotated_classes_share_images_and_differ_in_turns(tmp_path):
    split = Split(build(Numbered(), tmp_path), "turned")
    episode = MinibatchSampler(split, plan(size=12, tasks=1), None).task(0)  # one epoch
    upright = {row: split.images[row].tobytes() for row in split.rows[0]}
    found = Counter()
    for image, turn in zip(episode.support.images[0], episode.support.labels[0].tolist(), strict=True):
        found[turn, torch.rot90(image, -turn, (1, 2)).numpy().tobytes()] += 1
    assert found == {(turn, image): 1 for turn in range(4) for image in upright.values()}


@pytest.mark.parametrize(("size", "tasks"), [(4, 1), (12, 1), (12, 3), (16, 2)])
def test_pairs_are_laid_out_pair_class_image(split, size, tasks):
    sampler = MinibatchSampler(split, plan(size=size, tasks=tasks, pairs=True), None)
    for index in range(50):
        (episode,) = sampler.batch([index, index + 1])
        numbers = episode.support.images[..., 0, 0, :].view(2, -1, 2, 2, 2)  # task, pair, class, image, (class, number)
        assert torch.equal(numbers[..., 0, 0], numbers[..., 1, 0])
        assert (numbers[..., 0, 1] != numbers[..., 1, 1]).all()
        for task in numbers:
            assert len(task[..., 0, 0].unique()) == size // tasks // 2
        assert torch.equal(numbers[..., 0].flatten(1).long(), episode.support.labels)


def test_pairs_are_drawn_evenly(split):
    sampler = MinibatchSampler(split, plan(size=4, tasks=1, pairs=True), None)
    drawn = [identities(sampler.task(i)) for i in range(3500)]
    classes = Counter(chunk[k][0] for chunk in drawn for k in (0, 2))
    # Drawing 2 of 7 without replacement shrinks the variance by (1 - 2/7) * 7/6 = 5/6.
    assert sum((n - 1000) ** 2 / 1000 for n in classes.values()) * 6 / 5 < 27.9  # chi-square, 6 degrees of freedom
    images = Counter(i for chunk in drawn for c, i in chunk if c == 6)
    expected = sum(images.values()) / 9
    assert sum((n - expected) ** 2 / expected for n in images.values()) < 31.9  # 8 degrees of freedom
    assert len({(chunk[0][0], chunk[2][0]) for chunk in drawn}) == 7 * 6


@pytest.mark.parametrize("pairs", [False, True])
def test_a_batch_stacks_chunks_and_ranks_share_them_out(split, pairs):
    sampler = MinibatchSampler(split, plan(size=16, tasks=4, total=10, pairs=pairs), JITTER)
    (whole,) = MetaBatches(sampler, 0, 1)[1]
    assert whole.index.tolist() == [4, 5, 6, 7] and whole.support.images.shape == (4, 4, 1, 2, 2)
    assert whole.query.images.shape == (4, 0, 1, 2, 2) and whole.views.query.shape == (4, 0, 6)
    for rank in range(2):
        (half,) = MetaBatches(MinibatchSampler(split, sampler.spec, JITTER), rank, 2)[1]
        assert torch.equal(half.support.images, whole.support.images[rank::2])
        assert torch.equal(half.support.labels, whole.support.labels[rank::2])
        assert torch.equal(half.views.support, whole.views.support[rank::2])
    assert len(MetaBatches(sampler, 0, 1)) == 3
    assert MetaBatches(sampler, 0, 1)[2][0].index.tolist() == [8, 9]


def test_contexts_are_chunks():
    assert plan(size=64, tasks=4).contexts == (16, 16)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"size": 1, "tasks": 1},
            "expected train.batch_size to be an integer of at least 2, got 1: type train.batch_size=2",
        ),
        ({"size": 2.5}, "train.batch_size to be an integer"),
        ({"tasks": 0}, "train.tasks to be an integer of at least 1, got 0"),
        (
            {"size": 64, "tasks": 3},
            "a multiple of 3, .*train.tasks=3 equal chunks of images, got 64: type train.batch_size=66",
        ),
        ({"size": 18, "tasks": 1, "pairs": True}, "chunks of pairs of classes.*: type train.batch_size=20"),
        ({"size": 12, "tasks": 2, "pairs": True}, "train.tasks=2 equal chunks of pairs.*: type train.batch_size=16"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(changes, said):
    with pytest.raises(UsageError, match=said):
        plan(**changes)


def test_what_a_split_lacks_has_values_that_suffice():
    categories, lone = Numbered().splits()["train"], Category("lone", ("0/0",))
    assert not plan(size=24, tasks=2, pairs=True).shortages(categories, "numbered")
    (large,) = plan(size=32, tasks=2, pairs=True).shortages(categories, "numbered")
    assert "needs 8 classes in each" in large.problem and large.options == {"train.batch_size": 24}
    (few,) = plan(pairs=True).shortages([*categories, lone], "numbered")
    assert "class 'lone' in the train split of dataset=numbered has one" in few.problem
    assert few.options == {"regularizer": "none"} and not plan().shortages([lone, lone], "numbered")
    (single,) = plan().shortages([lone], "numbered")
    assert "has one class, 'lone'" in single.problem and not single.options
