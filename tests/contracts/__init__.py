"""Contract suites: a test class for each kind of component. A subclass provides the fixture or parameter ``file``.

``file`` is the YAML of a component. Contracts that a component does not keep are named, with the reason, by its own
``exemptions``.
"""

from pathlib import Path

import pytest
import torch
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from metafew import cli as cli
from metafew.backbones.backbone import Backbone
from metafew.config.groups import CONF, load_option
from metafew.heads.head import FeatureHead, Head
from metafew.training.instantiate import make

SCHEMES = sorted(file.stem for file in (CONF / "norm").glob("*.yaml") if file.stem != "own")
"""The norms but ``own``, which keeps the layers of a network."""


def files(group: str) -> list:
    """Return the YAML files of a group, as parameters; of norms, those of schemes."""
    found = sorted((CONF / group).glob("*.yaml"))
    return [pytest.param(file, id=file.stem) for file in found if group != "norm" or file.stem in SCHEMES]


def node(file: Path) -> DictConfig:
    """Return what a YAML file of a group says, below the name of the group."""
    content = load_option(file)
    group = file.parent.name
    if group not in content:
        content = OmegaConf.create({group: content})
    return OmegaConf.merge({"seed": 0, "data_dir": "data", "train": {"way": 3}}, content)[group]


def norm(word: str):
    """Return a constructor of the norm ``word``."""
    return make(node(CONF / "norm" / f"{word}.yaml"))


def with_base_mean(head: Head, backbone: Backbone) -> Head:
    """Return ``head`` with a mean feature of training images, as a run sets it, if it uses one."""
    if head.needs_base_mean:
        head.base_mean = torch.full((backbone.features,), 0.1)
    return head


def skip_exempt(component, contract: str) -> None:
    """Skip the test if ``component`` is exempt from ``contract``."""
    if reason := component.exemptions.get(contract):
        pytest.skip(reason)


def takes_steps(head: str) -> bool:
    """Return whether a head adapts by gradient steps, whose number is an option."""
    return "test_steps" in node(CONF / "head" / f"{head}.yaml")


def is_alike(head: str) -> bool:
    """Return whether a head only sees features, whatever made them, as ``protonet`` and ``svm`` do."""
    target = node(CONF / "head" / f"{head}.yaml")["_target_"]
    return head not in ("protonet", "svm") and issubclass(get_class(target), FeatureHead)


def sampled(values, count: int) -> list:
    """Return values, or tuples of them, as parameters, of which all but ``count``, evenly spaced, are slow."""
    tuples = [each if isinstance(each, tuple) else (each,) for each in values]
    parameters = [each if isinstance(each, type(pytest.param())) else pytest.param(*each) for each in tuples]
    quick = {round(number * (len(parameters) - 1) / max(count - 1, 1)) for number in range(count)}
    return [
        each if number in quick else pytest.param(*each.values, id=each.id, marks=[*each.marks, pytest.mark.slow])
        for number, each in enumerate(parameters)
    ]
