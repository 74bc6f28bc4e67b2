"""Hydra's command line on Python 3.14, on any Python."""

import argparse
import sys

import pytest
from hydra._internal import utils

from metafew.cli import job
from metafew.config.hydra_parser import accept_any_help


@pytest.fixture
def python_3_14(monkeypatch):
    """Have argparse check a help when an argument is added, as Python 3.14 does, and undo what is set in Hydra."""
    monkeypatch.setattr(utils, "argparse", argparse)
    add_argument = argparse._ActionsContainer.add_argument

    def add_and_check(self, *names, **options):
        action = add_argument(self, *names, **options)
        if action.help and "%" in action.help:
            raise ValueError("badly formed help string")
        return action

    if sys.version_info < (3, 14):
        monkeypatch.setattr(argparse._ActionsContainer, "add_argument", add_and_check)


def test_hydra_does_not_work_on_python_3_14(python_3_14):
    try:
        utils.get_args_parser()
    except (TypeError, ValueError):
        return
    pytest.fail("this hydra-core works on Python 3.14: demand it in pyproject.toml, and remove config/hydra_parser.py")


def test_hydra_parses_a_command_line(python_3_14):
    accept_any_help()
    args = utils.get_args_parser().parse_args(["-m", "--cfg", "job", "head=svm", "norm=batch"])
    assert (args.multirun, args.cfg, args.overrides) == (True, "job", ["head=svm", "norm=batch"])


@pytest.mark.parametrize("flag, shown", [("--hydra-help", "-sc install=bash"), ("--version", "Hydra 1.")])
def test_hydra_shows_its_help_and_its_version(python_3_14, monkeypatch, capsys, flag, shown):
    accept_any_help()
    monkeypatch.setattr(sys, "argv", ["50%/train.py", flag])
    with pytest.raises(SystemExit, match=r"^0$"):
        job()
    assert shown in capsys.readouterr().out
