"""Two processes do what one does."""

import csv
import json

import pytest
import torch
from conftest import TINY
from test_cli import metafew

from metafew import checkpoint

MIXTURE = ["dataset=mixture", "dataset.sources=[glyphs,{dataset:glyphs,name:b}]", "val.tasks=1", "test.tasks=1"]
MIXTURE += [f"{split}.{word}" for split in ("train", "val", "test") for word in ("way=2..4", "support=12")]


@pytest.mark.parametrize(
    ("head", "norm", "regularizer", "more"),
    [
        ("svm", "tasknorm", "none", MIXTURE),
        ("maml", "batch", "none", []),
        ("svm", "batch_shared", "none", []),
        ("reptile", "transductive", "weight_clustering", []),
    ],
)
def test_two_processes_equal_one(launch, tmp_path, head, norm, regularizer, more):
    words = [
        *more,
        f"head={head}",
        f"norm={norm}",
        f"regularizer={regularizer}",
        "evaluate=[protonet]",
        "train.tasks=4",
        "trainer.precision=64-true",
    ]
    words += ["test.total=5", "trainer.max_steps=3", "trainer.log_every_n_steps=1"]
    launch(*words, out=tmp_path / "one")
    metafew(*TINY, *words, "hydra.run.dir=two", "trainer.devices=2", "trainer.strategy=ddp", cwd=tmp_path)
    one, two = (checkpoint.read(tmp_path / f"{run}/checkpoints/last.ckpt")["state_dict"] for run in ("one", "two"))
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=1e-9, atol=1e-9, msg=key)
    tables = []
    for run in ("one", "two"):
        with (tmp_path / run / "tasks.csv").open() as file:
            tables.append([(r["index"], r["head"], r["accuracy"]) for r in csv.DictReader(file)])
    assert tables[0] == tables[1] and len(tables[0]) == 15
    first, second = (json.loads((tmp_path / run / "results.json").read_text()) for run in ("one", "two"))
    loss = f"test/{head}/loss"
    assert first["metrics"][loss]["mean"] == pytest.approx(second["metrics"][loss]["mean"])


def test_tasks_that_cannot_be_shared_are_a_sentence(tmp_path):
    words = [*TINY, "train.tasks=3", "trainer.devices=2", "trainer.strategy=ddp", "hydra.run.dir=out"]
    done = metafew(*words, cwd=tmp_path, code=2)
    assert "type train.tasks=4" in done.stderr and "Traceback" not in done.stderr
