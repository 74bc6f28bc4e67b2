"""What every data set keeps."""

import re
from itertools import chain

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from contracts import node
from metafew.data.sampler import Sampler
from metafew.data.sources import SPLITS, Source
from metafew.data.store import Split, build
from metafew.data.task_spec import TaskSpec
from metafew.errors import UsageError
from metafew.training.factory import make_source

CLASSES, IMAGES = 5, 6
ABSENT = r"dataset\.download=false forbids downloading|ImageNet's terms forbid downloading|holds no \*\.parquet"
"""What a data set says whose files are not in its folder."""


class Few(Source):
    """The first classes and images of each split of another source, which are quick to store."""

    def __init__(self, source):
        self.source = source
        self.name, self.channels, self.image_size = source.name, source.channels, source.image_size
        self.dtype = source.dtype

    def splits(self):
        return {
            split: [each._replace(keys=each.keys[:IMAGES]) for each in categories[:CLASSES]]
            for split, categories in self.source.splits().items()
        }

    def fingerprint(self):
        return f"few of {self.source.fingerprint()}"

    def read(self, keys):
        return self.source.read(keys)


class DatasetContract:
    """A subclass provides ``file``, the YAML of a data set, and may provide ``options`` and ``data_dir``."""

    @pytest.fixture
    def options(self):
        """Options of the data set, other than those of its YAML."""
        return {}

    @pytest.fixture
    def data_dir(self, tmp_path):
        """The folder of data sets."""
        return tmp_path

    @pytest.fixture
    def make(self, file, options, data_dir):
        """Make the sources of the data set, several for a mixture; skip where it would have to be downloaded."""
        content = OmegaConf.create({"data_dir": str(data_dir), "dataset": node(file)})
        local = {"download": False} if "download" in content.dataset else {}

        def sources():
            try:
                found = make_source(OmegaConf.merge(content, {"dataset": local | options})).all_components()
                for source in found:
                    source.splits()
            except UsageError as error:
                if not re.search(ABSENT, str(error)):
                    raise
                pytest.skip(f"it cannot be made here: {error}")
            return found

        return sources

    def test_splits_are_disjoint_and_names_unique(self, make):
        for source in make():
            splits = source.splits()
            assert {*splits} <= {*SPLITS} and any(splits.values())
            names = [category.name for category in chain(*splits.values())]
            assert len(names) == len(set(names))
            keys = [{key for category in part for key in category.keys} for part in splits.values()]
            assert len(set().union(*keys)) == sum(map(len, keys))
            assert all(len(set(category.keys)) == len(category.keys) > 0 for category in chain(*splits.values()))

    def test_two_of_the_same_settings_are_the_same(self, make):
        for one, other in zip(make(), make(), strict=True):
            assert one.fingerprint() == other.fingerprint() and one.splits() == other.splits()
            assert one.title == other.title and one.channels == other.channels

    def test_images_have_the_declared_size_and_type_in_any_order(self, make):
        for source in make():
            keys = [key for category in next(filter(None, source.splits().values()))[:2] for key in category.keys[:2]]
            images = list(source.read(keys))
            for image in images:
                assert image.shape == (source.channels, source.image_size, source.image_size)
                assert image.dtype == source.dtype and np.isfinite(image).all()
            for image, again in zip(reversed(images), source.read(keys[::-1]), strict=True):
                assert np.array_equal(image, again)

    def test_task_i_depends_on_seed_split_and_i_only(self, make, tmp_path):
        for source in make():
            few = Few(source)
            for split, categories in few.splits().items():
                if len(categories) < 2 or min(len(category.keys) for category in categories) < 2:
                    continue
                spec = TaskSpec(split=split, way=2, shot=1, query=1, tasks=1, total=3, seed=0)
                first, second, other = (
                    Sampler(Split(build(few, tmp_path / "store"), split), each, None)
                    for each in (spec, spec, TaskSpec(**{**vars(spec), "seed": 1}))
                )
                first.task(0)
                for index in (2, 1):
                    one, two = first.task(index), second.task(index)
                    assert all(torch.equal(a, b) for a, b in zip(one.support, two.support, strict=True))
                    assert all(torch.equal(a, b) for a, b in zip(one.query, two.query, strict=True))
                    (support,), (query,) = one.ids
                    assert not set(support.tolist()) & set(query.tolist())
                drawn = [torch.cat([*sampler.task(i).ids], 1) for sampler in (first, other) for i in range(3)]
                drawn = [ids.flatten().tolist() for ids in drawn]
                assert drawn[0] != drawn[1] or drawn[0] != drawn[2]
                assert drawn[:3] != drawn[3:], "the tasks of another seed"
