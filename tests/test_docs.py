"""The pages: their links and pictures are there, and every command on them is carried out as it is typed, in little.

All commands of a page are typed in one folder, in their order, so that later ones find what earlier ones left.
"""

import io
import os
import re
import shlex
import subprocess
import sys
import tomllib
from functools import cache
from importlib import import_module
from itertools import takewhile
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple
from unittest.mock import patch
from zipfile import ZipFile

import numpy as np
import pytest
from contracts import sampled
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from PIL import Image
from runs import ROOT, TINY

from metafew import cli
from metafew.__main__ import COMMANDS
from metafew.commands import export, predict
from metafew.commands.search_space import Space
from metafew.config.compose import compose_overrides
from metafew.config.groups import CONF
from metafew.data.sources import omniglot
from metafew.experiments.plan import EXPERIMENT_KEYS

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
IDS = [page.stem for page in PAGES]
FENCE = re.compile(r"^(?:`(?P<file>[\w./]+)`:\n\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^]]*\]\(([^)]+)\)")

TINY = [*TINY, "trainer.max_steps=2", "analyze.tasks=4"]
MIXED = [f"{split}.{word}" for split in ("train", "val", "test") for word in ("way=2..4", "support=12")]
FEWER = {
    "seed=0,1,2": "seed=0,1",
    "trials=20": "trials=2",
    "head=protonet,ridge,svm": "head=protonet,svm",
    "norm=tasknorm,batch,none": "norm=tasknorm,batch",
    "norm=layer,instance,tasknorm,transductive": "norm=layer,transductive",
}  # cells of a sweep, trials of a search


def words(command):
    """The words of a command, and those that make it small in place of what it says itself."""
    typed = [FEWER.get(word, word) for word in shlex.split(command)]
    keys = {word.split("=")[0] for word in typed}
    tiny = TINY + MIXED * ("dataset=mixture" in typed)
    if {"dataset=features", "backbone=module"} & {*typed}:
        tiny = [word for word in tiny if not word.startswith("backbone")]
    if "ckpt" in keys and "ckpt=last" not in typed:  # the others it has from the checkpoint
        tiny = [word for word in tiny if word.split("=")[0] in keys]
    little = {word.split("=")[0]: word for word in tiny}
    rest = [word for word in typed if word.split("=")[0] not in little]
    first = next((number for number, word in enumerate(rest) if "=" in word), len(rest))  # Hydra wants flags outside
    return [*rest[:first], *little.values(), *rest[first:]]


# what is carried out, and what is not


def train(command, capsys):
    with patch.object(sys, "argv", words(command)[1:]):
        try:
            cli.main()
        except SystemExit as end:
            assert not end.code, capsys.readouterr().err


def run_subcommand(command, capsys):
    _, name, *typed = shlex.split(command)
    assert name in COMMANDS
    assert import_module(f"metafew.commands.{name}").main(typed) == 0, capsys.readouterr().err


@cache
def compose(typed):
    compose_overrides(typed)


def composes(command, *_):
    """Every combination of its words is one that can be run."""
    typed = shlex.split(command)
    typed = [word for word in typed[typed.index("train.py") + 1 :] if not word.startswith("-")]
    (cells,) = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(typed), max_batch_size=None)
    for cell in cells:
        compose(tuple(cell))


def names_an_experiment(command, *_):
    """Its own words can be set; tests/test_experiments.py composes those of its rows."""
    _, _, first, *rest = shlex.split(command)
    assert (CONF / "experiment" / f"{first.removeprefix('experiment=')}.yaml").is_file()
    compose(tuple(word for word in rest if word.split("=")[0] not in EXPERIMENT_KEYS))


def searches(command, *_):
    """Both ends of every range are words that can be run."""
    typed = [word for word in shlex.split(command)[2:] if not word.startswith(("trials=", "out="))]
    for each in Space(typed).bounds():
        compose_overrides(each)


def is_a_target(command, *_):
    subprocess.run([*shlex.split(command), "--dry-run"], cwd=ROOT, check=True, capture_output=True)


