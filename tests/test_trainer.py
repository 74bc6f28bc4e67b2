"""Every argument of Lightning's Trainer acts, or is refused by name with what to type instead."""

import csv
import inspect
import json
import logging
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from pytorch_lightning.accelerators import CUDAAccelerator
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint, TQDMProgressBar
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from runs import TINY, curves, metafew, state

from metafew.callbacks.checkpoints import Checkpoints
from metafew.callbacks.monitors import MonitorCheck
from metafew.callbacks.nan_guard import NanGuard
from metafew.callbacks.progress import Progress
from metafew.callbacks.validation_at_start import ValidationAtStart
from metafew.config.groups import CONF
from metafew.config.option_types import check_option_types
from metafew.distributed.sweep import finished
from metafew.errors import UsageError
from metafew.experiments.plan import Cell, Command
from metafew.io import read_json
from metafew.training.instantiate import make
from metafew.training.norm_checks import warn_of_moments_of_one_process
from metafew.training.stages import seconds_at_start, suitable_callbacks
from metafew.training.trainer import make_added, make_trainer
from metafew.training.trainer_options import OWNED, WORDS, check_devices, check_trainer_options

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


def test_a_limit_of_predictions_is_one_of_analyzed_tasks():
    with pytest.raises(UsageError, match=r"analyze.tasks sets .*: type analyze\.tasks=200$"):
        check_trainer_options({"limit_predict_batches": 3})


@pytest.mark.parametrize("value", [60, "60", "1:00", "00:12:00:00 hours"])
def test_a_time_of_another_form_is_a_usage_error(value):
    said = rf"expected trainer.max_time to be days, .*, got {value}: type \+\+trainer.max_time="
    with pytest.raises(UsageError, match=said):
        check_trainer_options({"max_time": value})


@pytest.mark.parametrize("value", ["01:12:00:00", {"hours": 12}, None])
def test_a_time_of_its_own_form_is_accepted(value):
    check_trainer_options(OmegaConf.create({"max_time": value}))


@pytest.mark.parametrize("name", ["strategy", "accelerator"])
def test_each_word_of_lightning_is_accepted_or_refused_by_name(name):
    """A word that a new version of Lightning adds is refused until it is decided here."""
    words = WORDS[name]
    for word in {*words.refused} - {*words.values}:
        said = (
            rf"expected trainer.{name} to be .*, got {word} \({words.reason}\): type trainer.{name}={words.values[0]}$"
        )
        with pytest.raises(UsageError, match=said):
            check_trainer_options({name: word})
    for word in {*words.values} - {"gpu", "cuda"}:
        check_trainer_options({name: word})


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("strategy", "dpp", r"got dpp \(did you mean ddp\?\): type trainer.strategy=ddp$"),
        ("strategy", None, "got None: type trainer.strategy=ddp$"),
        ("accelerator", "cdua", r"got cdua \(did you mean cuda\?\): type trainer.accelerator=cuda$"),
        ("precision", "foo", "or bf16-mixed or .* or null, got foo: type trainer.precision=32-true$"),
        ("precision", "bf16-mixd", r"\(did you mean bf16-mixed\?\): type trainer.precision=bf16-mixed$"),
        (
            "precision",
            "bf16-true",
            r"got bf16-true \(moments .* in float32 at least\): type trainer.precision=32-true$",
        ),
        ("profiler", "foo", r"simple or advanced or pytorch or null, got foo: type \+\+trainer.profiler=simple$"),
        (
            "gradient_clip_algorithm",
            "max",
            "norm or value or null, got max: type trainer.gradient_clip_algorithm=norm$",
        ),
        ("gradient_clip_val", "big", "an integer or a finite number or null, got big: leave out"),
        ("devices", True, "an integer or a word, got True: type trainer.devices=1$"),
        ("deterministic", "yes", "warn or true or false or null, got yes: leave out trainer.deterministic$"),
        ("num_sanity_val_steps", "two", "an integer or null, got two: leave out"),
        ("enable_progress_bar", "on", "true or false or null, got on: type trainer.enable_progress_bar=true$"),
    ],
)
def test_a_value_of_another_kind_is_a_usage_error(name, value, said):
    with pytest.raises(UsageError, match=rf"^expected trainer.{name} to be .*{said}"):
        check_trainer_options({name: value})


