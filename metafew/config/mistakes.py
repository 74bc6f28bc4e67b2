"""Turn errors of Hydra and OmegaConf into one line, with the nearest existing word."""

from __future__ import annotations

import os
import re
import shlex
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from metafew.config.groups import (
    LISTS_OF_OPTIONS,
    common_options,
    current_options,
    default_options,
    describe_groups,
    group_names,
    is_group,
    options_of,
)
from metafew.config.overrides import key as key_of
from metafew.config.quoting import elements, to_paste
from metafew.errors import SIMILAR_OPTION, UsageError, did_you_mean, nearest

NO_KEY = re.compile(r"Could not (?:override|delete from config\S*) '(?P<key>[^']+)'")
SEVERAL = re.compile(r"Ambiguous value for argument '(?P<key>[^=']+)=(?P<values>.+?)' 1\.")
NO_VARIABLE = re.compile(r"Environment variable '(?P<name>[^']+)' not found.*full_key: (?P<key>\S+)")
NO_INTERPOLATION = re.compile(r"Interpolation key '(?P<key>[^']+)' not found")
LIKELIEST = ("folder", "maml", "ridge", "batch")
"""Options to suggest for a key that several options of a group have."""
REFERENCES = re.compile(r"Config search path:.*|See https://hydra\.cc\S* for details", re.DOTALL)
"""Text that Hydra adds to its messages."""


@contextmanager
def in_one_line(words: Sequence[str], sweeps: bool = True) -> Iterator[None]:
    """Convert an error of Hydra or OmegaConf inside this context to a UsageError of one line.

    With ``HYDRA_FULL_ERROR=1`` in the environment, its traceback is printed too.

    Args:
        words: the command line.
        sweeps: whether it could be that of a sweep instead, with ``-m``.
    """
    try:
        yield
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError) as error:
        # For example, Hydra itself raises ValueError for mutually exclusive flags.
        if not (isinstance(error, HydraException | OmegaConfBaseException | YAMLError) or raised_by_hydra(error)):
            raise
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            traceback.print_exc()
        raise UsageError(explain(error, words, sweeps)) from error


