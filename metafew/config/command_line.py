"""Preprocess a command line for Hydra: quote what its grammar cannot parse, and refuse what it would misread."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from os.path import expanduser
from pathlib import Path

from hydra.core.override_parser.types import ChoiceSweep, Glob

from metafew.config.groups import LISTS_OF_OPTIONS, common_options, default_options, group_names, is_group
from metafew.config.mistakes import no_option
from metafew.config.paths import FOLDERS, PATHS
from metafew.config.quoting import OPENING, elements, parsed, quoted
from metafew.errors import UsageError

WORD = re.compile(r"(?P<key>[+~]{0,2}[\w./@:]+)=(?P<value>.*)", re.DOTALL)
HYPHENS = re.compile(r"--?(?P<key>[\w.]+)=.*", re.DOTALL)
FLAGS = {
    "cfg", "c", "package", "p", "config-path", "cp", "config-name", "cn", "config-dir", "cd", "experimental-rerun",
}  # fmt: skip
"""Hydra's own flags that take a value; their hyphens are not those of a W&B agent."""
INFO = {"info", "i"}
"""Hydra's flags with an optional value."""
SWITCHES = {"help", "h", "hydra-help", "version", "resolve", "run", "r", "multirun", "m", "shell-completion", "sc"}
"""Hydra's flags without a value."""
VALUES = {
    "cfg": ("job", "hydra", "all"),
    "info": ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"),
}
"""The values of flags that accept only a few."""


def readable(words: Sequence[str]) -> list[str]:
    """Return the words of a command line in a form that Hydra can parse.

    A value that its grammar cannot read, such as a path with letters of other scripts, parentheses or ``=``, is quoted,
    and ``~`` is the home folder. Words that Hydra can already parse are unchanged; flags are moved to the end.

    >>> readable(["dataset.root=数据/鸟", "ckpt=o/head=svm/best.ckpt", "dataset.root=2024", "seed=2024", "-m"])
    ["dataset.root='数据/鸟'", "ckpt='o/head=svm/best.ckpt'", "dataset.root='2024'", 'seed=2024', '-m']

    Raises:
        UsageError: if the value of a group is not an option, a word starts with hyphens as those of W&B agents do, a
            value is Python's ``None``, or a list is split into several words.
    """
    words = flags_last(words)
    sweeps = bool({"-m", "--multirun", "hydra.mode=MULTIRUN"} & {*words})
    for place, word in enumerate(words):
        if word.startswith("~"):
            check_deleted(word)
        elif found := WORD.fullmatch(word):
            check_list_is_one_word(words[place:])
            key = found["key"].lstrip("+~").split("@")[0]
            check = check_group if is_group(key) else check_folder if key in FOLDERS else check_null
            check(key, found["value"])
            words[place] = f"{found['key']}={readable_value(key, found['value'], sweeps)}"
    return words


def flags_last(words: Sequence[str]) -> list[str]:
    """Return the words of a command line with Hydra's flags at the end: Hydra cannot parse flags between other words.

    >>> flags_last(["head=svm", "-m", "seed=0,1", "--config-name", "mine", "norm=batch"])
    ['head=svm', 'seed=0,1', 'norm=batch', '-m', '--config-name', 'mine']

    Raises:
        UsageError: if a word with hyphens is not one of Hydra's flags, or has a value that the flag does not accept.
    """
    others: list[str] = []
    flags: list[str] = []
    rest = [*words]
    while rest:
        word = rest.pop(0)
        if not word.startswith("-"):
            others.append(word)
            continue
        name, equals, value = word.lstrip("-").partition("=")
        if name not in FLAGS | INFO | SWITCHES or (name in SWITCHES and equals):
            check_hyphens(word)
        flags.append(word)
        if name in FLAGS and not equals:
            if not rest:
                raise UsageError(f"expected a value of {word}, got none: type {word}=VALUE")
            flags.append(value := rest.pop(0))
        elif name in INFO and not equals and rest and rest[0] in VALUES["info"]:
            flags.append(value := rest.pop(0))
        allowed = next((VALUES[full] for full in VALUES if name in (full, full[0])), (value,))
        if value not in allowed and (value or name in FLAGS):
            raise UsageError(
                f"expected {word.partition('=')[0]} to be {' or '.join(allowed)}, got {value or 'none'}: "
                f"type {word.partition('=')[0]}={allowed[0]}"
            )
    return others + flags


