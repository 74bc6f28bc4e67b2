"""Figures of a single run."""

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from metafew.analysis import run_plots
from metafew.episode import Episode, Labelled


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


@pytest.mark.figures
@pytest.mark.parametrize("queries", [1, 3, 8])
def test_the_heading_of_queries_lies_inside_the_figure(queries, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(run_plots, "save", lambda *given: drawn.append(given[0]))
    labels = torch.arange(2)[None]
    support, query = (Labelled(torch.rand(1, 2 * n, 1, 4, 4), labels.repeat(1, n)) for n in (1, queries))
    episode = Episode(support, query, 2, torch.tensor([0]))
    run_plots.episode_sheet(episode, torch.full((1, 2 * queries, 2), 0.5), ["a", "b"], tmp_path / "episode.png", False)
    FigureCanvasAgg(drawn[0]).draw()
    (heading,) = (text for text in drawn[0].findobj(Text) if text.get_text().startswith("queries"))
    box, page = heading.get_window_extent(), drawn[0].bbox
    assert box.x1 <= page.x1 and box.y1 <= page.y1