def test_options_that_a_constructor_of_torch_refuses_are_a_usage_error():
    adam = OmegaConf.create({"optimizer": {"_target_": "torch.optim.Adam", "fused": True, "foreach": True}}).optimizer
    with pytest.raises(UsageError, match="optimizer cannot be made with these options"):
        make(adam, params=[torch.nn.Parameter(torch.zeros(1))])


def test_numbers_in_lists_are_finite_too():
    """Infinite ones could not be written to results.json at the end of the run."""
    stopping = {"_target_": "pytorch_lightning.callbacks.EarlyStopping", "stopping_threshold": float("inf")}
    for value in ([stopping], [[float("nan")]]):
        with pytest.raises(UsageError, match=r"expected trainer\.callbacks to be a list whose numbers are finite, got"):
            check_option_types(OmegaConf.create({"trainer": {"callbacks": value}}))
    check_option_types(OmegaConf.create({"trainer": {"callbacks": [stopping | {"stopping_threshold": 0.5}]}}))


def test_values_of_the_kinds_of_the_trainer_are_accepted():
    own = OmegaConf.create({"_target_": "pytorch_lightning.profilers.SimpleProfiler"})
    check_trainer_options({"precision": 16, "deterministic": "warn", "gradient_clip_val": 1, "profiler": own})
    check_trainer_options({"precision": "bf16", "deterministic": True, "gradient_clip_val": 0.5, "profiler": None})


def test_an_argument_that_the_trainer_lacks_is_a_usage_error():
    lightning = {"_target_": "pytorch_lightning.Trainer"}
    for given, advice in {"max_step": "type trainer.max_steps=3", "quux": "leave out trainer.quux"}.items():
        with pytest.raises(UsageError, match=rf"expected an argument of Lightning's Trainer, .*: {advice}$"):
            check_trainer_options(lightning | {given: 3})
    check_trainer_options({"_target_": "mine.Trainer", "quux": 3})


@pytest.mark.parametrize("devices", [0, -1, "0", "two", [0, 1]])
def test_on_a_cpu_devices_are_a_number_of_processes(devices):
    count = 2 if isinstance(devices, list) else 1
    with pytest.raises(UsageError, match=rf"to be a number of processes, got .*: type trainer.devices={count}$"):
        check_devices("cpu", OmegaConf.create([devices])[0])
    for accepted in (1, 4, "2", "auto"):
        check_devices("cpu", accepted)


def test_gpus_are_those_of_the_machine(monkeypatch):
    monkeypatch.setattr(CUDAAccelerator, "auto_device_count", lambda: 0)
    for accelerator in ("gpu", "cuda"):
        with pytest.raises(UsageError, match=f"={accelerator}, got none: type trainer.accelerator=cpu$"):
            check_devices(accelerator, 1)
    check_devices("auto", 2)
    monkeypatch.setattr(CUDAAccelerator, "auto_device_count", lambda: 2)
    monkeypatch.setattr("lightning_fabric.accelerators.cuda.num_cuda_devices", lambda: 2)
    for devices in (99, 0, [2], "0,5"):
        with pytest.raises(
            UsageError, match=r"to be some of the 2 GPUs of this machine, got .*: type trainer.devices="
        ):
            check_devices("gpu", OmegaConf.create([devices])[0])
    for devices in (1, 2, -1, "auto", [1], "0,1"):
        check_devices("auto", OmegaConf.create([devices])[0])


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("DDPStrategy, start_method: spawn", "got copies of this one, .*: type trainer.strategy=ddp, or"),
        ("DDPStrategy, start_method: fork", "got copies of this one, .*: type trainer.strategy=ddp, or"),
        ("ModelParallelStrategy", "got ModelParallelStrategy: type trainer.strategy=ddp"),
        ("FSDPStrategy", "got FSDPStrategy: type trainer.strategy=ddp"),
    ],
)
def test_strategies_whose_results_or_weights_are_elsewhere_are_usage_errors(trainer, target, said):
    with pytest.raises(UsageError, match=said):
        trainer(f"trainer.strategy={{_target_: pytorch_lightning.strategies.{target}}}")


