"""The folder of YAML files: its groups and their options."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import Any, cast

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from metafew.config.overrides import key
from metafew.errors import UsageError, reason

PACKAGE = Path(__file__).parents[1]
INSTALLED = PACKAGE / "conf"
CONF = INSTALLED if INSTALLED.is_dir() else PACKAGE.parent / "conf"
"""The folder: inside an installed package, and next to the package in a checkout."""
ALL = "all"
"""The option of ``evaluate`` for all heads that fit; in a configuration, a key next to those of the heads, whose value
lists the heads that are always kept."""
SEARCH_PATH = "hydra.searchpath"
CONFIG_DIR = ("--config-dir", "-cd")
LISTS_OF_OPTIONS = ("evaluate", "logger")
"""Groups that take several options, each of which is configured below its own name."""
NOT_COMMON = ("defaults", "hydra")
"""Parts of conf/train.yaml that are not options of metafew."""


@cache
def describe_groups() -> dict[str, dict[str, str]]:
    """Return the options of each group, each with its description."""
    return describe(CONF)


def options_of(group: str) -> list[str]:
    """Return the options of a group; none if metafew has no such group."""
    return list(describe_groups().get("head" if group == "evaluate" else group, ()))


def describe(folder: Path) -> dict[str, dict[str, str]]:
    """Return the options of each group in a folder, which may be one of the user's own, each with its description."""
    groups: dict[str, dict[str, str]] = {}
    for file in sorted(folder.glob("*/*.yaml")):
        groups.setdefault(file.parent.name, {})[file.stem] = describe_file(file)
    return groups


def describe_file(file: Path) -> str:
    """Return the first comment of a YAML file, or where there is none, what it calls."""
    lines = file.read_text(encoding="utf-8").splitlines()
    comments = [line[2:] for line in lines if line.startswith("# ") and not line.startswith("# @package")]
    targets = [line.partition(":")[2].strip() for line in lines if line.startswith("_target_:")]
    return next(iter([*comments, *targets]), "no description")


@cache
def default_options() -> dict[str, str]:
    """Return the default option of each group that has one."""
    entries: Any = OmegaConf.to_container(cast(DictConfig, OmegaConf.load(CONF / "train.yaml")).defaults)
    pairs = [pair for entry in entries if isinstance(entry, dict) for pair in entry.items()]
    return {group: option for group, option in pairs if isinstance(option, str)}


@cache
def common_options() -> dict[str, Any]:
    """Return the options that belong to no group, such as ``seed`` and ``test.way``, with their defaults."""
    main: Any = OmegaConf.to_container(cast(DictConfig, OmegaConf.load(CONF / "train.yaml")), resolve=False)
    common = {key: value for key, value in main.items() if key not in NOT_COMMON}
    parts = [(key, part) for key, part in common.items() if isinstance(part, dict)]
    return common | {f"{key}.{name}": value for key, part in parts for name, value in part.items()}


def current_options(group: str, chosen: Any) -> dict[str, Any]:
    """Return the options of a choice, or of a part of conf/train.yaml; none for an option of the user's own.

    Args:
        group: a group, or a part such as ``val``.
        chosen: the option chosen for a group; a list for ``evaluate``, whose options are returned by head.
    """
    if group == "evaluate":
        return {name: current_options("head", name) for name in chosen}
    if group in common_options():
        return common_options()[group]
    file = CONF / group / f"{chosen}.yaml"
    content: Any = OmegaConf.to_container(load_option(file), resolve=False) if file.is_file() else {}
    return content.get(group, content)


def group_names() -> list[str]:
    """Return the names of all groups, including ``evaluate``, whose options are those of ``head``."""
    return [*describe_groups(), "evaluate"]


def is_group(key: str) -> bool:
    """Return whether a key is the name of a group, of metafew or of Hydra itself, such as ``hydra/launcher``."""
    return key in group_names() or "/" in key


