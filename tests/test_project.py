"""The files of the project agree with one another and with the code."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
EXTRAS = PROJECT["project"]["optional-dependencies"]
PINS = dict(
    line.split("==") for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines() if not line.startswith("#")
)
PINNED = {canonicalize_name(name): version for name, version in PINS.items()}
INSTALLED = packages_distributions()
MODULES = sorted((ROOT / "metafew").rglob("*.py"))
NOT_IMPORTED = {
    "hydra-joblib-launcher": "Hydra finds it by its name, hydra/launcher=joblib",
    "hydra-submitit-launcher": "likewise, hydra/launcher=submitit_slurm",
    "mkdocs": "make docs starts it",
    "mkdocstrings": "MkDocs imports it, as mkdocs.yml says",
    "onnx": "torch.onnx imports it",
    "onnxscript": "likewise",
    "tensorboard": "Lightning's TensorBoardLogger imports it",
}
"""Dependencies that no module of the package imports, and who does."""
NOT_DECLARED = {"wandb_workspaces": "only sends reports; metafew dashboard says what to install where it is missing"}
"""Imports in functions that work without them."""


def names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(text).name) for text in requirements} - {"metafew"}


DECLARED = names(PROJECT["project"]["dependencies"]).union(
    *(names(EXTRAS[extra]) for extra in EXTRAS if extra != "dev")
)


def imports(path: Path) -> set[str]:
    """Return the packages that a module imports, in functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module)
    return {name.split(".")[0] for name in found} - sys.stdlib_module_names - {"metafew"}


def providers(package: str) -> set[str]:
    return {canonicalize_name(name) for name in INSTALLED.get(package, [package])}


def test_every_import_is_declared():
    missing = {
        f"{path.relative_to(ROOT)} imports {package}"
        for path in MODULES
        for package in imports(path)
        if package not in NOT_DECLARED and not providers(package) & DECLARED
    }
    assert not missing, "declare in pyproject.toml what provides it:\n" + "\n".join(sorted(missing))


def test_every_declared_dependency_is_used():
    used = set().union(*(providers(package) for path in MODULES for package in imports(path)))
    assert not used & NOT_IMPORTED.keys(), "these are imported now: remove them from NOT_IMPORTED"
    assert not DECLARED - used - NOT_IMPORTED.keys(), (
        "remove it from pyproject.toml, or say in NOT_IMPORTED who uses it"
    )


def test_everything_declared_is_pinned():
    declared = DECLARED | names(EXTRAS["dev"])
    assert not declared - PINNED.keys(), "add the tested version to constraints.txt"


def test_text_files_name_their_encoding():
    """Ruff's PLW1514 only sees paths whose type it can infer."""
    found = []
    for path in [*MODULES, *(ROOT / "scripts").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            least = {"read_text": 0, "write_text": 1}.get(node.func.attr)
            text = least is not None and len(node.args) <= least
            mode = node.args[0].value if node.func.attr == "open" and node.args and is_mode(node.args[0]) else "b"
            if (text or "b" not in mode) and "encoding" not in {keyword.arg for keyword in node.keywords}:
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}")
    assert not found, 'add encoding="utf-8":\n' + "\n".join(found)


def is_mode(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch("[rwax]t?b?", node.value)


def test_pre_commit_runs_the_pinned_ruff():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))["repos"]
    (rev,) = (repo["rev"] for repo in hooks if repo["repo"].endswith("ruff-pre-commit"))
    assert rev == f"v{PINNED['ruff']}"


def test_continuous_integration_runs_every_declared_python():
    job = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text("utf-8"))["jobs"]["test"]
    versions = job["strategy"]["matrix"]["python"]
    label = "Programming Language :: Python :: 3."
    assert versions == [text.rpartition(" ")[2] for text in PROJECT["project"]["classifiers"] if text.startswith(label)]
    assert PROJECT["project"]["requires-python"] == f">={versions[0]}"
    assert job["steps"][-1]["run"] == "bash .ci/run"
    newest = yaml.safe_load((ROOT / ".github/workflows/newest.yml").read_text("utf-8"))["jobs"]["test"]
    assert newest["strategy"]["matrix"]["python"] == [versions[0], versions[-1]]


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == PROJECT["project"]["version"]
    assert citation["license"] == PROJECT["project"]["license"]
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    (bibtex,) = re.findall(r"```bibtex\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    assert f"version = {{{citation['version']}}}" in bibtex and citation["authors"][0]["name"] in bibtex


@pytest.mark.parametrize("path", sorted((ROOT / ".github/ISSUE_TEMPLATE").iterdir()), ids=lambda path: path.stem)
def test_issue_templates_are_forms(path):
    form = yaml.safe_load(path.read_text("utf-8"))
    assert {"name", "description", "body"} <= form.keys()
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert len({field["id"] for field in fields}) == len(fields)
    assert all(field["attributes"]["label"] for field in fields)


def test_what_is_distributed_exists():
    included = PROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    assert all((ROOT / name).exists() for name in included)
    assert sorted(included) == included


def test_the_example_of_contributing_is_a_head():
    """Its contracts, and those of every other component, run in other tests."""
    code, config = re.findall(r"```(?:python|yaml)\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.DOTALL)
    module = {}
    exec(code, module)
    assert yaml.safe_load(config)["_target_"] == "metafew.heads.manhattan.Manhattan"
    torch, head = module["torch"], module["Manhattan"]()
    support, query = torch.tensor([[[0.0, 0.0], [4.0, 4.0]]]), torch.tensor([[[1.0, 0.0]]])
    assert head.classify(support, torch.tensor([[0, 1]]), query, 2).tolist() == [[[-1.0, -7.0]]]
