"""Unbalanced queries: ``test.balance=dirichlet``."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metafew.data.sampler import Sampler, apportion
from metafew.data.task_spec import TaskSpec
from metafew.errors import UsageError

SIZES = (7, 9, 9, 12, 30, 60, 8)


def draw(index, sizes=SIZES, **changes):
    words = {
        "split": "test",
        "way": 4,
        "shot": 2,
        "query": 5,
        "tasks": 1,
        "total": 9,
        "seed": 0,
        "balance": "dirichlet",
    }
    places = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    split = SimpleNamespace(rows=places, groups=["a"] * len(sizes))
    return Sampler(split, TaskSpec(**words | changes), None).draw(index)


def counts(task):
    return np.bincount(task.query.labels, minlength=task.way)


@settings(max_examples=60)
@given(
    st.integers(0, 10**6), st.sampled_from([0.01, 2.0, 1e4]), st.integers(2, 6), st.integers(1, 3), st.integers(0, 9),
    st.booleans(),
)  # fmt: skip
def test_only_the_number_of_queries_of_each_class_differs(index, dirichlet, way, shot, seed, natural):
    words = {"way": way, "shot": "natural" if natural else shot, "query": 4, "seed": seed, "support": 30}
    task, balanced = draw(index, dirichlet=dirichlet, **words), draw(index, balance="balanced", **words)
    assert task.support.rows.tolist() == balanced.support.rows.tolist()
    assert task.support.labels.tolist() == balanced.support.labels.tolist()
    assert len(task.query.rows) == len(balanced.query.rows) == len({*task.query.rows})
    assert not {*task.query.rows} & {*task.support.rows}
    room = [SIZES[task.support.classes[task.support.labels == label][0]] for label in range(task.way)]
    assert (counts(task) <= room - np.bincount(task.support.labels)).all()
    again = draw(index, dirichlet=dirichlet, **words)
    assert all((ours == theirs).all() for ours, theirs in zip(task.query, again.query, strict=True))
    for label in range(task.way):  # the first queries of a class are those of the balanced task
        ours, theirs = (set(part.rows[part.labels == label]) for part in (task.query, balanced.query))
        assert len(ours & theirs) == min(len(ours), len(theirs))


@given(st.lists(st.floats(0.001, 1), min_size=2, max_size=7), st.integers(0, 60), st.data())
def test_queries_are_divided_by_largest_remainders_within_the_images_of_a_class(weights, total, data):
    share = np.array(weights) / sum(weights)
    exact = apportion(share, total, np.full(len(share), total))
    assert exact.sum() == total and (np.abs(exact - total * share) < 1).all()
    room = np.array(data.draw(st.lists(st.integers(0, 40), min_size=len(share), max_size=len(share))))
    if room.sum() >= total:
        found = apportion(share, total, room)
        assert found.sum() == total and (found <= room).all() and (found >= np.minimum(exact, room)).all()


def test_proportions_are_those_of_the_distribution():
    """Each has the mean 1 / way, and the variance (way - 1) / (way^2 (way a + 1))."""
    share = np.stack([counts(draw(i, sizes=(100,) * 6, query=25)) for i in range(400)]) / 100
    assert share.mean(0) == pytest.approx([0.25] * 4, abs=5 * share.std() / 20)
    assert share.var() == pytest.approx(3 / (16 * 9), rel=0.15)
    nearly = [counts(draw(i, dirichlet=1e9)) for i in range(20)]
    assert np.all(np.stack(nearly) == 5)


def test_queries_do_not_depend_on_the_shot_while_classes_have_images_left():
    large = (300,) * 6
    for index in range(20):
        one, five = draw(index, large, shot=1), draw(index, large, shot=5)
        assert one.query.rows.tolist() == five.query.rows.tolist() and {*one.support.rows} <= {*five.support.rows}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"balance": "uniform"}, "test.balance to be balanced or dirichlet, got uniform"),
        ({"dirichlet": 0}, "test.dirichlet to be a number of at least 0.001, got 0"),
        ({"dirichlet": "two"}, "test.dirichlet to be a number"),
    ],
)
def test_other_values_are_refused(words, message):
    with pytest.raises(UsageError, match=message):
        draw(0, **words)


def test_a_run_says_that_its_queries_are_unbalanced(launch, capsys):
    words = [
        "test.balance=dirichlet",
        "test.dirichlet=3",
        "val.balance=dirichlet",
        "trainer.max_steps=1",
        "val.every=1",
    ]
    report, _ = launch(*words)
    assert report["balance"] == "dirichlet" and report["config"]["test"]["dirichlet"] == 3
    assert "classes of queries: Dirichlet(3)" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(UsageError, match=r"type test\.queries=single"):
        launch(*words, "test.queries=class")
