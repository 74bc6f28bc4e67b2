"""The folder of YAML files: its groups, and the options that each of them offers."""

from __future__ import annotations

from pathlib import Path

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

PACKAGE = Path(__file__).parents[1]
INSTALLED = PACKAGE / "conf"
CONF = INSTALLED if INSTALLED.is_dir() else PACKAGE.parent / "conf"
"""The folder: inside an installed package, and next to the package in a checkout."""


def describe_groups() -> dict[str, dict[str, str]]:
    """Return the options of each group, each with the first comment of its YAML file."""
    groups: dict[str, dict[str, str]] = {}
    for file in sorted(CONF.glob("*/*.yaml")):
        comments = (line[2:] for line in file.read_text().splitlines() if line.startswith("# "))
        description = next(line for line in comments if not line.startswith("@package"))
        groups.setdefault(file.parent.name, {})[file.stem] = description
    return groups


def group_names() -> list[str]:
    """Return the names of all groups, including ``evaluate``, which has the options of ``head``."""
    return [*describe_groups(), "evaluate"]


def register_evaluation_heads() -> None:
    """Register each head as an option of ``evaluate``, without its defaults list, which would change the training."""
    store = ConfigStore.instance()
    for file in (CONF / "head").glob("*.yaml"):
        node = OmegaConf.load(file)
        node.pop("defaults", None)
        store.store(group="evaluate", name=file.stem, node=node, package=f"evaluate.{file.stem}")
