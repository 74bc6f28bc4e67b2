"""Check the options of a run in two steps: first each option, then their combination.

All checks run before an image is read. Constructors of components check their own arguments.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from metafew.config.groups import ALL, common_options
from metafew.config.option_types import check_option_types
from metafew.config.option_values import as_list, check_choice, check_integer, check_range, check_truth
from metafew.config.paths import PATHS
from metafew.data.task_spec import NATURAL, TaskSpec
from metafew.distributed.launcher import check_world_size
from metafew.errors import SIMILAR_OPTION, UsageError, did_you_mean, nearest
from metafew.meta_parameters import meta_parameters
from metafew.training import norm_checks
from metafew.training.cuda_graph import check_graph
from metafew.training.idle_options import check_for_idle_options
from metafew.training.learner import unscales_in_step
from metafew.training.parts import Parts
from metafew.training.sufficient_data import check_tasks_can_be_drawn
from metafew.training.trainer_options import check_clipping, check_trainer_options

log = logging.getLogger(__name__)

STAGES = ("fit", "test", "analyze")
LARGEST_SEED = 2**32 - 1
"""The largest seed of NumPy's global generator, which Lightning seeds."""
CHOICES = {
    "test.select": ("best", "last"),
    "test.queries": ("together", "single", "class"),
    "analyze.split": ("test", "val", "train"),
}
"""Options with a fixed set of values."""
LEAST = {
    "test.seed": 0,
    "data.num_workers": 0,
    "train.tasks": 1,
    "val.every": 1,
    "trainer.max_steps": 1,
    "trainer.accumulate_grad_batches": 1,
    "trainer.log_every_n_steps": 1,
    "trainer.num_nodes": 1,
    "save.every": 1,
    "analyze.tasks": 1,
    "analyze.every": 0,
}
"""Options that are integers, with their smallest values."""
RANGES = {"norm.eps": (0, math.inf), "norm.momentum": (0, 1)}
"""Options that are numbers, where the norm has them, with their bounds."""
TRUTHS = ("val.at_start", "save.keep", "trainer.enable_progress_bar", "cuda_graph")
"""Options that are true or false."""
SECTIONS = ("train", "val", "test", "analyze", "save", "data")
"""Parts of the configuration that belong to no group, whose options conf/train.yaml lists."""
OF_OBJECTIVE = "train.batch_size"
"""The option that an objective adds to one of :data:`SECTIONS`."""


def check_options(cfg: DictConfig) -> None:
    """Check single options.

    Raises:
        UsageError: if one of them has an invalid value.
    """
    for section in SECTIONS:
        check_section(section, cfg.get(section))
    check_stages(as_list(cfg.stages))
    for key in TRUTHS:
        check_truth(key, OmegaConf.select(cfg, key))
    for key, allowed in CHOICES.items():
        check_choice(key, OmegaConf.select(cfg, key), allowed)
    for key, least in LEAST.items():
        check_integer(key, OmegaConf.select(cfg, key), least)
    check_integer("seed", cfg.seed, 0, most=LARGEST_SEED)
    for key, bounds in RANGES.items():
        check_range(key, OmegaConf.select(cfg, key, default=bounds[0]), *bounds)
    for group in ("evaluate", "logger"):
        check_chosen(group, cfg.get(group) or {})
    for key in PATHS:
        check_path(key, OmegaConf.select(cfg, key))
    check_clipping(cfg.trainer.gradient_clip_val, cfg.trainer.gradient_clip_algorithm)
    check_option_types(cfg)
    check_trainer_options(cfg.trainer)
    check_test_shots(as_list(cfg.test.shot))


def check_stages(stages: list) -> None:
    """Check that stages is not empty and contains only known stages."""
    if not stages or set(stages) - set(STAGES):
        raise UsageError(f"expected stages to be some of fit, test and analyze, got {stages}: type stages=[fit,test]")


def check_section(section: str, options: Any) -> None:
    """Check that ``train``, ``test`` and the like have no unknown option, which ``+`` could add."""
    known = list(common_options()[section])
    if not OmegaConf.is_dict(options):
        raise UsageError(
            f"expected {section} to be a group of options, got {options}: type {section}.OPTION=VALUE with one of "
            f"{', '.join(known)}"
        )
    for name in options:
        if name in known or f"{section}.{name}" == OF_OBJECTIVE:
            continue
        near = nearest(name, known, SIMILAR_OPTION)
        instead = f"type {section}.{near}=VALUE" if near else f"leave out {section}.{name}"
        raise UsageError(
            f"expected {section} to have the options {', '.join(known)}, got {section}.{name}"
            f"{did_you_mean(f'{section}.{near}' if near else None)}: {instead}"
        )


def check_chosen(group: str, parts: Mapping[str, Any]) -> None:
    """Check that each part of ``evaluate`` or ``logger`` is an option that was chosen, and not only options of it."""
    for name, node in parts.items():
        if name != ALL and not (OmegaConf.is_dict(node) and "_target_" in node):
            raise UsageError(
                f"expected {group}.{name} to come with the choice {group}={name}, got {node} without it: "
                f"type {group}=[{name}], without ++ in front of its options"
            )


def check_path(key: str, value: Any) -> None:
    """Check that an option is a path, or null."""
    if not isinstance(value, str | None):
        raise UsageError(f"expected {key} to be a path, got {value}: type {key}=PATH")


