"""The words of a command line: what Hydra cannot read is quoted, and what nobody can mean is refused in one line."""

import json
import os
import re
from functools import partial

import numpy as np
import pytest
import torch
from hydra import initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobRuntime
from hydra.version import VersionBase
from omegaconf import OmegaConf
from runs import compose_in, metafew

from metafew.commands.command_line import with_home
from metafew.commands.predict import parse
from metafew.config.command_line import readable
from metafew.config.compose import compose_overrides
from metafew.config.groups import default_options, describe_groups
from metafew.config.option_values import option_path
from metafew.config.paths import PATHS, resolve_paths
from metafew.config.quoting import parser
from metafew.errors import UsageError, nearest
from metafew.training.checks import check_options
from metafew.training.instantiate import attempt

ONE_LINE = "expected [^\n]+, got [^\n]+: [^\n]+"
PLACES = [
    "数据/鸟",
    "photos (1)",
    "a=b",
    "o/head=svm/best.ckpt",
    "it's",
    '"',
    "a[b",
    "a{b",
    "50%",
    "ü#&é",
    " lead",
    "2024",
    "true",
]


def read(word):
    """Return the key and the value that Hydra reads of a word of the command line."""
    (word,) = readable([word])
    override = parser().parse_override(word)
    assert readable([word]) == [word], "what is quoted stays the same: ranks and cells repeat the words"
    return override.key_or_group, override.value()


@pytest.mark.parametrize("key", ["dataset.root", "ckpt", "hydra.run.dir"])
@pytest.mark.parametrize("place", PLACES)
def test_a_path_is_taken_as_typed(key, place):
    assert read(f"{key}={place}") == (key, place)


def test_a_value_of_any_option_may_have_letters_of_other_scripts():
    assert read("+backbone.arguments.path=数据 (1)") == ("backbone.arguments.path", "数据 (1)")
    assert read("dataset.sources=[glyphs, 数据/鸟, {root: a=b, name: 鸟}]") == (
        "dataset.sources",
        ["glyphs", "数据/鸟", {"root": "a=b", "name": "鸟"}],
    )
    assert readable(["-m", "dataset.root=数据/鸟,a=b"]) == ["dataset.root='数据/鸟','a=b'", "-m"]


@pytest.mark.parametrize(
    "words",
    [
        ["seed=3", "test.shot=[1, 5]", "head=svm", "-m", "norm=batch,layer", "optimizer.lr=1e-3"],
        ["dataset.root=null", "ckpt=last", "ckpt='a b'", "data_dir=${oc.env:HOME}/x", "hydra.run.dir=o/${now:%H}"],
        ["--config-name=my", "-cn=my", "--cfg=job", "-p", "head", "+x=[{a: 1}]", "evaluate=[]", "~logger"],
        ["+a=choice(1,2)", "seed=range(1,4)", "dataset.root=a,b", "train.way=[5"],
        ["-m", "norm=glob(task*)", "head=choice(svm,ridge)"],
    ],
)  # fmt: skip
def test_words_that_hydra_can_read_stay_the_same(words):
    assert sorted(readable(words)) == sorted(words)


def test_a_comma_belongs_to_a_path_that_is_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a,b").mkdir()
    assert read("dataset.root=a,b") == ("dataset.root", "a,b")