def makes_an_environment(*_):
    assert "BIN := .venv/bin\n" in (ROOT / "Makefile").read_text()


def names_an_extra(command, *_):
    extra = re.fullmatch(r'pip install "metafew\[(\w+)\]"', command)[1]
    assert extra in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def describes(command, capsys):
    run_subcommand(f"{command} out=description.json", capsys)


def exports(command, *_):
    """Its words can be read; tests/test_export.py compares what is exported."""
    assert Path(export.parse(shlex.split(command)[2:])["ckpt"]).is_file()


def labels(command, *_):
    """Its words can be read."""
    predict.parse(shlex.split(command)[2:])


def compiles(command, *_):
    *_, program = shlex.split(command)
    compile(program, command, "exec")


def is_a_script(command, *_):
    assert Path(shlex.split(command)[-1]).is_file()


def is_a_sweep(command, *_):
    sweep = OmegaConf.load(ROOT / shlex.split(command)[-1])
    assert (ROOT / sweep.program).is_file()
    values = {key: node.get("value", node.get("min")) for key, node in sweep.parameters.items()}
    values |= {key: node["values"][0] for key, node in sweep.parameters.items() if "values" in node}
    compose_overrides([f"{key}={value}" for key, value in values.items()])


class Instead(NamedTuple):
    start: str
    """How the commands begin."""
    why: str
    check: object
    slow: bool = False
    """Whether the slow test below runs them, in processes of their own."""


GPU = "it needs a GPU"
MANY, WEIGHTS = "it starts processes", "it takes weights of others"
INSTEAD = [
    Instead("make ", "it installs", is_a_target),
    Instead(". .venv/bin/activate", "it is for a shell", makes_an_environment),
    Instead("pip install ", "it installs", names_an_extra),
    Instead("metafew export ", "torch takes seconds", exports),
    Instead("metafew dashboard project=", "it wants a key of Weights & Biases", describes),
    Instead("wandb sweep ", "it wants a key of Weights & Biases", is_a_sweep),
    Instead("sbatch ", "it wants SLURM", is_a_script),
    Instead("srun ", "it wants SLURM", composes),
    Instead("python train.py experiment=", "it takes an hour", names_an_experiment),
    Instead("python train.py stages=[test] backbone=module ", WEIGHTS, composes),
    Instead("python train.py backbone=module backbone.target=mine.conv4.Conv4 ", WEIGHTS, composes),
    Instead("metafew predict ckpt=outputs/conv4/", WEIGHTS, labels),
    Instead("python -c ", "it takes a package of others", compiles),
    Instead("torchrun ", MANY, composes, slow=True),
    Instead("python train.py trainer.accelerator=cpu trainer.devices=2 ", MANY, composes, slow=True),
    Instead(
        "python train.py -m head=protonet,maml trainer.accelerator=cpu trainer.devices=2 ", MANY, composes, slow=True
    ),
    Instead("python train.py head=fomaml head.steps=1 train.query=1 train.tasks=32 cuda_graph=true ", GPU, composes),
    Instead("python train.py -m hydra/launcher=joblib ", MANY, composes, slow=True),
    Instead("metafew search ", MANY, searches, slow=True),
]
QUICK = ("README", "train", "head")
"""Pages whose commands the quick tests run; there, those of a sample of the others only have to compose."""
RUN = {"python train.py": train, "metafew ": run_subcommand}


def find(command):
    """Return how a command is tested."""
    found = [entry for entry in INSTEAD if command.startswith(entry.start)]
    assert len(found) < 2, f"{command} is what several entries of INSTEAD mean"
    if found:
        return found[0]
    runs = [run for start, run in RUN.items() if command.startswith(start)]
    assert runs, f"{command} is tested in no way: add to RUN or INSTEAD how"
    return Instead("", "", runs[0])


