"""Every argument of Lightning's Trainer acts, or is refused by name with what to type instead."""

import inspect
import json
import logging

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from pytorch_lightning.callbacks import Callback, EarlyStopping, TQDMProgressBar
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from runs import TINY, metafew, state

from metafew.callbacks.checkpoints import Checkpoints
from metafew.callbacks.nan_guard import NanGuard
from metafew.callbacks.progress import Progress
from metafew.config.groups import CONF
from metafew.distributed.sweep import finished
from metafew.errors import UsageError
from metafew.experiments.plan import Cell, Command
from metafew.io import read_json
from metafew.training.stages import suitable_callbacks
from metafew.training.trainer import OWNED, check_trainer_options, make_added, make_trainer

ARGUMENTS = inspect.signature(pl.Trainer).parameters
DEFAULTS = (CONF / "trainer" / "default.yaml").read_text(encoding="utf-8")
STOPPING = "{_target_: pytorch_lightning.callbacks.EarlyStopping, monitor: val/protonet/accuracy, mode: max"


@pytest.fixture
def trainer(composed, tmp_path):
    """Make the Trainer of a composed configuration."""
    return lambda *overrides: make_trainer(composed(*TINY, *overrides)[0], "protonet", [], tmp_path)


def test_every_argument_of_the_trainer_is_documented_or_refused():
    """An argument that a new version of Lightning adds is decided here."""
    assert OWNED.keys() <= set(ARGUMENTS)
    documented = {name for name in ARGUMENTS if f"\n{name}:" in DEFAULTS or f"\n# +trainer.{name}=" in DEFAULTS}
    assert documented | OWNED.keys() == set(ARGUMENTS)
    assert not documented & OWNED.keys()


@pytest.mark.parametrize("name", OWNED)
def test_what_belongs_to_metafew_is_refused_by_name(name):
    with pytest.raises(UsageError, match=rf"^expected no trainer.{name}, as .*, got elsewhere: (type |leave it out)"):
        check_trainer_options({name: "elsewhere"})
    for value in (None, OWNED[name].value):
        check_trainer_options({name: value})


def test_a_time_that_is_a_number_is_a_usage_error():
    with pytest.raises(
        UsageError, match=r"expected trainer.max_time to be days, .*, got 60: type \+\+trainer.max_time="
    ):
        check_trainer_options({"max_time": 60})


def test_a_time_too_short_for_a_step_is_a_usage_error(launch):
    with pytest.raises(UsageError, match=r"expected a step of training before trainer.max_time is over"):
        launch("+trainer.max_time=00:00:00:00")


@pytest.mark.parametrize("words", [["trainer.max_epochs=3"], ["trainer.val_check_interval=2"]])
def test_an_option_is_refused_before_an_image_is_read(launch, words):
    with pytest.raises(UsageError, match=f"expected no {words[0].split('=')[0]}"):
        launch("dataset=folder", "dataset.root=missing", *(f"+{word}" for word in words))


def test_callbacks_and_loggers_are_appended(trainer, tmp_path):
    logger = f"+trainer.logger={{_target_: pytorch_lightning.loggers.CSVLogger, save_dir: {tmp_path}}}"
    made = trainer(f"+trainer.callbacks=[{STOPPING}}}]", logger)
    kinds = [type(callback) for callback in made.callbacks]
    assert {NanGuard, EarlyStopping, Checkpoints} <= set(kinds)
    assert isinstance(made.checkpoint_callback, Checkpoints)
    assert [type(each) for each in made.loggers] == [CSVLogger]


def test_a_checkpoint_callback_of_the_user_does_not_replace_that_of_the_run(trainer):
    made = trainer("+trainer.callbacks=[{_target_: pytorch_lightning.callbacks.ModelCheckpoint}]")
    assert len(made.checkpoint_callbacks) == 2
    assert isinstance(made.checkpoint_callback, Checkpoints)


def test_a_progress_bar_of_the_user_replaces_that_of_the_run(trainer):
    words = ["trainer.enable_progress_bar=true"]
    assert isinstance(trainer(*words).progress_bar_callback, Progress)
    words.append("+trainer.callbacks=[{_target_: pytorch_lightning.callbacks.TQDMProgressBar}]")
    assert type(trainer(*words).progress_bar_callback) is TQDMProgressBar


@pytest.mark.parametrize("option", ["callbacks", "logger"])
@pytest.mark.parametrize("value", [True, False, "csv", {"save_dir": "a"}, [{"_target_": "collections.OrderedDict"}]])
def test_other_callbacks_and_loggers_are_usage_errors(option, value):
    node = OmegaConf.create({"trainer": {option: value}}).trainer[option]
    with pytest.raises(UsageError, match=rf"expected trainer.{option} to be a list of .*: type '\+trainer.{option}="):
        make_added(option, node, Callback)


