"""With one random override a configuration runs, or is rejected in one line before any image is read."""

import random
import shutil

import pytest
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from runs import TINY

from metafew.config.groups import describe_groups
from metafew.data import datamodule
from metafew.errors import UsageError
from metafew.training.run import run

TINIER = [*TINY, "trainer.max_steps=1", "train.query=1", "val.every=1", "val.total=1", "val.query=1"]
TINIER += ["test.total=1", "test.query=1"]
BASES = [
    [],
    ["head=svm", "norm=batch", "optimizer=sgd", "schedule=step", "evaluate=[logistic]"],
    ["head=maml", "head.steps=1", "head.test_steps=1", "norm=tasknorm_l", "schedule=cosine"],
    ["head=reptile", "head.steps=1", "head.test_steps=1", "norm=group", "norm.groups=2"],
    ["head=cnaps", "norm=batch_renorm", "augment=affine"],
    ["objective=classical", "regularizer=feature_clustering", "backbone=resnet12", "backbone.width=2"],
    ["head=r2d2", "backbone=r2d2", "norm=transductive", "augment=standard", "regularizer=hyperplane_variation"],
    ["head=anil", "head.steps=1", "head.test_steps=1", "backbone=resnet18", "backbone.width=2", "norm=layer"],
]
VALUES = ["-1", "0", "1", "2", "3", "0.5", "-0.5", "1e-30", "nan", "inf", "-inf", "1000000000", "1e30", "null", "true"]
VALUES += [
    "false",
    "abc",
    "''",
    "'5 '",
    "[]",
    "[1]",
    "[2,abc]",
    "[-1,0.5]",
    "{}",
    "{a:1}",
    "1..3",
    "3..1",
    "both",
    "tasknorm",
]
HEAVY = 50
"""A number from which on only its refusal is of interest."""


class Accepted(Exception):
    """Everything was accepted and training is about to begin."""


def keys(cfg, path=""):
    """Yield every key of a configuration that holds a value."""
    for key in cfg:
        name = f"{path}{key}"
        if not OmegaConf.is_missing(cfg, key) and OmegaConf.is_dict(node := cfg[key]):
            yield from keys(node, f"{name}.")
        elif not str(key).startswith("_"):
            yield name


def heavy(key, value):
    """Tell whether a run would be long, leave this process, or leave this folder."""
    if key.startswith(
        ("trainer.devices", "trainer.num_nodes", "trainer.strategy", "data.num_workers", "cache_dir", "data_dir")
    ):
        return True
    try:
        return float(value) > HEAVY
    except ValueError:
        return False


@pytest.fixture
def fuzz(composed, monkeypatch, tmp_path):
    """Type one word, drawn by ``seed``, and return it beside what became of it."""
    known, build = {}, datamodule.build
    monkeypatch.chdir(tmp_path)  # a word such as cache_dir=both is a folder here

    def go(seed):
        rng, read = random.Random(seed), []
        number = rng.randrange(len(BASES))
        base = BASES[number]
        if number not in known:
            known[number] = sorted(keys(composed(*TINIER, *base)[0]))
        key, value, kind = rng.choice(known[number]), rng.choice(VALUES), rng.random()
        if kind < 0.1:
            key += rng.choice(["x", ".x", "."])
        elif kind < 0.2:
            key, value = rng.choice(sorted(describe_groups())), rng.choice(["abc", "[conv4,svm]", "null", "", "-1"])
        word = f"{key}={value}"
        words = [*TINIER, *base, word]
        try:
            whole = composed(*words)
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            return word, f"Hydra's own: {error}"
        with monkeypatch.context() as patch:
            patch.setattr(datamodule, "build", lambda *some: read.append(some) or build(*some))
            if heavy(key, value):
                patch.setattr("pytorch_lightning.Trainer.fit", accept)
            try:
                (tmp_path / "run").mkdir()
                run(*whole, tmp_path / "run")
            except Accepted:
                return word, "accepted"
            except UsageError as error:
                late = read and "not finite" not in str(error)
                return word, f"{'too late' if late else 'refused'}: {error}"
            finally:
                shutil.rmtree(tmp_path / "run")
        return word, "ran"

    return go


def accept(*args, **kwargs):
    raise Accepted


@pytest.mark.parametrize("seeds", [range(25), pytest.param(range(25, 500), marks=pytest.mark.slow)], ids=["25", "475"])
def test_a_random_override_runs_or_is_rejected_before_images_are_read(fuzz, seeds):
    outcomes = {}
    for seed in seeds:
        try:
            word, became = fuzz(seed)
        except Exception as error:
            pytest.fail(f"seed {seed}: {type(error).__name__}: {error}")
        assert not became.startswith("too late"), f"seed {seed}: {word}: {became}"
        if became.startswith("refused"):
            assert ": " in became and "\n" not in became, f"seed {seed}: {word}: {became}"
        outcomes.setdefault(became.split(":")[0], []).append(word)
    assert set(outcomes) == {"ran", "accepted", "refused", "Hydra's own"}
