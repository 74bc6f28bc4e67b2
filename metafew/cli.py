"""The command line: ``python train.py`` and, once installed, ``metafew``. Imports torch only when a run starts."""

from __future__ import annotations

import copy
import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from metafew.allocator import use_huge_pages
from metafew.config.allowlist import called, check
from metafew.config.overrides import merge, verbatim
from metafew.distributed.launch import alone, carry_out_cell, launched, several
from metafew.distributed.report_once import already_reported, first_to_report, process_number
from metafew.distributed.sweep import finished
from metafew.errors import Diverged, UsageError
from metafew.io import CONF, write_json

log = logging.getLogger(__name__)

PLACES = re.compile(r"(cells|jobs|data_dir|cache_dir)=")
"""Words of an experiment that say where and how it computes, not what."""
LOOSENED: dict[str, str] = {}
"""Words as Hydra gets them, for which others were typed."""

HEADER = """\
metafew: few-shot meta-learning experiments.

  python train.py [group=word ...] [key=value ...]

Every group takes one of the words below; every other value that --cfg job shows can be typed as key=value.
"""
FOOTER = """\
Further examples
  python train.py head=svm norm=tasknorm dataset=omniglot trainer.max_steps=200
  python train.py evaluate=[svm,ridge]                        more heads measured on the same test tasks
  python train.py train.way=20 test.shot=[1,5]                other tasks
  python train.py -m head=protonet,ridge,svm norm=tasknorm,batch    a sweep: one run a combination
  python train.py stages=[test] ckpt=outputs/.../checkpoints/best.ckpt    test what was trained
  python train.py experiment=unraveling_table1                a published table; goes on when it is typed again
  python train.py head=svm --cfg job                          show every value and run nothing
"""


def options() -> dict[str, dict[str, str]]:
    """Return the words of every group and what the first comment of each file says of it."""
    groups: dict[str, dict[str, str]] = {}
    for file in sorted(CONF.glob("*/*.yaml")):
        comments = (line[2:] for line in file.read_text().splitlines() if line.startswith("# "))
        about = next(line for line in comments if not line.startswith("@package"))
        groups.setdefault(file.parent.name, {})[file.stem] = about
    return groups


def groups() -> list[str]:
    """Return the names of all groups, ``evaluate`` included, which takes the words of ``head``."""
    return [*options(), "evaluate"]


def help_text() -> str:
    """Return the text of ``--help``: every group, its words, and what each does."""
    lines = [HEADER]
    for group, words in options().items():
        lines.append(group)
        lines += [f"  {f'{group}={word}':<23} {about}" for word, about in words.items()]
    heads = ",".join(options()["head"])
    lines += ["evaluate", f"  evaluate=[{heads}]  any heads, measured beside the one that trains", "", FOOTER]
    return "\n".join(lines)


def register() -> None:
    """Add what cannot be files: every head as an option of ``evaluate``, without what it sets in other groups."""
    store = ConfigStore.instance()
    for file in (CONF / "head").glob("*.yaml"):
        store.store(group="evaluate", name=file.stem, node=option(file), package=f"evaluate.{file.stem}")


def option(file: Path) -> DictConfig:
    """Return the content of a YAML file of a group, over that of the files beside it which its defaults name."""
    node = OmegaConf.load(file)
    bases = [base for base in node.pop("defaults", []) if isinstance(base, str) and base != "_self_"]
    return OmegaConf.merge(*(option(file.with_name(f"{base}.yaml")) for base in bases), node)


def configuration(typed: Sequence[str]) -> DictConfig:
    """Return what these words compose, for programs beside ``train.py``; Hydra's objections become a sentence."""
    register()
    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            return hydra.compose("train", list(typed), return_hydra_config=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise UsageError(" ".join(str(error).split())) from error


def compose(cfg: DictConfig) -> tuple[DictConfig, list[str]]:
    """Return the configuration of this run and its overrides; those of ``ckpt``, if one is typed, come first."""
    typed = verbatim(HydraConfig.get().overrides.task)
    if cfg.ckpt is None:
        return cfg, typed
    from metafew.training.checkpoint import read

    if cfg.ckpt == "last":
        cfg.ckpt = newest_of_run()
        if cfg.ckpt is None:
            return cfg, typed
    # Hydra's own words are never saved: in a file from elsewhere they could name any folder of configurations.
    saved = [word for word in read(cfg.ckpt)["metafew"]["overrides"] if not word.lstrip("+~").startswith("hydra")]
    overrides = merge(saved, [LOOSENED.get(word, word) for word in typed], groups())
    # Folders of words of one's own hold where they are typed, and nowhere else.
    places = [
        word for word in verbatim(HydraConfig.get().overrides.hydra) if word.lstrip("+").startswith("hydra.searchpath=")
    ]
    try:
        whole = GlobalHydra.instance().hydra.compose_config(
            config_name="train", overrides=places + overrides, run_mode=RunMode.RUN, with_log_configuration=False
        )
    except HydraException as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"what is typed does not fit the choices that {cfg.ckpt} carries ({reason})") from error
    with open_dict(whole):
        choices = whole.hydra.runtime.choices
        whole.hydra = copy.deepcopy(HydraConfig.get())
        OmegaConf.set_readonly(whole.hydra, False)
        whole.hydra.runtime.choices = choices
        HydraConfig.instance().set_config(whole)
        del whole["hydra"]
    check(whole, cfg.ckpt, called(cfg), "type it, with its group, beside ckpt")
    whole.ckpt = cfg.ckpt
    return whole, overrides


