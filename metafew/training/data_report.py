"""Report the data at the start of a run, and record them in checkpoints and results."""

from __future__ import annotations

import logging

from metafew.data.summary import describe_change, recorded, summary_lines, warnings
from metafew.distributed.launcher import is_rank_zero
from metafew.errors import UsageError
from metafew.evaluation.base_mean import without_training_images
from metafew.training.parts import Parts

log = logging.getLogger(__name__)


def report_data(parts: Parts) -> dict[str, dict]:
    """Return the summary of each component of the data, and print it once for all ranks.

    The stores must have been built. Checkpoints of the run will contain the fingerprints.
    """
    data = parts.data
    summaries = data.summaries()
    parts.learner.provenance["data"] = {title: recorded(summary) for title, summary in summaries.items()}
    if is_rank_zero():
        for source in data.source.all_components():
            summary = summaries[source.title]
            print(*summary_lines(source, summary), sep="\n")
            for message in warnings(source, summary):
                log.warning("%s", message)
            if "shared" in summary:
                log.warning("%s", describe_shared(source.title, summary["shared"]))
        if parts.start is not None and not parts.fits:
            warn_of_other_data(parts.start, summaries)
    return summaries


def check_base_images(parts: Parts) -> None:
    """Check that this run has the training images whose mean feature a head uses, if the checkpoint lacks that mean.

    The data must have been reported.

    Raises:
        UsageError: if it has none, or others than the checkpoint was trained on.
    """
    heads = [name for name, head in parts.learner.heads.items() if head.needs_base_mean]
    if parts.fits or not heads or parts.learner.base_mean.value is not None:
        return
    if lacking := without_training_images(parts.source):
        raise UsageError(
            f"expected training images in dataset={lacking[0]}, whose mean feature head={heads[0]} uses, got none: "
            "add a train split, or choose another head"
        )
    saved, now = parts.start["metafew"] if parts.start else {}, parts.learner.provenance["data"]
    before = saved.get("data", now)
    titles = [source.title for source in parts.source.components("train")]
    others = [title for title in titles if before.get(title) != now[title]]
    if others:
        raise UsageError(
            f"expected the mean feature of the images that {parts.config['ckpt']} was trained on, which "
            f"head={heads[0]} uses, got a checkpoint without it and other training images in dataset={others[0]}: type "
            f"dataset={saved['choices']['dataset']}, or train with evaluate={heads[0]}, which stores it"
        )


def describe_shared(title: str, shared: dict) -> str:
    """Describe a test dataset that shares images with a training dataset."""
    return (
        f"expected the test images of {title} to be in no other dataset that is trained on, but {shared['share']:.1%} "
        f"of them are also in {shared['source']}, and {shared['trained']:.1%} in its train split: type other "
        "dataset.sources or dataset.test_sources"
    )


def warn_of_other_data(start: dict, summaries: dict[str, dict]) -> None:
    """Warn if the images of a dataset differ from those that the checkpoint was trained with."""
    for title, before in start["metafew"].get("data", {}).items():
        if title in summaries and before != recorded(summaries[title]):
            log.warning(
                "the checkpoint was trained with other images (%s): some test images may have been used in training",
                describe_change(title, before, summaries[title]),
            )
