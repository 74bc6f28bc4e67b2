"""Fixtures of several test files: stores built once, composed configurations, runs, and the real data."""

import gc
import multiprocessing
import os
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import settings
from runs import TINY, compose_in

from metafew.config.groups import register_evaluation_heads
from metafew.training.start import unchanged_logging

pytest.register_assert_rewrite("contracts")
collect_ignore = ["start_method"]  # its sitecustomize is another module than that of the interpreter
# Tensors in tests are small: a second thread costs more than it brings. Torch, which reads it, is not yet imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What the user's terminal, proxies and Hydra are set to changes what is printed and how local servers are reached, and
# a job in which the tests run makes each run one of its processes.
OF_TERMINAL = ("FORCE_COLOR", "TTY_COMPATIBLE", "COLUMNS", "LINES", "HYDRA_FULL_ERROR", "XDG_CACHE_HOME")
OF_JOBS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
PREFIXES = ("MASTER_", "TORCHELASTIC_", "SLURM_", "SUBMITIT_", "WANDB_")
for name in [*os.environ]:
    if name in (*OF_TERMINAL, *OF_JOBS) or name.startswith(PREFIXES):
        del os.environ[name]
os.environ |= {"no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"}
# A collection passes over all that is imported: at Python's threshold, a tenth of the time of all tests.
gc.set_threshold(50_000, 20, 20)
# No test depends on how fast a machine is, and every run has the same examples.
settings.register_profile("same", deadline=None, derandomize=True)
settings.load_profile("same")
REAL_DATA = Path(os.environ.get("METAFEW_DATA", Path(__file__).parents[2] / "shared" / "data")).resolve()


def pytest_addoption(parser):
    methods = multiprocessing.get_all_start_methods()
    parser.addoption("--start-method", choices=methods, help="how data.num_workers starts processes in all tests")


def pytest_configure(config):
    """Set how workers are started, in this process and in those that it launches."""
    if method := config.getoption("--start-method"):
        multiprocessing.set_start_method(method, force=True)
        os.environ["METAFEW_START_METHOD"] = method
        path = filter(None, [str(Path(__file__).parent / "start_method"), os.environ.get("PYTHONPATH")])
        os.environ["PYTHONPATH"] = os.pathsep.join(path)


def pytest_collection_finish():
    """Leave the modules and the tests out of later collections, also those of copies of this process."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """Build stores once for all tests, those of other workers too, away from the user's."""
    path = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        path = path.parent
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("METAFEW_CACHE", str(path / "cache"))
        register_evaluation_heads()
        yield path / "cache"


@pytest.fixture(autouse=True)
def _log_files():
    """Restore the handlers of logging after a run in this process, and close its log file, which Hydra leaves open."""
    with unchanged_logging():
        yield


@pytest.fixture(autouse=True)
def _figures(request):
    """Leave out the figures of a run, four fifths of its time, unless a test is marked with ``figures``."""
    with ExitStack() as stack:
        if "figures" not in request.keywords:
            for name in ("learning_curve", "alpha_curve", "episode_sheet"):
                stack.enter_context(patch(f"metafew.analysis.run_plots.{name}", lambda *_: None))
        yield


@pytest.fixture
def composed(tmp_path):
    """Compose a configuration as the command line does; returns it, the choices, and the overrides."""
    return partial(compose_in, tmp_path)


@pytest.fixture
def launch(composed, tmp_path):
    """Run a tiny experiment in this process; returns its report and its folder."""

    def go(*overrides: str, out: Path | None = None, tiny: list[str] = TINY):
        from metafew.training.run import run

        folder = out or tmp_path
        folder.mkdir(parents=True, exist_ok=True)
        return run(*composed(*tiny, *overrides), folder), folder

    return go


@pytest.fixture
def real_omniglot():
    """The folder that holds Omniglot in its authors' form; tests without it are skipped."""
    if not (REAL_DATA / "omniglot" / "images_background.zip").exists():
        pytest.skip("set METAFEW_DATA to a folder with omniglot/ to run this")
    return REAL_DATA
