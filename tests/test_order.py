"""The order of rows in a task is random, and gives nothing away."""

from collections import Counter

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from numbered import Numbered
from scipy.stats import chi2_contingency

from metafew.backbones.identity import Identity
from metafew.data.augment import Affine, Augmentation, Chain
from metafew.data.datamodule import FewShot
from metafew.data.sampler import STREAMS, MixtureSampler, Sampler
from metafew.data.store import Split, build
from metafew.data.task_spec import TaskSpec
from metafew.evaluation.evaluator import Evaluator
from metafew.evaluation.metrics import PerTask
from metafew.heads.head import FeatureHead


def plan(**changes):
    words = {"split": "train", "way": 3, "shot": 2, "query": 4, "tasks": 4, "total": 8, "seed": 0, "support": 9}
    return TaskSpec(**words | changes)


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    return Split(build(Numbered(), tmp_path_factory.mktemp("store")), "train")


@pytest.fixture(params=["fixed", "natural", "mixture"])
def sampler(request, split):
    """A sampler of each kind of task."""
    one = plan(shot="natural") if request.param == "natural" else plan()
    return (
        MixtureSampler([Sampler(split, one, None)] * 2, one)
        if request.param == "mixture"
        else Sampler(split, one, None)
    )


def test_classes_images_and_views_are_those_of_the_first_stream(split):
    jitter = Chain([Affine(15, 0.25, (0.7, 1.05), 2.5)])
    for index in range(50):
        rng = np.random.default_rng([0, STREAMS["train"], index])
        rng.random(2)
        classes = rng.permutation(7)[:3]
        rows = [rng.permutation(split.rows[c]) for c in classes]
        views = [jitter.draw(rng, np.full(len(r), c)) for r, c in zip(rows, classes, strict=True)]
        drawn = Sampler(split, plan(), jitter).draw(index)
        for part, few in ((drawn.query, slice(0, 4)), (drawn.support, slice(4, 6))):
            expected = [
                (row, classes[c], c, tuple(view))
                for c in range(3)
                for row, view in zip(rows[c][few], views[c][few], strict=True)
            ]
            found = list(zip(part.rows, part.classes, part.labels, map(tuple, part.views), strict=True))
            assert found != expected and sorted(found) == sorted(expected)


def test_a_position_reveals_no_class(sampler):
    tasks = [sampler.draw(index) for index in range(1500)]
    for part in ("support", "query"):
        labels = [getattr(task, part).labels for task in tasks]
        counts = np.zeros((min(map(len, labels)), 3))
        for each in labels:
            counts[np.arange(len(counts)), each[: len(counts)]] += 1
        # Rows of one task exclude one another, so that the statistic is smaller than chi-square.
        assert chi2_contingency(counts).pvalue > 1e-4


def test_support_and_queries_have_different_orders(split):
    tasks = [Sampler(split, plan(query=2), None).draw(index) for index in range(200)]
    orders = Counter(tuple(task.query.labels) for task in tasks)
    assert len(orders) > 50
    assert sum(np.array_equal(task.query.labels, task.support.labels) for task in tasks) < 20


def test_queries_are_grouped_by_class(split):
    episode = Sampler(split, plan(), None).batch(range(40))[0]
    grouped = episode.grouped_by_class()
    blocks = grouped.query.labels.view(40, 3, 4)
    assert (blocks == blocks[..., :1]).all()
    assert len({tuple(row) for row in blocks[..., 0].tolist()}) == 6  # every order of three classes
    for before, after in zip(rows(episode), rows(grouped), strict=True):
        assert before != after and sorted(before) == sorted(after)
    assert torch.equal(grouped.support.images, episode.support.images) and torch.equal(grouped.ids[0], episode.ids[0])
    assert episode._replace(ids=None).grouped_by_class().ids is None


def rows(episode):
    """Return, for each task, the label, the id, and the class and number of every query."""
    pixels = episode.query.images[:, :, 0, 0]
    fields = (episode.query.labels.unsqueeze(-1), episode.ids[1].unsqueeze(-1), pixels)
    return torch.cat(fields, -1).tolist()


class Positions(FeatureHead):
    """A head that looks at no image: each position has the class that it had most often in other tasks."""

    def __init__(self, episodes):
        super().__init__()
        counts = sum(torch.nn.functional.one_hot(episode.query.labels, 3).sum(0) for episode in episodes)
        self.table = torch.nn.Parameter(counts.double())

    def classify(self, support, labels, query, way):
        return self.table[: query.shape[1]].expand(len(query), -1, -1)


@pytest.mark.filterwarnings("ignore")  # of Lightning's own
@pytest.mark.parametrize("queries", ["together", "single", "class"])
def test_a_head_that_reads_positions_is_at_chance(queries, tmp_path):
    total, test = 400, plan(split="test", total=400, seed=1)
    train, val = plan(total=400), plan(split="val", total=8)
    data = FewShot(Numbered(), train, val, [test], Augmentation([], {}), tmp_path, num_workers=0)
    data.prepare_data()
    seen = data.sampler(train).batch(range(total))
    seen = [episode.grouped_by_class() for episode in seen] if queries == "class" else seen
    evaluator = Evaluator(Identity(1, 2, None), {"positions": Positions(seen)}, queries)
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "inference_mode": False}
    pl.Trainer(accelerator="cpu", **options).test(evaluator, data, verbose=False)
    accuracy = evaluator.tables[0]["positions"][:, PerTask.columns.index("accuracy")].mean().item()
    # Four standard deviations of a binomial, whose trials are the queries, or the classes where these are grouped. As
    # each class has the same number of queries, the true deviation is smaller.
    trials = total * (3 if queries == "class" else 12)
    assert abs(accuracy - 1 / 3) < 4 * (1 / 3 * 2 / 3 / trials) ** 0.5
