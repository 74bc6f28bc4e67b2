"""Temperatures fitted on validation tasks, and calibration errors with and without them."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, local
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from contracts.objectives import Smooth, make_episode
from torchmetrics.functional.classification import multiclass_calibration_error

from metafew.evaluation import calibration
from metafew.evaluation.calibration import HIGHEST, CalibrationError, ValidationLogits, fit_temperatures
from metafew.evaluation.evaluator import Evaluator
from metafew.heads.protonet import ProtoNet


def queries(way, count, temperature, seed=0):
    """Return logits ``(1, q, w)`` whose softmax, divided by ``temperature``, is the distribution of the labels."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(count, way, generator=generator)
    labels = torch.multinomial(logits.softmax(-1), 1, generator=generator).T
    return temperature * logits[None], labels


def fitted(*batches):
    logits = ValidationLogits()
    for batch in batches:
        logits.update(*batch)
    return fit_temperatures({"head": logits}).get("head")


@pytest.mark.parametrize("temperature", [0.2, 1.0, 7.0])
def test_the_temperature_minimizes_the_cross_entropy_over_tasks_of_any_way(temperature):
    batches = [queries(5, 4000, temperature), queries(3, 2000, temperature, seed=1)]
    found = fitted(*batches)
    assert found == pytest.approx(temperature, rel=0.1)
    inverse = torch.tensor(1 / found, dtype=torch.float64, requires_grad=True)
    sum(F.cross_entropy(inverse * z[0].double(), y[0], reduction="sum") for z, y in batches).backward()
    assert abs(inverse.grad.item()) < 1e-3 * sum(z.shape[1] for z, _ in batches) * found


def test_the_temperature_has_bounds_and_leaves_unanswered_queries_out():
    logits, labels = queries(4, 500, 3.0)
    bad = logits.clone()
    bad[0, :, 1] = torch.nan
    bad[0, ::2, 1] = torch.inf
    assert fitted((logits, labels), (bad, labels)) == fitted((logits, labels))
    assert fitted((bad, labels)) is None and fitted() is None
    assert fitted((logits, logits.argmax(-1))) == pytest.approx(1 / HIGHEST, rel=5e-4)
    assert fitted((logits, logits.argmin(-1))) == pytest.approx(HIGHEST, rel=5e-4)


def test_probabilities_in_figures_are_those_of_the_divided_logits():
    episode, backbone = make_episode(), Smooth().double()
    evaluator = Evaluator(backbone, {"protonet": ProtoNet()}, "together")
    evaluator.temperatures = {"protonet": 2.0, "svm": 9.0}
    found = evaluator.predict(episode)
    logits = ProtoNet()(backbone, episode.support, episode.query.images, episode.way)
    torch.testing.assert_close(found, (logits / 2).softmax(-1))
    assert (found - logits.softmax(-1)).abs().max() > 1e-3


def test_all_heads_share_the_gathers_of_a_fit(monkeypatch):
    logits = {name: ValidationLogits() for name in ("sharp", "flat", "unused")}
    batches = {"sharp": queries(5, 300, 0.5), "flat": queries(3, 200, 4.0)}
    for name, batch in batches.items():
        logits[name].update(*batch)
    gathered = []
    monkeypatch.setattr(calibration, "gather_objects", lambda value: gathered.append(value) or [value])
    assert fit_temperatures(logits) == {name: fitted(batch) for name, batch in batches.items()}
    assert len(gathered) == 3 * (1 + calibration.HALVINGS)  # with the two fits of single heads


def test_ranks_fit_one_temperature_to_the_queries_of_all(monkeypatch):
    parts = [queries(5, 300, 0.5), queries(5, 200, 4.0, seed=1)]
    together = fitted(*parts)
    values, barrier, rank = [None, None], Barrier(2, timeout=60), local()

    def gather(value):
        values[rank.number] = value
        barrier.wait()
        found = list(values)
        barrier.wait()
        return found

    def fit(number):
        rank.number = number
        return fitted(parts[number])

    monkeypatch.setattr(calibration, "gather_objects", gather)
    with ThreadPoolExecutor(2) as ranks:
        first, second = ranks.map(fit, range(2))
    assert first == second == pytest.approx(together, rel=1e-5)


@pytest.mark.parametrize("way", [2, 5])
def test_the_calibration_error_is_that_of_torchmetrics(way):
    logits, labels = queries(way, 700, 6.0)
    metric = CalibrationError(6.0)
    for part in (slice(0, 300), slice(300, None)):
        metric.update(logits[:, part], labels[:, part])
    bad = torch.full((1, 20, way), torch.nan)
    metric.update(bad, labels[:, :20])
    expected = [
        multiclass_calibration_error((logits[0].double() / t).softmax(-1), labels[0], way, calibration.BINS).item()
        for t in (1.0, 6.0)
    ]
    found = metric.summary()
    assert list(found.values()) == pytest.approx([6.0, *expected], rel=1e-5)
    assert found["ece_before"] > 2 * found["ece_after"]


def test_without_a_temperature_or_queries_there_is_no_calibrated_error():
    metric, (logits, labels) = CalibrationError(None), queries(3, 50, 1.0)
    metric.update(torch.full_like(logits, torch.nan), labels)
    assert metric.summary() == {"temperature": None, "ece_before": None, "ece_after": None}
    metric.update(logits, labels)
    assert metric.summary()["ece_before"] > 0 and metric.summary()["ece_after"] is None


def test_a_selected_candidate_brings_its_temperature():
    head = SimpleNamespace(candidates={"slow": {"lr": 0.1}, "fast": {"lr": 1.0}}, chosen=None)
    found = {"maml/slow": {"accuracy": 0.5, "failed": 0}, "maml/fast": {"accuracy": 0.7, "failed": 0}}
    learner = SimpleNamespace(
        heads={"maml": head},
        validation=found,
        temperatures={"maml": 1.0, "maml/slow": 2.0, "maml/fast": 3.0},
        _extras=lambda head: list(head.candidates),
    )
    assert Evaluator.choose(learner)["maml"]["lr"] == 1.0 and learner.temperatures["maml"] == 3.0
