"""A new component is one .py and one .yaml in a folder of the user, and keeps the whole contract of its kind."""

import json
import re
import sys
from pathlib import Path
from textwrap import dedent
from unittest.mock import patch

import pytest
from contracts.backbones import BackboneContract
from contracts.datasets import DatasetContract
from contracts.heads import HeadContract
from contracts.norms import NormContract
from contracts.objectives import ObjectiveContract
from runs import TINY

from metafew import cli

DOCS = (Path(__file__).parents[1] / "docs" / "head.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"`mine/(\S+)`:\n\n```(?:python|yaml)\n(.*?)```", DOCS, re.DOTALL))
"""The files that docs/head.md shows: a head on features, one that adapts, a norm, a backbone and a dataset."""

FILES = BLOCKS | {
    "farthest.py": """
        import torch

        from metafew.heads.head import FeatureHead


        class Farthest(FeatureHead):
            '''Logits by the farthest support image of each class (complete linkage). It has no weights.'''

            def classify(self, support, labels, query, way):
                distances = torch.cdist(query, support, compute_mode="donot_use_mm_for_euclid_dist")
                others = labels.unsqueeze(-1) != torch.arange(way, device=labels.device)
                return -distances.unsqueeze(-1).masked_fill(others.unsqueeze(1), 0).amax(-2)
        """,
    "head/farthest.yaml": """
        # the farthest support image of each class
        _target_: mine.farthest.Farthest
        """,
    "squared.py": """
        import torch.nn.functional as F

        from metafew.objectives.objective import Objective


        class Squared(Objective):
            '''The squared error of the probabilities.'''

            def task_losses(self, backbone, head, episode):
                logits = head(backbone, episode.support, episode.query.images, episode.way)
                target = F.one_hot(episode.query.labels, episode.way)
                return (logits.softmax(-1) - target).square().sum(-1).mean(1)
        """,
    "objective/squared.yaml": """
        # the squared error of the probabilities
        _target_: mine.squared.Squared
        _partial_: true
        """,
}


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """The folder ``mine`` with every component, on Python's path."""
    root = tmp_path_factory.mktemp("user")
    for name, text in FILES.items():
        file = root / "mine" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(dedent(text).lstrip())
    sys.path.insert(0, str(root))
    yield root / "mine"
    sys.path.remove(str(root))
    for name in [name for name in sys.modules if name.split(".")[0] == "mine"]:
        del sys.modules[name]


def test_the_documentation_shows_two_files_of_each():
    assert BLOCKS.keys() == {
        *("parzen.py", "head/parzen.yaml", "tuning.py", "head/tuning.yaml", "rms.py", "norm/rms.yaml"),
        *("tower.py", "backbone/tower.yaml", "stripes.py", "dataset/stripes.yaml"),
    }


@pytest.mark.parametrize("name", ["parzen", "farthest", "tuning"])
class TestHead(HeadContract):
    @pytest.fixture
    def file(self, mine, name):
        return mine / "head" / f"{name}.yaml"


class TestNorm(NormContract):
    @pytest.fixture
    def file(self, mine):
        return mine / "norm" / "rms.yaml"


class TestBackbone(BackboneContract):
    @pytest.fixture
    def file(self, mine):
        return mine / "backbone" / "tower.yaml"


class TestDataset(DatasetContract):
    @pytest.fixture
    def file(self, mine):
        return mine / "dataset" / "stripes.yaml"


class TestObjective(ObjectiveContract):
    @pytest.fixture
    def file(self, mine):
        return mine / "objective" / "squared.yaml"


@pytest.mark.parametrize(
    "words",
    [
        ["head=parzen", "norm=rms"],
        ["head=farthest", "dataset=stripes"],
        ["head=tuning", "backbone=tower"],
        ["objective=squared", "evaluate=[ridge]"],
    ],
    ids=lambda words: words[0],
)
def test_a_run_of_the_command_line(mine, tmp_path, words, capsys):
    tiny = [word for word in TINY if not word.startswith("trainer.max_steps")]
    tiny += ["trainer.max_steps=1", "val.every=1", "stages=[fit,test]", f"hydra.run.dir={tmp_path}"]
    with patch.object(sys, "argv", ["train.py", f"hydra.searchpath=[file://{mine}]", *words, *tiny]):
        try:
            cli.main()
        except SystemExit as end:
            assert not end.code, capsys.readouterr().err
    report = json.loads((tmp_path / "results.json").read_text())
    assert {f"{group}={word}" for group, word in report["choices"].items()} >= {w for w in words if "[" not in w}
    assert report["metrics"] and report["steps"] == 1