def test_an_error_of_a_callback_of_lightning_is_a_usage_error():
    """Only the first validation shows that EarlyStopping monitors what nobody logs."""
    stopping = EarlyStopping("val/nothing")
    message = r"callbacks that work in this run, got .*val/nothing.*correct its options"
    with pytest.raises(UsageError, match=message), suitable_callbacks():
        stopping._validate_condition_metric({"val/protonet/accuracy": torch.tensor(1.0)})
    with pytest.raises(UsageError, match="not supported"), suitable_callbacks():
        raise MisconfigurationException("not supported.")
    for other in (RuntimeError("of torch"), UsageError("of metafew"), KeyError("of a callback of the user's")):
        with pytest.raises(type(other), match=str(other)), suitable_callbacks():
            raise other


def test_a_profiler_leaves_its_report_in_the_folder_of_the_run(launch):
    _, out = launch("+trainer.profiler=simple")
    assert "FIT Profiler Report" in (out / "fit-profile.txt").read_text(encoding="utf-8")


def test_sanity_steps_validate_before_training_and_change_nothing(launch, tmp_path, monkeypatch):
    validated = []
    original = Checkpoints.on_validation_end

    def record(self, trainer, *args):
        validated.append((trainer.global_step, trainer.sanity_checking))
        original(self, trainer, *args)

    monkeypatch.setattr(Checkpoints, "on_validation_end", record)
    words = ["analyze.every=2", "analyze.tasks=2"]
    before, plain = launch(*words, out=tmp_path / "plain")
    after, checked = launch(*words, "+trainer.num_sanity_val_steps=1", out=tmp_path / "checked")
    assert validated == [(2, False), (4, False), (0, True), (2, False), (4, False)]
    assert after["metrics"] == before["metrics"]
    assert (checked / "metrics.csv").read_text() == (plain / "metrics.csv").read_text()
    assert all(torch.equal(value, state(plain)[name]) for name, value in state(checked).items())


def test_without_time_training_is_unfinished_and_a_resumed_one_goes_on(launch, tmp_path, monkeypatch, caplog):
    """The clock of the timer moves by a second with each step."""
    seconds = iter(range(10_000))
    monkeypatch.setattr("pytorch_lightning.callbacks.timer.time.monotonic", lambda: next(seconds))
    words = ["trainer.max_steps=30", "val.every=30", "+trainer.max_time=00:00:00:05"]
    first, out = launch(*words)
    assert 0 < first["steps"] < 30
    assert not first["finished"]
    assert (
        f"ended it after {first['steps']} of 30 steps: to resume it, type the same command again with ckpt=last "
        in (caplog.text)
    )
    ckpt = f"ckpt={out / 'checkpoints' / 'last.ckpt'}"
    second, _ = launch(*words, ckpt)
    assert first["steps"] < second["steps"] < 30
    third, _ = launch(*words[:2], "+trainer.max_time=01:00:00:00", ckpt)
    assert (third["steps"], third["finished"]) == (30, True)


def test_a_callback_that_ends_training_finishes_it(launch, caplog):
    caplog.set_level(logging.INFO)
    words = ["trainer.max_steps=30", "val.every=1", f"+trainer.callbacks=[{STOPPING}, patience: 1, min_delta: 1.0}}]"]
    report, _ = launch(*words)
    assert (report["steps"], report["finished"]) == (2, True)
    assert "a callback ended training after 2 of 30 steps" in caplog.messages


@pytest.mark.parametrize(("saved", "expected"), [({}, True), ({"finished": True}, True), ({"finished": False}, False)])
def test_an_unfinished_cell_of_a_sweep_or_an_experiment_is_run_again(tmp_path, saved, expected):
    config = {"ckpt": None, "seed": 0}
    report = {"config": config, "metrics": {}, "steps": 7} | saved
    (tmp_path / "results.json").write_text(json.dumps(report), encoding="utf-8")
    assert finished(tmp_path, OmegaConf.create(config), dict) == expected
    run = Command(tmp_path, ())
    cell = Cell("row", 0, run, run)
    assert run.finished == cell.finished == (cell.error is None) == expected


def test_a_checkpoint_carries_no_callbacks(tmp_path):
    metafew(*TINY, f"+trainer.callbacks=[{STOPPING}}}]", "hydra.run.dir=fit", cwd=tmp_path)
    metafew("stages=[test]", "ckpt=fit/checkpoints/best.ckpt", "hydra.run.dir=test", cwd=tmp_path)
    assert "callbacks" not in read_json(tmp_path / "test" / "results.json")["config"]["trainer"]
