import os
import pickle
from collections import OrderedDict, defaultdict
from functools import partial

import numpy as np
import pytest

from metafew.data.formats.pickles import unpickle
from metafew.errors import UsageError

PROTOCOLS = range(6)
ARRAYS = [
    np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.arange(6, dtype=">i4"),
    np.array(["one", "Ünion"]),
    np.array([b"one", b"\xff"]),
    np.array(5),
    np.zeros((0, 3), np.float16),
]
OBJECTS = [
    {"images": [1, 2.5, None, True], ("a", "b"): {"c"}},
    [b"", b"\x00\xff", bytearray(b"x"), "é", 1j, 2**100],
    [frozenset([1]), slice(1, 2), range(3)],
    [OrderedDict(b=1, a=2), defaultdict(list, {1: [2]}), defaultdict(set), defaultdict(dict), defaultdict(int)],
    [np.float32(3.5), np.int64(2), np.bool_(True), np.str_("s"), np.dtype("u1")],
]


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments, state=None):
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.parts


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_arrays(protocol, tmp_path):
    (tmp_path / "arrays.pkl").write_bytes(content := pickle.dumps(ARRAYS, protocol))
    for arrays in (unpickle(content), unpickle(tmp_path / "arrays.pkl")):
        for array, original in zip(arrays, ARRAYS, strict=True):
            assert type(array) is np.ndarray and array.dtype.kind == original.dtype.kind
            assert array.shape == original.shape and np.array_equal(array, original)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_numbers_strings_and_containers(protocol):
    for original in OBJECTS:
        back = unpickle(pickle.dumps(original, protocol))
        assert back == original and repr(back) == repr(original)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_arrays_of_objects(protocol):
    original = np.array([np.arange(3), "x", None, [b"y"]], dtype=object)
    array = unpickle(pickle.dumps(original, protocol))
    assert array.dtype == object and array[1:].tolist() == ["x", None, [b"y"]] and array[0].tolist() == [0, 1, 2]
    with pytest.raises(UsageError, match=r"posix\.system"):
        unpickle(pickle.dumps(np.array([Call(os.system, "true")], dtype=object), protocol))


@pytest.mark.parametrize("package", [b"numpy.core", b"numpy._core"])
def test_names_of_numpy_1_and_2(package):
    rows = b"\x01\x02\x03\x04\x05\x06"
    array = (  # as NumPy writes it, in protocol 2
        b"\x80\x02c" + package + b".multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85c_codecs\nencode\n"
        b"X\x01\x00\x00\x00bX\x06\x00\x00\x00latin1\x86R\x87R(K\x01K\x02K\x03\x86cnumpy\ndtype\n"
        b"X\x02\x00\x00\x00u1\x89\x88\x87R(K\x03X\x01\x00\x00\x00|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        b"c_codecs\nencode\nX\x06\x00\x00\x00" + rows + b"X\x06\x00\x00\x00latin1\x86Rtb."
    )
    assert unpickle(array).tolist() == [[1, 2, 3], [4, 5, 6]]
    content = pickle.dumps(np.arange(3.0), 5)
    assert b"numpy._core.numeric" in content or b"numpy.core.numeric" in content
    old = (
        b"cnumpy.core.numeric\n_frombuffer\n(C\x02\x07\x08cnumpy\ndtype\n(X\x02\x00\x00\x00u1\x89\x88tRK\x02\x85"
        b"X\x01\x00\x00\x00CtR."
    )
    assert unpickle(old.replace(b"numpy.core", package)).tolist() == [7, 8]
    scalar = b"c" + package + b".multiarray\nscalar\n(cnumpy\ndtype\n(X\x02\x00\x00\x00u1\x89\x88tRC\x01\x09tR."
    assert unpickle(scalar) == 9


