"""What a message advises can be pasted into a shell, and Hydra reads it."""

import ast
import re
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from metafew.config.quoting import elements, override, parsed, parser, to_paste
from metafew.errors import UsageError
from metafew.training import checkpoint, resume

ROOT = Path(__file__).parents[1]
AWKWARD = [
    "数据/鸟", "photos (1)", "o/head=svm/best.ckpt", "~/a", "it's", 'say "hi"', 'it\'s "both"', "a,b", "$HOME/`x`",
    "2024", "null", "true", "[new]", "{a}", " lead", "a\\b", "trailing\\", "${x}", "-m", "a:b", "50%", "",
    "#b&c;d|e>f!g*?",
]  # fmt: skip
NAMES = re.compile(r"\b(?:ckpt|path|file|folder|out|root|data_dir|cache_dir|found)\b(?!\[)")
"""Names of variables that hold paths."""
WORD = re.compile(
    r"(?<!\S)(?P<quote>['\"]?)[+~]{0,2}[a-z_][\w./@]*=(?:(?!(?P=quote)\s).)*?(?P=quote)(?=[,;.:)]*(?:\s|$))"
)


class Advice(NamedTuple):
    """What a string in the source advises.

    Attributes:
        place: where it is.
        text: what follows ``type``, with a value in place of each expression: an awkward path where it is one.
    """

    place: str
    text: str