def raised_by_hydra(error: Exception) -> bool:
    """Return whether Hydra itself, or the logging that it configures, raised an error, rather than the run."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return str(frames[-1].f_globals.get("__name__")).startswith(("hydra.", "logging.config"))


def explain(error: Exception, words: Sequence[str], sweeps: bool) -> str:
    """Return an error of Hydra or OmegaConf in one line, with the nearest existing word.

    Args:
        error: the error of Hydra or OmegaConf.
        words: the command line.
        sweeps: whether it could be that of a sweep instead, with ``-m``.
    """
    causes = [error, *([error.__cause__] if isinstance(error.__cause__, OmegaConfBaseException) else [])]
    facts = one_line(" ".join(str(cause) for cause in causes))
    if isinstance(error, YAMLError):
        return f"expected files of a configuration in YAML, got one that is not: {facts}"
    if isinstance(error, OverrideParseException):
        return f"expected words such as head=svm, got {error.override!r} ({facts}): type --help to see more of them"
    if isinstance(error, MissingConfigException):
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        if error.options or options_of(group):
            return no_option(group, option, error.options or ())
    if found := NO_VARIABLE.search(facts):
        return (
            f"expected {found['key']} to name a variable of the environment, got {found['name']}, which is not set: "
            f"type {found['name']}=VALUE in front of the command"
        )
    if found := NO_INTERPOLATION.search(facts):
        near = nearest(found["key"], keys(words))
        return f"expected ${{...}} to name an option, got {found['key']}{did_you_mean(near)}: {facts}"
    if found := SEVERAL.search(facts):
        sweeps = sweeps and not any(word.startswith("experiment=") for word in words)
        return several_values(found["key"], found["values"], sweeps)
    if found := NO_KEY.search(facts):
        return no_key(found["key"], words)
    return facts


def several_values(key: str, values: str, sweeps: bool) -> str:
    """Return the error for several values of a key in a run that is not a sweep.

    Args:
        key: the key.
        values: the values, separated by commas.
        sweeps: whether to advise a sweep.
    """
    advice = [f"-m {shlex.quote(f'{key}={values}')} for a run of each"] if sweeps else []
    if key_of(key) in LISTS_OF_OPTIONS or not is_group(key_of(key)):
        advice.append(f"{shlex.quote(f'{key}=[{values}]')} for a list")
    if not sweeps:
        advice.append(shlex.quote(f"{key}={next(elements(values))}"))
    return f"expected one value of {key} in a run that is not a sweep, got {values}: type {', or '.join(advice)}"


def no_option(group: str, given: str, listed: Sequence[str] = ()) -> str:
    """Return the error for a value that is not an option of a group.

    Args:
        group: the group.
        given: the value on the command line.
        listed: the options of the group, if Hydra lists them, those of the user's own included.
    """
    options = list(dict.fromkeys([*options_of(group), *listed]))
    if not options:
        return f"expected {group} to be the name of an option, got {given}: leave out {group}"
    nothing = given in ("null", "None", f"~{group}")
    near = None if nothing else nearest(given, options, SIMILAR_OPTION)
    instead = near or ("none" if nothing and "none" in options else default_options().get(group))
    advice = f"leave out {group}" if instead is None else f"type {to_paste(group, instead)}"
    return f"expected {group} to be one of {', '.join(options)}, got {given or 'none'}{did_you_mean(near)}: {advice}"


def no_key(key: str, words: Sequence[str]) -> str:
    """Return the error for a key that does not exist in the configuration of a command line."""
    group = key.partition(".")[0]
    given = next((word for word in words if key_of(word) == key), key)
    similar = similar_keys(key, words)
    if given.startswith("~"):
        # A key among similar ones is that of a choice that was not made.
        deletable = [each for each in similar if key not in similar and each not in (*common_options(), *group_names())]
        near = nearest(key, deletable)
        advice = f"type ~{near}" if near else f"leave out {given}"
        return f"expected a key that --cfg job prints, got {given}{did_you_mean(near)}: {advice}"
    value = given.partition("=")[2]
    word = shlex.quote(f"{key}={value}")
    if owners := [name for name in options_of(group) if key in keys_of(group, name)]:
        owner = next((name for name in LIKELIEST if name in owners), owners[0])
        if group in LISTS_OF_OPTIONS:
            return f"expected {key} to come with {group}={owner}, got no such choice: type {group}={owner} {word}"
        return (
            f"expected an option of the {group} that this run has, got {key}, an option of {group}="
            f"{' or '.join(owners)}: type {group}={owner} {word}"
        )
    near = nearest(key, similar)
    advice = f"type {shlex.quote(f'{near}={value}')}" if near else "type --cfg job to see them all"
    new = shlex.quote(f"+{key}={value}")
    return f"expected a key that --cfg job prints, got {key}{did_you_mean(near)}: {advice}, or {new} to add a key"


def similar_keys(key: str, words: Sequence[str]) -> list[str]:
    """Return the keys that may be meant by one that does not exist: of its option or group if it has one, or all."""
    group, option, *_ = f"{key}.".split(".")
    if group in LISTS_OF_OPTIONS and option in options_of(group):
        return keys_of(group, option)
    found = keys(words)
    if group in group_names():
        return [each for each in found if each.startswith(f"{group}.")]
    return [*found, *describe_groups()]


def keys(words: Sequence[str]) -> list[str]:
    """Return the keys of the configuration that a command line composes, as far as metafew's own files contain them."""
    chosen = default_options() | {
        group: option for group, _, option in (word.partition("=") for word in words) if group in group_names()
    }
    options = ((group, option) for group, option in chosen.items() if option in options_of(group))
    return [*common_options(), *(key for group, option in options for key in keys_of(group, option))]


def keys_of(group: str, option: str) -> list[str]:
    """Return the keys of an option of a group, such as ``head.c`` or ``evaluate.svm.c``."""
    place = f"{group}.{option}" if group in LISTS_OF_OPTIONS else group
    content = current_options("head" if group == "evaluate" else group, option)
    return [f"{place}.{key}" for key in flat(content) if not key.rpartition(".")[2].startswith("_")]


def flat(node: dict, prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys of a nested dictionary."""
    for key, value in node.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")


def one_line(text: str) -> str:
    """Return a message of Hydra in one line, without its references."""
    return " ".join(REFERENCES.sub("", text).split()).rstrip(".")
