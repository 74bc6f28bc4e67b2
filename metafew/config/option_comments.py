"""The values that an option of a group sets, with the comments of its YAML file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import yaml

from metafew.config.groups import base_files, describe_file

NOT_SHOWN = ("defaults", "hydra", "experiment")
"""Keys of a file that are not options of a component."""
WIDEST = 40
"""Maximum width, in characters, of ``key=value`` that comments are aligned to."""
PACKAGE = re.compile(r"# @package (\S+)")
CHOICE = re.compile(r"(?:override )?/?(?P<group>[^@\s]+)")


class Value(NamedTuple):
    """A value of a YAML file.

    Attributes:
        text: as it is typed on the command line; empty for a part with values of its own.
        comment: the comment on its line; empty if there is none.
    """

    text: str
    comment: str


def describe_option(conf: Path, group: str, option: str) -> str:
    """Return the description of an option, and a line for each value that it sets.

    Args:
        conf: the folder with the folder of the group.
        group: the group; the options of ``evaluate`` are those of ``head``.
        option: its option.
    """
    folder = conf / ("head" if group == "evaluate" else group)
    file = folder / f"{option}.yaml"
    values = commented(file, f"evaluate.{option}" if group == "evaluate" else group)
    typed = {key: f"{key}={value.text}" if value.text else key for key, value in values.items()}
    width = min(WIDEST, max(map(len, typed.values()), default=0))
    lines = [f"{group}={option}: {describe_file(file)}", ""]
    lines += [f"  {typed[key]:<{width}}  {value.comment}".rstrip() for key, value in values.items()]
    chosen = [] if group == "evaluate" else list(chosen_with(file))
    lines += [f"  with {' '.join(chosen)}"] if chosen else []
    lines += ["  nothing to set"] if not values else []
    comments = [line[2:] for line in file.read_text("utf-8").splitlines() if line.startswith("# ")]
    more = [line for line in comments if line not in (describe_file(file),) and not line.startswith("@package")]
    return "\n".join([*lines, *([""] if more else []), *(f"  {line}" for line in more)])


def commented(file: Path, package: str) -> dict[str, Value]:
    """Return the values of a YAML file of a group by their keys on the command line, those of its base files first.

    Args:
        file: the file.
        package: the key under which its content is placed, unless the file names another.
    """
    text = file.read_text("utf-8")
    root = yaml.compose(text)
    if not isinstance(root, yaml.MappingNode):
        return {}
    named = PACKAGE.search(text)
    own = named[1] if named else package
    values: dict[str, Value] = {}
    for base in base_files(file, defaults_of(root)):
        values |= commented(base, package)
    for key, value in walk(root, text, "" if own == "_global_" else f"{own}."):
        values[key] = Value(value.text, value.comment or values.get(key, value).comment)
    return values


def defaults_of(root: yaml.MappingNode) -> list[str]:
    """Return the defaults list of a file, without the choices in other groups."""
    listed = [item for key, node in root.value if key.value == "defaults" for item in node.value]
    return [item.value for item in listed if isinstance(item, yaml.ScalarNode)]


def chosen_with(file: Path) -> Iterator[str]:
    """Yield the choices in other groups that a file makes, such as ``objective=reptile``."""
    content = yaml.safe_load(file.read_text("utf-8")) or {}
    for entry in content.get("defaults", []):
        for group, option in entry.items() if isinstance(entry, dict) else ():
            if found := CHOICE.match(group):
                yield f"{found['group']}={option}"


def walk(node: yaml.MappingNode, text: str, prefix: str) -> Iterator[tuple[str, Value]]:
    """Yield the dotted keys of a mapping with their values."""
    lines = text.splitlines()
    for key, value in node.value:
        if key.value in NOT_SHOWN or key.value.startswith("_"):
            continue
        name = f"{prefix}{key.value}"
        block = isinstance(value, yaml.CollectionNode) and not value.flow_style
        mark = key.end_mark if block else value.end_mark
        rest = lines[mark.line][mark.column :] if mark.line < len(lines) else ""  # a block scalar ends after the last
        comment = rest.partition("#")[2].strip()
        if block and isinstance(value, yaml.MappingNode):
            if comment or "_target_" in [inner.value for inner, _ in value.value]:
                yield name, Value("", comment)
            yield from walk(value, text, f"{name}.")
        elif block:
            yield name, Value(f"[{','.join(source(item, text) for item in value.value)}]", comment)
        else:
            yield name, Value(source(value, text), comment)


def source(node: yaml.Node, text: str) -> str:
    """Return a value as it stands in a file, in one line and without spaces in lists."""
    return " ".join(text[node.start_mark.index : node.end_mark.index].split()).replace(", ", ",")