@pytest.mark.parametrize("word", ["dataset.root=~/鸟", 'dataset.root="~/鸟"', "+backbone.arguments.x=~/鸟"])
def test_a_tilde_is_the_home_folder(word, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert read(word)[1] == "/home/me/鸟"
    assert with_home(word).endswith("/home/me/鸟")


def test_a_tilde_is_the_home_folder_for_other_commands(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    words = [with_home(word) for word in ("ckpt=~/a.ckpt", "support='~/s'", "query=~", "out=a~", "~/runs")]
    assert words == ["ckpt=/home/me/a.ckpt", "support=/home/me/s", "query=/home/me", "out=a~", "/home/me/runs"]
    assert parse(words[:-1])["ckpt"] == "/home/me/a.ckpt"


@pytest.mark.parametrize(
    ("words", "named", "typed"),
    [
        (["head=[svm]"], r"got \[svm\]", "head=svm"),
        (["hydra.run.dir="], "hydra.run.dir to be a folder, got none", "hydra.run.dir=DIR"),
        (["hydra.sweep.dir=''"], "hydra.sweep.dir to be a folder", "hydra.sweep.dir=DIR"),
        (["head=5"], "one of anil, .*, svm, .*, got 5", "head=protonet"),
        (["backbone=18"], "backbone", "backbone=resnet18"),
        (["dataset=101"], "dataset", "dataset=glyphs"),
        (["norm=null"], "norm", "norm=none"),
        (["hydra.run.dir=None"], "hydra.run.dir to be a folder, got None", "hydra.run.dir=DIR"),
        (["~norm"], "norm", "norm=none"),
        (["~head=protonet"], "got ~head", "head=protonet"),
        (["~seed"], "a value of seed", "leave out ~seed"),
        (["~train.way=5"], "a value of train.way", "leave out ~train.way=5"),
        (["head=null"], "head", "head=protonet"),
        (["-m", "head=svm,5"], "head", "head=protonet"),
        (["evaluate=[svm,5]"], "evaluate", "leave out evaluate"),
        (["hydra/launcher=null"], "hydra/launcher", "leave out hydra/launcher"),
        (["cache_dir=None"], "null for no value", "cache_dir=null"),
        (["test.shot=[1, None]"], "null for no value", r"test.shot=\[1, null\]"),
        (["--head=svm"], "without hyphens", r"head=svm, .*\$\{args_no_hyphens\}"),
        (["-head.c=1"], "without hyphens", "type head.c=1, and"),
        (["seed=1", "evaluate=[svm,", "ridge]"], "without spaces", r"evaluate=\[svm,ridge\]"),
    ],
)  # fmt: skip
def test_a_word_that_hydra_answers_with_a_traceback_is_refused(words, named, typed):
    with pytest.raises(UsageError, match=f"^{ONE_LINE}$") as caught:
        readable(words)
    assert caught.match(named)
    assert caught.match(f": (type )?{typed}$|{typed}")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--foo"], "got --foo: type --help"),
        (["-x", "seed=1"], "got -x: type --help"),
        (["--", "seed=1"], "got --: type --help"),
        (["--multirun=1"], "expected --multirun without a value, got --multirun=1: type --multirun"),
        (["seed=1", "--config-name"], "expected a value of --config-name, got none: type --config-name=VALUE"),
        (["--cfg", "foo"], "expected --cfg to be job or hydra or all, got foo: type --cfg=job"),
        (["-c=foo"], "expected -c to be job or hydra or all, got foo: type -c=job"),
        (["--info=foo"], "expected --info to be all or .*, got foo: type --info=all"),
    ],
)
def test_a_flag_that_hydra_does_not_have_is_refused(words, message):
    with pytest.raises(UsageError, match=message):
        readable(words)


def test_flags_may_stand_between_other_words():
    words = ["head=svm", "--info", "-m", "seed=0,1", "-cn", "mine", "norm=batch", "--config-dir=my", "--info", "config"]
    expected = ["head=svm", "seed=0,1", "norm=batch"]
    assert readable(words) == [*expected, "--info", "-m", "-cn", "mine", "--config-dir=my", "--info", "config"]


@pytest.mark.parametrize("words", [["--cfg", "all", "--resolve"], ["--info"], ["--info", "config"]], ids=" ".join)
def test_hydra_shows_what_it_composes(words, tmp_path):
    shown = metafew(*words, "train.way=7", cwd=tmp_path).stdout
    assert "way: 7" in shown and "max_steps: 600" in shown


