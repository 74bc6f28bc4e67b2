"""Figures of the features and trainings of several runs: they show the content of the runs' files."""

import csv
import json
import os

import numpy as np
import pytest
from run_folders import NAMES, accuracies, analyzed, finished, legend, trained

from metafew.analysis.compare import feature_plots, training_curves
from metafew.analysis.compare.find import find_runs
from metafew.analysis.features import projection
from metafew.analysis.style import as_colours
from metafew.commands import report
from metafew.errors import UsageError


@pytest.fixture
def shown(monkeypatch, tmp_path):
    """Return a function that draws, saves and returns a figure."""
    kept = []
    for module in (feature_plots, training_curves):
        monkeypatch.setattr(
            module, "save", lambda figure, path, save=module.save: kept.append(figure) or save(figure, path)
        )

    def draw(function, folders):
        function(folders, tmp_path / "figure.png")
        assert (tmp_path / "figure.svg").read_text().startswith("<?xml")
        return kept[-1]

    return draw


@pytest.mark.parametrize(
    ("channels", "inverted", "first"), [(1, None, 245), (3, None, 10), (1, False, 10), (3, True, 245)]
)
def test_images_are_shown_as_ink_on_paper(channels, inverted, first):
    image = np.full((channels, 4, 6), 10, np.uint8)
    assert np.array_equal(as_colours(image, inverted), np.full((4, 6, 3), first))


def test_a_projection_keeps_the_classes_and_their_points_to_four_digits():
    rng = np.random.default_rng(0)
    features, classes = rng.normal(size=(12, 5)), np.repeat([7, 2, 9], 4)
    content = projection.project_features(features, classes, [f"c{i}" for i in range(10)])
    assert content["names"] == ["c7", "c2", "c9"] and content["classes"] == [0] * 4 + [1] * 4 + [2] * 4
    for name, exact in (
        ("principal", projection.principal(features)),
        ("discriminant", projection.discriminant(features, classes, ~projection.every_second(classes))),
    ):
        assert np.allclose(content["points"][name], exact, rtol=6e-4)
        assert all(len(repr(abs(x)).replace(".", "").strip("0")) <= 4 for row in content["points"][name] for x in row)


def test_panels_show_the_same_classes_alike_and_one_scale_for_the_discriminant(shown, tmp_path):
    contents = {name: analyzed(tmp_path / name, seed) for seed, name in enumerate(("first", "other"))}
    figure = shown(feature_plots.projections, {name: [tmp_path / name] for name in contents} | {"none": [tmp_path]})
    above, below = figure.axes[:2], figure.axes[2:]
    for plane, row in (("discriminant", above), ("principal", below)):
        for axes, content in zip(row, contents.values(), strict=True):
            points, own = np.array(content["projection"]["points"][plane]), np.array(content["projection"]["classes"])
            drawn_rows = content["projection"]["held_out"] if plane == "discriminant" else np.full(len(own), True)
            for c, drawn in enumerate(axes.collections):
                assert np.array_equal(drawn.get_offsets(), points[drawn_rows & (own == c)])
            alike = [(d.get_facecolor().tolist(), d.get_paths()[0].vertices.tolist()) for d in axes.collections]
            assert alike == [
                (d.get_facecolor().tolist(), d.get_paths()[0].vertices.tolist()) for d in row[0].collections
            ]
    assert above[0].get_xlim() == above[1].get_xlim() and below[0].get_xlim() != below[1].get_xlim()
    assert [axes.get_title() for axes in above] == [
        f"{name}\nlinear discriminant, held out" for name in ("first", "other")
    ]
    assert legend(figure) == NAMES
    analyzed(tmp_path / "third", 2, names=["a/1", "x", "y"])
    with pytest.raises(UsageError, match=r"same classes, got a/1, b \$2, c_3 of first and a/1, x, y of third: type"):
        feature_plots.projections({"first": [tmp_path / "first"], "third": [tmp_path / "third"]}, tmp_path / "f.png")


def test_a_histogram_holds_the_tasks_of_all_seeds_in_shares_and_marks_their_median(shown, tmp_path):
    values = [analyzed(tmp_path / str(seed), seed)["distances"] for seed in range(3)]
    figure = shown(
        feature_plots.weight_distances, {"free": [tmp_path / "0", tmp_path / "1"], "clustered": [tmp_path / "2"]}
    )
    (axes,) = figure.axes
    medians = [np.median(values[0] + values[1]), np.median(values[2])]
    assert [line.get_xdata()[0] for line in axes.lines] == medians
    assert legend(figure) == [f"median {medians[0]:.3g}, free", f"median {medians[1]:.3g}, clustered"]
    for patch, shares in zip(axes.patches, (values[0] + values[1], values[2]), strict=True):
        x, y = patch.get_xy().T
        edges = np.unique(x)
        assert (edges[0], edges[-1]) == (np.min(values), np.max(values))
        counted = np.histogram(shares, edges)[0] * 100 / len(shares)
        assert y[2 : 2 * len(counted) + 1 : 2] == pytest.approx(counted)  # the corners of the steps
    assert axes.patches[0].get_hatch() != axes.patches[1].get_hatch()


