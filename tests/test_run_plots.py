"""Figures of a single run."""

import pytest

from metafew.analysis import run_plots


@pytest.mark.figures
@pytest.mark.parametrize("losses", [[1.6, 1.6, 1.6], [1.6, 0.4, 0.2], ["nan", "nan", "nan"], []])
def test_every_point_of_a_learning_curve_lies_inside_the_frame(losses, tmp_path, monkeypatch):
    lines = [f"{step},{loss},," for step, loss in enumerate(losses)] + ["1,,0.25,0", "2,,0.45,1"]
    (tmp_path / "metrics.csv").write_text("\n".join(["step,train/loss,val/svm/accuracy,val/svm/failed", *lines]))
    monkeypatch.setattr(run_plots, "save", lambda *given: drawn.append(given[0]))
    drawn = []
    run_plots.learning_curve(tmp_path / "metrics.csv", "svm", tmp_path / "curve.png")
    (figure,) = drawn
    left, right = (axes.get_ylim() for axes in figure.axes)
    high = max([loss for loss in losses if loss != "nan"], default=0)
    assert left[0] == 0 and left[1] >= 1.02 * high
    assert 20 < right[0] < 25 < 45 < right[1] < 50
