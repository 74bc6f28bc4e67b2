"""A run uses huge pages and keeps freed memory, unless the environment says otherwise; imports do not collect."""

import gc
import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest

from metafew.allocator import HUGE_PAGES, SETTINGS, collection_paused

SIZE = 48 * 2**20  # more than the largest block that glibc would keep by its thresholds alone
PAGES = SIZE // mmap.PAGESIZE
ROUNDS = 20
HUGE = """
def huge():
    lines = open("/proc/self/smaps_rollup")
    return next(int(line.split()[1]) for line in lines if line.startswith("AnonHugePages"))
"""
PROBE = f"""
import mmap
memory = mmap.mmap(-1, {SIZE}, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(mmap.MADV_HUGEPAGE)
memory.write(b"1" * {SIZE})
{HUGE}
print(huge())
"""
STEPS = f"""
import resource, torch
from metafew.allocator import use_huge_pages
use_huge_pages()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range({ROUNDS}):
        torch.ones({SIZE} // 4)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
{HUGE}
kept = torch.ones({SIZE} // 4)
faults()  # until memory has come together in pieces that are large enough
print(huge(), faults())
"""


def python(code: str, **environment: str) -> list[int]:
    """Return the numbers that ``code`` prints, in a process of its own with this environment."""
    unset = ("THP_MEM_ALLOC_ENABLE", "GLIBC_TUNABLES", *(f"MALLOC_{name}" for name in SETTINGS))
    own = {name: value for name, value in os.environ.items() if name not in unset} | environment
    own["PYTHONPATH"] = str(Path(__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", code], env=own, stdout=subprocess.PIPE, text=True, check=True)
    return [int(word) for word in done.stdout.split()]


@pytest.fixture(scope="module")
def huge_pages():
    """Skip where the system has no large pages to give, to anyone who asks."""
    if not HUGE_PAGES.exists() or python(PROBE)[0] * 1024 < SIZE // 2:
        pytest.skip("no large pages here")


def test_tensors_get_huge_pages_and_freed_memory_is_kept(huge_pages):
    huge, faults = python(STEPS)
    assert huge * 1024 >= SIZE // 2
    assert faults < PAGES / 10


@pytest.mark.parametrize(
    ("own", "kept"),
    [
        ({"MALLOC_TRIM_THRESHOLD_": "131072"}, False),
        pytest.param({"MALLOC_MMAP_MAX_": "65536"}, False, marks=pytest.mark.slow),
        pytest.param({"GLIBC_TUNABLES": "glibc.cpu.x86_shstk=off"}, True, marks=pytest.mark.slow),
    ],
)
def test_what_the_user_says_stands(huge_pages, own, kept):
    if "[always]" in HUGE_PAGES.read_text():
        pytest.skip("everything has large pages here")
    huge, faults = python(STEPS, THP_MEM_ALLOC_ENABLE="0", **own)
    assert huge == 0
    assert faults < PAGES / 10 if kept else faults > ROUNDS * PAGES / 2


@pytest.mark.parametrize("entry", ["main", "job"])
def test_a_run_asks_for_them_before_torch_comes(tmp_path, entry):
    """A process of joblib begins with ``job``; those of torchrun meet torch in a callback of Hydra, before it."""
    code = f"""
import os, sys
from metafew import cli
from metafew.config.groups import register_evaluation_heads
sys.argv = ["train.py", "hydra.run.dir={tmp_path}"]
register_evaluation_heads()
cli.accept_any_help()
cli.use_huge_pages = lambda: os._exit(8 if "torch" in sys.modules else 9)
cli.{entry}()
"""
    with pytest.raises(subprocess.CalledProcessError) as ended:
        python(code)
    assert ended.value.returncode == 9


def test_garbage_collection_is_as_it_was_after_imports():
    assert gc.isenabled()
    with pytest.raises(ImportError), collection_paused():
        assert not gc.isenabled()
        import metafew.nothing  # noqa: F401
    assert gc.isenabled()
    try:
        gc.disable()
        with collection_paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
