"""Components are used by what their base classes declare: no lookup by name, no isinstance of one method."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "metafew"
MODULES = sorted(PACKAGE.rglob("*.py"))
PROTOCOLS = {"head", "adapting", "norm", "running", "film", "backbone", "objective"}
"""Modules of base classes, which isinstance may name anywhere."""

LOOSE = {
    "scaler": "Lightning's precision plugins have no common attribute",
    "distributed": "torch may not have been imported",
    "checkpoints": "Lightning's loggers are not ours",
    "choices": "Optuna's distributions have no common attribute",
    "ps1": "Python defines it in a notebook or an interactive session only",
    "monitor": "Lightning's callbacks that have one share no base class",
    "strict": "as monitor",
    "_step_supports_amp_scaling": "torch sets it on fused optimizers only",
    "pending": "modules that record moments share no base class",
}
"""Names that may be looked up with a default, with the reason."""


def loose_lookups(tree):
    """Yield the text of every name that hasattr, or getattr with a default, looks up."""
    for node in ast.walk(tree):
        called = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else None
        if called == "hasattr" or (called == "getattr" and len(node.args) > 2):
            name = node.args[1]
            yield name.value if isinstance(name, ast.Constant) else ast.unparse(name)


def components(room):
    """Return the classes of a room that its methods, not its base classes, define."""
    trees = {path.stem: ast.parse(path.read_text(encoding="utf-8")) for path in (PACKAGE / room).rglob("*.py")}
    return {
        node.name
        for stem, tree in trees.items()
        if stem not in PROTOCOLS
        for node in tree.body
        if isinstance(node, ast.ClassDef) and any(ast.unparse(base) in BASES for base in node.bases)
    }


BASES = {"Head", "FeatureHead", "AdaptingHead", "MAML", "Ridge", "Norm", "RunningNorm", "GroupedNorm", "Backbone",
         "Objective"}  # fmt: skip
METHODS = set().union(*(components(room) for room in ("heads", "norms", "backbones", "objectives")))


def singled_out(path):
    """Yield the names of methods of another file that a module's isinstance asks for."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    own = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance":
            asked = {part.id for part in ast.walk(node.args[1]) if isinstance(part, ast.Name)}
            yield from asked & METHODS - own


def test_there_is_something_to_test():
    assert {"MAML", "SVM", "CNAPs", "TaskNorm", "Conv4", "Episodic"} <= METHODS


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_is_looked_up_by_name_with_a_default(path):
    found = set(loose_lookups(ast.parse(path.read_text(encoding="utf-8"))))
    assert found <= LOOSE.keys()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_method_is_asked_for_outside_its_own_file(path):
    assert not set(singled_out(path))
