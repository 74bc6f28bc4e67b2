"""Quote values for Hydra's grammar, and overrides for the shell. Imports no torch."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from functools import cache
from numbers import Real
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

OPENING, CLOSING = "([{", ")]}"


@cache
def parser() -> OverridesParser:
    """Return Hydra's parser of overrides."""
    return OverridesParser.create()


def parsed(value: str) -> tuple[Any, ...]:
    """Return the value as parsed by Hydra in a tuple of one element; an empty tuple if Hydra cannot parse it.

    >>> parsed("[1,a]"), parsed("photos (1)"), parsed("a=b"), parsed("null")
    (([1, 'a'],), (), (), (None,))
    """
    try:
        return (parser().parse_override(f"key={value}").value(),)
    except HydraException:
        return ()


def quoted(text: str) -> str:
    """Return ``text`` in a form that Hydra parses as this string, quoted only if necessary.

    >>> print(*(quoted(text) for text in ("runs/a", "a=b", "1", "it's (1)", "null", "数据")))
    runs/a 'a=b' '1' "it's (1)" 'null' '数据'
    """
    quote = Quote.double if "'" in text and '"' not in text else Quote.single
    return text if parsed(text) == (text,) else QuotedString(text, quote).with_quotes()


def override(key: str, value: object) -> str:
    """Return ``key=value`` for the command line of a process; Hydra parses strings and paths in it literally.

    >>> override("ckpt", "o/head=svm/best.ckpt"), override("test.shot", [1, 5]), override("seed", None)
    ("ckpt='o/head=svm/best.ckpt'", 'test.shot=[1,5]', 'seed=null')
    """
    return f"{key}={grammar(value)}"


def overrides(options: Mapping[str, Any]) -> list[str]:
    """Return the words of a command line that set Python values; a dictionary sets options below its key.

    >>> overrides({"head": "svm", "train": {"way": 20}, "backbone": {"arguments": {"depth": 18}}})
    ['head=svm', 'train.way=20', 'backbone.arguments={depth:18}']
    """
    words = []
    for key, value in options.items():
        below = {f"{key}.{name}": item for name, item in value.items()} if isinstance(value, dict) else {key: value}
        words += [override(name, item) for name, item in below.items()]
    return words


def grammar(value: object) -> str:
    """Return a value in Hydra's grammar."""
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{grammar(item)}' for key, item in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(grammar, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value) if isinstance(value, Real) else quoted(str(value))  # NumPy's numbers, too


def to_paste(key: str, value: object) -> str:
    """Return ``key=value`` for the advice in a message, ready to be pasted into a shell.

    >>> print(to_paste("ckpt", "o/head=svm (1)/best.ckpt"), to_paste("train.way", 5))
    "ckpt='o/head=svm (1)/best.ckpt'" train.way=5
    """
    word = override(key, value)
    in_single_quotes = shlex.quote(word)
    # Double quotes are more readable around a value in single quotes, unless the shell would expand something.
    return f'"{word}"' if "'" in word and not set('$`"\\!') & set(word) else in_single_quotes


def elements(value: str) -> Iterator[str]:
    """Yield the parts of a value, split at commas outside of quotes and brackets.

    >>> list(elements("a, 'b,c',[d,e],数据"))
    ['a', " 'b,c'", '[d,e]', '数据']
    """
    start, depth, quote = 0, 0, ""
    for place, character in enumerate(value):
        if quote:
            quote = "" if character == quote and value[place - 1] != "\\" else quote
        elif character in "\"'" and not value[start:place].strip():  # elsewhere it is an apostrophe
            quote = character
        elif character == "," and not depth:
            yield value[start:place]
            start = place + 1
        else:
            depth = max(0, depth + (character in OPENING) - (character in CLOSING))
    yield value[start:]
