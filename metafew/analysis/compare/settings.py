"""The settings of a run: choices and values that are not defaults implied by other choices. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import yaml

from metafew.config.groups import CONF
from metafew.data.formats.names import natural_order

GROUP_ORDER = ("head", "norm", "backbone", "dataset", "objective", "regularizer")
"""Groups in the order in which labels name them."""
NOT_COMPARED = re.compile(
    r"(seed|stages|ckpt|backbone\.weights|data_dir|cache_dir|cuda_graph|(val|test)\.tasks|val\.at_start|"
    r"(analyze\.(?!split)|data\.|logger\.|save\.).*|logger|evaluate|"
    r"trainer\.(accelerator|devices|num_nodes|strategy|log_every_n_steps|enable_progress_bar)|"
    r"(head|evaluate\.\w+)\.(inner|chunk|memory|seed))"
)
"""Keys that are not compared: the seed, and where and how a run computes, which does not affect results."""


def flatten(tree: dict, prefix: str = "") -> dict:
    """Return the values of a nested mapping under their override keys.

    >>> flatten({"seed": 0, "test": {"way": 5, "shot": [1, 5]}})
    {'seed': 0, 'test.way': 5, 'test.shot': [1, 5]}
    """
    values: dict[str, Any] = {}
    for key, value in tree.items():
        nested = isinstance(value, dict) and value
        values |= flatten(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return values


def non_default_settings(report: dict) -> dict:
    """Return the choices and values of a run that are not implied by other choices, without seed and paths."""
    choices, config = report.get("choices", {}), report.get("config", {})
    default_choices, default_values = defaults(choices, config)
    values = flatten(config)
    settings = {group: choice for group, choice in choices.items() if choice != default_choices.get(group)}
    settings |= {key: value for key, value in values.items() if value != interpolate(default_values.get(key), values)}
    if report.get("metrics") or not report.get("analysis"):  # it only matters to a run that is nothing but an analysis
        settings.pop("analyze.split", None)
    if choices.get("norm") == "own":  # a network with its own norms ignores norm.*
        settings = {key: value for key, value in settings.items() if not key.startswith("norm.")}
    return {key: value for key, value in settings.items() if not NOT_COMPARED.fullmatch(key)}


def defaults(choices: dict, config: dict) -> tuple[dict, dict]:
    """Return the choices and values that follow from ``choices`` without further overrides."""
    default_choices: dict[str, Any] = {}
    default_values: dict[str, Any] = {}
    files = [("train", "")] + [(f"{group}/{choice}", group) for group, choice in choices.items()]
    files += [(f"head/{name}", f"evaluate.{name}") for name in config.get("evaluate") or ()]
    for name, package in files:
        chosen, content, is_global = load_config(name)
        default_choices |= chosen
        default_values |= flatten(content if is_global or not package else {package: content})
    return default_choices, default_values


@cache
def load_config(name: str) -> tuple[dict, dict, bool]:
    """Return the choices of a file in conf/, its values, and whether its package is ``_global_``."""
    file = CONF / f"{name}.yaml"
    text = file.read_text(encoding="utf-8") if file.is_file() else ""  # an option of an earlier version
    content = yaml.safe_load(text) or {}
    listed = content.pop("defaults", ())
    for base in (entry for entry in listed if isinstance(entry, str) and entry != "_self_"):
        content = load_config(f"{name.rpartition('/')[0]}/{base}")[1] | content
    listed = [entry for entry in listed if isinstance(entry, dict)]
    chosen = {re.sub(r"override /|@.*", "", key): choice for entry in listed for key, choice in entry.items()}
    return chosen, content, text.startswith("# @package _global_")


def interpolate(value: object, values: dict) -> object:
    """Resolve the interpolations ``${key}`` of a default."""
    if not isinstance(value, str) or "${" not in value:
        return value
    reference = re.fullmatch(r"\$\{([\w.]+)\}", value)
    if reference:
        return values.get(reference[1])
    return re.sub(r"\$\{([\w.]+)\}", lambda key: str(values.get(key[1])), value)


def varying_keys(mappings: Iterable[Mapping]) -> list[str]:
    """Return the keys that are missing from some mappings or differ in value, in order of first appearance.

    >>> varying_keys([{"head": "svm", "norm": "batch"}, {"head": "svm", "norm": "layer", "train.way": 20}])
    ['norm', 'train.way']
    """
    mappings = list(mappings)
    keys = dict.fromkeys(key for mapping in mappings for key in mapping)
    first = mappings[0] if mappings else {}
    return [key for key in keys if any(key not in each or each[key] != first.get(key) for each in mappings)]


def format_overrides(values: Mapping, keys: Iterable[str]) -> str:
    """Return ``keys`` as command-line overrides, head and norm first.

    >>> format_overrides({"head": "svm", "test.shot": [1, 5], "train.way": 20}, ["test.shot", "head", "head.c"])
    'head=svm test.shot=[1,5]'
    """
    return " ".join(f"{key}={format_value(values[key])}" for key in in_group_order(keys) if key in values)


def in_group_order(keys: Iterable[str]) -> list[str]:
    """Return ``keys`` with those of :data:`GROUP_ORDER` first."""
    return sorted(keys, key=lambda key: GROUP_ORDER.index(key) if key in GROUP_ORDER else len(GROUP_ORDER))


def natural_value(value: object) -> tuple:
    """Return a sorting key of values of a setting: none first, then numbers by value, then words in natural order.

    >>> sorted(["tasknorm", 0.01, None, "b10", "b2", 1e-05], key=natural_value)
    [None, 1e-05, 0.01, 'b2', 'b10', 'tasknorm']
    """
    if value is None:
        return (0,)
    return (1, value) if isinstance(value, int | float) else (2, natural_order(format_value(value)))


def format_value(value: object) -> str:
    """Return a value in Hydra's override grammar."""
    if isinstance(value, list):
        return f"[{','.join(map(format_value, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{format_value(each)}' for key, each in value.items())}}}"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
