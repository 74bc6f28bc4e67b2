"""Weights & Biases and TensorBoard hold a run: read back from the files that they wrote, without a server."""

import csv
import io
import json
import re
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from metafew.commands import dashboard
from metafew.errors import UsageError
from metafew.loggers import wandb as loggers
from metafew.loggers.wandb import closing

BLOCK, HEADER, COMPLETE = 32768, 7, (1, 4)  # of the log format of LevelDB, in which a .wandb file is written


def records(file):
    """Return what a Weights & Biases run would have sent; its service may write the end after the run is over."""
    for _ in range(100):
        if (found := list(parsed(file.read_bytes()))) and found[-1].HasField("exit"):
            return found
        time.sleep(0.1)
    pytest.fail(f"{file} has no end")


def parsed(content):
    """Yield the complete records of a .wandb file; one that is still being written ends them."""
    from wandb.proto.wandb_internal_pb2 import Record

    assert content[:4] == b":W&B"
    at, whole = HEADER, b""
    while at + HEADER < len(content):
        if BLOCK - at % BLOCK < HEADER:
            at += BLOCK - at % BLOCK
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        if at + HEADER + length > len(content):
            return
        whole += content[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in COMPLETE:
            yield Record.FromString(whole)
            whole = b""


def values(items):
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


class Sent:
    """A Weights & Biases run as it stands on disk."""

    def __init__(self, file):
        self.folder = file.parent / "files"
        self.config, self.summary, self.history, self.artifacts, self.checkpoints = {}, {}, [], {}, {}
        for record in records(file):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                self.run = record.run
            elif kind == "config":
                self.config |= values(record.config.update)
            elif kind == "summary":
                self.summary |= values(record.summary.update)
            elif kind == "history":
                self.history.append(values(record.history.item))
            elif kind == "artifact" and record.artifact.type == "model":
                self.checkpoints |= dict.fromkeys({*record.artifact.aliases} - {"latest"}, record.artifact)
            elif kind == "artifact":
                self.artifacts[record.artifact.type] = record.artifact

    def series(self, name):
        return {row["trainer/global_step"]: row[name] for row in self.history if name in row}


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """Remove the API key: Weights & Biases writes to disk, and does not prompt."""
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def wandb_files(out):
    return sorted(out.glob("wandb/offline-run-*/*.wandb"))


@pytest.mark.slow
@pytest.mark.figures
@pytest.mark.filterwarnings("ignore:codecs.open:DeprecationWarning")  # wandb on Python 3.14
def test_a_run_can_be_read_back_from_both(offline, launch):
    words = ["logger=[wandb,tensorboard]", "trainer.log_every_n_steps=1", "test.shot=[1,2]", "head=svm"]
    report, out = launch(*words, "logger.wandb.checkpoints=[best,last]")
    (file,) = wandb_files(out)
    with (out / "metrics.csv").open() as lines:
        logged = list(csv.DictReader(lines))
    figures = {path.stem for path in out.glob("*.png")}
    assert figures == {"learning_curve", "episode", "alpha"}

    sent = Sent(file)
    assert sent.run.project == "metafew" and sent.run.display_name == "svm-tasknorm_l-conv4-glyphs-seed0"
    tags = ["head=svm", "norm=tasknorm_l", "dataset=glyphs", "backbone=conv4", "objective=episodic"]
    assert list(sent.run.tags) == tags and sent.run.run_group == " ".join(tags)
    assert {key: sent.config[key] for key in report["config"]} == report["config"]
    assert sent.config["choices"] == report["choices"]
    accumulator = EventAccumulator(str(out / "tensorboard"), {"scalars": 0, "images": 0, "tensors": 0})
    accumulator.Reload()
    for name in ("train/loss", "val/svm/accuracy", "val/svm/loss", "alpha/layer1"):
        points = {int(row["step"]): float(row[name]) for row in logged if row[name]}
        assert len(points) == (4 if name == "train/loss" else 2)
        assert sent.series(name) == pytest.approx(points)
        assert {event.step: event.value for event in accumulator.Scalars(name)} == pytest.approx(points)
    for name in ("test/svm/accuracy", "test/svm/loss", "test/svm/shot2/accuracy"):
        measure = report["metrics"][name]
        assert (sent.summary[name], sent.summary[f"{name}_ci95"]) == (measure["mean"], measure["ci95"])
        (scalar,) = accumulator.Scalars(name)
        assert scalar.value == pytest.approx(measure["mean"]) and scalar.step == 4
    assert sent.summary["test/pixels_1nn/accuracy"] == report["baselines"]["pixels_1nn"]["mean"]
    assert sent.summary["val/svm/accuracy_best"] == report["validation"]["val/svm/accuracy"]

    shown = [row for row in sent.history if any(key.startswith("figures/") for key in row)]
    assert {key.split("/")[1] for row in shown for key in row if key.startswith("figures/")} == figures
    for stem in figures:
        (kept,) = (sent.folder / "media" / "images" / "figures").glob(f"{stem}_*.png")
        assert kept.read_bytes() == (out / f"{stem}.png").read_bytes()
        (image,) = accumulator.Images(f"figures/{stem}")
        drawn = Image.open(out / f"{stem}.png")
        again = Image.open(io.BytesIO(image.encoded_image_string))
        assert again.size == drawn.size and again.tobytes() == drawn.convert("RGB").tobytes()
    text = accumulator.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert yaml.safe_load(text) == {"choices": report["choices"], **report["config"]}
    assert "_hparams_/session_start_info" in accumulator.summary_metadata

    (table,) = (sent.folder / "media" / "table").glob("test_tasks_*.table.json")
    table = json.loads(table.read_text())
    assert table["columns"] == ["task", "query", "label", "support", "predicted", "confidence", "support of predicted"]
    assert len(table["data"]) == 3 * 5 * 2  # tasks, ways, queries of a class
    with (out / "tasks.csv").open() as lines:
        rows = [row for row in csv.DictReader(lines) if row["head"] == "svm" and row["shot"] == "1"]
    for task in range(3):
        right = [row[2] == row[4] for row in table["data"] if row[0] == task]
        assert sum(right) / len(right) == pytest.approx(float(rows[task]["accuracy"]))
        assert {row[2] for row in table["data"] if row[0] == task} == set(rows[task]["classes"].split("; "))
    assert all(1 / 5 <= row[5] <= 1 for row in table["data"])
    files = {entry.path: Path(entry.local_path) for entry in sent.artifacts["run_table"].manifest.contents}
    assert all(path.is_relative_to(out) and path.is_file() for path in files.values()), "the run is not in its folder"
    kept = {alias: artifact.manifest.contents[0].local_path for alias, artifact in sent.checkpoints.items()}
    assert kept == {name: str(out / "checkpoints" / f"{name}.ckpt") for name in ("best", "last")}

    # A dashboard shows what is there.
    described = dashboard.describe_report("metafew", "", ["svm"], ["head", "norm"])
    rows = {key for row in sent.history for key in row} | sent.summary.keys()
    there = rows | {name.rpartition("/")[0] for name in rows}  # a figure is several values
    for panel in described["panels"]:
        shown = [*panel.get("y", []), *panel.get("metrics", []), *panel.get("media_keys", [])]
        shown += [panel[name] for name in ("x", "table_name") if name in panel]
        assert set(shown) <= there
        assert any(re.fullmatch(panel.get("metric_regex", ".*"), name) for name in rows)
    for path in described["runs"]["groupby"]:
        assert sent.config["choices"][path.removeprefix("config.choices.")] in ("svm", "tasknorm_l")

    # What goes on in the same folder is the same run, and what starts anew is another.
    launch(*words, "trainer.max_steps=6", f"ckpt={out}/checkpoints/last.ckpt")
    more = Sent(wandb_files(out)[1])
    assert more.run.run_id == sent.run.run_id and list(more.series("train/loss")) == [4, 5]
    assert loggers.newest_id(out) == sent.run.run_id


@pytest.mark.parametrize(
    ("left", "place", "group"),
    [
        ("four/multirun.yaml", "four/0", "outputs-four"),
        ("four/multirun.yaml", "four/deep/er", "outputs-four"),
        ("table/results.json", "table/cells/R2-D2/svm/fit", "outputs-table"),
        ("2026/results.json", "2026/cell", None),
    ],
)
def test_the_cells_of_a_sweep_or_an_experiment_are_one_group(tmp_path, left, place, group):
    folder = tmp_path / "outputs" / place
    folder.mkdir(parents=True)
    (tmp_path / "outputs" / left).write_text("")
    assert loggers.group_of(folder) == group


def test_options_of_wandb_are_used_and_checked(offline, composed):
    from metafew.training.instantiate import make

    cfg, _, _ = composed("logger=wandb", "logger.wandb.group=mine", "logger.wandb.name=first", "head=maml")
    assert make(cfg.logger.wandb)._wandb_init.items() >= {"group": "mine", "name": "first", "mode": "offline"}.items()
    cfg, _, _ = composed("logger=wandb", "logger.wandb.checkpoints=[worst]")
    with pytest.raises(UsageError, match=r"type logger.wandb.checkpoints=\[best,last\]"):
        make(cfg.logger.wandb)


def test_a_run_elsewhere_or_without_a_checkpoint_starts_its_own(tmp_path):
    """A checkpoint of another folder is a start, and one of this folder goes on with its newest run."""
    for name in ("run-20260101_000000-first", "offline-run-20260102_000000-second-try", "latest-run"):
        (tmp_path / "a" / "wandb" / name).mkdir(parents=True)
    own, other = tmp_path / "a" / "checkpoints" / "last.ckpt", tmp_path / "b" / "checkpoints" / "last.ckpt"
    ids = [
        loggers.Wandb("p", "n", None, [], ["best"], ckpt and str(ckpt), str(tmp_path / "a")).version
        for ckpt in (own, other, None)
    ]
    assert ids == ["second-try", None, None]


@pytest.mark.parametrize("before", [None, "the user's own"])
def test_only_a_run_of_wandb_that_started_inside_is_finished(monkeypatch, before):
    package, finished = SimpleNamespace(run=before), []
    package.finish = lambda: finished.append(package.run)
    monkeypatch.setitem(sys.modules, "wandb", package)
    with pytest.raises(UsageError), closing():
        package.run = before or "started inside"
        raise UsageError("an error of the run")
    assert finished == ([] if before else ["started inside"])


def test_a_dashboard_is_described_in_a_file_or_an_error_says_what_is_missing(tmp_path, monkeypatch, capsys):
    file = tmp_path / "deep" / "dashboard.json"
    assert dashboard.main(["project=mine", "entity=me", "heads=svm,maml", "by=norm,dataset", f"out={file}"]) == 0
    described = json.loads(file.read_text())
    assert described == dashboard.describe_report("mine", "me", ["svm", "maml"], ["norm", "dataset"])
    assert described["runs"]["groupby"] == ["config.choices.norm", "config.choices.dataset"]
    assert described["panels"][0]["y"] == ["val/svm/accuracy", "val/maml/accuracy"]
    places = [(panel["layout"]["x"], panel["layout"]["y"]) for panel in described["panels"]]
    assert len(set(places)) == len(places)
    monkeypatch.setattr(dashboard, "find_spec", lambda _: None)
    assert dashboard.main(["project=mine"]) == 2
    monkeypatch.setattr(dashboard, "find_spec", lambda _: True)
    monkeypatch.setattr(loggers, "has_wandb_key", lambda: False)
    assert dashboard.main(["project=mine"]) == 2 == dashboard.main(["runs"])
    missing, key, unknown = capsys.readouterr().err.splitlines()
    assert "type pip install wandb-workspaces" in missing and "type wandb login" in key
    assert "got runs: type project=metafew" in unknown


@pytest.mark.parametrize(
    ("machine", "settings", "found"),
    [
        ("api.new.com", {}, True),
        ("api.wandb.ai", {}, True),  # written by an older version
        ("api.wandb.ai", {"base_url": "https://wandb.corp:8080", "is_local": True}, False),
        ("wandb.corp:8080", {"base_url": "https://wandb.corp:8080", "is_local": True}, True),
        ("elsewhere", {"api_key": "k"}, True),
        ("elsewhere", {}, False),
    ],
)
def test_the_key_is_that_of_the_server_of_wandb(tmp_path, monkeypatch, machine, settings, found):
    (tmp_path / "keys").write_text(f"machine {machine}\n  login user\n  password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "keys"))
    settings = {"base_url": "https://api.new.com", "api_key": None, "is_local": False} | settings
    monkeypatch.setattr("wandb.setup", lambda: SimpleNamespace(settings=SimpleNamespace(**settings)))
    assert loggers.has_wandb_key() == found
