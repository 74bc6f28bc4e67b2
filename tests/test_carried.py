"""A checkpoint carries the configuration of its training, and what is typed later is laid over it."""

import pytest
from contracts import sampled
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf, open_dict
from runs import TINY, metafew

from metafew.config.carried import carried, training_options
from metafew.config.compose import chosen_options, compose_on_checkpoint, defer_to_checkpoint, main_words
from metafew.config.groups import CONF
from metafew.config.overrides import verbatim
from metafew.distributed.subprocesses import main_configuration, options_of_launch
from metafew.errors import UsageError


@pytest.fixture(autouse=True)
def _mains():
    """Offer main configurations and a group of the user's own."""
    own = {"defaults": ["train", {"override head": "ridge"}, "_self_"], "head": {"penalty": 3.0}, "test": {"total": 44}}
    store = ConfigStore.instance()
    store.store(name="mine", node=OmegaConf.create(own))
    store.store(name="tests", node=OmegaConf.create({"defaults": ["train", "_self_"], "test": {"way": 7}}))
    for name, node in {"three": {"train": {"way": 3}, "test": {"way": 3}}, "four": {"test": {"way": 4}}}.items():
        store.store(group="preset", name=name, node=OmegaConf.create(node), package="_global_")
    yield
    del store.repo["mine.yaml"], store.repo["tests.yaml"], store.repo["preset"]


