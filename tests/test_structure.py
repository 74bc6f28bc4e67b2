"""Functions are short, and only those that compose, check and build a run take its configuration."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "metafew").rglob("*.py"))
LONGEST = 60
"""Most lines of a function."""
MOST = 30
"""Most functions that take a configuration, or a part of one."""
TAKE_CONFIGURATION = """
cli.py: data_fingerprints job launch_experiment run_single run_sweep_cell show_configuration
config/compose.py: compose_on_checkpoint
config/option_types.py: check_option_types
config/paths.py: resolve_paths
distributed/launcher.py: claim_folder
distributed/output_folder.py: named_by_clock
distributed/sweep.py: on_multirun_end on_multirun_start
experiments/start.py: check_experiment_options start_experiment
training/checks.py: check_options
training/conversion.py: follow_training
training/factory.py: make_backbone make_data make_learner make_objective make_source
training/instantiate.py: make make_head
training/parts.py: make_parts
training/run.py: run
training/start.py: compose_run run_here
training/trainer.py: make_trainer
"""


def functions(path):
    """Yield the functions of a module, nested ones and methods included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def takes_configuration(function):
    """Return whether an argument is called ``cfg`` or annotated as a DictConfig."""
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return any(
        argument.arg == "cfg" or (argument.annotation and "DictConfig" in ast.unparse(argument.annotation))
        for argument in arguments
    )


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_are_short(path):
    long = {f.name: lines for f in functions(path) if (lines := f.end_lineno - f.lineno + 1) > LONGEST}
    assert not long


def test_few_functions_take_the_configuration():
    """A configuration that is handed on from function to function hides what each of them depends on."""
    found = {
        str(path.relative_to(ROOT / "metafew")): sorted(f.name for f in functions(path) if takes_configuration(f))
        for path in MODULES
    }
    lines = [f"{path}: {' '.join(names)}" for path, names in found.items() if names]
    count = sum(map(len, found.values()))
    print(count, "functions take a configuration:", *lines, sep="\n")
    assert sorted(lines) == sorted(TAKE_CONFIGURATION.split("\n")[1:-1])
    assert count <= MOST
