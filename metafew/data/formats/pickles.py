"""Pickles: arrays, numbers, strings and containers, and nothing that runs code."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from metafew.errors import UsageError

ALLOWED = {
    "numpy": {"ndarray", "dtype"},
    "numpy._core.multiarray": {"_reconstruct", "scalar"},
    "numpy._core.numeric": {"_frombuffer"},
    "_codecs": {"encode"},  # how protocols 0 to 2 write bytes
    "builtins": {"set", "frozenset", "bytes", "bytearray", "slice", "complex", "range", "list", "dict", "int"},
    "collections": {"OrderedDict", "defaultdict"},
}
PYTHON_2 = {"xrange": "range", "long": "int"}


def unpickle(content: bytes | Path) -> Any:
    """Read a pickle of NumPy arrays, numbers, strings, bytes and containers of these, of protocol 0 to 5.

    Byte strings that Python 2 wrote come back as str, one character a byte: `.encode("latin1")` has the bytes.

    Args:
        content: The pickle, or its file.

    Raises:
        UsageError: It is damaged, or asks for anything else; nothing that it asks for has run then.
    """
    name = str(content) if isinstance(content, Path) else "the pickle"
    try:
        with open(content, "rb") if isinstance(content, Path) else io.BytesIO(content) as file:
            return _Unpickler(file, name).load()
    except UsageError:
        raise
    except Exception as error:  # damaged pickles raise almost anything
        raise UsageError(
            f"{name} should be a pickle of arrays, and cannot be read ({type(error).__name__}: {error}): replace it "
            f"with a good copy."
        ) from error


class _Unpickler(pickle._Unpickler):
    """The unpickler in Python: the one in C, otherwise the same, does not let anyone check `load_build`."""

    def __init__(self, file: io.BufferedIOBase, name: str):
        super().__init__(file, encoding="latin1")
        self.name = name

    def find_class(self, module: str, name: str) -> Any:
        """Return a global if it is one that arrays and containers need."""
        if module == "__builtin__":  # of Python 2
            module, name = "builtins", PYTHON_2.get(name, name)
        module = module.replace("numpy.core.", "numpy._core.")  # of NumPy 1
        if name not in ALLOWED.get(module, ()):
            self.refuse(f"{module}.{name}")
        return super().find_class(module, name)

    def load_build(self) -> None:
        """Give an object its state: a new array, or a data type whose state is as NumPy writes it.

        NumPy believes the flags in the state of a type: a type of objects that denies it makes pointers of raw bytes.
        """
        state, target = self.stack[-1], self.stack[-2]
        if isinstance(target, np.dtype):
            version, order, *others = state
            written, _, *own = target.__reduce__()[2]
            known = order in ("<", ">", "|", "=") and (version, others) == (written, own)
        else:
            known = isinstance(target, np.ndarray) and target.size == 0
        if not known:
            self.refuse(f"a {type(target).__name__} in a state of its own")
        super().load_build()

    def refuse(self, what: str) -> NoReturn:
        """Raise the error that names what the pickle asks for."""
        raise UsageError(
            f"{self.name} should hold arrays, numbers, strings and containers only, and asks for {what}, which may run "
            f"code: save its content as an .npz file, or replace it."
        )

    dispatch = pickle._Unpickler.dispatch | {pickle.BUILD[0]: load_build}
