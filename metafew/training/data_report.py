"""Report the data at the start of a run, and record them in checkpoints and results."""

from __future__ import annotations

import logging

from metafew.data.summary import summary_lines, warnings
from metafew.distributed.launcher import is_rank_zero
from metafew.training.parts import Parts
from metafew.training.resume import describe_change, recorded

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
                "the checkpoint was trained with other images (%s): some that are tested may have been trained on",
                describe_change(title, before, summaries[title]),
            )
