"""A dataset of few classes or images: each advice can be typed, and soon leads to a run. Nothing is trained."""

import json
import re
from copy import deepcopy
from functools import cache

import numpy as np
import pytest
from contracts import sampled
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from runs import compose_in

from metafew.errors import UsageError
from metafew.training.checks import check_options, check_parts
from metafew.training.parts import make_parts

WORD = re.compile(r"[a-z_][\w.]*=(?:\[[^\]]*\]|[^\s,:]+)")
STEPS = 3
"""Messages that may come before the run."""


def advised(message):
    """Return the ways that a message gives, each a list of words to type."""
    ways = [WORD.findall(way) for way in message.partition("type ")[2].split(", or ")]
    return [way for way in ways if way]


@pytest.fixture(scope="module")
def compositions(tmp_path_factory):
    """Compose options of groups, each combination once: it takes most of the time."""
    return cache(lambda *words: compose_in(tmp_path_factory.mktemp("run"), *words))


@pytest.fixture
def check(compositions, tmp_path):
    """Check a run as the command line does; returns its parts."""

    def go(*words):
        values = [word for word in words if re.match(r"[a-z_]+\.|stages=", word)]
        cfg, choices, overrides = compositions(*(word for word in words if word not in values))
        cfg = deepcopy(cfg)
        for override in OverridesParser.create().parse_overrides(values):
            OmegaConf.update(cfg, override.key_or_group, override.value())
        check_options(cfg)
        parts = make_parts(cfg, choices, overrides, tmp_path)
        check_parts(parts)
        return parts

    return go


@pytest.fixture
def dataset(tmp_path):
    """Write a dataset of some classes with some images each; returns the words that select it."""

    def write(classes, images):
        file = tmp_path / "few.npz"
        labels = np.repeat(np.arange(classes), images)
        np.savez(file, x=np.zeros((len(labels), 16, 16), np.uint8), y=labels)
        return ["dataset=folder", f"dataset.root={file}", "dataset.image_size=16", "backbone.width=4"]

    return write


def follow(check, words, steps=STEPS):
    """Type what each message says, in every way that it gives; returns the parts of each run in the end."""
    try:
        return [check(*words)]
    except UsageError as error:
        ways = advised(str(error))
        assert steps, f"{words}: {error}"
        assert ways or "add classes" in str(error) or "add images" in str(error), f"{words}: {error}"
        return [parts for way in ways for parts in follow(check, [*words, *way], steps - 1)]


@pytest.mark.parametrize("classes", sampled(range(2, 9), 3))
@pytest.mark.parametrize(
    "words",
    sampled(
        [
            [],
            ["dataset.fractions=[0.5,0,0.5]"],
            ["dataset.fractions=[0.9,0,0.1]", "stages=fit"],
            ["stages=[fit,test,analyze]", "train.way=2..20", "test.shot=[1,5]"],
            ["train.shot=natural", "train.way=5..50"],
            ["objective=classical", "regularizer=feature_clustering"],
        ],
        3,
    ),
    ids=" ".join,
)
def test_every_advice_leads_to_a_run(check, dataset, classes, words):
    runs = follow(check, [*dataset(classes, 6), *words])
    assert runs and all(parts.fits for parts in runs)


@pytest.mark.parametrize("images", [1, 2, 3])
def test_few_images(check, dataset, images):
    runs = follow(check, [*dataset(12, images), "train.shot=5"])
    assert bool(runs) == (images > 1)


def test_one_image_of_a_class_makes_no_pair(check, dataset):
    words = [*dataset(9, 1), "stages=fit", "val.total=0", "objective=classical", "regularizer=feature_clustering"]
    with pytest.raises(UsageError, match=r"pairs need two images of each class.*: type regularizer=none$"):
        check(*words)
    assert follow(check, words)


@pytest.mark.parametrize("head", ["maml", "reptile", "cnaps"])
def test_heads_of_one_way(check, dataset, head):
    assert follow(check, [*dataset(7, 30), f"head={head}"], steps=5)


def test_an_option_to_choose_on_validation_tasks_is_given_a_value(check, dataset):
    words = [*dataset(4, 30), "dataset.fractions=[0.5,0,0.5]", "evaluate=[maml]", "evaluate.maml.lr=[0.1,0.2]"]
    with pytest.raises(UsageError, match=r"type val\.total=0 evaluate\.maml\.lr=0\.1 evaluate\.maml\.test_steps=10 "):
        check(*words)
    with pytest.raises(UsageError, match=r"val\.total=0: type val\.total=200, or evaluate\.maml\.lr=0\.1 "):
        check(*words, "val.total=0")
    runs = follow(check, words)
    assert any(not run.data.val.total and run.trainer.limit_val_batches == 0 for run in runs)


@pytest.mark.parametrize("fractions", ["[0.5,0.25,0.25]", "[0.34,0.33,0.33]", "[0.98,0.01,0.01]"])
@pytest.mark.parametrize("classes", range(2, 9))
def test_no_way_of_one_class_is_advised(check, dataset, classes, fractions):
    with pytest.raises(UsageError) as raised:
        check(*dataset(classes, 20), f"dataset.fractions={fractions}", "train.way=20", "test.way=20")
    assert not re.search(r"way=1\b", str(raised.value))


def test_fractions_are_not_advised_where_a_file_divides_the_classes(check, dataset, tmp_path):
    words = dataset(8, 30)
    splits = {"train": ["0", "1", "2", "3", "4"], "test": ["5", "6", "7"]}
    (tmp_path / "splits.json").write_text(json.dumps(splits))
    with pytest.raises(UsageError, match=r", or type dataset\.fractions=\[0\.4,0\.3,0\.3\]$"):
        check(*words)
    words += [f"dataset.splits={tmp_path}/splits.json"]
    with pytest.raises(UsageError, match=r"add classes, or type val\.total=0 to do without validation$"):
        check(*words)
    with pytest.raises(UsageError, match=r"type test\.way=3$"):
        check(*words, "val.total=0")


def test_only_evaluation_needs_a_task_of_each_dataset_of_a_mixture(check):
    words = ["dataset=mixture", "dataset.sources=[glyphs,{dataset:glyphs,name:others}]", "trainer.max_steps=1"]
    assert check(*words).data.train.total == 1
    with pytest.raises(UsageError, match=r"val\.total to be at least 2, .* got 1: type val\.total=200"):
        check(*words, "val.total=1")


def test_measures_at_validations_need_some(check):
    with pytest.raises(UsageError, match=r"every 10 steps, got val\.total=0: type analyze\.every=0"):
        check("val.total=0", "analyze.every=10")
    assert not check("val.total=0").data.val.total