def test_strings_of_python_2():
    assert unpickle(b"(dp0\nS'name'\np1\nS'\\xe9\\x00'\np2\nsS'set'\nc__builtin__\nset\n((lp3\nI1\natRs.") == {
        "name": "é\x00",
        "set": {1},
    }
    assert unpickle(b"\x80\x02U\x04\x89PNGq\x00.").encode("latin1") == b"\x89PNG"
    array = (  # numpy.array([[1, 255]], 'uint8') of Python 2, in protocol 2
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85q\x03U\x01bq\x04\x87q\x05R"
        b"q\x06(K\x01K\x01K\x02\x86q\x07cnumpy\ndtype\nq\x08U\x02u1q\x09K\x00K\x01\x87q\x0aRq\x0b(K\x03U\x01|q\x0cNNN"
        b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\x0db\x89U\x02\x01\xffq\x0etq\x0fb."
    )
    assert unpickle(array).tolist() == [[1, 255]]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_nothing_runs(protocol, tmp_path):
    trace = tmp_path / "trace"
    calls = {
        "posix.system": Call(os.system, f"touch {trace}"),
        "builtins.eval": Call(eval, f"open({str(trace)!r}, 'w')"),
        "builtins.exec": Call(exec, f"open({str(trace)!r}, 'w')"),
        "builtins.getattr": Call(getattr, "a", "upper"),
        "functools.partial": Call(partial, print),
        "io.open": Call(open, str(trace), "w"),
        "numpy.load": Call(np.load, "x"),
    }
    for name, call in calls.items():
        file = tmp_path / "evil.pkl"
        file.write_bytes(pickle.dumps([np.arange(3), {"x": call}], protocol))
        with pytest.raises(UsageError, match=rf"{name}, which may run code") as caught:
            unpickle(file)
        assert str(file) in str(caught.value)
    assert not trace.exists()
    pickle.loads(pickle.dumps(calls["posix.system"], protocol))  # which would have run
    assert trace.exists()


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"ctorch._utils\n_rebuild_tensor_v2\n.", "torch._utils._rebuild_tensor_v2"),
        (b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.", r"numpy\.ndarray\.tofile"),
        (b"c__builtin__\neval\n.", r"builtins\.eval"),
        (b"(S'true'\nios\nsystem\n.", r"os\.system"),
        (b"cnumpy.core.multiarray\nfromfile\n.", r"numpy\._core\.multiarray\.fromfile"),
        (b"c__main__\nx\n.", r"__main__\.x"),
        # state for what takes none: attributes of a function, of a class
        (b"cnumpy._core.numeric\n_frombuffer\n(N}S'__doc__'\nNstb.", "a function with a custom state"),
        (b"ccollections\nOrderedDict\n(N}S'x'\nNstb.", "a type with a custom state"),
    ],
)
def test_other_names(content, name):
    with pytest.raises(UsageError, match=f"in the pickle, but it requests {name}, which may run code"):
        unpickle(content)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_memory_is_not_made_of_raw_bytes(protocol):
    numbers = np.arange(4)
    reconstruct, _, state = numbers.__reduce__()
    for call in (
        Call(np.dtype, "O8", False, True, state=(3, "|", None, None, None, -1, -1, 0)),  # objects that deny it
        Call(np.dtype, "V8", False, True, state=(3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, 0)),
        Call(reconstruct, np.ndarray, (4,), b"b", state=state),  # memory that a view may share
    ):
        with pytest.raises(UsageError, match="with a custom state"):
            unpickle(pickle.dumps(call, protocol))


def test_damaged_pickles(tmp_path):
    whole = pickle.dumps({"images": ARRAYS[0], "labels": list(range(20)), "names": {"a", "b"}}, 2)
    for end in range(len(whole)):
        with pytest.raises(UsageError, match="the pickle"):
            unpickle(whole[:end])
    (tmp_path / "a.pkl").write_bytes(b"<html>not found</html>")
    for file in (tmp_path / "a.pkl", tmp_path / "none.pkl", tmp_path):
        with pytest.raises(UsageError, match=rf"{file} cannot be read as a pickle of arrays"):
            unpickle(file)


def test_changed_bytes_give_a_sentence_or_a_value():
    rng = np.random.default_rng(0)
    whole = pickle.dumps([np.arange(5, dtype=np.uint8), {"a": b"b"}], 2)
    for _ in range(300):
        changed = bytearray(whole)
        changed[rng.integers(len(whole))] = rng.integers(256)
        try:
            unpickle(bytes(changed))
        except UsageError as error:
            assert "the pickle" in str(error)
