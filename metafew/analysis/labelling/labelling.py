"""The predictions for a folder of images, and their accuracy where folders are named after the classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import NamedTuple

from metafew.analysis.text_table import Bold, TextTable
from metafew.data.formats.names import composed, natural_order

NONE = "none"
"""The prediction shown for an image with non-finite logits."""
MOST = 20
"""Maximum number of classes in a confusion matrix, and of listed confusions."""


class Prediction(NamedTuple):
    """The prediction for an image.

    Attributes:
        file: the path of the image, relative to the folder.
        truth: its class, if its folder is named after one.
        predicted: the most probable class, or None without finite logits.
        probability: the probability of this class.
        distance: the distance from the nearest class (:meth:`metafew.inference.Task.distances`).
    """

    file: str
    truth: str | None
    predicted: str | None
    probability: float
    distance: float

    @property
    def unknown(self) -> bool:
        """Whether the image may belong to none of the classes; False without a prediction."""
        return self.predicted is not None and self.distance > 1

    @property
    def wrong(self) -> bool:
        """Whether the class of the image is given and another or none is predicted."""
        return self.truth is not None and self.predicted != self.truth


@dataclass(frozen=True)
class Labelling:
    """The predictions for a folder of images.

    Attributes:
        examples: the number of examples of each class.
        predictions: the prediction for each image.
    """

    examples: Mapping[str, int]
    predictions: list[Prediction]

    @cached_property
    def confusion(self) -> Counter[tuple[str, str | None]]:
        """The number of images by true and predicted class, None without a prediction."""
        return Counter((p.truth, p.predicted) for p in self.predictions if p.truth is not None)

    @property
    def answered(self) -> int:
        """The number of images with a prediction."""
        return sum(p.predicted is not None for p in self.predictions)

    def lines(self) -> list[str]:
        """Return accuracy, confusions and the number of images marked as unknown, one line each."""
        found = []
        if count := self.confusion.total():
            from scipy.stats import binomtest  # takes longer to import than the rest of a command that only prints help

            right = count - sum(p.wrong for p in self.predictions)
            wilson = binomtest(right, count).proportion_ci(method="wilson")  # has a width at 0 and 1, too
            share, low, high = (f"{100 * x:.1f}" for x in (right / count, *wilson))
            found.append(f"accuracy {share} % (95 % interval {low} to {high} %): {right} of {count} images")
            if confused := self.most_confused(5):
                found.append(f"confused: {', '.join(f'{a} as {b or NONE} ({n})' for (a, b), n in confused)}")
        marked = {given: [p.unknown for p in self.predictions if (p.truth is not None) == given] for given in (0, 1)}
        if marked[0] and marked[1]:
            found.append(
                f"unknown: {sum(marked[1])} of {len(marked[1])} images in folders named after classes, "
                f"{sum(marked[0])} of {len(marked[0])} others"
            )
        else:
            found.append(f"unknown: {sum(marked[0] + marked[1])} of {len(self.predictions)} images")
        return found

    def most_confused(self, count: int) -> list[tuple[tuple[str, str | None], int]]:
        """Return up to ``count`` pairs of different true and predicted classes with their numbers, highest first."""
        return [(pair, n) for pair, n in self.confusion.most_common() if pair[0] != pair[1]][:count]

    def class_table(self) -> TextTable:
        """Return the numbers of examples and predictions of each class and, with truth, its images and recall."""
        counts = Counter(p.predicted for p in self.predictions)
        columns = ["examples", "predicted", *(["images", "recall"] if self.confusion else [])]
        table = TextTable("Classes", columns, corner="class")
        for name, examples in self.examples.items():
            row = [name, str(examples), str(counts[name])]
            if self.confusion:
                images = sum(n for (truth, _), n in self.confusion.items() if truth == name)
                row += [str(images), f"{100 * self.confusion[name, name] / images:.1f} %" if images else "–"]
            table.rows.append(row)
        return table

    def confusion_table(self) -> TextTable:
        """Return the numbers of images by true class (rows) and predicted class, or the most frequent confusions."""
        truths = sorted({truth for truth, _ in self.confusion}, key=natural_order)
        found = {name for _, name in self.confusion}
        predicted: list[str | None] = [*sorted(filter(None, found), key=natural_order), *{None} & found]
        if max(len(truths), len(predicted)) > MOST:
            rows = [[truth, name or NONE, str(n)] for (truth, name), n in self.most_confused(MOST)]
            return TextTable("Most frequent confusions", ["predicted as", "images"], rows)
        rows = [[t, *(cell(self.confusion[t, p], t == p) for p in predicted)] for t in truths]
        return TextTable("Confusion", [f"as {name or NONE}" for name in predicted], rows)


def cell(count: int, right: bool) -> str:
    """Return a cell of the confusion matrix: the diagonal in bold, nothing for zero elsewhere."""
    return Bold(count) if right else str(count or "")


def true_class(file: str, classes: Collection[str]) -> str | None:
    """Return the class after which a folder of an image is named, the innermost such folder; None without one.

    >>> true_class("crow/2021/1.png", {"crow"}), true_class("a/b/1.png", {"a/b"}), true_class("1.png", {"crow"})
    ('crow', 'a/b', None)
    """
    folders = map(composed, PurePosixPath(file).parents)  # as names of classes are
    return next((folder for folder in folders if folder in classes), None)
