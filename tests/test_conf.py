"""Every YAML under conf/ composes, instantiates, and shows every argument of the class it names."""

import inspect
from types import SimpleNamespace

import pytest
import torch
from hydra.utils import get_object
from omegaconf import OmegaConf
from torch import nn

from metafew.backbones.identity import Identity
from metafew.config.groups import CONF, describe_groups
from metafew.config.quoting import override
from metafew.errors import UsageError
from metafew.heads.protonet import ProtoNet
from metafew.training.factory import make_backbone, make_objective, make_source
from metafew.training.instantiate import make, make_head

FILES = sorted(CONF.glob("**/*.yaml"))
OPTIONS = [file for file in FILES if file.parent != CONF]

NEEDED = {
    ("backbone", "module"): ["backbone.target=torch.nn.Flatten"],
    ("dataset", "features"): [override("dataset.root", __file__)],
    ("norm", "own"): ["backbone=module", "backbone.target=torch.nn.Flatten"],
}


def targets(node, path=""):
    """Yield every node below ``node`` that names a class or function."""
    if OmegaConf.is_dict(node):
        if "_target_" in node:
            yield path, node
        for key in node:
            if not OmegaConf.is_missing(node, key) and not OmegaConf.is_interpolation(node, key):
                yield from targets(node[key], f"{path}.{key}")


def test_there_is_something_to_test():
    assert len(FILES) >= 50


@pytest.mark.parametrize("file", OPTIONS, ids=lambda f: f"{f.parent.name}-{f.stem}")
def test_option_composes_and_instantiates(file, composed, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    group, word = file.parent.name, file.stem
    words = [f"{group}={word}", override("data_dir", file.parent)]
    words += NEEDED.get((group, word), [])
    cfg, _, _ = composed(*words)
    node = cfg[group][word] if group == "logger" else cfg[group]
    source = SimpleNamespace(channels=1, image_size=28, splits=lambda: {"train": range(9)})
    backbone = make_backbone(cfg, source)
    made = {
        "backbone": lambda: backbone,
        "head": lambda: make_head(node, backbone, trained=True),
        "objective": lambda: make_objective(cfg, source, backbone),
        "dataset": lambda: make_source(cfg),
    }
    thing = made.get(group, lambda: make(node))()
    if group == "norm" and word != "own":
        assert thing(8).weight.shape == (8,)
    assert thing is not None


class Own(nn.Sequential):
    """A custom network."""

    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 3), nn.Flatten())


class Keeping(ProtoNet):
    """A head that keeps the backbone, whose weights would then be its own, too."""

    def __init__(self, backbone, trained):
        super().__init__()
        self.backbone = backbone


def test_a_head_that_keeps_its_backbone_is_refused():
    node = OmegaConf.create({"head": {"_target_": "test_conf.Keeping", "_partial_": True}}).head
    with pytest.raises(UsageError, match="expected head to use the backbone only when it is made, got Keeping"):
        make_head(node, Identity(4, 1, norm=nn.Identity), trained=True)


@pytest.mark.parametrize("word", ["conv4", "r2d2", "resnet12", "resnet18", "module"])
def test_weights_of_convolutions_lie_as_images_do_but_in_a_network_of_ones_own(word, composed):
    cfg, _, _ = composed(f"backbone={word}", *(["backbone.target=test_conf.Own"] if word == "module" else []))
    backbone = make_backbone(cfg, SimpleNamespace(channels=3, image_size=32))
    last = [w.is_contiguous(memory_format=torch.channels_last) for w in backbone.parameters() if w.ndim == 4]
    assert last and all(last) == (word != "module")


@pytest.mark.parametrize("file", FILES, ids=lambda f: f"{f.parent.name}-{f.stem}")
def test_no_argument_of_ours_is_hidden(file):
    """An argument with a default must be in the YAML; one without is in the YAML or supplied by the run."""
    for path, node in targets(OmegaConf.load(file)):
        target = node["_target_"]
        if not target.startswith("metafew."):
            continue
        parameters = inspect.signature(get_object(target)).parameters
        # Hydra reads the defaults, and the run itself backbone.weights and backbone.freeze.
        of_the_run = {"defaults", "weights"} | ({"freeze"} if file.parent.name == "backbone" else set())
        shown = {key for key in node if not str(key).startswith("_")} - of_the_run
        unknown = shown - set(parameters)
        hidden = {name for name, p in parameters.items() if p.default is not p.empty} - shown
        assert not unknown, f"{file}: {path} has no argument {unknown}"
        assert not hidden, f"{file}: {path} hides {hidden}"


@pytest.mark.parametrize("file", OPTIONS, ids=lambda f: f"{f.parent.name}-{f.stem}")
def test_option_says_what_it_is(file):
    assert describe_groups()[file.parent.name][file.stem]
    assert file.stem == file.stem.lower()


def test_evaluation_heads_do_not_change_training(composed):
    plain, _, _ = composed("head=protonet")
    more, _, _ = composed("head=protonet", "evaluate=[svm,ridge]")
    assert set(more.evaluate) == {"svm", "ridge"}
    assert plain == OmegaConf.masked_copy(more, [key for key in more if key != "evaluate"])
    assert set(composed("evaluate=svm")[0].evaluate) == {"svm"}