def blocks(page):
    """Yield what is typed on a page, in order: commands, programs (python without a name) and files."""
    for fence in FENCE.finditer(page.read_text()):
        kind, text = fence["language"], fence["text"]
        if fence["file"]:
            yield SimpleNamespace(kind="file", name=fence["file"], text=text)
            lines = [line.removesuffix(" &") for line in text.splitlines() if line.startswith("srun ")]
        else:
            assert kind in ("", "text", "python", "bibtex"), f"{page.name} has a block of {kind}, which no test knows"
            lines = text.splitlines() if kind == "" else []
        if kind == "python" and not fence["file"]:
            yield SimpleNamespace(kind="program", text=text)
        yield from (SimpleNamespace(kind="command", text=line) for line in lines if line)


def commands(pages=PAGES):
    return [block.text for page in pages for block in blocks(page) if block.kind == "command"]


# what the commands find


def paint(file, number, size=20):
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (size, size, 3), np.uint8)
    Image.fromarray(pixels).save(file)


@pytest.fixture(scope="module")
def drawings(tmp_path_factory):
    """A folder with archives like those of Omniglot, of twelve drawings of eight characters of three alphabets."""
    root = tmp_path_factory.mktemp("omniglot")
    parts = {"images_background": ["Greek", "Hebrew"], "images_evaluation": ["Tibetan"]}
    for name, alphabets in parts.items():
        with ZipFile(root / f"{name}.zip", "w") as archive:
            for number, alphabet in enumerate(alphabets):
                for key in ((c, d) for c in range(8) for d in range(12)):
                    paper = np.random.default_rng([number, *key]).random((105, 105)) < 0.9
                    Image.fromarray(paper).save(file := io.BytesIO(), "PNG")
                    archive.writestr(f"{name}/{alphabet}/character{key[0]:02}/0000_{key[1]:02}.png", file.getvalue())
    return root