def newest_of_run() -> str | None:
    """Return the newest checkpoint in the folder of this run, which has been typed; None where there is none yet."""
    from metafew.training.resume import newest

    hydra = HydraConfig.get()
    key = "hydra.run.dir" if hydra.mode == RunMode.RUN else "hydra.sweep.dir"
    if not any(word.lstrip("+").startswith(f"{key}=") for word in verbatim(hydra.overrides.hydra)):
        raise UsageError(f"ckpt=last goes on with the training in {key}, which is not given: type {key}=DIR too")
    file = newest(Path(hydra.runtime.output_dir))
    return file and str(file)


def conduct_cells(cfg: DictConfig) -> int:
    """Carry out an experiment with all that is typed beside it, and return the exit code."""
    from metafew.experiments.cells import run_experiment
    from metafew.experiments.plan import EXPERIMENT_KEYS, plan_cells

    chosen = HydraConfig.get()
    if chosen.mode == RunMode.MULTIRUN:
        raise UsageError("an experiment is one command for many runs, and -m asks for many of it: leave out -m")
    if cfg.ckpt is not None:
        raise UsageError(f"every cell of an experiment trains anew, and ckpt={cfg.ckpt} was typed: leave out ckpt")
    alone("an experiment")
    if type(cfg.jobs) is not int or cfg.jobs < 1:
        raise UsageError(f"jobs is how many runs share the cores, at least 1, not {cfg.jobs}: type jobs=2")
    if not isinstance(cfg.cells, str):
        raise UsageError(f"cells is the folder of all runs, not {cfg.cells}: type cells=outputs/cells")
    seeds = list(cfg.seeds) if isinstance(cfg.seeds, ListConfig) else [cfg.seeds]
    words = verbatim(chosen.overrides.task)
    told = [word for word in words if not PLACES.match(word)]
    name = {"name": chosen.runtime.choices.experiment, "budget": cfg.budget}
    command = {"command": " ".join(["python train.py", *told])}
    experiment = OmegaConf.to_container(cfg.experiment, resolve=True) | name | command
    typed = [word for word in words if word.split("=")[0] not in EXPERIMENT_KEYS]
    changed = [word for word in typed if word in told]
    if changed:  # this is another table than the one that the YAML describes
        experiment["title"] += f", with {' '.join(changed)}"
    cells = plan_cells(experiment, typed, cfg.budget, seeds, Path(cfg.cells), groups())
    return run_experiment(experiment, cells, Path(chosen.run.dir), cfg.jobs)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
def job(cfg: DictConfig) -> None:
    """Run one configuration; an error that users are meant to see is one sentence, in results.json too."""
    use_huge_pages()  # for processes of joblib, which do not begin with main()
    out = Path(HydraConfig.get().runtime.output_dir)
    single = HydraConfig.get().mode == RunMode.RUN
    try:
        if "experiment" in cfg:
            code = conduct_cells(cfg)
            if code:
                sys.exit(code)
            return
        cfg, overrides = compose(cfg)
        if not single and finished(out, cfg):
            print(f"{out} was finished before: delete it to do it anew")
            return
        if not single and several(cfg.trainer) and launched() < 2:
            carry_out_cell(out)
            return
        from metafew.training.run import run

        words = HydraConfig.get().runtime.choices
        choices = {group: words[group] for group in options() if isinstance(words.get(group), str)}
        run(cfg, choices, overrides, out)
    except UsageError as error:
        if "experiment" in cfg:  # its folder may hold results, which are not to be lost
            print(f"metafew: {error}", file=sys.stderr)
            sys.exit(2)
        fail(out, str(error), diverged=isinstance(error, Diverged))
        if single:
            sys.exit(2)
    except Exception as error:
        if single and already_reported():  # another process ended, and this one lost it
            sys.exit(2)
        if single:
            raise
        log.exception("this cell ended unexpectedly")  # the file of the log is in its folder
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        fail(out, f"{reason}: {out / HydraConfig.get().job.name}.log tells where")


def fail(out: Path, sentence: str, diverged: bool = False) -> None:
    """Print what went wrong, and leave it in the folder of the run, once for all processes."""
    with first_to_report() as tells:
        if tells:
            sentence = f"process {process_number()}: {sentence}" if process_number() else sentence
            write_json(out / "results.json", {"error": sentence} | ({"diverged": True} if diverged else {}))
            print(f"metafew: {sentence}", file=sys.stderr)


def loosened(typed: Sequence[str]) -> list[str]:
    """Return the words with ++ before options of groups that only a checkpoint chooses.

    Hydra composes before the choices of ``ckpt`` are known, and would object to an option that its own choice lacks;
    :func:`compose` holds them against those of the checkpoint.

    >>> loosened(["ckpt=a.ckpt", "head.each_step=true", "norm=tasknorm", "norm.alpha=independent", "seed=1"])
    ['ckpt=a.ckpt', '++head.each_step=true', 'norm=tasknorm', 'norm.alpha=independent', 'seed=1']
    """
    chosen = dict(word.split("=", 1) for word in typed if "=" in word)
    if chosen.get("ckpt") in (None, "null", "last"):  # the last checkpoint of a run wants all of its words again
        return list(typed)
    own = tuple(f"{group}." for group in options() if group not in chosen)
    LOOSENED.update({f"++{word}": word for word in typed if word.startswith(own) and "=" in word})
    return [f"++{word}" if f"++{word}" in LOOSENED else word for word in typed]


def main() -> None:
    """Start from the command line."""
    if {"-h", "--help"} & {*sys.argv[1:]}:
        print(help_text())  # without Hydra, which would first look through all files, for templates that list them
        return
    use_huge_pages()  # before torch makes a tensor, which torchrun's processes do even before they come to job()
    register()
    sys.argv[1:] = loosened(sys.argv[1:])
    job()
