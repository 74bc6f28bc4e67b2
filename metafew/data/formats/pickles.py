"""Read pickles of arrays, numbers, strings and containers, and refuse anything that could run code."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from metafew.data.formats.damage import explain_damage
from metafew.errors import UsageError

ALLOWED = {
    "numpy": {"ndarray", "dtype"},
    "numpy._core.multiarray": {"_reconstruct", "scalar"},
    "numpy._core.numeric": {"_frombuffer"},
    "_codecs": {"encode"},  # used for bytes by protocols 0 to 2
    "builtins": {"set", "frozenset", "bytes", "bytearray", "slice", "complex", "range", "list", "dict", "int"},
    "collections": {"OrderedDict", "defaultdict"},
}
PYTHON_2 = {"xrange": "range", "long": "int"}


def unpickle(content: bytes | Path, name: str | None = None) -> Any:
    """Read a pickle of NumPy arrays, numbers, strings, bytes and containers of these, with protocol 0 to 5.

    Byte strings written by Python 2 are returned as str with one character per byte; ``.encode("latin1")`` restores the
    bytes.

    Args:
        content: the pickle, or its file.
        name: the name of the pickle in error messages; None for the name of its file.

    Raises:
        UsageError: if it is damaged, or requests any other global, which is never called.
    """
    name = name or (str(content) if isinstance(content, Path) else "the pickle")
    with (
        explain_damage(name, "a pickle of arrays", Exception),  # damaged pickles can raise almost any error
        open(content, "rb") if isinstance(content, Path) else io.BytesIO(content) as file,
    ):
        return _Unpickler(file, name).load()


class _Unpickler(pickle._Unpickler):
    """The pure-Python unpickler, as the C implementation does not allow overriding :meth:`load_build`."""

    stack: list[Any]

    def __init__(self, file: io.BufferedIOBase, name: str):
        super().__init__(file, encoding="latin1")
        self.name = name

    def find_class(self, module: str, name: str) -> Any:
        """Return an allowed global; raises UsageError for any other."""
        if module == "__builtin__":  # of Python 2
            module, name = "builtins", PYTHON_2.get(name, name)
        module = module.replace("numpy.core.", "numpy._core.")  # of NumPy 1
        if name not in ALLOWED.get(module, ()):
            self._raise_forbidden(f"{module}.{name}")
        return super().find_class(module, name)

    def load_build(self) -> None:
        """Set the state of an empty array, or of a data type whose state has the form that NumPy writes.

        NumPy trusts the flags in the state of a data type: an object type without its object flag would turn raw bytes
        into pointers.
        """
        state, target = self.stack[-1], self.stack[-2]
        if isinstance(target, np.dtype):
            version, order, *others = state
            reduced: Any = target.__reduce__()
            written, _, *expected = reduced[2]
            allowed = order in ("<", ">", "|", "=") and (version, others) == (written, expected)
        else:
            allowed = isinstance(target, np.ndarray) and target.size == 0
        if not allowed:
            self._raise_forbidden(f"a {type(target).__name__} with a custom state")
        super().load_build()  # type: ignore[misc]  # typeshed leaves it out

    def _raise_forbidden(self, what: str) -> NoReturn:
        raise UsageError(
            f"expected only arrays, numbers, strings and containers in {self.name}, but it requests {what}, which may "
            "run code: save its content as an .npz file, or replace it"
        )

    # Ignored: load_build takes this class, not any unpickler.
    dispatch = pickle._Unpickler.dispatch | {pickle.BUILD[0]: load_build}  # type: ignore[assignment]
