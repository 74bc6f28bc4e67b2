"""The output folder belongs to one run: claimed before anything is written, whatever else starts in that second."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hydra.core.utils import setup_globals
from omegaconf import OmegaConf
from runs import metafew, state

from metafew.distributed.output_folder import claim, named_by_clock
from metafew.errors import UsageError
from metafew.training import resume


def test_of_many_that_claim_a_name_from_the_clock_each_gets_its_own(tmp_path):
    folder = tmp_path / "outputs" / "12-00-00"
    with ThreadPoolExecutor(8) as pool:
        claimed = list(pool.map(lambda _: claim("hydra.run.dir", folder, by_clock=True), range(24)))
    assert sorted(path.name for path in claimed) == sorted(
        ["12-00-00", *(f"12-00-00-{number}" for number in range(1, 24))]
    )


def test_a_folder_that_the_user_names_is_used_again(tmp_path):
    for _ in range(2):
        assert claim("hydra.run.dir", tmp_path / "mine", by_clock=False) == tmp_path / "mine"
    assert os.listdir(tmp_path) == ["mine"]


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("outputs/${now:%H-%M-%S}", True),
        ("${place}/${job}", True),
        ("outputs/mine", False),
        ("outputs/${job}", False),
        ("outputs/12-00-00", False),
    ],
)
def test_only_a_name_that_depends_on_the_clock_is_from_the_clock(folder, expected):
    setup_globals()
    config = {"place": "outputs/${now:%H}", "job": "train", "started": "${now:%S}", "hydra": {"run": {"dir": folder}}}
    config = OmegaConf.create(config)
    assert config.started.isdecimal()  # another option that depends on it
    assert named_by_clock(config, "hydra.run.dir") == expected


@pytest.mark.parametrize("words", [[], ["-m", "seed=0,1"], ["--cfg", "job"]])
def test_without_a_folder_there_is_nothing_to_go_on_with(tmp_path, words):
    done = metafew(*words, "ckpt=last", cwd=tmp_path, code=2)
    key = "hydra.sweep.dir" if "-m" in words else "hydra.run.dir"
    assert done.stderr.startswith(
        f"metafew: expected {key}, the folder in which ckpt=last resumes a training, got none"
    )
    assert not os.listdir(tmp_path)


def test_a_job_that_slurm_starts_again_is_warned_of_a_new_folder(tmp_path):
    env = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1"}
    words = ["dataset=folder", "dataset.root=missing"]  # ends before it reads images
    message = "SLURM started this job again, and its training starts anew, as hydra.run.dir is named after the time"
    assert message in metafew(*words, cwd=tmp_path, env=env, code=2).stderr
    assert message not in metafew(*words, "hydra.run.dir=7", cwd=tmp_path, env=env, code=2).stderr


@pytest.mark.parametrize("by_clock", [True, False])
@pytest.mark.parametrize("place", ["file/run", "file/date/run"])
def test_a_folder_that_cannot_be_created_is_a_usage_error(tmp_path, place, by_clock):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"expected hydra.run.dir to be a folder .*: type hydra.run.dir=DIR$"):
        claim("hydra.run.dir", tmp_path / place, by_clock)


def test_a_folder_that_cannot_be_written_to_is_a_usage_error(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)  # root may write anywhere
    with pytest.raises(UsageError, match=r"\(nothing can be written to it\)"):
        claim("hydra.run.dir", tmp_path, by_clock=False)


CLOCK = ["hydra.run.dir=outputs/${now:%Y}", "hydra.sweep.dir=multirun/${now:%Y}"]


@pytest.mark.slow
def test_runs_and_sweeps_of_one_moment_have_folders_of_their_own(tmp_path):
    """Every run ends with an error before it reads images."""
    for _ in range(2):
        metafew(*CLOCK, "dataset=folder", "dataset.root=missing", cwd=tmp_path, code=2)
        metafew("-m", *CLOCK, "dataset=folder", "dataset.root=missing,absent", cwd=tmp_path, code=1)
    found = sorted(str(path.parent.relative_to(tmp_path)) for path in tmp_path.rglob("results.json"))
    year = next((tmp_path / "outputs").iterdir()).name[:4]
    sweeps = [f"multirun/{name}/{number}" for name in (year, f"{year}-1") for number in range(2)]
    assert found == sorted([*sweeps, f"outputs/{year}", f"outputs/{year}-1"])


@pytest.mark.parametrize(("words", "key"), [([], "run"), (["-m", "seed=0,1"], "sweep")])
def test_where_nothing_can_be_written_a_run_ends_with_one_line(tmp_path, words, key):
    (tmp_path / "file").touch()
    done = metafew(*words, f"hydra.{key}.dir=file/run", cwd=tmp_path, code=2)
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"metafew: expected hydra.{key}.dir to be a folder that can be created")


def checkpoint(folder, name, step):
    """Write a checkpoint with no more than its step, and return its path."""
    path = folder / "checkpoints" / f"{name}.ckpt"
    path.parent.mkdir(parents=True, exist_ok=True)
    saved = {"model": {"backbone": {"_target_": "Own"}}, "choices": {}}
    torch.save({"metafew": saved, "state_dict": {}, "global_step": step}, path)
    return path


def steps(folder, checkpoints="checkpoints"):
    """Return the step of each checkpoint of a run."""
    return {path.stem: torch.load(path)["global_step"] for path in sorted((folder / checkpoints).glob("*.ckpt"))}


def test_a_new_training_sets_aside_the_checkpoints_of_another(tmp_path, caplog):
    for step in (10, 20):
        for name in ("analysis.json", "alpha.png", "mine.png"):
            (tmp_path / name).write_text(str(step))
        checkpoint(tmp_path, "best", step)
        checkpoint(tmp_path, "step-000010", 10)
        resume.take_over(tmp_path, None)
    assert steps(tmp_path, "checkpoints-1") == {"best": 10, "step-000010": 10}
    assert steps(tmp_path, "checkpoints-2") == {"best": 20, "step-000010": 10}
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoints-1", "checkpoints-2", "mine.png"}
    assert (tmp_path / "checkpoints-2" / "analysis.json").read_text() == "20"
    assert caplog.messages[1].endswith(
        f"contained checkpoints of another training, which are now in {tmp_path / 'checkpoints-2'}"
    )


def test_an_unused_folder_stays_as_it_is(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    resume.take_over(tmp_path, None)
    assert os.listdir(tmp_path) == ["checkpoints"]


@pytest.mark.parametrize(("last", "expected"), [(30, {"best": 20, "last": 30}), (10, {"last": 10})])
@pytest.mark.parametrize("own", [True, False])
def test_a_resumed_training_keeps_its_best_checkpoint_and_none_of_later_steps(tmp_path, own, last, expected):
    before, out = tmp_path / "before", tmp_path / ("before" if own else "out")
    checkpoint(out, "best", 1)
    checkpoint(before, "best", 20)
    resume.take_over(out, checkpoint(before, "last", last), last)
    assert steps(out) == expected
    assert own or steps(out, "checkpoints-1") == {"best": 1}


@pytest.mark.parametrize("words", [[], ["ckpt=before/checkpoints/last.ckpt", "seed=3"]], ids=["new", "from weights"])
def test_a_run_without_validation_tests_its_own_weights_in_any_folder(launch, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    validated, used = launch("seed=1", "trainer.max_steps=2", out=tmp_path / "used")
    launch("seed=2", "trainer.max_steps=2", out=tmp_path / "before")
    words = [*(words or ["seed=3"]), "trainer.max_steps=2", "val.total=0"]
    fresh, out = launch(*words, out=tmp_path / "fresh")
    again, _ = launch(*words, out=used)
    assert again["metrics"] == fresh["metrics"] != validated["metrics"]
    assert (again["select"], again["validation"]) == ("last", {})
    for name in ("best", "last"):
        weights = state(out, name)
        assert all(torch.equal(value, weights[key]) for key, value in state(used, name).items())


@pytest.mark.slow
@pytest.mark.parametrize("subdir", [".hydra", "null"])
def test_failed_cells_are_reported_without_the_folder_of_hydra_too(tmp_path, subdir):
    words = [
        "-m",
        f"hydra.output_subdir={subdir}",
        "hydra.sweep.dir=s",
        "dataset=folder",
        "dataset.root=missing,absent",
    ]
    done = metafew(*words, cwd=tmp_path, code=1)
    assert "2 of 2 runs failed:" in done.stderr
    done = metafew(*words, cwd=tmp_path, code=1)  # the same sweep again
    assert "2 of 2 runs failed:" in done.stderr