def test_alpha_has_a_line_for_each_layer_and_seed(shown, tmp_path):
    for seed in range(6):
        analyzed(tmp_path / str(seed), seed)
    folders = {"two": [tmp_path / "1", tmp_path / "3"]} | {str(seed): [tmp_path / str(seed)] for seed in range(5)}
    figure = shown(feature_plots.alpha_curves, folders)
    assert len(figure.axes) == 6
    for axes, seeds in zip(figure.axes, ((1, 3), (0,), (1,), (2,), (3,), (4,)), strict=True):
        assert len(axes.lines) == 3 * len(seeds)
        for line, seed in zip(axes.lines, np.repeat(seeds, 3), strict=True):
            assert list(line.get_xdata()) == [1, 5, 25]
            assert list(line.get_ydata()) == pytest.approx([0.1 * seed + size / 1000 for size in (1, 5, 25)])
        assert len({(line.get_linestyle(), line.get_marker()) for line in axes.lines}) == 3
        assert axes.patches[0].get_x() < 5 and axes.patches[0].get_x() + axes.patches[0].get_width() > 25
    assert legend(figure) == ["trained", "layer 1", "layer 2", "layer 3"]


def test_pairs_of_classes_are_drawn_with_both_bounds(shown, tmp_path):
    points = [analyzed(tmp_path / str(s), s)["sufficient_condition"]["points"] for s in range(3)]
    figure = shown(feature_plots.sufficient_conditions, {"a": [tmp_path / "0", tmp_path / "1"], "b": [tmp_path / "2"]})
    (axes,) = figure.axes
    for drawn, expected in zip(axes.collections, (points[0] + points[1], points[2]), strict=True):
        assert np.array_equal(drawn.get_offsets(), np.array(expected) * [1, 100])
    assert legend(figure)[:2] == ["a", "b"] and len(legend(figure)) == 5
    assert axes.get_title() == "both bounds are vacuous here: neither exceeds chance for any of 27 pairs"
    paths = [drawn.get_paths()[0].vertices for drawn in axes.collections]
    assert len(paths[0]) != len(paths[1])  # another mark


def lines(axes):
    """Return x and y of each line by label."""
    return {line.get_label(): (line.get_xdata(), line.get_ydata()) for line in axes.get_lines()}


def test_curves_are_means_of_seeds_with_a_band_over_steps_and_seconds(shown, tmp_path):
    seeds = [[0.3, 0.5, 0.6], [0.4, 0.4, 0.8], [0.5, 0.6, 0.7, 0.9]]  # one has come further
    for seed, curve in enumerate(seeds):
        trained(tmp_path / f"svm{seed}", curve, head="svm", seed=seed, steps=40, seconds={"fit": 20.0 + 20 * seed})
    trained(tmp_path / "went on", [0.2, 0.3], norm="layer", steps=40, seconds={"fit": 1.0}, config={"ckpt.": "last"})
    folders = {"svm": [tmp_path / f"svm{seed}" for seed in range(3)], "went on": [tmp_path / "went on"]}
    whole = json.loads((tmp_path / "went on" / "results.json").read_text())
    whole["config"]["ckpt"] = "last"
    (tmp_path / "went on" / "results.json").write_text(json.dumps(whole))
    figure = shown(training_curves.learning_curves, folders)
    left, right = figure.axes
    assert set(lines(left)) == {"svm", "went on"} == set(legend(figure)) and set(lines(right)) == {"svm"}
    for axes, scale in ((left, 1), (right, 1.0)):  # 40 seconds for 40 steps in the mean
        places, means = lines(axes)["svm"]
        assert list(places) == pytest.approx([10 * scale, 20 * scale, 30 * scale])
        assert means == pytest.approx([40, 50, 70])
        (band,) = axes.collections
        corners = band.get_paths()[0].vertices
        for step, low, high in ((10, 30, 50), (20, 40, 60), (30, 60, 80)):
            ends = corners[np.isclose(corners[:, 0], step * scale), 1]
            assert (ends.min(), ends.max()) == pytest.approx((low, high))
    assert left.get_xlabel() == "step" and "(s)" in right.get_xlabel()


