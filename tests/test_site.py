"""The notebook runs, and the site of ``make docs`` has every page and the reference of every name."""

import json
import subprocess
import sys

import pytest
import yaml
from runs import ROOT

import metafew

CELLS = [
    cell | {"source": "".join(cell["source"])}
    for cell in json.loads((ROOT / "docs" / "python.ipynb").read_text("utf-8"))["cells"]
    if cell["cell_type"] == "code"
]


def test_the_notebook_was_executed_from_top_to_bottom():
    assert [cell["execution_count"] for cell in CELLS] == [*range(1, len(CELLS) + 1)]
    outputs = [output for cell in CELLS for output in cell["outputs"]]
    assert len(outputs) >= 8 and not [output for output in outputs if output["output_type"] == "error"]
    called = " ".join(cell["source"] for cell in CELLS)
    assert all(f"metafew.{name}(" in called for name in ("evaluate", "classify", "episodes", "train", "load"))


@pytest.mark.slow
def test_the_cells_of_the_notebook_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    for cell in CELLS:
        exec(compile(cell["source"], "python.ipynb", "exec"), names)
    assert "did you mean svm?" in capsys.readouterr().out
    assert names["test"]() > names["before"] + 0.05 and names["answers"]
    assert names["run"].metrics["test/svm/accuracy"]["mean"] > 0.25


def test_every_page_is_on_the_site():
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["nav"]
    sections = [value if isinstance(value, list) else [entry] for entry in nav for value in entry.values()]
    listed = [page for section in sections for entry in section for page in entry.values()]
    pages = {page.name for page in (ROOT / "docs").glob("*.md")}
    assert pages < {*listed} and len(listed) == len({*listed})


@pytest.mark.slow
def test_the_site_is_built(tmp_path):
    """With ``strict: true``, a link that leads nowhere ends the build with an error."""
    pytest.importorskip("mkdocs", reason="make docs installs it")
    pytest.importorskip("mkdocstrings", reason="make docs installs it")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    functions = (tmp_path / "reference" / "index.html").read_text("utf-8")
    assert all(f'id="metafew.{name}"' in functions for name in ("load", "train", "evaluate", "classify", "episodes"))
    for package in ("heads", "norms", "backbones"):
        page = (tmp_path / f"reference_{package}" / "index.html").read_text("utf-8")
        classes = [getattr(getattr(metafew, package), name) for name in dir(getattr(metafew, package))]
        for each in classes:
            assert f'id="{each.__module__}.{each.__name__}"' in page
    assert "<h1" in (tmp_path / "index.html").read_text("utf-8")