def test_a_strategy_of_the_user_is_used(trainer):
    own = "trainer.strategy={_target_: pytorch_lightning.strategies.DDPStrategy, find_unused_parameters: true}"
    made = trainer(own, "trainer.devices=2")
    assert (made.world_size, made.strategy._ddp_kwargs["find_unused_parameters"]) == (2, True)


def test_a_notebook_starts_no_processes(trainer, monkeypatch):
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    assert trainer("trainer.strategy=auto").world_size == 1
    with pytest.raises(UsageError, match=r"in a notebook, .*: type trainer.devices=1 trainer.strategy=auto, or"):
        trainer("trainer.strategy=ddp")


def test_a_thread_starts_no_processes(trainer):
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(trainer, "trainer.devices=1").result().world_size == 1
        with pytest.raises(UsageError, match=r"expected the main thread, .*: type trainer.devices=1, or start the run"):
            thread.submit(trainer, "trainer.devices=2").result()


@pytest.mark.parametrize(
    ("monitor", "strict", "said"),
    [
        ("val/svm/loss", True, None),
        (None, True, None),
        ("val/loss", False, None),
        (
            "val/loss",
            True,
            r"got val/loss \(did you mean val/svm/loss\?\): type monitor: val/svm/loss in trainer.callbacks",
        ),
        ("loss_of_mine", True, "got loss_of_mine: type monitor: val/svm/accuracy in trainer.callbacks"),
    ],
)
def test_a_monitor_that_is_not_logged_is_a_usage_error(monitor, strict, said):
    metrics = {"val/svm/accuracy": 0, "val/svm/loss": 0}
    watching = SimpleNamespace(monitor=monitor, strict=strict)
    state = SimpleNamespace(fn=TrainerFn.FITTING)
    fake = SimpleNamespace(callbacks=[watching], callback_metrics=metrics, state=state, sanity_checking=False)
    names = "expected the monitor of SimpleNamespace to be one of val/svm/accuracy, val/svm/loss, "
    with pytest.raises(UsageError, match=names + said) if said else nullcontext():
        MonitorCheck().on_validation_end(fake, SimpleNamespace(trained="svm"))


@pytest.mark.parametrize("monitor", ["epoch", "step"])
def test_a_checkpoint_callback_may_monitor_what_it_counts_itself(monitor, tmp_path):
    state = SimpleNamespace(fn=TrainerFn.FITTING)
    callback = ModelCheckpoint(tmp_path, monitor=monitor, mode="max")
    fake = SimpleNamespace(callbacks=[callback], callback_metrics={}, state=state, sanity_checking=False)
    MonitorCheck().on_validation_end(fake, SimpleNamespace(trained="svm"))


@pytest.mark.parametrize(
    ("name", "value", "advice"),
    [
        ("benchmrk", True, "type ++trainer.benchmark=true"),
        ("max_epoch", 5, "leave out trainer.max_epoch"),  # max_epochs is refused, too
    ],
)
def test_the_advice_for_an_option_works(name, value, advice):
    with pytest.raises(UsageError, match=re.escape(advice) + "$"):
        check_trainer_options({"_target_": "pytorch_lightning.Trainer", name: value})


def test_early_stopping_needs_validations(launch):
    with pytest.raises(UsageError, match=r"after which EarlyStopping may end the training, .*: type val.total=200, or"):
        launch(f"+trainer.callbacks=[{STOPPING}}}]", "val.total=0")


