"""The text of ``--help``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from metafew.config.groups import describe
from metafew.config.option_comments import describe_option
from metafew.config.quoting import elements

HEADER = """\
metafew: few-shot meta-learning experiments.

  {program} [group=option ...] [key=value ...]
"""
COMMAND_HELP = "metafew COMMAND --help describes a command."
GROUPS = """\
Each group takes one of the options below; adding one of them to --help, as in {program} --help head=svm, lists
the values that it has. Every value that --cfg job prints can be set as key=value.
"""
FOOTER = """\
More examples
  {program} head=svm norm=tasknorm dataset=omniglot trainer.max_steps=200
  {program} evaluate=[svm,ridge]                        evaluate more heads on the same test tasks
  {program} train.way=20 test.shot=[1,5]                other tasks
  {program} -m head=protonet,ridge,svm norm=tasknorm,batch    a sweep: one run for each combination
  {program} stages=[test] ckpt=outputs/.../checkpoints/best.ckpt    test a trained model
  {program} experiment=unraveling_table1                a published table; the same command resumes it
  {program} head=svm --cfg job                          print every value and run nothing
"""
OF_HYDRA = "hydra"
"""The group, and the provider of a search path, that is Hydra's own."""


class Folder(NamedTuple):
    """A folder of options, which may be one of the user's own.

    Attributes:
        path: the folder.
        groups: its groups, each with its options and their descriptions.
    """

    path: Path
    groups: dict[str, dict[str, str]]


def folders(sources: Iterable[Any]) -> list[Folder]:
    """Return the folders in which Hydra looks for options, in its order.

    Args:
        sources: the ``config_sources`` of a composition, each with ``provider``, ``schema`` and ``path``.
    """
    paths = []
    for source in sources:
        if source.schema == "file":
            paths.append(Path(source.path))
        elif source.schema == "pkg" and source.provider != OF_HYDRA:
            paths.append(Path(str(files(source.path.replace("/", ".")))))
    return [Folder(path, describe(path)) for path in paths]


def help_text(program: str, commands: Mapping[str, str], found: Iterable[Folder], common: Iterable[str]) -> str:
    """Return a description of every command, and of every group and its options.

    Args:
        program: how a run is started.
        commands: the other commands with their descriptions; none if ``program`` has none.
        found: the folders of options.
        common: groups that are chosen as ``group=option``; others are added, as in ``+group=option``.
    """
    groups: dict[str, dict[str, str]] = {}
    for folder in found:
        for group, options in folder.groups.items():
            groups[group] = options | groups.get(group, {})
    lines = [HEADER.format(program=program)]
    if commands:
        lines += [
            "Commands",
            *(f"  metafew {name:<11} {text}" for name, text in commands.items()),
            "",
            COMMAND_HELP,
            "",
        ]
    lines.append(GROUPS.format(program=program))
    for group, options in sorted(groups.items()):
        words = {f"{'' if group in common else '+'}{group}={option}": text for option, text in sorted(options.items())}
        width = max(map(len, words))
        lines += [group, *(f"  {word:<{width}}  {text}" for word, text in words.items())]
    heads = ",".join(sorted(groups["head"]))
    lines += ["evaluate", f"  evaluate=[{heads}]  heads to evaluate in addition to the trained one"]
    lines += ["  evaluate=all  all feature heads that need no training and fit the backbone", ""]
    return "\n".join([*lines, FOOTER.format(program=program)])


def help_on(words: Iterable[str], found: Iterable[Folder]) -> str:
    """Return the descriptions of the options of groups that a command line chooses, with all values that they have.

    Args:
        words: the command line.
        found: the folders of options.
    """
    texts = []
    for word in words:
        group, _, value = word.lstrip("+").partition("=")
        listed = value.startswith("[") and value.endswith("]")
        for option in elements(value[1:-1] if listed else value):
            for folder in found:
                if option.strip() in folder.groups.get("head" if group == "evaluate" else group, ()):
                    texts.append(describe_option(folder.path, group, option.strip()))
                    break
    return "\n\n".join(texts)
