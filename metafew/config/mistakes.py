"""Turn errors of Hydra and OmegaConf into one line, with the nearest existing word."""

from __future__ import annotations

import os
import re
import shlex
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from metafew.config.groups import common_options, current_options, default_options, describe_groups, options_of
from metafew.config.overrides import key as key_of
from metafew.config.quoting import can_be_read, to_paste
from metafew.errors import SIMILAR_OPTION, UsageError, did_you_mean, nearest

NO_KEY = re.compile(r"Could not (?:override|delete from config\S*) '(?P<key>[^']+)'")
NO_OPTION = re.compile(r"Could not (?:find|load) '(?P<group>[^']+)/(?P<option>[^'/]*)'")
SEVERAL = re.compile(r"Ambiguous value for argument '(?P<key>[^=']+)=(?P<values>.+?)' 1\.")
NO_VARIABLE = re.compile(r"Environment variable '(?P<name>[^']+)' not found.*full_key: (?P<key>\S+)")
NO_INTERPOLATION = re.compile(r"Interpolation key '(?P<key>[^']+)' not found")
LIKELIEST = ("folder", "maml", "ridge", "batch")
"""Options to suggest for a key that several options of a group have."""
REFERENCES = re.compile(r"Config search path:.*|See https://hydra\.cc\S* for details", re.DOTALL)
"""Text that Hydra adds to its messages."""


@contextmanager
def in_one_line(words: Sequence[str]) -> Iterator[None]:
    """Convert an error of Hydra or OmegaConf inside this context to a UsageError of one line.

    With ``HYDRA_FULL_ERROR=1`` in the environment, its traceback is printed too.

    Args:
        words: the command line.
    """
    try:
        yield
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError) as error:
        # For example, Hydra itself raises ValueError for mutually exclusive flags.
        if not (isinstance(error, HydraException | OmegaConfBaseException | YAMLError) or raised_by_hydra(error)):
            raise
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            traceback.print_exc()
        raise UsageError(explain(error, words)) from error


def raised_by_hydra(error: Exception) -> bool:
    """Return whether Hydra itself, or the logging that it configures, raised an error, rather than the run."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return str(frames[-1].f_globals.get("__name__")).startswith(("hydra.", "logging.config"))


def explain(error: Exception, words: Sequence[str]) -> str:
    """Return an error of Hydra or OmegaConf in one line, with the nearest existing word.

    Args:
        error: the error of Hydra or OmegaConf.
        words: the command line.
    """
    causes = [error, *([error.__cause__] if isinstance(error.__cause__, OmegaConfBaseException) else [])]
    facts = one_line(" ".join(str(cause) for cause in causes))
    if isinstance(error, YAMLError):
        return f"expected files of a configuration in YAML, got one that is not: {facts}"
    if found := NO_OPTION.search(facts):
        listed = facts.partition(f"Available options in '{found['group']}':")[2]
        return no_option(found["group"], found["option"], listed.split())
    if found := NO_VARIABLE.search(facts):
        return (
            f"expected {found['key']} to name a variable of the environment, got {found['name']}, which is not set: "
            f"type {found['name']}=VALUE in front of the command"
        )
    if found := NO_INTERPOLATION.search(facts):
        near = nearest(found["key"], keys(words))
        return f"expected ${{...}} to name an option, got {found['key']}{did_you_mean(near)}: {facts}"
    if found := SEVERAL.search(facts):
        key, values = found["key"], found["values"]
        several = f"type -m {shlex.quote(f'{key}={values}')} for a run of each, or "
        several = "type " if any(word.startswith("experiment=") for word in words) else several  # is no sweep
        return (
            f"expected one value of {key} in a run that is not a sweep, got {values}: {several}"
            f"{shlex.quote(f'{key}=[{values}]')} for a list"
        )
    if found := NO_KEY.search(facts):
        return no_key(found["key"], words)
    unreadable = next((word for word in words if not word.startswith("-") and not can_be_read(word)), None)
    if unreadable is not None:
        return f"expected words such as head=svm, got {unreadable!r} ({facts}): type --help to see more of them"
    return facts


def no_option(group: str, given: str, listed: Sequence[str] = ()) -> str:
    """Return the error for a value that is not an option of a group.

    Args:
        group: the group.
        given: the value on the command line.
        listed: the options of the group, if Hydra lists them, those of the user's own included.
    """
    group = group.partition("@")[0]
    options = list(dict.fromkeys([*options_of(group), *listed]))
    if not options:
        return f"expected {group} to be the name of an option, got {given}: leave out {group}"
    nothing = given in ("null", f"~{group}")
    near = None if nothing else nearest(given, options, SIMILAR_OPTION)
    instead = near or ("none" if nothing and "none" in options else default_options().get(group))
    advice = f"leave out {group}" if instead is None else f"type {to_paste(group, instead)}"
    return f"expected {group} to be one of {', '.join(options)}, got {given or 'none'}{did_you_mean(near)}: {advice}"


def no_key(key: str, words: Sequence[str]) -> str:
    """Return the error for a key that does not exist in the configuration of a command line."""
    group, _, option = key.partition(".")
    value = next((word.partition("=")[2] for word in words if key_of(word) == key), "")
    owners = [name for name in describe_groups().get(group, ()) if option in keys_of(group, name)]
    if owners:
        owner = next((name for name in LIKELIEST if name in owners), owners[0])
        return (
            f"expected an option of the {group} that this run has, got {key}, an option of {group}="
            f"{' or '.join(owners)}: type {group}={owner} {shlex.quote(f'{key}={value}')}"
        )
    if group in ("evaluate", "logger") and (name := option.partition(".")[0]) in options_of(group):
        word = shlex.quote(f"{key}={value}")
        return f"expected {key} to come with {group}={name}, got no such choice: type {group}={name} {word}"
    of_group = [each for each in keys(words) if each.startswith(f"{group}.")] if group in describe_groups() else None
    near = nearest(key, [*keys(words), *describe_groups()] if of_group is None else of_group)
    new = shlex.quote(f"+{key}={value}")
    advice = f"type {shlex.quote(f'{near}={value}')}" if near else "type --cfg job to see them all"
    return f"expected a key that --cfg job prints, got {key}{did_you_mean(near)}: {advice}, or {new} to add a key"


def keys(words: Sequence[str]) -> list[str]:
    """Return the keys of the configuration that a command line composes, as far as metafew's own files contain them."""
    chosen = default_options() | {
        group: option for group, _, option in (word.partition("=") for word in words) if group in describe_groups()
    }
    found = list(common_options())
    for group, option in chosen.items():
        if option in describe_groups().get(group, ()):
            found += [f"{group}.{key}" for key in keys_of(group, option)]
    return found


def keys_of(group: str, option: str) -> list[str]:
    """Return the keys of an option of a group, relative to the group."""
    return [key for key in flat(current_options(group, option)) if not key.rpartition(".")[2].startswith("_")]


def flat(node: dict, prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys of a nested dictionary."""
    for key, value in node.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")


def one_line(text: str) -> str:
    """Return a message of Hydra in one line, without its references."""
    return " ".join(REFERENCES.sub("", text).split()).rstrip(".")
