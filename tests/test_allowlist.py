"""A checkpoint from elsewhere may call only what metafew's own configuration does."""

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf, open_dict

import metafew
from metafew import cli
from metafew.config import allowlist
from metafew.config.compose import defer_to_checkpoint
from metafew.config.groups import CONF
from metafew.errors import UsageError
from metafew.training import checkpoint


@pytest.fixture
def doctored(launch, tmp_path_factory, tmp_path):
    """Change what a checkpoint says of itself: returns its path and the file whose existence shows that code ran."""
    base = tmp_path_factory.getbasetemp() / "trust"
    if not (base / "checkpoints" / "last.ckpt").is_file():
        launch("trainer.max_steps=1", "stages=[fit]", out=base)

    def change(edit):
        content = checkpoint.read(base / "checkpoints" / "last.ckpt")
        edit(content["metafew"])
        torch.save(content, tmp_path / "evil.ckpt")
        return tmp_path / "evil.ckpt"

    return change


def test_what_a_run_leaves_is_trusted(doctored):
    assert metafew.load(doctored(lambda saved: None)).choices["head"] == "protonet"
    assert {"metafew.heads.svm.SVM", "torch.optim.Adam"} <= allowlist.allowed_paths()
    assert not any(name.startswith(("os.", "builtins.", "hydra.")) for name in allowlist.allowed_paths())


def wrapped(arguments):
    return {"_target_": "metafew.backbones.module.Wrapped", "target": "os.system", "arguments": arguments}


@pytest.mark.parametrize(
    ("group", "node", "named"),
    [
        ("head", lambda command: {"_target_": "os.system", "command": command}, "os.system"),
        # Not every path that begins with metafew is ours.
        (
            "head",
            lambda command: {"_target_": "metafew.experiments.cells.os.system", "command": command},
            "experiments.cells.os",
        ),
        ("backbone", lambda command: wrapped({"command": command}) | {"weights": None}, "os.system"),
        ("norm", lambda command: wrapped({"command": command}) | {"channels": 1, "image_size": 1, "norm": 0}, "os"),
        (
            "norm",
            lambda command: {
                "_target_": "metafew.backbones.module.Wrapped",
                "_args_": [1, 28, None, "os.system", {"command": command}],
            },
            "os.system",
        ),
        ("head", lambda command: {"a": [{"_target_": "os.system", "command": command}]}, "os.system"),
        ("head", lambda command: f"${{oc.create:{{_target_:os.system,command:'{command}'}}}}", "os.system"),
        ("head", lambda command: {"_target_": "${oc.decode:os.system}", "command": command}, "os.system"),
    ],
)
def test_a_loaded_model_calls_nothing_foreign(doctored, tmp_path, group, node, named):
    ran = tmp_path / "ran"
    path = doctored(lambda saved: saved["model"].update({group: node(f"touch {ran}")}))
    with pytest.raises(UsageError, match=rf"would call .*{named}.*trust=\[") as said:
        metafew.load(path)
    assert str(path) in str(said.value) and not ran.exists()


def composed_with(*typed):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", list(typed), return_hydra_config=True)
        with open_dict(cfg):
            cfg.hydra.runtime.output_dir = "out"
            HydraConfig.instance().set_config(cfg)
            del cfg["hydra"]
        return cli.compose_run(cfg)


def of_words(saved, words):
    """Make a checkpoint one of an earlier version, which carries overrides and not the configuration."""
    del saved["config"]
    saved["overrides"] = words


def of_configuration(saved, words):
    saved["config"] = OmegaConf.to_container(OmegaConf.merge(saved["config"], compose_changes(words)))


def compose_changes(words):
    """Return the configuration of the groups that overrides change."""
    words = [word.replace("+logger", "+trainer") for word in words]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = compose("train", words)
    return {group: composed[group] for group in ("head", "backbone", "trainer")}


@pytest.mark.parametrize("edit", [pytest.param(of_words, marks=pytest.mark.slow), of_configuration])
@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["head._target_=os.system", "+head.command=ls"], "head._target_"),
        (["backbone=module", "backbone.target=os.system", "backbone.arguments={command:ls}"], "backbone.target"),
        (["+trainer.plugins=[{_target_:os.system,command:ls}]"], "trainer.plugins.0._target_"),
    ],
)
def test_a_checkpoint_calls_nothing_foreign_that_is_not_typed(doctored, edit, words, key):
    path = doctored(lambda saved: edit(saved, words))
    with pytest.raises(UsageError, match=rf"would call os\.system, .*type {key}=os\.system in addition to ckpt"):
        composed_with(f"ckpt={path}", "stages=[test]")
    assert composed_with(f"ckpt={path}", *words)[0].train.way == 5
    # What is advised is enough, and changes nothing else.
    cfg = composed_with(*defer_to_checkpoint([f"ckpt={path}", f"{key}=os.system"]))[0]
    assert OmegaConf.select(cfg, key) == "os.system" and "ls" in str(cfg)


def test_a_checkpoint_brings_no_loggers_and_no_options_of_hydra(doctored):
    own = {
        "logger": {"mine": {"_target_": "os.system"}},
        "hydra": {"run": {"dir": "/elsewhere"}},
        "data_dir": "/elsewhere",
    }
    path = doctored(lambda saved: saved["config"].update(own, defaults=[{"head": "svm"}]))
    cfg, _ = composed_with(f"ckpt={path}", "data_dir=mine")
    assert "logger" not in cfg and "defaults" not in cfg and cfg.data_dir == "mine"
    assert cfg.head._target_ == "metafew.heads.protonet.ProtoNet" and "/elsewhere" not in str(HydraConfig.get())


def test_the_words_of_a_checkpoint_cannot_bring_other_files(doctored, tmp_path):
    (tmp_path / "head").mkdir()
    (tmp_path / "head" / "evil.yaml").write_text("_target_: os.system")
    path = doctored(lambda saved: of_words(saved, [f"hydra.searchpath=[file://{tmp_path}]"]))
    assert composed_with(f"ckpt={path}")[0].head._target_.startswith("metafew.")
    path = doctored(lambda saved: of_words(saved, [f"hydra.searchpath=[file://{tmp_path}]", "head=evil"]))
    with pytest.raises(UsageError, match="evil"):
        composed_with(f"ckpt={path}")


def test_a_network_of_the_user_is_loaded_when_it_is_named(launch, tmp_path):
    words = ["backbone=module", "backbone.target=torch.nn.Flatten", "stages=[fit]", "head=maml", "trainer.max_steps=1"]
    words += ["head.steps=1", "head.test_steps=1"]
    tiny = ["trainer.accelerator=cpu", "trainer.enable_progress_bar=false", "train.query=2", "val.total=1"]
    _, out = launch(*words, "train.tasks=1", out=tmp_path / "fit", tiny=tiny)
    path = out / "checkpoints" / "best.ckpt"
    with pytest.raises(UsageError, match=r"would call torch\.nn\.Flatten"):
        metafew.load(path)
    assert metafew.load(path, trust=["torch.nn.Flatten"]).choices["backbone"] == "module"
    assert metafew.load(path, trust="torch.nn.Flatten").choices["backbone"] == "module"