def test_a_configuration_that_is_no_yaml_is_one_line(tmp_path):
    (tmp_path / "mine.yaml").write_text("a: [1\nb: {", "utf-8")
    done = metafew("--config-dir", ".", "seed=1", "--config-name=mine", "trainer.max_steps=2", cwd=tmp_path, code=2)
    assert done.stderr.splitlines()[-1].startswith("metafew: expected files of a configuration in YAML, got one")
    assert "Traceback" not in done.stderr and "mine.yaml" in done.stderr


@pytest.mark.parametrize("group", sorted(describe_groups()))
def test_every_group_refuses_numbers_and_null(group):
    for value in ("5", "1.5", "true", "null"):
        with pytest.raises(UsageError, match=f"expected {group} to be one of .*, got {value}"):
            readable([f"{group}={value}"])


@pytest.mark.parametrize(
    ("word", "typed"),
    [
        ("lr=0.1", r"did you mean optimizer.lr\?.*type optimizer.lr=0.1, or \+lr=0.1 to add a key"),
        ("optimizr.lr=0.1", "type optimizer.lr=0.1"),
        ("max_steps=3", "type trainer.max_steps=3"),
        ("train.wya=5", "type train.way=5"),
        ("haed=svm", "type head=svm"),
        ("head=smv", r"\(did you mean svm\?\): type head=svm"),
        ("optimizer=Adam", "type optimizer=adam"),
        ("evaluate=[svm,rigde]", "type evaluate=ridge"),
        ("hydra/launcher=joblb", "basic, joblib, .*type hydra/launcher=joblib"),
        ("head.c=3", "an option of head=logistic or svm: type head=logistic head.c=3"),
        ("logger=tensorboard,csv", r"type -m logger=tensorboard,csv for .* or 'logger=\[tensorboard,csv\]' for a list"),
        ("dataset.root=/x", "type dataset=folder dataset.root=/x"),
        ("head.lr=0.1", "type head=maml head.lr=0.1"),
        ("logger.wandb.project=a b", "type logger=wandb 'logger.wandb.project=a b'"),
        ("epochs=3", "type --cfg job to see them all"),
        ("evaluate.svm.c=1", "expected evaluate.svm.c to come with evaluate=svm, .*: type evaluate=svm evaluate.svm.c"),
        ("norm=None", r"got None: type norm=none$"),
        ("evaluate=[svm,None]", "got None: leave out evaluate$"),
        ("~train.wya", "got ~train.wya: leave out ~train.wya$"),
        ("~head.lr=0.1", "got ~head.lr=0.1: leave out ~head.lr=0.1$"),
        ("~logger.wandb.group", "leave out ~logger.wandb.group$"),
    ],
)
def test_an_unknown_word_is_one_line_with_the_nearest_that_exists(word, typed):
    with pytest.raises(UsageError, match=f"^{ONE_LINE}$") as caught:
        compose_overrides([word])
    assert caught.match(typed)


@pytest.mark.parametrize(
    ("words", "typed"),
    [
        (["evaluate=[svm,ridge]", "evaluate.svm.cc=1"], r"mean evaluate.svm.c\?\): type evaluate.svm.c=1"),
        (["evaluate=svm", "evaluate.c=1"], "type evaluate.svm.c=1"),
        (["logger=wandb", "logger.wandb.projct=x"], "type logger.wandb.project=x"),
        (["logger=wandb", "logger.project=x"], "type logger.wandb.project=x"),
        (["augment=standard", "~augment.views.colr"], r"got ~augment.views.colr \(.*\?\): type ~augment.views.colour$"),
    ],
)
def test_an_unknown_option_of_a_choice_is_one_line_with_the_nearest_of_the_choice(words, typed):
    with pytest.raises(UsageError, match=f"^{ONE_LINE}$") as caught:
        compose_overrides(words)
    assert caught.match(typed)


