"""Mixtures of datasets, and the tasks of Meta-Dataset."""

import csv
import math
from collections import Counter

import numpy as np
import pytest
import torch
from contracts import sampled
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import chisquare

from metafew.data.augment import Augmentation
from metafew.data.datamodule import FewShot, to_model_input
from metafew.data.loader import MetaBatches
from metafew.data.sampler import STREAMS, MixtureSampler, Sampler
from metafew.data.sources import Category, Source
from metafew.data.sources.mixture import Mixture
from metafew.data.store import Split, build
from metafew.data.task_spec import TaskSpec
from metafew.errors import UsageError
from metafew.heads.protonet import ProtoNet
from metafew.objectives.episodic import Episodic
from metafew.objectives.regularizers import NoRegularizer
from metafew.training.factory import make_backbone, make_data, make_source

FEW = ["train.way=2..4", "val.way=2..4", "test.way=2..4", "train.support=12", "val.support=12", "test.support=12"]


class Grouped(Source):
    """Groups of 3, 6 and 9 classes of 2 to 40 images; an image holds its class and its number."""

    name, channels, image_size = "grouped", 1, 2
    sizes = tuple(int(n) for n in np.random.default_rng(5).integers(2, 41, 18))

    def splits(self):
        groups = ["small"] * 3 + ["middle"] * 6 + ["large"] * 9
        classes = [
            Category(f"c{c}", tuple((c, i) for i in range(n)), group=group)
            for c, (n, group) in enumerate(zip(self.sizes, groups, strict=True))
        ]
        return {"train": classes, "val": classes, "test": classes}

    def fingerprint(self):
        return "grouped"

    def read(self, keys):
        return (np.array([[key, (0, 0)]], np.uint8) for key in keys)


class Plain(Grouped):
    """The same without groups."""

    name = "plain"

    def splits(self):
        return {split: [c._replace(group="") for c in classes] for split, classes in super().splits().items()}

    def fingerprint(self):
        return "plain"