def strings(path: Path):
    """Yield the line of each string of a module with its text, f-strings included."""
    nodes = list(ast.walk(ast.parse(path.read_text("utf-8"))))
    joined = [node for node in nodes if isinstance(node, ast.JoinedStr)]
    parts = {id(part) for node in joined for part in ast.walk(node)} - {id(node) for node in joined}
    for node in nodes:
        if id(node) in parts:
            continue
        if isinstance(node, ast.JoinedStr):
            yield (
                node.lineno,
                "".join(part.value if isinstance(part, ast.Constant) else example(part) for part in node.values),
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def example(part: ast.FormattedValue) -> str:
    """Return a value that an expression of an f-string may have."""
    source = ast.unparse(part.value)
    if any(f"{quoted}(" in source for quoted in ("to_paste", "shlex.quote", "advice")):
        return to_paste("ckpt", "a (1)/é=b")
    return "a(1)/é=b" if NAMES.search(source) else "one"


def advices():
    paths = sorted([*(ROOT / "metafew").rglob("*.py"), *(ROOT / "scripts").rglob("*.py")])
    for path in (path for path in paths if "type " in path.read_text("utf-8")):
        for line, text in strings(path):
            for found in re.finditer(r"\btype (.+)", text):
                text = found[1].partition("; ")[0].replace("={one}", "={one: one}")
                yield Advice(f"{path.relative_to(ROOT)}:{line}", text)


ADVICES = [advice for advice in advices() if "=" in advice.text and not advice.text.startswith("--")]


def test_the_advices_are_found():
    assert len(ADVICES) > 60
    assert sum("ckpt=" in advice.text for advice in ADVICES) >= 3


@pytest.mark.parametrize("advice", ADVICES, ids=lambda advice: advice.place)
def test_an_advice_can_be_pasted(advice):
    words = [found[0].rstrip(",;.:)") for found in WORD.finditer(advice.text)]
    assert words, f"no word in: {advice.text}"
    for word in words:
        (typed,) = shlex.split(word)
        parser().parse_override(typed)


@pytest.mark.parametrize("text", AWKWARD)
def test_a_path_is_quoted_for_hydra_and_for_the_shell(text):
    (word,) = shlex.split(to_paste("ckpt", text))
    assert word == override("ckpt", text)
    assert parser().parse_override(word).value() == text


def test_a_quoted_value_stays_plain_where_it_can():
    assert to_paste("hydra.run.dir", Path("outputs/a-b_c.d")) == "hydra.run.dir=outputs/a-b_c.d"
    assert [override("key", value) for value in (None, True, 1e-3, [1, "a=b"])] == [
        "key=null", "key=true", "key=0.001", "key=[1,'a=b']"
    ]  # fmt: skip


def test_parts_of_a_value_are_divided_outside_of_quotes_and_brackets():
    assert list(elements("it's (a,b),'x,y',{a: [1,2]}")) == ["it's (a,b)", "'x,y'", "{a: [1,2]}"]
    assert parsed("a,b") and not parsed("photos (1)")


def pasted(message: str) -> dict[str, str]:
    """Return what Hydra reads of the words after the last ``type`` of a message, as a shell divides them."""
    words = shlex.split(message.rpartition("type ")[2].partition(" for a new")[0])
    read = [parser().parse_override(word) for word in words if "=" in word]
    return {each.key_or_group: each.value() for each in read}


@pytest.fixture
def folder(tmp_path):
    """A folder of a run with an awkward name and a file for a checkpoint."""
    out = tmp_path / "o/head=svm (1) 鸟's"
    (out / "checkpoints").mkdir(parents=True)
    (out / "checkpoints/best.ckpt").touch()
    return out


def test_a_folder_in_place_of_a_checkpoint_advises_the_checkpoint(folder):
    with pytest.raises(UsageError) as caught:
        checkpoint.read(folder)
    assert pasted(str(caught.value)) == {"ckpt": str(folder / "checkpoints/best.ckpt")}
    (folder / "checkpoints/best.ckpt").rename(folder / "checkpoints/last.ckpt")
    with pytest.raises(UsageError, match="is a folder") as caught:
        checkpoint.read(folder)
    assert pasted(str(caught.value)) == {"ckpt": str(folder / "checkpoints/last.ckpt")}


def test_a_folder_without_a_checkpoint_says_why(tmp_path):
    with pytest.raises(UsageError, match=r"is a folder without checkpoints: type ckpt=PATH"):
        checkpoint.read(tmp_path)
    (tmp_path / "results.json").touch()
    with pytest.raises(UsageError, match=r"is a folder of a run that wrote none, as only training does"):
        checkpoint.read(tmp_path)


@pytest.mark.parametrize("sweeps", [False, True])
def test_an_interrupted_run_advises_how_to_resume(folder, sweeps, monkeypatch, capsys):
    sweep = folder if sweeps else folder / "elsewhere"
    place = OmegaConf.create(
        {"sweep": {"dir": str(sweep.relative_to(folder.parents[1]))}, "runtime": {"cwd": str(folder.parents[1])}}
    )
    monkeypatch.setattr(HydraConfig, "get", lambda: place)
    with pytest.raises(SystemExit):
        resume.exit_after_signal(folder, fits=False)
    assert capsys.readouterr().err.endswith("before its end: repeat its command\n")
    with pytest.raises(SystemExit):
        resume.exit_after_signal(folder)
    advised = capsys.readouterr().err.replace("type the same command again with", "type")
    assert pasted(advised) == {"ckpt": "last", "hydra.sweep.dir" if sweeps else "hydra.run.dir": str(folder)}


def test_another_training_in_the_same_folder_advises_the_checkpoint(folder):
    ckpt = str(folder / "checkpoints/best.ckpt")
    start = {"metafew": {"training": {"seed": 0}}, "resume": {}}
    with pytest.raises(UsageError) as caught:
        resume.is_same_training(start, {"seed": 1}, ckpt, folder, {}, data=None)
    assert pasted(str(caught.value).replace("type another hydra.run.dir with", "type")) == {"ckpt": ckpt}


@pytest.mark.parametrize(
    ("options", "channels", "word"),
    [
        ({"channels": 3}, 3, "dataset.channels=1"),
        ({"root": "cub"}, 3, "dataset=glyphs"),
        ({"channels": 1}, 1, "backbone=conv4"),
    ],
)
def test_a_checkpoint_of_other_channels_says_so(options, channels, word):
    model = SimpleNamespace(
        backbone=SimpleNamespace(channels=channels), provenance={"config": {"dataset": options}}
    )  # fmt: skip
    saved = {"metafew": {"model": {"images": {"channels": 1}}, "choices": {"dataset": "glyphs"}}}
    with pytest.raises(UsageError, match=f"type {word}$"), checkpoint.explain_channels(model, saved, "a.ckpt"):
        raise UsageError("expected another backbone: type backbone=conv4")