@pytest.mark.parametrize(
    ("word", "typed"),
    [
        ("head=svm,protonet", "-m head=svm,protonet for a run of each"),
        ("hydra/launcher=basic,joblib", "-m hydra/launcher=basic,joblib for a run of each"),
        ("seed=0,1", "-m seed=0,1 for a run of each, or 'seed=[0,1]' for a list"),
    ],
)
def test_several_values_are_advised_where_they_are_taken(word, typed, tmp_path):
    done = metafew(word, cwd=tmp_path, code=2)
    assert done.stderr.endswith(f"got {word.partition('=')[2]}: type {typed}\n")
    with pytest.raises(UsageError) as caught:  # outside of the command line, there are no sweeps
        compose_overrides([word], sweeps=False)
    assert "-m" not in str(caught.value) and str(caught.value).endswith(word.partition(",")[0])


def test_the_word_that_hydra_cannot_read_is_named(tmp_path):
    words = ["dataset=folder", "dataset.root=~/birds"]  # which it could not read either, if it were not quoted
    for wrong, message in ((["train.way=[5"], "got 'train.way=[5'"), (["+seed=1"], "already at 'seed'")):
        (line,) = metafew(*words, *wrong, cwd=tmp_path, code=2).stderr.splitlines()
        assert message in line and "birds" not in line
    (line,) = metafew("seed=1", "--config-name", "nope", cwd=tmp_path, code=2).stderr.splitlines()
    assert "Cannot find primary config 'nope'" in line and "such as head=svm" not in line


@pytest.mark.parametrize("word", ["foo", "=5", "train.way=[5", "seed=1,2", "+seed=1", "dataset@x=glyphs"])
def test_other_errors_of_hydra_are_one_line(word):
    with pytest.raises(UsageError) as caught:
        compose_overrides([word])
    assert word not in ("foo", "train.way=[5") or caught.match(
        f"such as head=svm, got '{re.escape(word)}' .*type --help"
    )
    assert "\n" not in str(caught.value)
    assert "https://" not in str(caught.value)


def test_a_variable_that_is_not_set_is_named():
    with pytest.raises(UsageError, match="type NO_SUCH=VALUE in front of the command") as caught:
        compose_overrides(["dataset=folder", "dataset.root=${oc.env:NO_SUCH}/x"])
    assert caught.match("expected dataset.root to name a variable of the environment, got NO_SUCH")


def test_the_nearest_word_has_the_same_end_or_is_similar():
    assert nearest("scale", ["optimizer.lr", "head.scale"]) == "head.scale"
    assert nearest("batch_size", ["dataset.image_size"]) is None
    assert nearest("", ["seed"]) is None
    assert nearest("x", ["trainer.max_steps"]) is None


def test_an_application_of_hydra_keeps_its_version_and_its_name(tmp_path):
    with initialize_config_dir(str(tmp_path), version_base="1.2", job_name="mine"):
        compose_overrides([])
        assert (str(VersionBase.instance().getbase()), JobRuntime.instance().get("name")) == ("1.2", "mine")


def test_defaults_are_those_of_the_configuration():
    chosen = compose_overrides([]).hydra.runtime.choices
    assert default_options() == {group: chosen[group] for group in default_options()}
    assert {"head", "norm", "backbone", "dataset"} <= default_options().keys()


