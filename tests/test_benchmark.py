"""The benchmark: that its rows are there, and that what it compares computes the same."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peak import MEASURABLE

SCRIPTS = Path(__file__).parents[1] / "scripts"
sys.path.insert(0, str(SCRIPTS))

import benchmark  # noqa: E402
from benchmarks import inner, papers, peers, steps  # noqa: E402
from benchmarks.measure import Bench, growth  # noqa: E402
from benchmarks.peers import Found, exact  # noqa: E402
from peers import plain, plain_in_large_pages  # noqa: E402
from peers.metafew import own  # noqa: E402
from peers.problem import Problem, Setting, Step  # noqa: E402

TINY = Setting(
    width=4, size=16, tasks=2, way=3, query=2, inner=2, heads=("svm", "maml"), solver_tasks=2,
    solver_shots=(1, 2), features=6, more_tasks=(1, 2), more_ways=(2,), memory_tasks=(1,),
)  # fmt: skip


FIRST = ("loss", "gradient")


@pytest.fixture(autouse=True)
def memory_as_it_is(monkeypatch):
    """Undo the settings of a benchmark before the next test."""
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")


@pytest.fixture
def doubles():
    torch.set_default_dtype(torch.float64)
    try:
        yield Problem(TINY, torch.device("cpu"), torch.float64)
    finally:
        torch.set_default_dtype(torch.float32)


def measured(tmp_path, *typed, setting=TINY):
    out = tmp_path / "benchmark.json"
    benchmark.main([*typed, "--rounds", "1", "--out", str(out)], setting)
    return json.loads(out.read_text())


def test_help(capsys):
    with pytest.raises(SystemExit) as end:
        benchmark.main(["--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    for section in benchmark.SECTIONS:
        assert f"\n  {section} " in shown
        assert (SCRIPTS / "benchmarks" / f"{section}.py").is_file()


def test_a_word_that_is_no_section(capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["speed"])
    assert "expected sections, got speed: type steps or" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["rounds", "launches"])
def test_numbers_that_are_too_small(capsys, word):
    with pytest.raises(SystemExit):
        benchmark.main([f"--{word}", "0"])
    assert f"expected --{word} to be at least 1, got 0: type --{word} " in capsys.readouterr().err


@pytest.mark.slow
def test_sections(tmp_path):
    report = measured(tmp_path, "steps", "inner", "solvers", "norms", "scaling")
    (rows,) = report["steps"].values()
    assert [*rows][1:] == [f"{head} {norm}" for head in TINY.heads for norm in ("batch", "tasknorm")]
    assert all(row["ms"] > 0 and row["MiB"] >= 0 for row in rows.values())
    assert next(iter(rows.values()))["ratio"] == 1
    (rows,) = report["inner"].values()
    assert len(rows) == 2 and all(row["auto"] == "batch" and row["auto / best"] >= 1 for row in rows.values())
    assert all({"floor", "loop", "batch", "chunk", "vmap"} < set(row) for row in rows.values())
    assert len(report["solvers"]) == 2
    for rows in report["solvers"].values():
        assert set(rows) == {"crammer_singer", "ridge", "logistic"}
        assert rows["crammer_singer"]["KKT residual"] < 1e-8
    (rows,) = report["norms"].values()
    assert {"torch.nn.BatchNorm2d", "tasknorm", "batch"} < set(rows)
    per_task, per_image, memory = report["scaling"].values()
    assert [*per_task] == ["1 tasks", "2 tasks"] and len(per_image) == 4 and [*memory] == ["1 tasks"]


@pytest.mark.slow
def test_steps_in_another_precision_and_heads_without_an_inner_option(tmp_path, monkeypatch):
    monkeypatch.setattr(inner, "NORMS", ("tasknorm",))
    monkeypatch.setattr(steps, "NORMS", ("batch",))
    tiny = replace(TINY, heads=("cnaps", "reptile", "fomaml"))
    report = measured(tmp_path, "inner", "steps", "--bf16", setting=tiny)
    (rows,) = report["inner"].values()
    titles = [*(f"{tiny}, {head} tasknorm" for head in tiny.heads), f"{tiny}, fomaml tasknorm, test"]
    assert [*rows] == [title + end for title in titles for end in ("", ", bf16")]
    assert all({"floor", "loop", "batch"} < row.keys() and row["auto"] == "batch" for row in rows.values())
    (rows,) = report["steps"].values()
    assert len(rows) == 2 * (1 + 3)
    assert all(("bf16 / 32" in row) == name.endswith(", bf16") for name, row in rows.items())


def test_bf16_is_the_precision_of_forward_passes():
    """The loss is rounded to it; gradients are those of the weights, in their own precision."""
    problem = Problem(TINY, torch.device("cpu"))
    exact, rounded = (steps.step(problem, "protonet", "batch", bf16=bf16) for bf16 in (False, True))
    rounded.network.load_state_dict(exact.network.state_dict())
    assert 0 < abs(exact.take() / rounded.take() - 1) < 0.05
    assert all(p.grad.dtype == p.dtype for p in rounded.network.backbone.parameters())


def test_settings_of_papers(tmp_path, capsys, monkeypatch):
    settings = []
    monkeypatch.setattr(peers, "tables_of", lambda bench: settings.append(bench.setting) or {"a table": {}})
    assert [*measured(tmp_path, "peers", "--papers", "20-WAY")["peers"]] == ["Omniglot 20-way, a table"]
    assert [setting.way for setting in settings] == [20]
    assert len(measured(tmp_path, "peers", "--papers")["peers"]) == len(papers.PEERS)
    with pytest.raises(SystemExit):
        benchmark.main(["--papers", "ImageNet-21k"])
    assert "for --papers, got ImageNet-21k: type --papers Omniglot" in capsys.readouterr().err


@pytest.mark.slow
def test_evaluation_measures_the_same_with_cached_features_and_without(tmp_path, monkeypatch):
    monkeypatch.setenv("METAFEW_DATA", str(tmp_path))  # glyphs
    (rows,) = measured(tmp_path, "evaluation")["evaluation"].values()
    cached, embedded, _ = rows.values()
    assert cached["ratio"] == 1 and embedded["seconds"] > 0 and embedded["rows that differ"] == 0


@pytest.mark.slow
def test_peers_that_are_not_installed(tmp_path):
    """One has no environment; the other has one in which it is not installed."""
    (tmp_path / "higher").symlink_to(sys.prefix)
    report = measured(tmp_path, "peers", "--peers", str(tmp_path))
    *algorithms, failed = report["peers"].values()
    svm, maml = algorithms
    assert set(svm) == {"metafew"} and set(maml) == {"metafew", "plain PyTorch", plain_in_large_pages.TITLE}
    # Rounding moves a gradient by any amount where it decides a tie; what is the same, float64 shows below.
    assert all(row[f"{key} off by"] < 0.01 for rows in algorithms for row in rows.values() for key in FIRST)
    assert maml["plain PyTorch"]["gradient off by"] > 0  # its own rounding
    assert "make_peers.py" in failed["qpth"]["note"]
    assert "No module named 'higher'" in failed["higher"]["note"]


@pytest.mark.parametrize("downsample", ["pool", "stride"])
@pytest.mark.parametrize("algorithm", ["maml", "fomaml", "protonet"])
def test_plain_steps_are_ours(doubles, algorithm, downsample):
    """The loss and the meta-gradient of every weight, from the same weights and tasks, with batch norm."""
    doubles = replace(doubles, setting=replace(TINY, downsample=downsample))
    ours, theirs = own(doubles, algorithm), getattr(plain, algorithm)(doubles)
    torch.testing.assert_close(ours.take(), theirs.take(), rtol=1e-10, atol=0)
    grads = [[p.grad for p in step.network.parameters() if p.grad is not None] for step in (ours, theirs)]
    assert len(grads[0]) == 12 + 2 * (algorithm != "protonet")
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-10)


@pytest.mark.slow
def test_the_exact_step_has_the_weights_and_tasks_of_all_others():
    single, double = (Problem(TINY, torch.device("cpu"), dtype) for dtype in (torch.float32, torch.float64))
    for one, other in zip(*(plain.network(each).parameters() for each in (single, double)), strict=True):
        assert other.dtype == torch.float64 and torch.equal(one.double(), other)
    assert torch.equal(single.tasks().query.double(), double.tasks().query)
    found, step = exact(Bench(TINY, 1, double.device)), plain.maml(double)
    assert [*found] == ["maml"]  # the plain loop has no SVM
    wanted = {"loss": step.take().item(), "gradient": step.gradient()}
    assert found["maml"] == pytest.approx(wanted, rel=1e-12)


def test_second_derivatives_are_in_the_plain_loop(doubles):
    maml, fomaml = (make(doubles) for make in (plain.maml, plain.fomaml))
    assert torch.equal(maml.take(), fomaml.take())
    assert abs(maml.gradient() / fomaml.gradient() - 1) > 1e-3


def test_early_pooling_is_the_same_backbone(doubles):
    images = doubles.tasks().query[0]
    late, early = (plain.backbone(doubles, early)(images) for early in (False, True))
    torch.testing.assert_close(early, late)


def test_the_plain_step_of_r2d2_is_ours(doubles):
    setting = Setting(backbone="r2d2", width=3, channels=3, size=16, tasks=2, way=3, query=2, heads=("r2d2",))
    problem = replace(doubles, setting=setting)
    ours, theirs = own(problem, "r2d2"), plain.r2d2(problem)
    torch.testing.assert_close(ours.take(), theirs.take(), rtol=1e-10, atol=0)
    assert ours.gradient() == pytest.approx(theirs.gradient(), rel=1e-7)
    assert [*plain.steps(problem)] == ["r2d2"]


@pytest.mark.parametrize("algorithm", ["maml", "protonet"])
def test_resnet12(doubles, algorithm):
    setting = Setting(backbone="resnet12", width=2, channels=3, size=16, tasks=1, way=2, query=2, inner=1)
    problem = replace(doubles, setting=setting)
    ours, theirs = own(problem, algorithm), getattr(plain, algorithm)(problem)
    torch.testing.assert_close(ours.take(), theirs.take(), rtol=1e-10, atol=0)
    assert ours.gradient() == pytest.approx(theirs.gradient(), rel=1e-7)


def test_a_step_trains(doubles):
    """Steps leave a model that goes on: the loss of the same tasks falls."""
    step = steps.step(doubles, "protonet", "tasknorm")
    assert step.take() > [step.take() for _ in range(20)][-1]


def test_medians_leave_out_the_first_round():
    seconds = iter([100, 100, 1, 10, 3, 10, 2, 10])
    rows = Bench(TINY, 3, torch.device("cpu")).measure("", dict.fromkeys("ab", lambda: next(seconds)))
    assert rows == {"a": {"ms": 2000, "ratio": 1}, "b": {"ms": 10000, "ratio": 5}}


class Twin:
    """A worker that takes a given number of seconds."""

    def __init__(self, title: str, *seconds: float):
        self.title, self.steps, self.left = title, ["maml"], iter(seconds)

    def take(self, step: str) -> dict:
        return {"value": 2.0, "gradient": 1.0}

    def timed(self, step: str):
        return lambda: next(self.left)


def test_launches_count_alike():
    """The rounds of all launches make one median; the first of each launch warms up."""
    found, bench = Found({"loss": 2.0, "gradient": 0.5}), Bench(TINY, 1, torch.device("cpu"))
    for ours, theirs in ((1, 5), (2, 6), (9, 4)):
        found.add(bench, "maml", [Twin("metafew", 100, ours), Twin("plain PyTorch", 100, theirs)])
    same = {"loss off by": 0, "gradient off by": 1}
    assert found.rows() == {
        "metafew": {"ms": 2000, "ratio": 1} | same,
        "plain PyTorch": {"ms": 5000, "ratio": 2.5} | same,
    }


@MEASURABLE
def test_growth_is_the_peak():
    grown = growth(lambda: bytearray(b"1") * 2**25)
    assert 0.9 * 2**25 < grown < 2**26


def test_gradient_norm():
    network = torch.nn.Linear(1, 2, bias=False)
    network.weight.grad = torch.tensor([[3.0], [4.0]])
    assert Step(torch.zeros(()).clone, network).gradient() == 5
