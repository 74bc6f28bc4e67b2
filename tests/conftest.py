"""What several test files need: composing configurations, and finding the real data."""

import os
from functools import partial
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict

from metafew.config.groups import CONF, describe_groups, register_evaluation_heads

pytest.register_assert_rewrite("contracts")
# Tensors in tests are small: a second thread costs more than it brings.
os.environ.setdefault("OMP_NUM_THREADS", "1")
REAL_DATA = Path(os.environ.get("METAFEW_DATA", Path(__file__).parents[2] / "shared" / "data")).resolve()
TINY = [
    "backbone.width=4",
    "trainer.max_steps=4",
    "trainer.accelerator=cpu",
    "trainer.enable_progress_bar=false",
    "train.tasks=2",
    "train.query=2",
    "val.total=4",
    "val.query=2",
    "val.every=2",
    "test.total=6",
    "test.query=2",
]


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """Build stores once for all tests, away from the user's."""
    path = tmp_path_factory.mktemp("cache")
    before = os.environ.get("METAFEW_CACHE")
    os.environ["METAFEW_CACHE"] = str(path)
    register_evaluation_heads()
    yield path
    if before is None:
        del os.environ["METAFEW_CACHE"]
    else:
        os.environ["METAFEW_CACHE"] = before


def compose_in(folder: Path, *overrides: str):
    """Compose a configuration as the command line does; returns it, the choices, and the overrides."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", list(overrides), return_hydra_config=True)
    with open_dict(cfg):
        cfg.hydra.runtime.output_dir = str(folder)
        HydraConfig.instance().set_config(cfg)
        groups = [group for group in describe_groups() if group not in ("logger", "experiment")]
        choices = {group: cfg.hydra.runtime.choices[group] for group in groups}
        del cfg["hydra"]
    return cfg, choices, list(overrides)


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