def test_what_lightning_refuses_during_a_run_is_a_usage_error(launch):
    with pytest.raises(UsageError, match=r"Lightning can run, got others \(Field batch_size not found"):
        launch("+trainer.callbacks=[{_target_: pytorch_lightning.callbacks.BatchSizeFinder}]")


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
    assert kinds.index(MonitorCheck) < kinds.index(EarlyStopping)
    assert isinstance(made.checkpoint_callback, Checkpoints)
    assert [type(each) for each in made.loggers] == [CSVLogger]


def test_a_logger_of_the_user_gets_the_results(launch, tmp_path):
    report, _ = launch(
        f"+trainer.logger={{_target_: pytorch_lightning.loggers.CSVLogger, save_dir: {tmp_path / 'csv'}}}"
    )
    (file,) = (tmp_path / "csv").rglob("metrics.csv")
    with file.open() as lines:
        *_, last = csv.DictReader(lines)
    accuracy = report["metrics"]["test/protonet/accuracy"]["mean"]
    assert float(last["test/protonet/accuracy"]) == pytest.approx(accuracy) and last["step"] == "4"


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


def test_a_callback_from_which_lightning_resumes_by_itself_is_refused():
    node = OmegaConf.create({"_target_": "pytorch_lightning.callbacks.OnExceptionCheckpoint", "dirpath": "x"})
    with pytest.raises(UsageError, match=r"resumes also without ckpt, .* type save\.every=10"):
        make_added("callbacks", node, Callback)


@pytest.mark.parametrize(
    ("name", "options", "advice"),
    [
        ("StochasticWeightAveraging", {"swa_lrs": 0.1}, "of epochs, .* pytorch_lightning.callbacks.EMAWeightAveraging"),
        ("GradientAccumulationScheduler", {"scheduling": {0: 2}}, r"with the epoch, .* trainer\.\w+_batches=4$"),
    ],
)
def test_a_callback_that_counts_epochs_is_refused(name, options, advice):
    node = OmegaConf.create({"_target_": f"pytorch_lightning.callbacks.{name}", **options})
    with pytest.raises(UsageError, match=f"expected callbacks other than {name}, which .*{advice}"):
        make_added("callbacks", node, Callback)


def test_an_error_of_a_callback_of_lightning_is_a_usage_error():
    """Only the first validation shows that EarlyStopping monitors what nobody logs."""
    stopping = EarlyStopping("val/nothing")
    message = r"callbacks that work in this run, got .*val/nothing.*correct its options"
    with pytest.raises(UsageError, match=message), suitable_callbacks():
        stopping._validate_condition_metric({"val/protonet/accuracy": torch.tensor(1.0)})
    for other in (
        MisconfigurationException("of the Trainer"),
        RuntimeError("of torch"),
        UsageError("of metafew"),
        KeyError("of a callback of the user's"),
    ):
        with pytest.raises(type(other), match=str(other)), suitable_callbacks():
            raise other


def test_a_profiler_leaves_its_report_in_the_folder_of_the_run(launch):
    _, out = launch("+trainer.profiler=simple")
    assert "FIT Profiler Report" in (out / "fit-profile.txt").read_text(encoding="utf-8")


def test_sanity_steps_are_refused_where_a_validation_comes_first(launch, tmp_path):
    with pytest.raises(UsageError, match=r"got 1: type val\.at_start=false$"):
        launch("val.at_start=true", "+trainer.num_sanity_val_steps=1", out=tmp_path / "both")


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
    weights = state(plain)
    assert all(torch.equal(value, weights[name]) for name, value in state(checked).items())


