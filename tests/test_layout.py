"""The package is laid out in rooms, and no room imports from one above it."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "metafew"
ROOMS = [
    ["__main__"],
    ["commands"],
    ["cli", "export"],
    ["__init__"],
    ["api"],
    ["inference"],
    ["experiments"],
    ["training"],
    ["callbacks"],
    ["analysis"],
    ["objectives"],
    ["evaluation"],
    ["heads"],
    ["backbones"],
    ["norms"],
    ["loggers", "data", "distributed"],
    ["config"],
    ["solvers", "episode", "precision", "io", "allocator", "meta_parameters", "predictions", "signals"],
    ["errors"],
]
"""From top to bottom. Rooms of one line do not import one another."""
LEVEL = {room: level for level, line in enumerate(ROOMS) for room in line}
MODULES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted(Path(__file__).parent.rglob("test_*.py"))


def imported(path: Path) -> set[str]:
    """Return the rooms that a module imports from, wherever in the module, type checking included."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        if isinstance(node, ast.ImportFrom):
            names = [node.module] if node.module != "metafew" else [f"metafew.{name}" for name in names]
        rooms |= {name.split(".")[1] for name in names if name.startswith("metafew.")}
    return rooms


def test_every_room_is_drawn():
    found = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in MODULES}
    assert found == LEVEL.keys()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_module_imports_from_a_room_above_it(path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    upward = {room for room in imported(path) - {own} if LEVEL[room] <= LEVEL[own]}
    assert not upward, f"{own} imports {', '.join(sorted(upward))}"


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.name)
def test_no_test_module_imports_from_another(path):
    """What several test modules need is in conftest.py or in a module of its own, such as runs.py."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    names = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    names += [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    assert not [name for name in names if name.split(".")[-1].startswith("test_")]