def typed(*words, main="train", saved=None):
    """Return what a checkpoint carries of a run that these words start, from a checkpoint that carries ``saved``."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        words = [*words, "ckpt=a.ckpt"] if saved else words
        cfg = compose(main, defer_to_checkpoint(words), return_hydra_config=True)
        with open_dict(cfg):
            HydraConfig.instance().set_config(cfg)
            del cfg["hydra"]
        overrides = main_words() + verbatim(HydraConfig.get().overrides.task)
        if saved:
            cfg, overrides = compose_on_checkpoint(cfg, saved)
    choices = chosen_options(HydraConfig.get().runtime.choices)
    config = carried(OmegaConf.to_container(cfg, resolve=False))
    return {"config": config, "choices": carried(choices), "overrides": overrides}


def changes(before, after):
    """Return the values that differ, by their keys."""
    flat = [
        dict(pair for group, part in saved["config"].items() for pair in leaves(group, part))
        for saved in (before, after)
    ]
    return {key: flat[1].get(key) for key in flat[0] | flat[1] if flat[0].get(key) != flat[1].get(key)}


def leaves(key, part):
    return (
        [pair for name in part for pair in leaves(f"{key}.{name}", part[name])]
        if isinstance(part, dict)
        else [(key, part)]
    )


def test_a_checkpoint_carries_the_configuration_without_the_machine():
    saved = typed("head=maml", "logger=tensorboard", "data_dir=/data", "stages=[fit]", "train.way=20")
    assert saved["config"]["head"]["way"] == "${train.way}" and saved["config"]["train"]["way"] == 20
    assert not {"hydra", "logger", "data_dir", "cache_dir", "ckpt", "stages"} & {*saved["config"], *saved["choices"]}
    again = typed("train.way=10", saved=saved)
    assert changes(saved, again) == {"train.way": 10}  # and head.way follows


@pytest.mark.parametrize(
    "words",
    sampled(
        [
            ["head=ridge", "head.penalty=7", "norm=batch", "test.total=3", "evaluate=[svm]", "evaluate.svm.c=2"],
            ["head=reptile", "optimizer=sgd", "train.shot=2"],
            ["objective=classical", "train.batch_size=32", "~trainer.precision", "+trainer.benchmark=true"],
            ["augment=standard", "~augment.views.colour", "dataset=mixture", "train.way=5..9"],
        ],
        2,
    ),
    ids=" ".join,
)
def test_nothing_typed_and_the_same_typed_again_change_nothing(words):
    saved = typed(*words)
    groups = [word for word in words if "." not in word.split("=")[0]]
    for again in ([], words, groups):
        later = typed(*again, saved=saved)
        assert (later["config"], later["choices"]) == (saved["config"], saved["choices"]), again
        assert training_options(later["config"]) == training_options(saved["config"])


def test_options_added_since_the_checkpoint_can_be_typed():
    saved = typed("head=maml", "evaluate=[fomaml]", "dataset=folder", "dataset.root=a")
    for group, option in (("head", "memory"), ("backbone", "freeze"), ("dataset", "white"), ("val", "at_start")):
        del saved["config"][group][option]
    del saved["config"]["evaluate"]["fomaml"]["memory"]
    words = ["head.memory=600", "backbone.freeze=all", "dataset.white=true", "val.at_start=false"]
    later = typed(*words, "evaluate.fomaml.memory=600", saved=saved)["config"]
    assert (later["head"]["memory"], later["backbone"]["freeze"], later["dataset"]["white"]) == (600, "all", True)
    assert later["evaluate"]["fomaml"]["memory"] == 600 and later["val"]["at_start"] is False
    assert typed(saved=saved)["config"]["head"]["memory"] == "auto"


@pytest.mark.slow
def test_another_choice_brings_its_own_options_and_takes_away_what_the_old_one_brought():
    saved = typed("head=reptile", "head.steps=3", "norm=batch", "norm.eps=0.1", "optimizer.lr=0.5", "train.shot=2")
    assert saved["choices"]["objective"] == "reptile" and saved["choices"]["schedule"] == "linear"
    later = typed("head=ridge", saved=saved)
    rest = typed("head=ridge", "norm=batch", "norm.eps=0.1", "train.shot=2")
    assert (later["config"], later["choices"]) == (rest["config"], rest["choices"])
    # What is typed, even as it was, stays.
    assert typed("head=ridge", "objective=reptile", saved=saved)["choices"]["objective"] == "reptile"
    # Options of the new choice are those of its YAML file, and those that are typed.
    assert typed("norm=tasknorm", "norm.eps=0.3", saved=saved)["config"]["norm"]["eps"] == 0.3
    assert typed("norm=tasknorm", saved=saved)["config"]["norm"]["eps"] == 1e-5
    wide = typed("objective=classical", "train.way=3")
    assert "batch_size" not in typed("objective=episodic", saved=wide)["config"]["train"]
    assert typed("objective=episodic", saved=wide)["config"]["train"] | {"way": 5} == typed()["config"]["train"]
    assert (
        typed("dataset=glyphs", saved=typed("dataset=mixture", "val.way=9"))["config"] == typed("val.way=9")["config"]
    )


@pytest.mark.slow
def test_a_group_of_the_users_own_is_a_choice_too():
    saved = typed("+preset=three", "head.divide=true")
    assert saved["choices"]["preset"] == "three" and saved["config"]["train"]["way"] == 3
    for again in ([], ["+preset=three"], ["+preset=three", "head=protonet"]):
        later = typed(*again, saved=saved)
        assert (later["config"], later["choices"]) == (saved["config"], saved["choices"]), again
    other = typed("+preset=four", saved=saved)
    assert changes(saved, other) == {"train.way": 5, "test.way": 4} and other["choices"]["preset"] == "four"
    added = typed("+preset=four", saved=typed("head.divide=true"))
    assert changes(typed("head.divide=true"), added) == {"test.way": 4}


def test_a_head_in_another_place_is_another_choice_than_the_head():
    saved = typed("head=svm", "head.c=2")
    later = typed("+head@evaluate.second=ridge", saved=saved)
    assert later["config"]["head"] == saved["config"]["head"] and later["choices"]["head"] == "svm"
    assert later["config"]["evaluate"]["second"]["penalty"] == 50.0


@pytest.mark.slow
def test_heads_to_evaluate_are_a_choice_too():
    saved = typed("evaluate=[svm,ridge]", "evaluate.svm.c=2")
    assert typed("evaluate=[svm,ridge]", saved=saved)["config"]["evaluate"]["svm"]["c"] == 2
    assert list(typed("evaluate=[cosine]", saved=saved)["config"]["evaluate"]) == ["cosine"]
    assert not typed("evaluate=[]", saved=saved)["config"].get("evaluate")
    assert "logger" not in carried(typed("logger=tensorboard", saved=saved)["config"])


@pytest.mark.parametrize(
    ("word", "named"), [("head.penaltie=9", "penaltie"), ("head=ridge", None), ("test.totl=1", "totl")]
)
def test_a_misspelt_option_is_a_usage_error(word, named):
    saved = typed("head=ridge")
    if named:
        with pytest.raises(Exception, match=named) as error:
            typed(word, saved=saved)
        assert not word.startswith("head") or error.type is UsageError
    else:
        typed(word, saved=saved)


@pytest.mark.slow
def test_a_main_configuration_of_the_users_own_is_what_was_trained():
    saved = typed("head.penalty=7", main="mine")
    assert saved["choices"]["head"] == "ridge" and saved["config"]["test"]["total"] == 44
    assert saved["overrides"] == ["--config-name=mine", "head.penalty=7"]
    for main in ("train", "mine"):  # typed again or not
        later = typed(main=main, saved=saved)
        assert (later["config"], later["choices"]) == (saved["config"], saved["choices"])
        later = typed("train.way=3", main=main, saved=later)
        assert changes(saved, later) == {"train.way": 3}
    assert changes(saved, typed("test.total=5", "head.penalty=8", main="mine", saved=saved)) == {
        "test.total": 5,
        "head.penalty": 8,
    }
    assert typed("head=svm", main="mine", saved=saved)["choices"]["head"] == "svm"


@pytest.mark.slow
def test_what_another_main_configuration_says_counts_as_typed():
    saved = typed("head=svm", "head.c=2")
    assert changes(saved, typed(main="tests", saved=saved)) == {"test.way": 7}
    ridge = typed(main="mine", saved=saved)
    assert ridge["choices"]["head"] == "ridge" and ridge["config"]["head"]["penalty"] == 3
    assert ridge["config"]["test"]["total"] == 44 and "c" not in ridge["config"]["head"]
    assert typed("test.total=5", main="mine", saved=saved)["config"]["test"]["total"] == 5
    mine = typed(main="mine")
    assert changes(mine, typed(main="tests", saved=mine)) == {"test.way": 7}
    ConfigStore.instance().store(name="mine", node=OmegaConf.create({"defaults": ["train", "_self_"], "seed": 8}))
    assert typed(main="mine", saved=mine)["config"]["seed"] == 8  # the file was edited


@pytest.mark.slow
def test_a_choice_of_the_users_own_needs_its_folder_only_where_it_changes(tmp_path):
    (tmp_path / "head").mkdir()
    file = tmp_path / "head" / "own.yaml"
    file.write_text("_target_: metafew.heads.ridge.Ridge\npenalty: 2.0\nscale: 1.0\n")
    path = f"hydra.searchpath=[file://{tmp_path}]"
    saved = typed(path, "head=own", "head.penalty=9")
    file.unlink()
    assert typed(saved=saved)["config"] == saved["config"]
    assert typed("head=svm", saved=saved)["config"]["head"]["c"] == 0.1
    file.write_text("_target_: metafew.heads.ridge.Ridge\npenalty: 2.0\nscale: 1.0\n")
    assert typed(path, "head=own", saved=saved)["config"] == saved["config"]


def test_options_that_a_later_version_adds_are_filled_in():
    saved = typed("head=ridge", "test.way=3")
    del saved["config"]["test"]["queries"], saved["config"]["save"]
    later = typed(saved=saved)["config"]
    assert later["test"]["queries"] == "together" and later["test"]["way"] == 3 and later["save"]["every"] == 100


@pytest.mark.slow
def test_cfg_shows_what_will_run(tmp_path):
    words = [*TINY, "head=ridge", "head.penalty=7", "stages=[fit]", "trainer.max_steps=1", "hydra.run.dir=fit"]
    metafew(*words, cwd=tmp_path)
    ckpt = "ckpt=fit/checkpoints/last.ckpt"
    shown = metafew("--cfg", "job", ckpt, "head.scale=2", "stages=[test]", cwd=tmp_path).stdout
    cfg = OmegaConf.create(shown)
    assert cfg.head.penalty == 7 and cfg.head.scale == 2 and cfg.backbone.width == 4 and cfg.ckpt == ckpt[5:]
    assert metafew("-c", "job", "-p", "train.tasks", "ckpt=last", "hydra.run.dir=fit", cwd=tmp_path).stdout == "2\n"
    choices = metafew("--cfg", "hydra", "-p", "hydra.runtime.choices.head", ckpt, cwd=tmp_path).stdout
    assert choices == "ridge\n"
    done = metafew("--cfg", "job", "ckpt=nowhere.ckpt", cwd=tmp_path, code=2)
    assert done.stderr.startswith("metafew: expected ckpt to be") and "Traceback" not in done.stderr


def test_a_subprocess_finds_the_main_configuration(monkeypatch):
    """A cell of several processes is composed anew, from the same files."""
    sources = [("hydra", "hydra.conf"), ("main", "/conf"), ("command-line", "/my own"), ("schema", "")]
    sources = [{"provider": provider, "path": path} for provider, path in sources]
    hydra = OmegaConf.create({"job": {"config_name": "mine"}, "runtime": {"config_sources": sources}})
    monkeypatch.setattr(HydraConfig, "get", lambda: hydra)
    flags = ["--config-name", "mine", "--config-path", "/conf", "--config-dir", "/my own"]
    assert main_configuration() == flags
    hydra.overrides = {"hydra": ["hydra.run.dir=here", "hydra.searchpath=[file://mine]"]}
    assert options_of_launch() == [*flags, "hydra.searchpath=[file://mine]"]
    hydra.job.config_name, hydra.runtime.config_sources = "train", [{"provider": "main", "path": str(CONF)}]
    assert options_of_launch() == ["hydra.searchpath=[file://mine]"], "metafew's own needs no flags"
