"""Figures of a comparison of runs: they show the measurements, and are left out without data."""

import json
from itertools import pairwise

import numpy as np
import pytest
from run_folders import accuracies, comparison_of, finished, legend, trained
from scipy import stats

from metafew.analysis import style
from metafew.analysis.compare import comparison_plots
from metafew.analysis.compare.find import find_runs
from metafew.commands import report


def test_a_line_over_shots_holds_the_tests_of_a_list_and_of_separate_runs(tmp_path):
    shots = [1, 2, 5]
    values = {norm: [accuracies(i + 10 * j, 0.1 * i) for i in range(3)] for j, norm in enumerate(("tasknorm", "batch"))}
    names = ["protonet", "protonet/shot2", "protonet/shot5"]
    finished(tmp_path / "list", dict(zip(names, values["tasknorm"], strict=True)), config={"test.shot": shots})
    for shot, each in zip(shots, values["batch"], strict=True):
        finished(tmp_path / str(shot), each, norm="batch", config={"test.shot": shot})
    finished(tmp_path / "one shot", accuracies(9), norm="layer")
    figure = comparison_plots.accuracy_over_shots(comparison_of(tmp_path))
    (axes,) = figure.axes
    assert set(legend(figure)) == {"norm=tasknorm", "norm=batch"}
    for container in axes.containers:
        data, _, (bars,) = container.lines
        each = values[container.get_label().removeprefix("norm=")]
        assert np.round(data.get_xdata()).tolist() == shots
        assert data.get_ydata() == pytest.approx([100 * value.mean() for value in each])
        spread = [100 * stats.t.ppf(0.975, len(value) - 1) * stats.sem(value) for value in each]
        assert [np.ptp(segment[:, 1]) / 2 for segment in bars.get_segments()] == pytest.approx(spread)
    apart = [container.lines[0].get_xdata()[0] for container in axes.containers]
    assert apart[0] != apart[1], "one interval hides the other"


def test_accuracy_over_shots_has_a_panel_for_each_head(tmp_path):
    heads = ["protonet", "svm", "ridge", "cosine", "logistic"]
    for number, norm in enumerate(("tasknorm", "batch")):
        names = {name: accuracies(number + i) for i, head in enumerate(heads) for name in (head, f"{head}/shot5")}
        finished(tmp_path / norm, names, norm=norm, config={"test.shot": [1, 5]})
    figure = comparison_plots.accuracy_over_shots(comparison_of(tmp_path))
    assert [axes.get_title() for axes in figure.axes] == heads
    assert legend(figure) == ["norm=batch", "norm=tasknorm"]
    for i, axes in enumerate(figure.axes):
        means = [container.lines[0].get_ydata()[0] for container in axes.containers]
        assert means == pytest.approx([100 * accuracies(number + i).mean() for number in (1, 0)])
        assert [line.get_color() for line in axes.lines] == [line.get_color() for line in figure.axes[0].lines]


def test_bars_stand_for_the_modes_of_test_queries(tmp_path):
    values = {"together": accuracies(0), "single": accuracies(1, -0.3), "class": accuracies(2, -0.4)}
    for norm, lift in (("transductive", 0.0), ("batch", 0.1)):
        for mode, each in values.items():
            config = {"test.queries": mode, "ckpt.": None}
            finished(tmp_path / f"{norm}-{mode}", each + lift, norm=norm, config=config)
    trained(tmp_path / "never asked otherwise", [0.5], norm="layer")
    figure = comparison_plots.queries_at_once(comparison_of(tmp_path))
    (axes,) = figure.axes
    assert legend(figure) == [comparison_plots.MODES[mode] for mode in values]
    under = [tick.get_text().strip("\N{NO-BREAK SPACE}†") for tick in axes.get_xticklabels()]
    assert sorted(under) == ["norm=batch", "norm=transductive"]
    shown = [container for container in axes.containers if hasattr(container, "patches")]
    for container, each in zip(shown, values.values(), strict=True):
        for bar, place in zip(container.patches, under, strict=True):
            assert bar.get_height() == pytest.approx(100 * (each + 0.1 * (place == "norm=batch")).mean())
            assert round(bar.get_x() + bar.get_width() / 2) == under.index(place)


