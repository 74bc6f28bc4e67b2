"""Every use of a private or undocumented interface of another package, and what breaks where a release changes it.

Tests of features fail then too, far from the reason. Here one test for each interface names it.
"""

import ast
import importlib
import inspect
import io
import pickle
import pkgutil
import re
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from pathlib import Path
from types import FunctionType
from typing import NamedTuple

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torch.distributed
from hydra._internal import utils
from hydra._internal.hydra import Hydra
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from pytorch_lightning.callbacks import RichProgressBar
from pytorch_lightning.plugins.precision import MixedPrecision
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.strategies.launchers import _SubprocessScriptLauncher
from torch import nn

import metafew

ROOT = Path(__file__).parents[1]
SOURCES = {path: path.read_text("utf-8") for path in sorted((ROOT / "metafew").rglob("*.py"))}
ATEN = {
    "convolution_backward": (
        "(Tensor grad_output, Tensor input, Tensor weight, SymInt[]? bias_sizes, SymInt[] stride, SymInt[] padding, "
        "SymInt[] dilation, bool transposed, SymInt[] output_padding, SymInt groups, bool[3] output_mask) -> "
        "(Tensor, Tensor, Tensor)"
    ),
    "batch_norm_update_stats": (
        "(Tensor input, Tensor? running_mean, Tensor? running_var, float momentum) -> (Tensor, Tensor)"
    ),
    "native_batch_norm": (
        "(Tensor input, Tensor? weight, Tensor? bias, Tensor? running_mean, Tensor? running_var, bool training, "
        "float momentum, float eps) -> (Tensor, Tensor, Tensor)"
    ),
    "native_batch_norm_backward": (
        "(Tensor grad_out, Tensor input, Tensor? weight, Tensor? running_mean, Tensor? running_var, Tensor? save_mean, "
        "Tensor? save_invstd, bool train, float eps, bool[3] output_mask) -> (Tensor, Tensor, Tensor)"
    ),
    "max_pool2d_with_indices": (
        "(Tensor self, int[2] kernel_size, int[2] stride=[], int[2] padding=0, int[2] dilation=1, "
        "bool ceil_mode=False) -> (Tensor, Tensor)"
    ),
    "max_pool2d_with_indices.out": (
        "(Tensor self, int[2] kernel_size, int[2] stride=[], int[2] padding=0, int[2] dilation=1, "
        "bool ceil_mode=False, *, Tensor(a!) out, Tensor(b!) indices) -> (Tensor(a!), Tensor(b!))"
    ),
    "max_pool2d_with_indices_backward": (
        "(Tensor grad_output, Tensor self, int[2] kernel_size, int[2] stride, int[2] padding, int[2] dilation, "
        "bool ceil_mode, Tensor indices) -> Tensor"
    ),
    "max_pool2d_with_indices_backward.grad_input": (
        "(Tensor grad_output, Tensor self, int[2] kernel_size, int[2] stride, int[2] padding, int[2] dilation, "
        "bool ceil_mode, Tensor indices, *, Tensor(a!) grad_input) -> Tensor(a!)"
    ),
}
"""Operators of torch that have no documented name, and how the package calls them."""


# what each interface must do


def full_key():
    assert OmegaConf.create({"head": {"inner": {"lr": 1}}}).head.inner._get_full_key(None) == "head.inner"


def load_configuration():
    assert inspect.signature(GlobalHydra.config_loader).return_annotation == "ConfigLoader"
    parameters = list(inspect.signature(ConfigLoader.load_configuration).parameters)
    assert parameters[:4] == ["self", "config_name", "overrides", "run_mode"]


def shown_configuration():
    assert list(inspect.signature(Hydra.get_sanitized_cfg).parameters)[-2:] == ["cfg", "cfg_type"]
    assert "cfg = self.get_sanitized_cfg(cfg, cfg_type)" in inspect.getsource(Hydra.show_cfg)
    assert "hydra.app_help(config_name=config_name, args_parser=args_parser, args=args)" in inspect.getsource(utils)


def parser():
    assert "parser = argparse.ArgumentParser(" in inspect.getsource(utils.get_args_parser)


def set_config():
    assert list(inspect.signature(HydraConfig.instance().set_config).parameters) == ["cfg"]


def default_store():
    own = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=own, rank=0, world_size=1)
    try:
        store = torch.distributed.distributed_c10d._get_default_store()
        assert store.add("count", 1) == 1
        assert store.add("count", 1) == 2
    finally:
        torch.distributed.destroy_process_group()


def launchers():
    for method, repeats in (("popen", True), ("fork", False), ("spawn", False)):
        strategy = DDPStrategy(start_method=method)
        trainer = pl.Trainer(accelerator="cpu", devices=2, strategy=strategy, logger=False, enable_checkpointing=False)
        assert isinstance(trainer.strategy.launcher, _SubprocessScriptLauncher) == repeats