def test_accuracy_over_learning_rates_has_the_intervals_of_seeds_or_tasks(shown, tmp_path):
    for rate in (0.1, 0.001):
        for seed in range(3):
            finished(tmp_path / f"a{rate}{seed}", accuracies(seed, rate), seed=seed, config={"optimizer.lr": rate})
    whole = finished(tmp_path / "b", accuracies(7), norm="batch", config={"optimizer.lr": 0.01})
    folders = {"a": sorted(tmp_path.glob("a*")), "b": [tmp_path / "b"]}
    figure = shown(training_curves.learning_rates, folders)
    (axes,) = figure.axes
    assert axes.get_xscale() == "log" and [t.get_text() for t in axes.get_xticklabels()] == ["0.001", "0.01", "0.1"]
    one, other = axes.containers
    data, _, (bars,) = one.lines
    assert np.round(np.log10(data.get_xdata())).tolist() == [-3, -1]
    for height, segment, rate in zip(data.get_ydata(), bars.get_segments(), (0.001, 0.1), strict=True):
        means = [100 * accuracies(seed, rate).mean() for seed in range(3)]
        assert height == pytest.approx(np.mean(means))
        assert np.ptp(segment[:, 1]) / 2 == pytest.approx(4.3027 * np.std(means, ddof=1) / np.sqrt(3), rel=1e-4)
    found = whole["metrics"]["test/protonet/accuracy"]
    (segment,) = other.lines[2][0].get_segments()
    assert np.ptp(segment[:, 1]) / 2 == pytest.approx(100 * found["ci95"])


@pytest.mark.parametrize(
    "draw",
    [
        feature_plots.projections,
        feature_plots.weight_distances,
        feature_plots.alpha_curves,
        feature_plots.sufficient_conditions,
        training_curves.learning_curves,
        training_curves.learning_rates,
    ],
)
def test_a_figure_raises_if_no_run_has_its_data(draw, tmp_path):
    (tmp_path / "analysis.json").write_text('{"proj')
    with pytest.raises(UsageError, match=f"expected runs with .*, got none in {tmp_path}: type stages"):
        draw({"a": [tmp_path], "b": []}, tmp_path / "f.png")


ANALYSES = {"projections", "travel", "alphas", "conditions"}


def test_a_report_of_runs_that_were_only_analyzed_holds_their_figures(tmp_path, capsys):
    for norm in ("tasknorm", "layer"):
        for seed in (0, 1):
            analyzed(tmp_path / "runs" / f"{norm}{seed}", seed, norm=norm)
    out = tmp_path / "out"
    assert report.main([str(tmp_path / "runs"), f"out={out}"]) == 0
    assert {file.name for file in out.iterdir()} == {
        "index.html", *(f"{name}.{kind}" for name in ANALYSES for kind in ("png", "svg"))
    }  # fmt: skip
    page = (out / "index.html").read_text()
    assert page.count('<figure class="wide"><img') == 4 and "<table>" not in page
    assert "4 runs are compared" in capsys.readouterr().out
    assert "norm=layer -->" in (out / "travel.svg").read_text()


def test_a_report_of_tested_runs_shows_their_analyses_too_and_says_which_do_not_fit_together(tmp_path, capsys):
    for number, norm in enumerate(("tasknorm", "layer", "batch")):
        analyzed(tmp_path / "runs" / norm, number, norm=norm, test=True, names=NAMES if number else ["x", "y", "z"])
    finished(tmp_path / "runs" / "not analyzed", accuracies(3), norm="none")
    out = tmp_path / "out"
    assert report.main([str(tmp_path / "runs"), f"out={out}"]) == 0
    assert {file.stem for file in out.glob("*.png")} == ANALYSES - {"projections"}
    assert "| norm=none |" in (out / "table.md").read_text()
    for text in (capsys.readouterr().out, (out / "table.md").read_text(), (out / "index.html").read_text()):
        assert "projections.png: expected projections of the same classes" in text.replace("\n", " ")


def test_a_test_of_a_checkpoint_does_not_hide_its_analysis_and_a_single_analysis_is_an_error(tmp_path, capsys):
    analyzed(tmp_path / "runs" / "analyzed", config={"ckpt.": None})
    assert report.main([str(tmp_path / "runs"), f"out={tmp_path / 'o'}"]) == 2
    assert (
        "got 1 that were only analyzed (the figures of a single analyzed run are in its own folder)"
        in capsys.readouterr().err
    )
    finished(tmp_path / "runs" / "tested", accuracies(0), config={"ckpt.": None})
    (run,), _ = find_runs([str(tmp_path / "runs")])  # one row with the scores and the analysis
    assert run.report["metrics"] and run.report["analysis"]
    os.utime(tmp_path / "runs" / "analyzed" / "results.json")  # the analysis is the newer one
    (again,), _ = find_runs([str(tmp_path / "runs")])
    assert {key: again.report[key] for key in run.report if key != "config"} == {
        key: value for key, value in run.report.items() if key != "config"
    }


def test_learning_curves_of_a_table_are_one_a_training_and_rates_one_without_them(tmp_path):
    for norm in ("tasknorm", "transductive"):
        for rate in (0.1, 0.01):
            for seed in (0, 1):
                folder = tmp_path / "runs" / f"{norm}{rate}{seed}"
                trained(folder, [0.3, 0.4], norm=norm, seed=seed, config={"optimizer.lr": rate})
    out = tmp_path / "out"
    assert report.main([str(tmp_path / "runs"), f"out={out}"]) == 0
    assert {file.stem for file in out.glob("*.svg")} == {"learning_curves", "rates"}
    with (out / "table.csv").open() as file:
        assert len({row["runs"] for row in csv.DictReader(file)}) == 4
