"""Metrics, intervals and baselines of evaluation."""

import csv
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from metafew.callbacks.checkpoints import Checkpoints
from metafew.episode import Episode, Labelled
from metafew.evaluation.baselines import nearest_neighbour
from metafew.evaluation.evaluator import Evaluator
from metafew.evaluation.metrics import PerTask, summary
from metafew.evaluation.results import collect, write_tasks
from metafew.evaluation.results_table import percent, print_results, short
from metafew.evaluation.statistics import interval, ranks, score
from metafew.predictions import NO_ANSWER, answers, probabilities

ONE = torch.ones(())


def episode(index, labels, way=2):
    labels = torch.tensor(labels)
    support = Labelled(torch.zeros(len(labels), way, 1, 2, 2), torch.arange(way).expand(len(labels), -1))
    return Episode(support, Labelled(torch.zeros(*labels.shape, 1, 2, 2), labels), way, torch.tensor(index))


def test_rows_are_exact_and_in_the_order_of_tasks():
    metric = PerTask()
    logits = torch.tensor([[[2.0, 0.0], [0.0, 1.0]], [[0.0, 3.0], [0.0, 0.5]]])
    metric.update(logits, episode([7, 2], [[0, 1], [0, 1]]))
    metric.update(logits[:1], episode([4], [[1, 1]]))
    table = metric.compute()
    assert table[:, 0].tolist() == [2, 4, 7]
    assert table[:, 4].tolist() == [0.5, 0.5, 1.0]
    losses = -logits.double().log_softmax(-1)
    assert table[2, 5].item() == pytest.approx((losses[0, 0, 0] + losses[0, 1, 1]).item() / 2, rel=1e-12)
    assert table[:, 1:4].tolist() == [[0, 2, 1]] * 3


@pytest.mark.parametrize(("count", "student"), [(2, 12.7062), (3, 4.30265), (50, 2.00958), (600, 1.96394)])
def test_interval_is_students_95_percent_interval(count, student):
    values = torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = interval(values.numpy())
    assert found["mean"] == pytest.approx(values.mean().item(), rel=1e-12)
    assert found["ci95"] == pytest.approx(student * values.std().item() / count**0.5, rel=1e-5)
    assert found["tasks"] == count
    assert interval(values[:1].numpy())["ci95"] is None


def test_a_single_task_decides_nothing():
    assert ranks(np.array([[0.1], [0.9]])).tolist() == [1.5, 1.5]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_query_without_finite_logits_is_wrong_and_its_task_fails(bad):
    logits = torch.tensor([[3.0, 0.0], [2.0, 0.0]]).repeat(3, 1, 1)
    logits[1, 0, 0] = bad  # argmax would take NaN and infinity for the first class
    logits[2, :, 1] = bad
    assert answers(logits).tolist() == [[0, 0], [NO_ANSWER, 0], [NO_ANSWER, NO_ANSWER]]
    chances = probabilities(logits)
    assert answers(chances).equal(answers(logits)) and chances[2].isnan().all() and chances[0].sum(-1).allclose(ONE)
    metric = PerTask()
    metric.update(logits, episode([0, 1, 2], [[0, 0]] * 3))
    table = metric.compute()
    columns = dict(zip(PerTask.columns, table.T.tolist(), strict=True))
    assert columns["accuracy"] == [1, 0.5, 0] and columns["failed"] == [0, 1, 1]
    accuracy, loss = summary(table, "accuracy"), summary(table, "loss")
    assert (accuracy["mean"], accuracy["tasks"], accuracy["failed"]) == (0.5, 3, 2)
    report = collect([{"svm": table, "pixels_1nn": table}], [1], ["svm"], ["glyphs"])
    assert report["metrics"]["test/svm/loss"] == {"mean": None, "ci95": None, "tasks": 3, "failed": 2} != loss
    assert report["baselines"]["pixels_1nn"] == report["metrics"]["test/svm/accuracy"] == accuracy


def test_the_best_step_has_the_fewest_failures():
    metric = PerTask()
    metric.update(torch.eye(2).expand(10, 2, 2), episode([*range(10)], [[0, 1]] * 10))
    whole = metric.compute()
    partly = whole.clone()
    partly[:5, PerTask.columns.index("accuracy")] = 0.5
    whole[0, PerTask.columns.index("failed")] = 1
    report = collect([{"maml": whole, "maml/step1": whole, "maml/step2": partly}], [1], ["maml"], ["glyphs"])
    (best,) = (value for name, value in report["metrics"].items() if "step" in value)
    assert best["step"] == 2 and best["failed"] == 0 and best["mean"] < 1