def store_timeout():
    store = torch.distributed.TCPStore("localhost", 0, 1, is_master=True, wait_for_workers=False)
    with pytest.raises(torch.distributed.DistStoreError):
        store.wait(["nothing"], timedelta(milliseconds=1))


def norm_base():
    base = nn.modules.batchnorm._NormBase
    assert all(issubclass(norm, base) for norm in (nn.BatchNorm2d, nn.SyncBatchNorm, nn.InstanceNorm2d))


def batch_norm():
    base = nn.modules.batchnorm._BatchNorm
    assert issubclass(nn.BatchNorm2d, base)
    assert not issubclass(nn.InstanceNorm2d, base)
    assert isinstance(base(1).running_mean, torch.Tensor)


def hooks():
    for kind in ("forward", "forward_pre", "full_backward", "full_backward_pre"):
        pool = nn.MaxPool2d(2)
        getattr(pool, f"register_{kind}_hook")(print)
        assert sum(len(value) for name, value in vars(pool).items() if name.endswith("_hooks")) == 1


def unpickler():
    class Counting(pickle._Unpickler):
        built = 0

        def load_build(self):
            type(self).built += len(self.stack[-2:]) == 2
            super().load_build()

        dispatch = pickle._Unpickler.dispatch | {pickle.BUILD[0]: load_build}

    assert Counting(io.BytesIO(pickle.dumps(np.arange(3), protocol=2))).load().tolist() == [0, 1, 2]
    assert Counting.built == 2  # the array and its type


def numpy_pickles():
    from numpy._core import multiarray, numeric

    assert callable(multiarray._reconstruct)
    assert callable(multiarray.scalar)
    assert callable(numeric._frombuffer)
    assert b"_reconstruct" in pickle.dumps(np.arange(3), protocol=2)
    assert b"_frombuffer" in pickle.dumps(np.arange(3), protocol=5)


def train_description():
    assert list(inspect.signature(RichProgressBar._get_train_description).parameters) == ["self", "current_epoch"]
    assert "self._get_train_description(" in inspect.getsource(RichProgressBar)


def loops():
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    state = trainer.fit_loop.state_dict()
    steps = {"ready", "started", "processed", "completed"}
    for part in ("total", "current"):
        assert state["epoch_progress"][part].keys() == steps
        assert state["epoch_loop.batch_progress"][part].keys() == steps
        assert state["epoch_loop.val_loop.batch_progress"][part].keys() == steps
    assert "is_last_batch" in state["epoch_loop.batch_progress"]
    assert "_batches_that_stepped" in state["epoch_loop.state_dict"]


def batch_progress():
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    assert trainer.fit_loop.epoch_loop.batch_progress.current.ready == 0


def scaler():
    assert "scaler" in inspect.signature(MixedPrecision).parameters
    assert "self.scaler = scaler" in inspect.getsource(MixedPrecision.__init__)


def amp_scaling():
    for fused in (False, True):
        optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(1))], fused=fused)
        assert getattr(optimizer, "_step_supports_amp_scaling", False) == fused


def forward_context():
    trainer = pl.Trainer(accelerator="cpu", precision="bf16-mixed", logger=False, enable_checkpointing=False)
    with trainer.precision_plugin.forward_context():
        assert torch.is_autocast_enabled("cpu")


def huge_pages():
    libraries = (Path(torch.__file__).parent / "lib").glob("libc10.*")
    assert any(b"THP_MEM_ALLOC_ENABLE" in library.read_bytes() for library in libraries)


class Private(NamedTuple):
    """An interface that its package may change without notice.

    Attributes:
        name: what our code says to use it; the text to look for.
        of: its package.
        breaks: what goes wrong when it changes.
        check: raises when it has changed.
    """

    name: str
    of: str
    breaks: str
    check: Callable[[], None]

    @property
    def users(self) -> list[str]:
        """The modules that use it."""
        return [str(path.relative_to(ROOT)) for path, text in SOURCES.items() if self.name in text]