def test_modes_are_compared_from_one_checkpoint_where_there_are_several(tmp_path):
    for mode, start, lift in (("together", None, 0.2), ("together", "a.ckpt", 0.0), ("single", "a.ckpt", -0.1)):
        folder = tmp_path / f"{mode} {start}"
        whole = finished(folder, accuracies(0, lift), config={"test.queries": mode})
        whole["config"]["ckpt"] = start
        (folder / "results.json").write_text(json.dumps(whole))
    (axes,) = comparison_plots.queries_at_once(comparison_of(tmp_path)).axes
    heights = [container.patches[0].get_height() for container in axes.containers if hasattr(container, "patches")]
    assert heights == pytest.approx([100 * accuracies(0).mean(), 100 * accuracies(0, -0.1).mean()])


def test_figures_are_drawn_only_if_the_runs_have_the_data(tmp_path):
    finished(tmp_path / "a" / "0", accuracies(0))
    trained(tmp_path / "a" / "1", [0.3], norm="batch")  # a single training
    table = comparison_of(tmp_path / "a")
    assert comparison_plots.draw_comparison(table, [run for row in table.rows for run in row.runs], tmp_path) == (
        {},
        [],
    )
    trained(tmp_path / "a" / "2", [0.3, 0.4], norm="layer")
    out = tmp_path / "out"
    assert report.main([str(tmp_path / "a"), f"out={out}"]) == 0
    tables = {"table.md", "table.tex", "table.csv", "runs.csv", "index.html"}
    assert {file.name for file in out.iterdir()} - tables == {"learning_curves.png", "learning_curves.svg"}
    assert '<img alt="learning curves" src="data:image/png;base64,' in (out / "index.html").read_text()
    assert "<svg" in (out / "learning_curves.svg").read_text()


def test_trainings_from_other_weights_and_tests_of_other_checkpoints_have_lines_of_their_own(tmp_path):
    for name in ("a", "b"):
        trained(tmp_path / "fit" / name, [0.3, 0.4], config={"backbone.weights": f"runs/{name}.ckpt"})
    folders = comparison_plots.training_folders(comparison_of(tmp_path / "fit"))
    assert folders == {f"backbone.weights=runs/{name}.ckpt": [tmp_path / "fit" / name] for name in ("a", "b")}
    for rate in (0.1, 0.2):
        for name in ("a", "b"):
            config = {"backbone.weights": f"runs/{name}.ckpt", "optimizer.lr": rate}
            trained(tmp_path / "rates" / f"{name}{rate}", [0.3], config=config)
    assert len(comparison_plots.learning_rate_folders(comparison_of(tmp_path / "rates"))) == 2
    for number, name in enumerate(("best", "last")):
        values = {"protonet": accuracies(number), "protonet/shot5": accuracies(9, 0.1)}
        config = {"test.shot": [1, 5], "ckpt.": None}
        finished(tmp_path / "test" / name, values, config=config)
        whole = json.loads((tmp_path / "test" / name / "results.json").read_text())
        whole["config"]["ckpt"] = f"/fit/{name}.ckpt"
        (tmp_path / "test" / name / "results.json").write_text(json.dumps(whole))
    figure = comparison_plots.accuracy_over_shots(comparison_of(tmp_path / "test"))
    assert len(set(legend(figure))) == 2 == len({line.get_color() for line in figure.axes[0].lines})


def test_analyzed_runs_of_two_datasets_are_not_pooled(tmp_path):
    for number, (head, dataset) in enumerate((h, d) for h in ("maml", "fomaml") for d in ("omniglot", "glyphs")):
        queries = {"test.query": 7 if dataset == "glyphs" else 15}  # the defaults
        finished(tmp_path / str(number), accuracies(0), head=head, dataset=dataset, config=queries)
        (tmp_path / str(number) / "analysis.json").write_text('{"distances": [1.0]}')
    runs, _ = find_runs([str(tmp_path)])
    folders = comparison_plots.analysis_folders(runs, "distances")
    labels = {f"head={head} dataset={dataset}" for head in ("maml", "fomaml") for dataset in ("omniglot", "glyphs")}
    assert folders.keys() == labels and all(len(each) == 1 for each in folders.values())
    of_one = comparison_plots.analysis_folders([run for run in runs if run.dataset == "glyphs"], "distances")
    assert of_one.keys() == {"head=maml", "head=fomaml"}
    of_one = comparison_plots.analysis_folders([run for run in runs if run.heads[0] == "maml"], "distances")
    assert of_one.keys() == {"dataset=omniglot", "dataset=glyphs"}


def test_lines_differ_in_more_than_their_colour():
    looks = [style.look(number) for number in range(28)]
    assert len({(look["color"], look["linestyle"]) for look in looks}) == 28
    assert all(a["linestyle"] != b["linestyle"] and a["marker"] != b["marker"] for a, b in pairwise(looks))