@pytest.mark.parametrize("chdir", [None, True])
def test_paths_are_those_of_the_folder_where_they_were_typed(chdir, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    for name in ("birds", "glyphs", "x"):
        (tmp_path / name).mkdir()
    place = OmegaConf.create({"job": {"chdir": chdir}, "runtime": {"cwd": str(tmp_path)}})
    monkeypatch.setattr(HydraConfig, "initialized", lambda: True)
    monkeypatch.setattr(HydraConfig, "get", lambda: place)
    cfg = OmegaConf.create(
        {
            "data_dir": "data", "cache_dir": "~/kept", "ckpt": "a/best.ckpt", "cells": None,
            "dataset": {"root": "${data_dir}/cub", "sources": ["glyphs", "birds", {"root": "birds", "name": "x"}]},
        }
    )  # fmt: skip
    cfg.dataset.sources.append({"dataset": "birds"})
    resolve_paths(cfg)
    prefix = f"{tmp_path}/" if chdir else ""
    assert cfg.cache_dir == "/home/me/kept"
    assert cfg.ckpt == f"{prefix}a/best.ckpt"
    assert cfg.dataset.root == f"{prefix}data/cub"
    birds = f"{prefix}birds"
    assert cfg.dataset.sources == ["glyphs", birds, {"root": birds, "name": "x"}, {"dataset": birds}]
    cfg.ckpt = "last"
    assert resolve_paths(cfg).ckpt == "last"


def test_every_option_that_is_a_path_is_an_option():
    cfg = compose_overrides(["dataset=folder", "experiment=tasknorm_rates"])
    assert [key for key in PATHS if OmegaConf.select(cfg, key, default="missing") == "missing"] == []


def test_a_run_in_its_own_folder_finds_what_was_typed_elsewhere(tmp_path):
    features = np.random.default_rng(0).normal(size=(40, 4)).astype("float32")
    (tmp_path / "数据 (1)").mkdir()
    np.savez(tmp_path / "数据 (1)/f.npz", x_test=features, y_test=np.arange(40) % 5)
    words = ["dataset=features", "test.total=2", "test.query=2", "trainer.enable_progress_bar=false"]
    words += ["dataset.root=数据 (1)/f.npz", "cache_dir=~/kept", "hydra.job.chdir=true", "hydra.run.dir=o/a=b"]
    metafew(*words, cwd=tmp_path, env={"HOME": str(tmp_path)})
    report = json.loads((tmp_path / "o/a=b/results.json").read_text())
    assert report["config"]["dataset"]["root"] == os.path.join(tmp_path, "数据 (1)/f.npz")
    assert (tmp_path / "kept").is_dir()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["lr=0.1"], "did you mean optimizer.lr"),
        (["head=5"], "type head=protonet"),
        (["dataset=folder", "dataset.root=${data_dri}/x"], "did you mean data_dir"),
        (["evaluate=[protonet]", "evaluate.protonet.divide=true"], "type head.divide=true, and evaluate=[] or others"),
        (["experiment=heads", "seeds=0,1"], "got 0,1: type 'seeds=[0,1]' for a list"),
        (["--multirun", "--cfg=job"], "Only one of"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(words, line, tmp_path):
    done = metafew(*words, "hydra.run.dir=out", cwd=tmp_path, code=2)
    (message,) = (done.stdout + done.stderr).splitlines()
    assert message.startswith("metafew: ")
    assert line in message


@pytest.mark.parametrize("asked", [False, True])
def test_the_traceback_of_hydra_is_shown_on_request(asked, tmp_path):
    done = metafew("lr=0.1", cwd=tmp_path, code=2, env={"HYDRA_FULL_ERROR": "1"} if asked else {})
    assert ("Traceback" in done.stderr and "ConfigCompositionException" in done.stderr) == asked
    assert done.stderr.splitlines()[-1].startswith("metafew: expected a key that --cfg job prints, got lr")


@pytest.mark.parametrize("value", [True, 1.5, ["a"], {"a": 1}])
@pytest.mark.parametrize("key", ["ckpt", "data_dir", "dataset.root", "dataset.splits", "backbone.weights"])
def test_a_path_is_refused_if_it_is_anything_else(key, value, tmp_path):
    cfg, *_ = compose_in(tmp_path, "dataset=folder")
    OmegaConf.update(cfg, key, value)
    with pytest.raises(UsageError, match=f"expected {key} to be a path, got .*: type {key}=PATH"):
        check_options(cfg)


@pytest.mark.parametrize("value", [-1, True, "abc", float("nan"), float("inf")])
def test_gradients_are_clipped_to_a_number_or_not_at_all(value, tmp_path):
    cfg, *_ = compose_in(tmp_path)
    check_options(cfg)
    cfg.trainer.gradient_clip_val = value
    with pytest.raises(UsageError, match=r"gradient_clip_val to be .*got .*: type trainer.gradient_clip_val=null"):
        check_options(cfg)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("test.shots", 5, r"got test.shots \(did you mean test.shot\?\): type test.shot=VALUE"),
        ("train.epochs", 5, "got train.epochs: leave out train.epochs"),
        ("data", None, "expected data to be a group of options, got None: type data.OPTION=VALUE with one of num_work"),
        ("save.keep", "yes", "expected save.keep to be true or false, got yes: type save.keep=true"),
        ("trainer.enable_progress_bar", 5, "to be true or false, got 5: type trainer.enable_progress_bar=true"),
        ("trainer.deterministic", "foo", "expected trainer.deterministic to be warn or true or false or null, got foo"),
        ("trainer.gradient_clip_algorithm", "value", "got null: type trainer.gradient_clip_val=1.0"),
        ("trainer.max_steps", 1e3, "at least 1, got 1000.0: type trainer.max_steps=1000"),
        ("evaluate.svm.c", 1, r"expected evaluate.svm to come with .*: type evaluate=\[svm\], without"),
        ("logger.wandb.project", "x", r"expected logger.wandb to come with .*: type logger=\[wandb\], without"),
        ("norm.eps", -1, "expected norm.eps to be a number of at least 0, got -1"),
        ("norm.momentum", 2, "expected norm.momentum to be a number from 0 to 1, got 2"),
        ("norm.momentum", True, "expected norm.momentum to be a number from 0 to 1, got True"),
        ("optimizer.lr", True, "expected optimizer.lr to be a number, got True"),
        ("optimizer.weight_decay", False, "expected optimizer.weight_decay to be a number, got False"),
        ("trainer.max_steps", 0.0, "at least 1, got 0.0: type trainer.max_steps=1"),
        ("dataset.jitter", 5, "expected dataset.jitter to be a view with its _target_ or null, got 5"),
        ("optimizer.betas", 5, "expected optimizer.betas to be a list of 2 numbers, got 5"),
        ("optimizer.betas", [0.9, 0.99, 0.999], "to be a list of 2 numbers, got "),
        ("optimizer.betas", ["a", 0.9], "to be a list of 2 numbers, got "),
    ],
)
def test_what_no_option_takes_or_can_act_is_refused(key, value, message, tmp_path):
    cfg, *_ = compose_in(tmp_path)
    OmegaConf.update(cfg, key, value, force_add=True)
    with pytest.raises(UsageError, match=message):
        check_options(cfg)