def readable_value(key: str, value: str, sweeps: bool) -> str:
    """Return the value of an option in a form that Hydra can parse; with ``sweeps``, commas separate several runs."""
    path = key in (*PATHS, *FOLDERS)
    read = parsed(value)
    if read and not path:
        return value
    if sweeps and len(parts := list(elements(value))) > 1:
        return ",".join(readable_value(key, part, sweeps) for part in parts)
    if path:
        return readable_path(value, read)
    if value.startswith("[") and value.endswith("]"):
        return f"[{','.join(readable_value('', part.strip(), False) for part in elements(value[1:-1]))}]"
    if value.startswith("{") and value.endswith("}"):
        pairs = (part.partition(":") for part in elements(value[1:-1]))
        entries = (f"{name.strip()}:{readable_value('', part.strip(), False)}" for name, _, part in pairs)
        return f"{{{','.join(entries)}}}"
    return value if value.startswith(("'", '"', *OPENING)) else quoted(expanduser(value))


def readable_path(text: str, read: tuple) -> str:
    """Return a path in a form that Hydra can parse.

    Args:
        text: the path on the command line.
        read: what Hydra reads, as :func:`~metafew.config.quoting.parsed` returns it.
    """
    if not read:
        return quoted(expanduser(text))
    (value,) = read
    if text != text.strip():  # spaces that Hydra would strip
        return quoted(text)
    if isinstance(value, str):
        return quoted(expanduser(value)) if value.startswith("~") else text  # was quoted: a bare ~ is not parsed
    # A folder named 2024, true or [new], or an existing folder a,b, which would otherwise mean two runs of a sweep.
    literal = isinstance(value, int | float | list | dict) or (value is not None and Path(text).exists())
    return quoted(text) if literal else text


def check_deleted(word: str) -> None:
    """Check that a word with ``~`` deletes nothing that every run needs: a group, or an option of no group."""
    name = word[1:].partition("=")[0]
    if name in default_options():
        raise UsageError(no_option(name, f"~{name}"))
    if name in common_options():
        raise UsageError(f"expected a value of {name}, which every run has, got {word}: leave out {word}")


def check_hyphens(word: str) -> None:
    """Raise the error for ``--key=value``, and for anything else with hyphens that is not a flag."""
    name = word.partition("=")[0]
    if name.lstrip("-") in SWITCHES:
        raise UsageError(f"expected {name} without a value, got {word}: type {name}")
    if not HYPHENS.fullmatch(word):
        raise UsageError(f"expected words such as head=svm and flags such as -m, got {word}: type --help to see them")
    raise UsageError(
        f"expected words without hyphens, got {word}: type {shlex.quote(word.lstrip('-'))}, and in the command of a "
        "W&B sweep ${args_no_hyphens} in place of ${args}"
    )


def check_list_is_one_word(words: Sequence[str]) -> None:
    """Check that the shell did not split a list at its spaces.

    Args:
        words: a word with a key and a value, and all following words.
    """
    joined = words[0]
    for count, word in enumerate(words[1:], 2):
        if joined.count("[") <= joined.count("]"):
            return
        joined += f" {word}"
        if joined.endswith("]") and joined.count("[") == joined.count("]"):
            advice = shlex.quote(joined.replace(" ", "")) if "'" in joined else joined.replace(" ", "")
            raise UsageError(f"expected a list without spaces, got {joined} in {count} words: type {advice}")


def check_folder(key: str, value: str) -> None:
    """Check that a folder has a name."""
    if value.strip() in ("", "null", "None", "''", '""'):
        raise UsageError(f"expected {key} to be a folder, got {value or 'none'}: type {key}=DIR")


def check_null(key: str, value: str) -> None:
    """Check that a value is not ``None``, which Hydra parses as a string."""
    if "None" in parts(value):
        advice = re.sub(r"\bNone\b", "null", value)
        raise UsageError(f"expected null for no value, got {key}={value}: type {key}={advice}")


def check_group(key: str, value: str) -> None:
    """Check that each option of a group is a word, or Hydra's ``choice`` or ``glob``, and not a number, null or a list.

    Raises:
        UsageError: if one of them is not; Hydra would print a traceback.
    """
    if key in group_names() and key not in LISTS_OF_OPTIONS and value.startswith("["):
        raise UsageError(no_option(key, value))
    for part in parts(value):
        read = parsed(part)
        if read and not isinstance(read[0], str | ChoiceSweep | Glob):
            raise UsageError(no_option(key, part))


def parts(value: str) -> list[str]:
    """Return the elements of a list, or the values of a sweep.

    >>> parts("[svm, null]"), parts("svm,5")
    (['svm', 'null'], ['svm', '5'])
    """
    listed = value.startswith("[") and value.endswith("]")
    return [part.strip() for part in elements(value[1:-1] if listed else value)]