def check_test_shots(shots: list) -> None:
    """Check that tests with several shots can share classes and queries, as tests with natural shots cannot."""
    if not shots:
        raise UsageError("expected test.shot to be a number or a list of numbers, got an empty list: type test.shot=1")
    if NATURAL in shots and len(shots) > 1:
        raise UsageError(
            f"expected test.shot to be a list of numbers, measured on the same classes and queries, or natural, "
            f"which has its own, got {shots}: type test.shot=natural"
        )


def check_parts(parts: Parts) -> None:
    """Raise UsageError if the parts of a run do not fit together."""
    check_model_is_trained(parts)
    for head in parts.untrained_heads:
        log.warning("head=%s must be trained, and this run measures its initial weights", head)
    check_validation(parts)
    check_tasks_can_be_drawn(parts)
    check_for_idle_options(parts)
    if parts.fits:
        check_objective_has_queries(parts)
        norm_checks.check_tasks_form_one_batch(parts)
        norm_checks.warn_of_moments_of_one_process(parts)
        check_something_trains(parts)
        check_graph(parts.learner, parts.data.train, parts.trainer)
        check_scale_of_clipping(parts)
    check_fixed_ways(parts)
    norm_checks.warn_of_context_sizes(parts)
    norm_checks.warn_of_initial_moments(parts)
    check_ranks(parts)


def check_model_is_trained(parts: Parts) -> None:
    """Check that a run without training has a checkpoint, unless there is nothing to train: its backbone is frozen."""
    if parts.fits or parts.start is not None:
        return
    backbone, untrained = parts.learner.backbone, parts.untrained_heads
    if untrained:
        raise UsageError(
            f"expected a checkpoint for stages=[{','.join(parts.stages)}], as head={untrained[0]} must be trained, got "
            "none: type ckpt=PATH"
        )
    if any(p.requires_grad for name, p in backbone.named_parameters() if name not in meta_parameters(backbone)):
        raise UsageError(
            f"expected a checkpoint for stages=[{','.join(parts.stages)}], got none: type ckpt=PATH, or "
            "backbone.weights=FILE of a pretrained network, or backbone.freeze=all if the network is already pretrained"
        )


def check_validation(parts: Parts) -> None:
    """Check that nothing depends on validation if there is none."""
    if parts.data.val.total:
        return
    if parts.selects_on_validation:
        raise UsageError(
            "expected validation tasks, on which options of heads are chosen, got val.total=0: type val.total=200, or "
            f"{' '.join(parts.first_candidates)}"
        )
    if parts.fits and (every := parts.config["analyze"]["every"]):
        raise UsageError(
            f"expected validations, at which features are measured every {every} steps, got val.total=0: "
            "type analyze.every=0"
        )
    if parts.fits and (stopping := parts.trainer.early_stopping_callbacks):
        raise UsageError(
            f"expected validations, after which {type(stopping[0]).__name__} may end the training, got val.total=0: "
            "type val.total=200, or leave it out of trainer.callbacks"
        )


def check_objective_has_queries(parts: Parts) -> None:
    """Check that tasks have queries if the loss needs them."""
    train = parts.data.train
    if parts.learner.objective.needs_queries and isinstance(train, TaskSpec) and train.query == 0:
        raise UsageError("expected train.query to be at least 1, as this objective needs queries: type train.query=15")


def check_fixed_ways(parts: Parts) -> None:
    """Check that tasks have as many classes as the linear output layers of heads."""
    used = (parts.data.train, *[parts.data.val] * (parts.data.val.total > 0), *parts.tested)
    specs = [spec for spec in used if isinstance(spec, TaskSpec)]
    for name, head in parts.learner.heads.items():
        for spec in specs:
            if head.fixed_way is not None and spec.bounds("way") != (head.fixed_way, head.fixed_way):
                other = "head.output=shared" if parts.start is None else f"{spec.split}.way={head.fixed_way}"
                raise UsageError(
                    f"expected {spec.split}.way to be {head.fixed_way}, the classes of the linear output layer of "
                    f"head={name}, got {spec.way}: type {other}"
                )


def check_something_trains(parts: Parts) -> None:
    """Check that some parameter can be trained if the backbone is frozen."""
    if not any(parameter.requires_grad for parameter in parts.learner.parameters()):
        thaw = ", or backbone.freeze=none" if "freeze" in parts.config["backbone"] else ""
        raise UsageError(
            f"expected a parameter to train, and the backbone and head={parts.learner.trained} have none that is not "
            f"frozen: type stages=[test], which trains nothing and writes no checkpoint{thaw}, or head=cosine, or "
            "choose another head or head.output"
        )


def check_scale_of_clipping(parts: Parts) -> None:
    """Check that gradients in float16 are divided by the loss scale before they are clipped."""
    scaled = getattr(parts.trainer.precision_plugin, "scaler", None) is not None
    if not (scaled and parts.trainer.gradient_clip_val):
        return
    if unscales_in_step(parts.learner.make_optimizer(parts.learner.parameter_groups())):
        raise UsageError(
            "expected an optimizer that is not fused with trainer.gradient_clip_val in float16, as a fused one divides "
            "gradients by the loss scale only after they are clipped, got a fused one: leave out optimizer.fused, or "
            "type trainer.precision=bf16-mixed"
        )


def check_ranks(parts: Parts) -> None:
    """Check the number of processes, and that they can divide a meta-batch evenly."""
    world_size, trainer = parts.trainer.world_size, parts.config["trainer"]
    check_world_size(trainer["devices"], trainer["num_nodes"], world_size)
    tasks = parts.data.train.tasks
    if parts.fits and tasks % world_size:
        raise UsageError(
            f"expected train.tasks to be a multiple of the {world_size} processes, got {tasks}: "
            f"type train.tasks={world_size * (1 + tasks // world_size)}"
        )