def register_evaluation_heads(words: Sequence[str] = ()) -> None:
    """Register each head as an option of ``evaluate``, without its settings in other groups, and :data:`ALL` of them.

    Args:
        words: the command line, which may name folders with further heads.

    Raises:
        UsageError: if the file of such a head cannot be read.
    """
    heads = register_own_heads()
    further = {file.stem: file for folder in search_folders(words) for file in sorted((folder / "head").glob("*.yaml"))}
    for name, file in further.items():
        if name not in heads:  # if several folders have an option, Hydra uses metafew's
            register_head(name, file)
    everything: dict[str, Any] = {"defaults": sorted({*heads, *further}), ALL: []}
    ConfigStore.instance().store(group="evaluate", name=ALL, node=everything, package="evaluate")


@cache  # the 30 files take longer than the rest of a composition
def register_own_heads() -> list[str]:
    """Register the heads of metafew as options of ``evaluate``, and return their names."""
    for name in describe_groups()["head"]:
        register_head(name, CONF / "head" / f"{name}.yaml")
    return list(describe_groups()["head"])


def register_head(name: str, file: Path) -> None:
    """Register a head as an option of ``evaluate``."""
    ConfigStore.instance().store(group="evaluate", name=name, node=load_option(file), package=f"evaluate.{name}")


def named_with_all(words: Sequence[str]) -> list[str]:
    """Return the heads that the overrides of a run evaluate whether or not ``all`` includes them.

    >>> named_with_all(["head=svm", "evaluate=[all,maml,my-head]"])
    ['maml', 'my-head']
    """
    chosen = [word.partition("=")[2] for word in words if key(word) == "evaluate"]
    names = [name.strip("'\" ") for value in chosen[-1:] for name in value.strip("[]").split(",")]
    return [name for name in names if name != ALL]


def searched(words: Sequence[str]) -> list[str]:
    """Return the words that set Hydra's search path.

    >>> searched(["head=svm", "+hydra.searchpath=[file://mine]"])
    ['+hydra.searchpath=[file://mine]']
    """
    return [word for word in words if key(word) == SEARCH_PATH]


def search_folders(words: Sequence[str]) -> Iterator[Path]:
    """Yield the folders of options that a command line names, if it chooses heads to evaluate.

    >>> list(search_folders(["evaluate=all", "hydra.searchpath=[file://mine, pkg://theirs]", "-cd", "other"]))
    [PosixPath('mine'), PosixPath('other')]
    """
    if any(key(word) == "evaluate" for word in words):
        for word, following in zip_longest(words, words[1:], fillvalue=""):
            flag, _, value = word.partition("=")
            if key(word) == SEARCH_PATH:
                yield from map(Path, re.findall(r"file://([^\],'\"]+)", value))
            elif flag in CONFIG_DIR and (value or following):
                yield Path(value or following)


def load_option(file: Path) -> DictConfig:
    """Return the content of a YAML file of a group, merged over its :func:`base_files`.

    Raises:
        UsageError: if one of these files cannot be read.
    """
    try:
        node = cast(DictConfig, OmegaConf.load(file))
    except (OSError, YAMLError) as error:
        raise UsageError(f"expected {file} to be a file of options in YAML, got {reason(error)}: correct it") from error
    bases = map(load_option, base_files(file, node.pop("defaults", [])))
    return cast(DictConfig, OmegaConf.merge(*bases, node))


def base_files(file: Path, defaults: Iterable[Any]) -> Iterator[Path]:
    """Yield the files of the options that the defaults list of a file names in its own group.

    They are next to the file, or in metafew.

    Raises:
        UsageError: if there is no such file.
    """
    for name in defaults:
        if isinstance(name, str) and name != "_self_":
            places = (file.with_name(f"{name}.yaml"), CONF / file.parent.name / f"{name}.yaml")
            if (base := next((place for place in places if place.is_file()), None)) is None:
                raise UsageError(
                    f"expected the defaults of {file} to name options of {file.parent.name}, got {name}, which has no "
                    f"file: correct {file}"
                )
            yield base