PRIVATE = [
    Private("_get_full_key", "omegaconf", "errors of constructors do not name the option", full_key),
    Private("load_configuration", "hydra", "ckpt=PATH cannot change the choices of a checkpoint", load_configuration),
    Private(
        "hydra._internal.hydra",
        "hydra",
        "--cfg job leaves out what ckpt=PATH carries, --help is Hydra's",
        shown_configuration,
    ),
    Private("hydra._internal import utils", "hydra", "no run starts on Python 3.14", parser),
    Private("HydraConfig.instance().set_config", "hydra", "a run from ckpt=PATH has the wrong choices", set_config),
    Private("_get_default_store", "torch", "an error is printed by every process", default_store),
    Private("DistStoreError", "torch", "a process that fails on its own is silent", store_timeout),
    Private("_NormBase", "torch", "head.adapt=no_norm adapts the norms of a network from elsewhere", norm_base),
    Private("_BatchNorm", "torch", "the batch norms of a network from elsewhere are not recognised", batch_norm),
    Private('name.endswith("_hooks")', "torch", "hooks of a max-pooling after a norm are not called", hooks),
    Private("THP_MEM_ALLOC_ENABLE", "torch", "tensors do not get huge pages: steps are slower", huge_pages),
    Private("pickle._Unpickler", "the standard library", "pickled data sets cannot be read safely", unpickler),
    Private("_frombuffer", "numpy", "pickled arrays are refused", numpy_pickles),
    Private("_get_train_description", "pytorch_lightning", "the progress bar counts epochs", train_description),
    Private('["loops"]["fit_loop"]', "pytorch_lightning", "ckpt=last repeats or skips steps", loops),
    Private("batch_progress.current.ready", "pytorch_lightning", "a diverged run leaves no last.ckpt", batch_progress),
    Private(".precision_plugin", "pytorch_lightning", "float16 runs end at the first overflow", scaler),
    Private("_step_supports_amp_scaling", "torch", "float16 with a fused optimizer logs scaled gradients", amp_scaling),
    Private("_SubprocessScriptLauncher", "pytorch_lightning", "runs whose results stay in copies are made", launchers),
    Private("forward_context", "pytorch_lightning", "measures are not taken in the run's precision", forward_context),
]


@pytest.mark.parametrize("private", PRIVATE, ids=lambda private: private.name)
def test_a_private_interface_is_as_it_was(private):
    assert private.users, f"{private.name} is not used any more: remove it from this list"
    try:
        private.check()
    except Exception as error:
        pytest.fail(
            f"a new version of {private.of} has changed {private.name} ({type(error).__name__}: {error}), which "
            f"{', '.join(private.users)} uses. Until that is adapted, {private.breaks}."
        )


@cache
def aten_operators() -> set[str]:
    """Return the operators that the package calls, as ``aten.name`` or ``torch.ops.aten.name``, and overloads."""
    trees = [ast.parse(text) for text in SOURCES.values() if "aten" in text]
    names = [ast.unparse(node) for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    return {match[1] for name in names if (match := re.fullmatch(r"(?:torch\.ops\.)?aten\.(\w+(?:\.\w+)?)", name))}


@pytest.mark.parametrize("name", sorted(aten_operators()))
def test_an_operator_without_a_documented_name_is_as_it_was(name):
    assert name in ATEN, f"add {name} with its schema to ATEN"
    operator, _, overload = name.partition(".")
    schema = str(getattr(getattr(torch.ops.aten, operator), overload or "default")._schema)
    assert schema == f"aten::{name}{ATEN[name]}", (
        f"torch {torch.__version__} has changed an operator that the kernels of the norms call: they must be adapted, "
        "or not be used"
    )


def test_no_operator_is_listed_in_vain():
    assert not ATEN.keys() - aten_operators(), "remove them from ATEN"


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def test_no_private_name_of_another_package_is_used_that_is_not_listed():
    """A name that starts with an underscore is defined in the package, or listed here."""
    nodes = [(path, node) for path, text in SOURCES.items() for node in ast.walk(ast.parse(text))]
    own = {"_replace", "_asdict", "_fields", "_make", "_exit"}  # NamedTuple and os document these
    own |= {node.name for _, node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    own |= {node.attr for _, node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    own |= {node.id for _, node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    listed = {word for private in PRIVATE for word in re.findall(r"\w+", private.name)}
    found = []
    for path, node in nodes:
        used = [node.attr] if isinstance(node, ast.Attribute) else []
        if isinstance(node, ast.Import | ast.ImportFrom):
            used = [part for alias in node.names for part in alias.name.split(".")]
            used += (getattr(node, "module", None) or "").split(".")
        found += [
            f"{path.relative_to(ROOT)}:{node.lineno}: {name}"
            for name in used
            if is_private(name) and name not in own and name not in listed
        ]
    assert not found, "add to PRIVATE what breaks when it changes, with a test:\n" + "\n".join(found)


def test_no_private_method_of_another_package_is_overridden_that_is_not_listed():
    modules = [module.name for module in pkgutil.walk_packages(metafew.__path__, "metafew.")]
    found = set()
    for module in map(importlib.import_module, (name for name in modules if not name.endswith("__main__"))):
        for cls in vars(module).values():
            if not inspect.isclass(cls) or cls.__module__ != module.__name__:
                continue
            methods = {name for name, value in vars(cls).items() if isinstance(value, FunctionType | property)}
            foreign = {name for base in cls.__mro__ if not base.__module__.startswith("metafew") for name in vars(base)}
            found |= {f"{cls.__module__}.{cls.__name__}.{name}" for name in methods & foreign if is_private(name)}
    listed = {private.name for private in PRIVATE}
    assert {name for name in found if name.rpartition(".")[2] not in listed} == set()