def test_options_that_a_constructor_cannot_take_apart_are_a_usage_error():
    """Optimizers are made of partials, whose errors Hydra does not wrap."""
    adam = partial(torch.optim.Adam, betas=[0.9])
    with pytest.raises(UsageError, match=r"optimizer cannot be made with these options \(list index out of range\)"):
        attempt("optimizer", adam, [torch.nn.Parameter(torch.zeros(1))])


def test_the_name_of_a_folder_may_be_a_number_in_a_file(monkeypatch):
    cfg = OmegaConf.create({"data_dir": 2024, "dataset": {"root": "${data_dir}/1", "splits": 5, "sources": [3]}})
    resolve_paths(cfg)
    assert (cfg.data_dir, cfg.dataset.root, cfg.dataset.splits, cfg.dataset.sources) == ("2024", "2024/1", "5", [3])


def test_a_path_that_starts_like_a_home_folder_of_nobody_is_kept():
    assert str(option_path("dataset.root", "~nobody at all/x")) == "~nobody at all/x"


@pytest.mark.parametrize(
    ("word", "advised"), [("seed=4294967296", "seed=4294967295"), ("train.tasks=true", "train.tasks=1")]
)
def test_a_number_out_of_range_and_a_truth_value_are_refused(word, advised, tmp_path):
    done = metafew(word, "hydra.run.dir=out", cwd=tmp_path, code=2)
    assert done.stderr.splitlines()[-1].endswith(f"type {advised}")