@pytest.fixture
def place(tmp_path, drawings, monkeypatch):
    """A folder with little data under the names that the pages use, where commands are typed."""
    monkeypatch.setattr(omniglot, "CHARACTERS", {"images_background": 16, "images_evaluation": 8})
    monkeypatch.setattr(omniglot, "DRAWINGS", 12)
    monkeypatch.delenv("METAFEW_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))  # as in the folder of train.py
    Path("data").mkdir()
    Path("data/omniglot").symlink_to(drawings)
    Path("scripts").symlink_to(ROOT / "scripts")
    yield tmp_path


def bring(text):
    """Make the data that a page names, but for Omniglot."""
    for folder in ("photos", "data/caltech101/101_ObjectCategories"):
        if folder in text:
            for number in range(160):
                paint(Path(folder, f"class {number // 5}", f"{number % 5}.png"), number)
    if "support=examples" in text:
        for number in range(6):
            paint(Path("examples", "ab"[number % 2], f"{number}.png"), number)
            paint(Path("unknown", f"{number}.png"), 100 + number)
    if "vectors.npz" in text:
        labels, rng = np.repeat(np.arange(8), 5), np.random.default_rng(0)
        np.savez("vectors.npz", **{f"y_{split}": labels for split in ("train", "val", "test")},
                 **{f"x_{split}": rng.normal(size=(40, 6)) for split in ("train", "val", "test")})  # fmt: skip
    if "dataset.root=tables" in text:
        arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        pictures = [file.read_bytes() for file in sorted(Path("photos").glob("*/*.png"))]
        Path("tables").mkdir()
        parquet.write_table(arrow.table({"image": pictures, "label": [n // 5 for n in range(160)]}), "tables/a.parquet")


def marks(page):
    drawn, slow = page.stem == "README", page.stem not in QUICK
    return [pytest.mark.figures] * drawn + [pytest.mark.slow] * slow


@pytest.mark.parametrize(
    "page", sampled([page for page in PAGES if page.stem not in QUICK], 3), ids=lambda page: page.stem
)
def test_what_a_page_trains_composes(page):
    for command in commands([page]):
        if command.startswith("python train.py") and find(command).check is train:
            composes(command)


@pytest.mark.parametrize("page", [pytest.param(page, marks=marks(page)) for page in PAGES], ids=IDS)
def test_what_is_typed_on_a_page_does_what_it_says(page, place, capsys):
    bring(page.read_text())
    for block in blocks(page):
        if block.kind == "file":
            Path(block.name).parent.mkdir(parents=True, exist_ok=True)
            Path(block.name).write_text(block.text)
        elif block.kind == "program":
            exec(compile(block.text, str(page), "exec"), {})
        else:
            find(block.text).check(block.text, capsys)
    if page.stem == "README":
        _, _, rest = (ROOT / "docs" / "train.md").read_text().partition("## The output folder\n")
        shown = re.findall(r"`(\w+\.(?:png|json|csv))`", rest.partition("\n## ")[0])
        run = place / "outputs" / "nine" / "0"
        shown = [name for name in shown if not name.startswith("splits")]  # this dataset has its own
        assert len(shown) >= 6 and all((run / name).stat().st_size for name in shown)


@pytest.mark.slow
@pytest.mark.parametrize("command", [command for command in commands() if find(command).slow])
def test_what_starts_processes_does_what_it_says(command, tmp_path):
    programs = {"torchrun": ["-m", "torch.distributed.run"], "python": [], "metafew": ["-m", "metafew"]}
    first, *rest = words(command)
    rest = [str(ROOT / word) if word.endswith(".py") else word for word in rest]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *programs[first], *rest], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_nothing_is_excused_that_is_on_no_page():
    for entry in INSTEAD:
        assert any(command.startswith(entry.start) for command in commands()), f"{entry.start} is on no page"
    for word in FEWER:
        assert any(word in shlex.split(command) for command in commands()), f"{word} is on no page"


@pytest.mark.parametrize("page", sampled(PAGES, 6), ids=IDS)
def test_commands_within_a_text_are_known(page):
    prose = FENCE.sub("", page.read_text())
    for span in re.findall(r"`((?:python|make|metafew) [^`]+)`", prose):
        command = " ".join(span.split())
        if command.startswith("python train.py"):
            composes(command)
        elif command.startswith("make "):
            is_a_target(command)
        elif command.startswith("metafew "):
            assert command.split()[1] in ("train", "--help", "--version", *COMMANDS), command
        elif not command.startswith("python -m metafew"):
            assert (ROOT / shlex.split(command)[1]).is_file(), command


def methods(group):
    """The names that the README lists for a group: the first column of its table, or the row that it has."""
    section = PAGES[0].read_text().partition("## Methods\n")[2].partition("\n## ")[0]
    first, second, *lines = [*section.partition(f"| `{group}=` |")[2].splitlines(), ""]
    rows = takewhile(lambda line: line.startswith("|"), lines)
    cells = [row.split("|")[1] for row in rows] if second.startswith("|---") else [first]
    return re.findall(r"`(\w+)`", " ".join(cells))


@pytest.mark.parametrize("group", ["head", "norm", "objective", "regularizer", "backbone", "dataset"])
def test_the_readme_lists_every_method(group):
    options = {file.stem for file in (ROOT / "conf" / group).glob("*.yaml")}
    assert sorted(methods(group)) == sorted(options - ({"none"} if group == "regularizer" else set()))


# links and pictures


def anchors(page):
    """The places of a page that can be linked, as GitHub names them."""
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_somewhere(page):
    targets = [target for target in LINK.findall(FENCE.sub("", page.read_text())) if "://" not in target]
    for target in targets:
        file, _, anchor = target.partition("#")
        found = (page.parent / file).resolve() if file else page
        assert found.exists() and found.is_relative_to(ROOT), f"{page.name} links {target}"
        assert not anchor or anchor in anchors(found), f"{page.name} links {target}"
    if page.stem != "README":
        assert "../README.md" in targets, f"{page.name} has no link to the README"
        assert f"docs/{page.name}" in PAGES[0].read_text(), f"the README does not link {page.name}"


def test_pictures_are_small():
    assert all(file.stat().st_size < 100_000 for file in (ROOT / "docs" / "pictures").iterdir())
