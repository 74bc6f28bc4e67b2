"""Files are written completely or not at all, a full disk is a usage error, and every terminal can be printed to."""

import errno
import io
import logging
import os
import resource
import sys
from functools import partial

import pytest
import torch
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from metafew.callbacks.checkpoints import AtomicCheckpointIO
from metafew.cli import report_error
from metafew.data.formats.names import class_name
from metafew.errors import UsageError
from metafew.io import atomic_write, print_any_character, read_json, write_json
from metafew.training.full_disk import writable


@pytest.fixture
def full(monkeypatch):
    """Make the disk full: what is written fails when it is flushed."""

    def fail(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)


def test_on_a_full_disk_the_checkpoint_of_before_stays_and_nothing_else(tmp_path, full):
    path = tmp_path / "best.ckpt"
    torch.save({"step": 1}, path)
    expected = r"No space left on device: free some space, or type hydra.run.dir=DIR"
    with pytest.raises(UsageError, match=expected), writable(tmp_path):
        AtomicCheckpointIO().save_checkpoint({"step": 2}, path)
    assert os.listdir(tmp_path) == ["best.ckpt"]
    assert torch.load(path) == {"step": 1}


def test_a_checkpoint_that_does_not_fit_is_an_error_of_the_disk_and_not_of_torch(tmp_path):
    """A limit on the size of files takes the place of a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            AtomicCheckpointIO().save_checkpoint({"weight": torch.zeros(100_000)}, tmp_path / "best.ckpt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == []


def test_other_errors_are_not_errors_of_the_disk(tmp_path):
    with pytest.raises(FileNotFoundError), writable(tmp_path):
        (tmp_path / "missing").read_bytes()


def test_a_full_disk_ends_a_run_and_is_its_error(launch, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", "metrics.csv")

    monkeypatch.setattr("metafew.loggers.metrics_file.MetricsFile.log_metrics", fail)
    with pytest.raises(UsageError, match=r"No space left on device \(metrics.csv\): free some space"):
        launch()
    monkeypatch.undo()
    report_error(tmp_path, "no space")
    assert read_json(tmp_path / "results.json") == {"error": "no space"}


def test_an_error_sets_earlier_results_aside_unless_nothing_was_run(tmp_path, capsys):
    earlier = {"metrics": {"test/protonet/accuracy": 1}}
    write_json(tmp_path / "results.json", earlier)
    report_error(tmp_path, "wrong words", refused=True)
    assert read_json(tmp_path / "results.json") == earlier
    for number in (1, 2):
        write_json(tmp_path / "results.json", earlier)
        report_error(tmp_path, "not finite", diverged=True)
        assert read_json(tmp_path / "results.json") == {"error": "not finite", "diverged": True}
        assert read_json(tmp_path / f"results-{number}.json") == earlier
    report_error(tmp_path, "again")
    assert read_json(tmp_path / "results.json") == {"error": "again"} and len(os.listdir(tmp_path)) == 3
    assert capsys.readouterr().err.splitlines()[0] == "metafew: wrong words"


def test_damaged_results_are_set_aside_and_those_of_an_experiment_kept(tmp_path, capsys):
    (tmp_path / "results.json").write_text("{")
    report_error(tmp_path, "an error")
    assert read_json(tmp_path / "results.json") == {"error": "an error"}
    assert (tmp_path / "results-1.json").read_text() == "{"
    write_json(tmp_path / "results.json", {"rows": {}})
    report_error(tmp_path, "wrong words", refused=True)
    assert read_json(tmp_path / "results.json") == {"rows": {}}


def test_errors_after_the_stages_have_begun_are_no_refusals(launch, monkeypatch):
    """Also those that other contexts convert, of a full disk or of Lightning."""
    for error in (OSError(errno.ENOSPC, "No space left on device"), MisconfigurationException("no such thing")):
        monkeypatch.setattr("metafew.training.stages.Trainer.fit", partial(throw, error))
        with pytest.raises(UsageError) as raised:
            launch()
        assert raised.value.in_stages
    with pytest.raises(UsageError, match=r"test\.way=999") as raised:
        launch("test.way=999")
    assert not raised.value.in_stages


def throw(error, *_, **__):
    raise error


def test_an_error_is_printed_even_if_it_cannot_be_written(tmp_path, full, capsys):
    report_error(tmp_path, "no space")
    assert capsys.readouterr().err == "metafew: no space\n"
    assert os.listdir(tmp_path) == []


def test_a_name_in_another_encoding_is_written_as_it_is(tmp_path):
    name = os.fsdecode(b"caf\xe9.jpg")
    with atomic_write(tmp_path / "table.csv") as file:
        file.write(name)
    assert (tmp_path / "table.csv").read_bytes() == b"caf\xe9.jpg"
    with pytest.raises(UsageError, match=r"expected names of classes in UTF-8, got 'caf.*rename the folder"):
        class_name(name)
    assert class_name("cafe\u0301 數") == "caf\u00e9 數"


def test_a_file_is_replaced_or_unchanged(tmp_path):
    path = tmp_path / "file"
    path.write_text("before", encoding="utf-8")
    with pytest.raises(KeyError), atomic_write(path) as file:
        file.write("after")
        raise KeyError
    assert (path.read_text(encoding="utf-8"), os.listdir(tmp_path)) == ("before", ["file"])


@pytest.mark.parametrize(("encoding", "expected"), [("ascii", b"? ??"), ("utf-8", "± é?".encode())])
def test_any_character_is_printed_in_any_encoding(monkeypatch, encoding, expected):
    """The last one stands for a byte of a file name that is no text."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    print_any_character()
    print("± é\udcff", end="", flush=True)
    assert stream.buffer.getvalue() == expected


def test_log_files_are_in_utf_8(tmp_path, monkeypatch):
    handler = logging.FileHandler(tmp_path / "train.log", encoding="ascii")
    monkeypatch.setattr(logging.root, "handlers", [handler])
    print_any_character()
    logging.root.warning("数据 ±")
    handler.close()
    assert (tmp_path / "train.log").read_text(encoding="utf-8") == "数据 ±\n"


def test_a_file_elsewhere_that_cannot_be_read_is_not_blamed_on_the_output_folder(tmp_path):
    for name, said in (("data/images.zip", "images.zip to be accessible"), ("out/results.json", "type hydra.run.dir=")):
        with pytest.raises(UsageError, match=said), writable(tmp_path / "out"):
            raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / name))