def test_tables_and_tasks_show_failures(tmp_path):
    metric = PerTask()
    metric.update(torch.full((1, 2, 2), torch.nan), episode([0], [[0, 1]]))
    metric.update(torch.eye(2).expand(1, 2, 2), episode([1], [[0, 1]]))
    table, names = metric.compute(), [["a", "b"], ["c", "a/d"]]
    write_tasks(tmp_path / "tasks.csv", [{"svm": table, "ridge": table}], ["glyphs"], names.__getitem__)
    rows = list(csv.DictReader((tmp_path / "tasks.csv").read_text().splitlines()))
    assert [(row["accuracy"], row["failed"]) for row in rows] == 2 * [("0.0", "1"), ("1.0", "0")]
    assert [(row["head"], row["classes"]) for row in rows] == [
        ("svm", "a; b"), ("svm", "c; a/d"), ("ridge", ""), ("ridge", "")
    ]  # fmt: skip
    shown = summary(metric.compute(), "accuracy") | {"ci95": 0.1234}
    assert percent(shown) == "50.00 ± 12.34 % (1 failed)" and short(shown) == "50.0±12.3 (1 failed)"
    assert short({"mean": 0.87594, "ci95": 0.01296, "failed": 0}) == "87.6±1.3"


def test_results_call_own_data_by_their_name(capsys):
    report = {"choices": {"head": "svm", "dataset": "folder"}, "sources": {"my birds": True}, "metrics": {}}
    report |= {"baselines": {}, "chosen": {}, "heads": {}, "transductive": False, "balance": "balanced"}
    print_results(report | {"tested_on": {"my birds": {"classes": 5, "images": 60}}})
    assert "dataset=my birds" in " ".join(capsys.readouterr().out.split())


def test_the_fewest_failures_come_first():
    found = [(0.99, 1), (0.0, 0), (0.1, 0), (0.999, 600), (0.5, 2)]
    assert sorted(found, key=lambda each: score(*each)) == [(0.999, 600), (0.5, 2), (0.99, 1), (0.0, 0), (0.1, 0)]


def test_a_validation_with_failures_is_the_best_only_until_one_has_fewer(tmp_path):
    best, kept = Checkpoints(tmp_path, "svm", 1, False), []
    for accuracy, failed in [(0.9, 2), (0.95, 3), (0.95, 2), (0.1, 0), (0.9, 1), (0.1, 0), (0.2, 0)]:
        trainer = SimpleNamespace(callback_metrics={"val/svm/failed": torch.tensor(float(failed))})
        if best.check_monitor_top_k(trainer, torch.tensor(accuracy)):
            best.best_model_score = torch.tensor(accuracy)  # as Lightning does
            kept.append((accuracy, best.state_dict()["failed"]))
        if len(kept) == 1:
            after_one = best.state_dict()
    assert kept == [(0.9, 2), (0.95, 2), (0.1, 0), (0.2, 0)]
    (best.folder / "best.ckpt").parent.mkdir(exist_ok=True)
    (best.folder / "best.ckpt").touch()
    resumed = Checkpoints(tmp_path, "svm", 1, False)
    resumed.load_state_dict(after_one)
    trainer = SimpleNamespace(callback_metrics={"val/svm/failed": torch.tensor(1.0)})
    assert resumed.failed == 2 and resumed.check_monitor_top_k(trainer, torch.tensor(0.1)), "with fewer failed tasks"


def test_a_candidate_with_failures_is_chosen_only_if_all_have_some(caplog):
    head = SimpleNamespace(candidates={"a": {"lr": 9.0}, "b": {"lr": 0.1}}, chosen=None)
    learner = SimpleNamespace(heads={"maml": head}, _extras=lambda head: ["a", "b"], temperatures={})
    learner.validation = {"maml/a": {"accuracy": 0.9, "failed": 2}, "maml/b": {"accuracy": 0.2, "failed": 0}}
    assert Evaluator.choose(learner)["maml"] == {"lr": 0.1, "validation_accuracy": 0.2, "validation_failed": 0}
    assert head.chosen == "b" and not caplog.records
    learner.validation["maml/b"]["failed"] = 3
    assert Evaluator.choose(learner)["maml"]["lr"] == 9.0 and head.chosen == "a"
    assert "all 2 candidates of head=maml" in caplog.text and "(2 failed)" in caplog.text


def test_baseline_labels_by_the_nearest_support_image():
    support = Labelled(torch.tensor([0.0, 1.0, 5.0, 9.0]).view(1, 4, 1, 1, 1), torch.tensor([[0, 0, 1, 2]]))
    query = torch.tensor([0.9, 4.0, 8.0]).view(1, 3, 1, 1, 1)
    logits = nearest_neighbour(support, query, 3)
    assert logits.argmax(-1).tolist() == [[0, 1, 2]]
    torch.testing.assert_close(logits[0, 0], torch.tensor([-0.1, -4.1, -8.1]), rtol=1e-5, atol=1e-5)


def test_an_offset_of_all_vectors_does_not_change_the_baseline():
    torch.manual_seed(0)
    support, query = torch.randn(1, 30, 8, 1, 1), torch.randn(1, 40, 8, 1, 1)
    labels = torch.arange(5).repeat(1, 6)
    alone = nearest_neighbour(Labelled(support, labels), query, 5)
    moved = nearest_neighbour(Labelled(support + 1024, labels), query + 1024, 5)
    torch.testing.assert_close(moved, alone, rtol=1e-3, atol=1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nearest_neighbour(Labelled(support, labels), query, 5), alone)