def plan(**changes):
    words = {"split": "train", "way": "5..8", "shot": "natural", "query": 10, "tasks": 4, "total": 40, "seed": 0}
    return TaskSpec(**words | {"support": 60} | changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("stores")


def sampler(folder, source=Grouped, **changes):
    made = plan(**changes)
    return Sampler(Split(build(source(), folder), made.split), made, None)


def identities(images):
    return [tuple(image[0, 0].tolist()) for image in images.flatten(0, 1)]


@settings(max_examples=60)
@given(seed=st.integers(0, 2**31), index=st.integers(0, 10**9), query=st.integers(1, 10), support=st.integers(8, 500))
def test_a_natural_task_keeps_the_published_bounds(folder, seed, index, query, support):
    drawn = sampler(folder, seed=seed, query=query, support=support).task(index)
    given_, asked = identities(drawn.support.images), identities(drawn.query.images)
    assert len(set(given_ + asked)) == len(given_ + asked)
    shots, queries = Counter(c for c, _ in given_), Counter(c for c, _ in asked)
    assert set(shots) == set(queries) and len(shots) == drawn.way
    assert set(shots) <= set(range(3, 9)) or set(shots) <= set(range(9, 18))  # one group, and never the smallest
    sizes = {c: Grouped.sizes[c] for c in shots}
    q = min(query, min(sizes.values()) // 2)
    assert set(queries.values()) == {q} and 5 <= drawn.way <= 8
    assert all(1 <= shots[c] <= sizes[c] - q for c in shots)
    assert len(given_) <= max(support, drawn.way)
    for part, pairs in ((drawn.support, given_), (drawn.query, asked)):
        labels = {}
        for (c, _), label in zip(pairs, part.labels[0].tolist(), strict=True):
            assert labels.setdefault(c, label) == label
        assert sorted(labels.values()) == list(range(drawn.way))


def test_shots_follow_the_formula(folder):
    """A transcription with plain numbers, from the same random stream."""
    tasks, split = sampler(folder, Plain, support=50), Plain().splits()["train"]
    for index in range(200):
        rng = np.random.default_rng([0, STREAMS["train"], index])
        rng.integers(1)
        way = int(rng.integers(5, 9))
        classes = rng.permutation(len(split))[:way].tolist()
        n = [len(split[c].keys) for c in classes]
        q = min(10, math.floor(min(n) / 2))
        beta = 1 - (1 - rng.random())  # in [0, 1); ceil of (0, 1] is floor + 1
        size = min(50, sum(math.floor(beta * min(100, m - q)) + 1 for m in n))
        weights = [m * math.exp(a) for m, a in zip(n, rng.uniform(math.log(0.5), math.log(2), way), strict=True)]
        shots = [min(math.floor(w / sum(weights) * (size - way)) + 1, m - q) for w, m in zip(weights, n, strict=True)]
        drawn = tasks.task(index)
        counts = Counter(c for c, _ in identities(drawn.support.images))
        assert [counts[c] for c in classes] == shots and drawn.query.labels.shape[1] == q * way


def test_ways_groups_and_classes_are_drawn_evenly(folder):
    episodes = [sampler(folder).task(i) for i in range(2000)]
    groups = [max(c for c, _ in identities(e.query.images)) >= 9 for e in episodes]
    assert chisquare([sum(groups), 2000 - sum(groups)]).pvalue > 1e-4
    large = [e for e, is_large in zip(episodes, groups, strict=True) if is_large]
    assert chisquare([sum(e.way == w for e in large) for w in (5, 6, 7, 8)]).pvalue > 1e-4
    assert {e.way for e, is_large in zip(episodes, groups, strict=True) if not is_large} == {5, 6}
    classes = Counter(c for e in large for c in {c for c, _ in identities(e.query.images)})
    assert chisquare([classes[c] for c in range(9, 18)]).pvalue > 1e-4


def test_a_mixture_gives_the_tasks_of_its_datasets(folder):
    for split in ("train", "test"):
        parts = [sampler(folder, source, split=split) for source in (Grouped, Plain)]
        mixed = MixtureSampler(parts, plan(split=split))
        tasks = [mixed.task(i) for i in range(1000)]
        sources = [t.source for t in tasks]
        if split == "test":
            assert sources == [0, 1] * 500
        else:
            assert chisquare([sources.count(0), sources.count(1)]).pvalue > 1e-4 and sources[:20] != [0, 1] * 10
        for i in range(20):
            own = parts[sources[i]].task(i if split == "train" else i // 2)  # what it has alone
            assert torch.equal(own.support.images, tasks[i].support.images)
            assert torch.equal(own.query.labels, tasks[i].query.labels)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_share_out_the_same_tasks_of_a_mixture(folder, world):
    mixed = MixtureSampler([sampler(folder, source) for source in (Grouped, Plain)], plan())
    seen = {}
    for rank in range(world):
        batches = MetaBatches(mixed, rank, world)
        for step in range(len(batches)):
            for episode in batches[step]:
                for row, index in enumerate(episode.index.tolist()):
                    seen[index] = (episode.source, episode.support.images[row].sum().item())
    assert seen == {i: (mixed.task(i).source, mixed.task(i).support.images.sum().item()) for i in range(40)}


def test_no_task_of_a_meta_batch_feels_the_others(composed):
    """Tasks of unequal size are never padded: each has the logits that it has alone."""
    cfg, _, _ = composed("dataset=mixture", "dataset.sources=[glyphs]", *FEW, "train.tasks=6", "backbone.width=4")
    source = make_source(cfg)
    data = make_data(cfg, source, Episodic(NoRegularizer()))
    data.prepare_data()
    backbone, head = make_backbone(cfg, source).double(), ProtoNet()
    tasks = data.sampler(data.train)
    batch = [to_model_input(episode, torch.float64) for episode in tasks.batch(range(6))]
    assert len({e.support.labels.shape for e in batch}) > 2
    for episode in batch:
        together = head(backbone, episode.support, episode.query.images, episode.way)
        for row, index in enumerate(episode.index.tolist()):
            (alone,) = tasks.batch([index])
            alone = to_model_input(alone, torch.float64)
            single = head(backbone, alone.support, alone.query.images, alone.way)
            torch.testing.assert_close(together[[row]], single, atol=1e-10, rtol=0)


@pytest.fixture
def photographs(tmp_path):
    """A folder of class folders in colour; some classes have few images."""
    rng = np.random.default_rng(0)
    for c in range(15):
        (tmp_path / f"photos/class{c:02}").mkdir(parents=True)
        for i in range(4 + c % 3):
            pixels = np.clip(rng.normal(20 * (c % 12), 30, (12, 12, 3)) * (c % 3 + 1, 1, 2), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"photos/class{c:02}/{i}.png")
    return tmp_path / "photos"


@pytest.mark.parametrize(
    "head",
    sampled(["head=protonet", "head=svm norm=batch", "head=cnaps", "head=maml head.steps=1 head.test_steps=1"], 2),
)
def test_a_mixture_trains_and_tests_with_every_kind_of_head(launch, photographs, head):
    words = ["dataset=mixture", f"dataset.sources=[glyphs,{photographs}]", *FEW, "test.total=8", "train.tasks=2"]
    report, out = launch(*words, *head.split(), "dataset.image_size=16", "evaluate=[ridge]")
    name = head.split()[0].removeprefix("head=")
    assert report["sources"] == {"glyphs": True, "photos": True}
    metrics = report["metrics"]
    assert metrics[f"test/{name}/accuracy"]["tasks"] == 8
    for source in ("glyphs", "photos"):
        assert metrics[f"test/{name}/{source}/accuracy"]["tasks"] == 4
    whole = np.mean([metrics[f"test/{name}/{source}/loss"]["mean"] for source in report["sources"]])
    assert metrics[f"test/{name}/loss"]["mean"] == pytest.approx(whole)
    assert sum(report["average_rank"].values()) == pytest.approx(3)
    with (out / "tasks.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["head"] == name]
    assert [row["source"] for row in rows] == ["glyphs", "photos"] * 4
    assert len({(row["way"], row["shot"]) for row in rows}) > 2


def test_a_mixture_that_is_only_trained_has_no_ranks(launch, photographs):
    words = ["dataset=mixture", f"dataset.sources=[glyphs,{photographs}]", *FEW, "dataset.image_size=16"]
    report, _ = launch(*words, "evaluate=[ridge]", "stages=[fit]")
    assert report["heads"] == {} and "average_rank" not in report


class Coloured(Grouped):
    """The same in three channels."""

    name, channels = "coloured", 3

    def fingerprint(self):
        return "coloured"

    def read(self, keys):
        images = super().read(keys)
        return (np.concatenate([image, 2 * image, 3 * image]) for image in images)


@pytest.mark.parametrize(
    ("sources", "channels", "expected"),
    [
        ([Plain], None, 1),
        ([Plain], 3, 3),
        ([Coloured], None, 3),
        ([Coloured], 3, 3),
        ([Coloured], 1, 1),
        ([Plain, Coloured], None, 3),
        ([Plain, Coloured], 3, 3),
        ([Coloured, Plain], 1, 1),
    ],
)
def test_all_tasks_have_the_channels_of_the_mixture(folder, sources, channels, expected):
    made, few = {source.name: source for source in sources}, plan(query=2, support=20)

    def tasks(channels):
        mixture = Mixture(lambda word, image_size: made[word](), [*made], [], 2, channels)
        data = FewShot(mixture, few, few, [few], Augmentation([], {}), folder, num_workers=0)
        data.prepare_data()
        return mixture.channels, [data.sampler(few).task(index) for index in range(8)]

    (found, converted), (_, coloured) = tasks(channels), tasks(3)
    assert found == expected and {task.source for task in coloured} == {*range(len(sources))}
    for one, other in zip(converted, coloured, strict=True):
        image, colour = (task.support.images.double() for task in (one, other))
        ratios = torch.tensor([1, 2, 3] if sources[one.source] is Coloured else [1, 1, 1]).view(3, 1, 1)
        assert torch.equal(colour, colour[:, :, :1] * ratios) and colour.any()
        grey = (colour * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(2, keepdim=True)
        torch.testing.assert_close(image, colour if expected == 3 else grey, rtol=0, atol=0.51)  # rounded


def test_a_held_out_dataset_is_only_tested_and_has_the_channels_of_training(launch, photographs):
    words = ["dataset=mixture", "dataset.sources=[glyphs]", f"dataset.test_sources=[{photographs}]", *FEW]
    report, _ = launch(*words, "dataset.image_size=16")
    assert report["sources"] == {"glyphs": True, "photos": False}
    assert report["config"]["dataset"]["channels"] is None
    assert report["metrics"]["test/protonet/photos/accuracy"]["tasks"] == 3
    assert "average_rank" not in report


def test_a_dataset_may_be_there_twice_under_another_name_be_it_that_of_a_head(launch, capsys):
    words = ["dataset=mixture", "dataset.sources=[glyphs,{dataset:glyphs,name:protonet}]", *FEW]
    report, out = launch(*words, "test.total=6")
    assert report["sources"] == {"glyphs": True, "protonet": True}
    metrics = report["metrics"]
    assert metrics["test/protonet/glyphs/accuracy"] == metrics["test/protonet/protonet/accuracy"]  # the same tasks
    assert capsys.readouterr().out.count("│ protonet") == 2
    best, last = (f"ckpt={out}/checkpoints/{which}.ckpt" for which in ("best", "last"))
    again, _ = launch(*words, "stages=[test]", best, out=out / "again")
    assert again["metrics"] == metrics
    # A dataset that is only tested on does not make it another training.
    more = ["dataset.test_sources=[{dataset:glyphs,name:other}]", "trainer.max_steps=5", "test.total=9"]
    further, _ = launch(*words, *more, last, out=out / "further")
    assert further["steps"] == 5 and further["sources"]["other"] is False


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["dataset.sources=[]"], "at least one dataset in dataset.sources"),
        (["dataset.sources=[nothing]"], "nothing is neither, here or in data_dir"),
        (["dataset.test_sources=[5]"], "5 is neither, here or in data_dir"),
        (["dataset.sources=nothing"], "nothing is neither, here or in data_dir"),
        (["dataset.sources=[../train]"], "../train is neither"),
        (["dataset.sources=[{dataset:glyphs,image_size:84}]"], "image_size is no option of dataset=glyphs in a mix"),
        (["dataset.sources=[{dataset:glyphs,name:a/b}]"], "got 'a/b': type"),
        (["dataset.sources=[{dataset:glyphs,name:shot5}]"], "got 'shot5': type"),
        (["dataset.sources=[features]"], "dataset=features cannot be a part of a mixture"),
        (["dataset.channels=2"], "null or 1 or 3, got 2"),
        (["dataset.image_size=big"], "expected dataset.image_size to be an integer, got big"),
        (
            ["dataset.sources=[glyphs,{dataset:glyphs,name:b}]", "test.total=1"],
            "test.total to be at least 2",
        ),
        (["test.shot=[1,natural]"], r"natural, which has its own, got \[1, 'natural'\]"),
        (["dataset.sources=[glyphs,glyphs]"], "2 are called glyphs"),
        (
            ["dataset.sources=[{dataset:glyphs,colour:3}]"],
            "colour is no option of dataset=glyphs in a mixture, where it takes jitter",
        ),
        (
            ["dataset.sources=[{dataset:glyphs,jitter:false}]"],
            "glyphs.jitter to be a view .* or null, got False: correct it in dataset.sources",
        ),
        (
            ["dataset.sources=[{dataset:omniglot,download:no}]"],
            "omniglot.download to be true or false, got no: correct it in dataset.sources",
        ),
        (["dataset.sources=[{dataset:folder,root:2023}]"], "2023 is not a folder"),
        (["dataset.sources=[mixture]"], "cannot be a part of a mixture"),
        (["dataset.sources=[glyphs]", "objective=classical"], "expected the classes of one dataset"),
        (
            [
                *("norm=batch_shared", "dataset.sources=[glyphs,{dataset:glyphs,name:b}]"),
                *(f"{split}.{word}" for split in ("train", "val", "test") for word in ("way=5", "shot=1")),
            ],
            "expected training tasks of one dataset, .* got those of glyphs, b: type norm=batch",
        ),
        (["dataset.sources=[glyphs]", "train.way=200..300"], "needs 200 classes of one group"),
        (["dataset.sources=[glyphs]", "train.support=20"], "train.support to be an integer of at least 50, got 20"),
    ],
)
def test_a_mixture_that_cannot_be_is_refused(launch, words, said):
    with pytest.raises(UsageError, match=said):
        launch("dataset=mixture", *words)


def test_classes_of_small_groups_are_counted():
    classes = [Category(str(number), (0, 1, 2), 0, group) for number, group in enumerate("aaaaabb")]
    assert plan().never_drawn(classes) == 2 and plan(way="2..8").never_drawn(classes) == 0
    assert plan(shot=1).never_drawn(classes) == 0
