"""What was decided in a run: the values of its configuration that do not follow from others. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache

import yaml

from metafew.io import CONF

FIRST = ("head", "norm", "backbone", "dataset", "objective", "regularizer")
"""Groups in the order in which tables name them."""
ELSEWHERE = re.compile(
    r"(seed|stages|ckpt|backbone\.weights|data_dir|cache_dir|(val|test)\.tasks|(analyze|data|logger|save)\..*|logger|"
    r"evaluate|"
    r"trainer\.(accelerator|devices|num_nodes|strategy|log_every_n_steps|enable_progress_bar)|"
    r"(head|evaluate\.\w+)\.(inner|chunk|seed))"
)
"""Where and how a run computes, which changes no result, and the seed."""


def flat(tree: dict, above: str = "") -> dict:
    """Return the values of a nested mapping under the keys that are typed for them.

    >>> flat({"seed": 0, "test": {"way": 5, "shot": [1, 5]}})
    {'seed': 0, 'test.way': 5, 'test.shot': [1, 5]}
    """
    values = {}
    for key, value in tree.items():
        values |= flat(value, f"{above}{key}.") if isinstance(value, dict) and value else {f"{above}{key}": value}
    return values


def settings(report: dict) -> dict:
    """Return the choices and values of a run that differ from what its choices bring, without seed and places."""
    choices, config = report.get("choices", {}), report.get("config", {})
    words, values = defaults(choices, config)
    given = flat(config)
    decided = {group: word for group, word in choices.items() if word != words.get(group)}
    decided |= {key: value for key, value in given.items() if value != filled(values.get(key), given)}
    if choices.get("norm") == "own":  # a network with its own norms has none of ours
        decided = {key: value for key, value in decided.items() if not key.startswith("norm.")}
    return {key: value for key, value in decided.items() if not ELSEWHERE.fullmatch(key)}


def defaults(choices: dict, config: dict) -> tuple[dict, dict]:
    """Return the words and the values that stand where nothing is typed but these choices."""
    words, values = {}, {}
    parts = [("train", "")] + [(f"{group}/{word}", group) for group, word in choices.items()]
    parts += [(f"head/{name}", f"evaluate.{name}") for name in config.get("evaluate") or ()]
    for name, group in parts:
        brought, content, is_global = load(name)
        words |= brought
        values |= flat(content) if is_global or not group else flat({group: content})
    return words, values


@cache
def load(name: str) -> tuple[dict, dict, bool]:
    """Return what a file of conf/ chooses for groups, its values, and whether these stand at the top."""
    file = CONF / f"{name}.yaml"
    text = file.read_text(encoding="utf-8") if file.is_file() else ""  # a word of an older version
    content = yaml.safe_load(text) or {}
    listed = [entry for entry in content.pop("defaults", ()) if isinstance(entry, dict)]
    chosen = {re.sub(r"override /|@.*", "", key): word for entry in listed for key, word in entry.items()}
    return chosen, content, text.startswith("# @package _global_")


def filled(value: object, values: dict) -> object:
    """Return a default with the values that it takes from others."""
    if not isinstance(value, str) or "${" not in value:
        return value
    whole = re.fullmatch(r"\$\{([\w.]+)\}", value)
    return values.get(whole[1]) if whole else re.sub(r"\$\{([\w.]+)\}", lambda key: str(values.get(key[1])), value)


def differing(each: Iterable[dict]) -> list[str]:
    """Return the keys whose values differ, or that some lack, in the order of their first appearance.

    >>> differing([{"head": "svm", "norm": "batch"}, {"head": "svm", "norm": "layer", "train.way": 20}])
    ['norm', 'train.way']
    """
    each = list(each)
    keys = dict.fromkeys(key for one in each for key in one)
    return [key for key in keys if any(key not in one or one[key] != each[0].get(key) for one in each)]


def typed(values: dict, keys: Iterable[str]) -> str:
    """Return the words that one would type for these keys, head and norm first.

    >>> typed({"head": "svm", "test.shot": [1, 5], "train.way": 20}, ["test.shot", "head", "head.c"])
    'head=svm test.shot=[1,5]'
    """
    ordered = sorted(keys, key=lambda key: FIRST.index(key) if key in FIRST else len(FIRST))
    return " ".join(f"{key}={word(values[key])}" for key in ordered if key in values)


def word(value: object) -> str:
    """Return a value as it is typed."""
    if isinstance(value, list):
        return f"[{','.join(map(word, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{word(each)}' for key, each in value.items())}}}"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