@pytest.mark.slow
def test_validation_before_the_first_step_is_logged_and_changes_nothing(launch, tmp_path):
    """Only the log has it, also when dropout and the order of tasks draw random numbers, and a resumed run has one."""
    words = ["trainer.log_every_n_steps=1", "head=cnaps", "analyze.every=2", "analyze.tasks=2", "seed=3"]
    plain, without = launch(*words, out=tmp_path / "without")
    report, out = launch(*words, "val.at_start=true", out=tmp_path / "with")
    first, *later = curves(out)
    assert later == curves(without)
    assert first["step"] == -1
    names = {f"val/{name}" for name in ("cnaps/accuracy", "cnaps/loss", "cnaps/failed")}
    assert names <= first.keys() and first.items() != later[0].items()
    assert "val/variance_ratio" not in first and any("val/variance_ratio" in row for row in later)
    assert report["metrics"] == plain["metrics"] and report["validation"] == plain["validation"]
    assert all(torch.equal(value, state(without)[name]) for name, value in state(out).items())
    launch(*words, "val.at_start=true", "trainer.max_steps=6", f"ckpt={out}/checkpoints/last.ckpt", out=out)
    assert [row["step"] for row in curves(out)] == [-1, 0, 1, 1, 2, 3, 3, 4, 5, 5]


def test_the_time_of_the_validation_before_the_first_step_is_known(monkeypatch):
    seconds = iter([10.0, 13.5])
    monkeypatch.setattr("metafew.callbacks.validation_at_start.time.perf_counter", lambda: next(seconds))
    callback, measured = ValidationAtStart(), SimpleNamespace(callback_metrics={}, loggers=[])
    callback.on_sanity_check_start(measured, None)
    callback.on_sanity_check_end(measured, None)
    assert seconds_at_start(SimpleNamespace(callbacks=[Callback(), callback])) == 3.5
    assert seconds_at_start(SimpleNamespace(callbacks=[ValidationAtStart()])) == 0  # of a resumed training


def test_the_learning_rate_the_gradient_and_the_accuracy_of_training_are_logged(launch, tmp_path):
    """With plain gradient descent, the last step is the gradient times the learning rate."""
    words = ["optimizer=plain_sgd", "optimizer.lr=0.5", "schedule=step", "schedule.step_size=1", "norm=none"]
    words += ["trainer.log_every_n_steps=1", "stages=[fit]", "val.total=0", "trainer.gradient_clip_val=1e3"]
    outs = [launch(*words, f"trainer.max_steps={steps}", out=tmp_path / str(steps))[1] for steps in (1, 2)]
    one, two = map(state, outs)
    first, second = curves(outs[1])
    assert first["train/lr"] == 0.5 > second["train/lr"] > 0
    moved = torch.stack([(two[name] - value).norm() for name, value in one.items() if value.is_floating_point()]).norm()
    assert moved.item() / second["train/lr"] == pytest.approx(second["train/gradient_norm"], rel=1e-4)
    queries = 2 * 5 * 2  # tasks, ways, queries of a class
    for row in (first, second):
        assert row["train/accuracy"] * queries == pytest.approx(round(row["train/accuracy"] * queries), abs=1e-4)


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


def test_a_smallest_number_of_steps_only_delays_the_end(launch):
    stopping = f"+trainer.callbacks=[{STOPPING}, patience: 1, min_delta: 1.0}}]"
    report, _ = launch("trainer.max_steps=30", "val.every=1", "+trainer.min_steps=4", stopping)
    assert report["steps"] == 4


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


def test_batch_norms_of_a_network_in_several_processes_warn(caplog):
    def parts(size, norms):
        learner = SimpleNamespace(backbone=SimpleNamespace(couples_tasks=True, norms=norms))
        return SimpleNamespace(trainer=SimpleNamespace(world_size=size), learner=learner)

    warn_of_moments_of_one_process(parts(1, []))
    warn_of_moments_of_one_process(parts(2, [SimpleNamespace(couples_tasks=True)]))
    assert not caplog.text
    warn_of_moments_of_one_process(parts(2, []))
    assert "take their moments from the tasks of one process" in caplog.text
