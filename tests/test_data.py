"""Tasks, stores and views: pure functions of (seed, split, i), on images that the tests make."""

import errno
import json
import multiprocessing
import os
import pickle
import re
import signal
import time
from collections import Counter
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numbered import SIZES, Numbered
from peak import MEASURABLE, grown
from PIL import Image
from scipy.stats import chi2_contingency, chisquare

from metafew.data import loader, store
from metafew.data.augment import Affine, Augmentation, Chain, as_float
from metafew.data.datamodule import FewShot
from metafew.data.loader import Message, MetaBatches, held_signals, make_loader, start_method, start_methods
from metafew.data.minibatches import Minibatches, MinibatchSampler
from metafew.data.sampler import MixtureSampler, Sampler
from metafew.data.sources import Category
from metafew.data.store import Split, build, store_folder, verify
from metafew.data.task_spec import TaskSpec
from metafew.errors import UsageError
from metafew.signals import ENDING


@pytest.fixture
def split(tmp_path):
    return Split(build(Numbered(), tmp_path), "train")


def plan(**changes):
    return TaskSpec(**{"split": "train", "way": 3, "shot": 2, "query": 4, "tasks": 4, "total": 8, "seed": 0} | changes)


def identities(images):
    """Return (class, number) of every image of a stack of tasks."""
    return [tuple(map(int, image[0, 0])) for image in images.flatten(0, 1)]


def test_store_holds_what_was_read_and_is_built_once(tmp_path):
    source = Numbered()
    folder = build(source, tmp_path)
    assert folder == store_folder(source, tmp_path) and source.reads == sum(SIZES) * 2
    build(source, tmp_path)
    assert source.reads == sum(SIZES) * 2
    split = Split(folder, "test")
    assert split.names == ["class 3", "class 4", "class 5", "class 6"]
    assert split.images[split.rows[2]][:, 0, 0].tolist() == [[5, i] for i in range(14)]
    (folder / "test.npy").unlink()  # as by a machine that removes old files
    assert build(Numbered(), tmp_path) == folder and Split(folder, "test").names == split.names
    assert build(Numbered(turns=1), tmp_path) != folder


def test_a_build_that_breaks_off_leaves_nothing(tmp_path):
    source = Numbered()
    read = source.read

    def broken(keys):
        yield from list(read(keys))[:5]
        raise OSError("the disk is gone")

    source.read = broken
    with pytest.raises(UsageError, match=r"the disk is gone.*cache_dir=PATH"):
        build(source, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["keys"] and store_folder(source, tmp_path) is None
    source.read = read
    assert Split(build(source, tmp_path), "val").names


def test_a_cache_that_cannot_be_written_to_serves_what_was_built(tmp_path, monkeypatch):
    folder = build(Numbered(), tmp_path)
    read_only = Mock(side_effect=OSError(errno.EROFS, "Read-only file system"))
    for owner, name in ((Path, "mkdir"), (Path, "touch"), (store, "FileLock"), (os, "replace")):
        monkeypatch.setattr(owner, name, read_only)
    assert build(Numbered(), tmp_path) == folder and Split(folder, "train").names
    expected = r"expected the store of dataset=numbered in .*Read-only file system.*type cache_dir=PATH"
    with pytest.raises(UsageError, match=expected):
        build(Numbered(turns=1), tmp_path)


def test_a_cache_that_is_a_file_is_an_error(tmp_path):
    (tmp_path / "cache").touch()
    with pytest.raises(UsageError, match=r"expected the store of dataset=numbered .*type cache_dir=PATH"):
        build(Numbered(), tmp_path / "cache")


def test_sidecar_says_what_the_store_is_and_verify_finds_a_flipped_bit(tmp_path):
    folder = build(Numbered(), tmp_path)
    about = json.loads((folder / "store.json").read_text())
    assert (about["dataset"], about["image_size"], about["channels"]) == ("numbered", 2, 1)
    assert about["splits"]["val"].items() >= {"classes": 3, "images": sum(SIZES[:3])}.items()
    verify(folder)
    content = bytearray((folder / "val.npy").read_bytes())
    content[-1] ^= 1
    (folder / "val.npy").write_bytes(content)
    with pytest.raises(UsageError, match=r"val images in .* have changed"):
        verify(folder)


@pytest.mark.parametrize(("stored", "wanted"), [(1, 1), (1, 3), (3, 1), (3, 3)])
def test_images_of_several_tasks_are_those_of_each(tmp_path, stored, wanted):
    class Colours(Numbered):
        name, channels = f"colours {stored}", stored

        def splits(self):
            classes = super().splits()["train"]
            return {"train": [c._replace(turns=number % 4) for number, c in enumerate(classes)]}

        def read(self, keys):
            rng = np.random.default_rng(0)
            return (rng.integers(0, 256, (stored, 2, 2), np.uint8) for _ in keys)

    split = Split(build(Colours(), tmp_path), "train", wanted)
    sampler = Sampler(split, plan(), Chain([Affine(9, 0, (1, 1), 0)]))
    (batch,) = sampler.batch(range(5))
    for number in range(5):
        alone = sampler.task(number)
        several, single = ((*e.support, *e.query, *e.ids, *e.views[1:], e.index) for e in (batch, alone))
        for whole, part in zip(several, single, strict=True):
            assert torch.equal(whole[number], part[0])
        ids = alone.ids[1][0].numpy()
        for image, at in zip(alone.query.images[0], ids, strict=True):  # each by itself
            turns, row = np.divmod([at], len(split.images))
            assert np.array_equal(image, split.gather(row, turns)[0])
    assert len({int(i) // len(split.images) for i in batch.ids[1].flatten()}) == 4  # turns


def test_a_store_gives_other_channels_on_demand(tmp_path):
    folder = build(Numbered(), tmp_path)
    grey, colour = Split(folder, "train"), Split(folder, "train", channels=3)
    rows, turns = np.arange(5), np.zeros(5, int)
    assert np.array_equal(colour.gather(rows, turns), grey.gather(rows, turns).repeat(3, 1))


def test_colours_become_grey_as_pillow_makes_them(tmp_path):
    class Colours(Numbered):
        name, channels = "colours", 3

        def read(self, keys):
            rng = np.random.default_rng(0)
            return (rng.integers(0, 256, (3, 2, 2), np.uint8) for _ in keys)

    folder = build(Colours(), tmp_path)
    rows, turns = np.arange(30), np.zeros(30, int)
    colours, greys = (Split(folder, "train", channels).gather(rows, turns) for channels in (3, 1))
    for colour, grey in zip(colours, greys, strict=True):
        pillow = np.asarray(Image.fromarray(np.ascontiguousarray(colour.transpose(1, 2, 0))).convert("L"))
        assert np.abs(pillow.astype(int) - grey[0]).max() <= 1


class Slow(Numbered):
    """A source that takes its time, ``seconds`` for each image, and leaves a mark for each that it reads."""

    def __init__(self, marks, seconds=0.005):
        super().__init__()
        self.marks, self.seconds = marks, seconds

    def read(self, keys):
        for image in super().read(keys):
            with self.marks.open("a") as file:
                file.write("x")
            time.sleep(self.seconds)
            yield image


def start(source, cache):
    """Build the store of ``source`` in a process of its own; returns its number."""
    if not (pid := os.fork()):
        build(source, cache)
        os._exit(0)
    return pid


def test_processes_that_start_together_build_once(tmp_path):
    source = Slow(tmp_path / "marks")
    for pid in [start(source, tmp_path / "cache") for _ in range(3)]:
        assert os.waitpid(pid, 0)[1] == 0
    assert len(source.marks.read_text()) == 2 * sum(SIZES)
    verify(store_folder(source, tmp_path / "cache"))


def test_a_killed_build_leaves_nothing_under_the_final_name(tmp_path):
    source, cache = Slow(tmp_path / "marks", seconds=600), tmp_path / "cache"
    pid = start(source, cache)
    while not source.marks.exists():
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    source.seconds = 0
    assert store_folder(source, cache) is None and len(list(cache.glob("numbered-*/"))) == 1
    verify(build(source, cache))
    assert list(cache.glob("numbered-*/")) == [store_folder(source, cache)]


@MEASURABLE
def test_memory_does_not_grow_with_the_store(tmp_path):
    """Building and reading a store of 64 MB takes less than a quarter of that beyond what a tiny one takes."""

    class Large(Numbered):
        def __init__(self, count):
            self.count, self.name = count, f"large{count}"

        def splits(self):
            classes = [Category(f"c{c}", tuple((c, i) for i in range(self.count))) for c in range(8)]
            return {"train": classes, "val": classes[:3], "test": classes[:3]}

        def fingerprint(self):
            return self.name

        image_size = 256

        def read(self, keys):
            return (np.full((1, 256, 256), i % 256, np.uint8) for _, i in keys)

    def draw(count):
        sampler = Sampler(Split(build(Large(count), tmp_path), "train"), plan(way=5), None)
        for index in range(5):
            sampler.task(index)

    assert grown(lambda: draw(128)) - grown(lambda: draw(8)) < 16 * 1024


def test_turned_classes_are_turned(tmp_path):
    plain = Sampler(Split(build(Numbered(), tmp_path), "train"), plan(), None).task(3)
    turned = Sampler(Split(build(Numbered(turns=1), tmp_path), "train"), plan(), None).task(3)
    assert torch.equal(turned.query.images, torch.rot90(plain.query.images, 1, (3, 4)))


@settings(max_examples=30)
@given(seed=st.integers(0, 2**31), index=st.integers(0, 10**9), way=st.integers(2, 7), shot=st.integers(1, 4))
def test_a_task_is_well_formed(tmp_path_factory, seed, index, way, shot):
    split = Split(build(Numbered(), tmp_path_factory.getbasetemp() / "numbered"), "train")
    episode = Sampler(split, plan(seed=seed, way=way, shot=shot), None).task(index)
    seen = identities(episode.support.images) + identities(episode.query.images)
    assert len(set(seen)) == len(seen) == way * (shot + 4)
    for part in (episode.support, episode.query):
        label_of = {}
        for (category, _), label in zip(identities(part.images), part.labels[0].tolist(), strict=True):
            assert label_of.setdefault(category, label) == label
        assert sorted(label_of.values()) == list(range(way))
    assert Counter(episode.support.labels[0].tolist()) == dict.fromkeys(range(way), shot)


def test_queries_do_not_depend_on_the_shot_and_supports_are_nested(split):
    jitter = Chain([Affine(15, 0.25, (0.7, 1.05), 2.5)])
    one = Sampler(split, plan(shot=1), jitter).task(5)
    three = Sampler(split, plan(shot=3), jitter).task(5)
    drawn = Sampler(split, plan(shot="3..3"), jitter).task(5)
    assert torch.equal(one.query.images, three.query.images) and torch.equal(one.views.query, three.views.query)
    few, many = (
        dict(zip(identities(task.support.images), task.views.support[0].tolist(), strict=True)) for task in (one, three)
    )
    assert few.items() <= many.items() and len(few) == 3 and len(many) == 9
    assert torch.equal(three.support.images, drawn.support.images)


def test_the_names_of_the_classes_of_a_task_are_those_that_it_draws(split):
    samplers = [Sampler(split, plan(way="2..5", seed=seed), None) for seed in (0, 1)]
    for spec in (plan(way="2..5"), plan(way="2..5", split="train")):
        for sampler in (samplers[0], MixtureSampler(samplers, spec)):
            for index in range(4):
                drawn, names = sampler.draw(index), sampler.class_names(index)
                assert len(names) == drawn.way
                named = {split.names[c] for c, label in zip(drawn.query.classes, drawn.query.labels, strict=True)}
                assert named == set(names)
                for c, label in zip(drawn.query.classes, drawn.query.labels, strict=True):
                    assert names[label] == split.names[c]


def test_tasks_depend_on_seed_split_and_number_only(split):
    def fingerprint(**changes):
        return identities(Sampler(split, plan(**changes), None).task(0).query.images)

    assert fingerprint() == fingerprint(tasks=2, total=100)
    assert len({tuple(fingerprint(**c)) for c in ({}, {"seed": 1}, {"split": "val"}, {"split": "test"})}) == 4


def test_ranks_and_batch_sizes_share_out_the_same_tasks(split):
    def numbers(tasks, world):
        found = []
        for rank in range(world):
            batches = MetaBatches(Sampler(split, plan(tasks=4, total=10), None), rank, world, tasks)
            found += [i for k in range(len(batches)) for e in batches[k] for i in e.index.tolist()]
        return sorted(found)

    for tasks in (None, 1, 3, 10):
        for world in (1, 2, 4):
            assert numbers(tasks, world) == list(range(10))


def test_mixed_shapes_are_stacked_by_shape_and_none_is_lost(split):
    sampler = Sampler(split, plan(way="2..5", shot="1..3"), None)
    batch = sampler.batch(range(30))
    assert len(batch) > 3 and sorted(torch.cat([e.index for e in batch]).tolist()) == list(range(30))
    for episode in batch:
        t, s = episode.support.labels.shape
        assert episode.support.images.shape[:2] == (t, s) and s % episode.way == 0
        alone = sampler.task(int(episode.index[0]))
        assert torch.equal(alone.support.images[0], episode.support.images[0])
    ways = Counter(e.way for e in map(sampler.task, range(400)))
    assert set(ways) == {2, 3, 4, 5} and min(ways.values()) > 60


def test_classes_and_images_are_drawn_evenly(split):
    sampler = Sampler(split, plan(way=3), None)
    episodes = [sampler.task(i) for i in range(1500)]
    classes = Counter(c for e in episodes for c in {c for c, _ in identities(e.support.images)})
    expected = 1500 * 3 / 7
    # Drawing 3 of 7 without replacement shrinks the variance by (1 - 3/7) * 7/6 = 2/3.
    statistic = sum((n - expected) ** 2 / expected for n in classes.values()) * 3 / 2
    assert statistic < 27.9  # chi-square with 6 degrees of freedom: one in 10,000
    images = Counter(i for e in episodes for c, i in identities(e.query.images) if c == 5)
    expected = sum(images.values()) / 14
    assert sum((n - expected) ** 2 / expected for n in images.values()) < 44.0  # 13 degrees of freedom


def test_sorted_sources_give_no_order_bias(split):
    """Neither labels nor the parts of a task follow the order in which a source lists classes and images."""
    episodes = [Sampler(split, plan(way=3, query=2), None).task(i) for i in range(1500)]
    labels, parts = np.zeros((7, 3)), np.zeros((2, 14))
    for episode in episodes:
        for number, part in enumerate((episode.support, episode.query)):
            for (c, i), label in zip(identities(part.images), part.labels[0].tolist(), strict=True):
                labels[c, label] += 1
                parts[number, i] += c == 5
    assert chi2_contingency(labels / 4).pvalue > 1e-4  # four images a class
    assert chi2_contingency(parts).pvalue > 1e-4
    assert all(chisquare(part).pvalue > 1e-4 for part in parts)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(("workers", "method"), [(1, "spawn"), (4, None)])
def test_workers_draw_the_same_tasks_in_the_same_order(split, monkeypatch, workers, method):
    batches = MetaBatches(Sampler(split, plan(way="2..4", total=20), Chain([Affine(9, 0, (1, 1), 0)])), 0, 1)
    if method:
        monkeypatch.setattr(loader, "start_method", lambda: method)
    alone, several = make_loader(batches, 0), iter(make_loader(batches, workers))
    shared = [next(several)]
    for child in multiprocessing.active_children():  # as SLURM does, to all processes of a job
        for number in ENDING:
            os.kill(child.pid, number)
    shared += several
    for one, other in zip(alone, shared, strict=True):
        for first, second in zip(one, other, strict=True):
            assert torch.equal(first.index, second.index)
            assert torch.equal(first.support.images, second.support.images)
            assert torch.equal(first.views.query, second.views.query)
            assert not second.support.images.is_shared()  # a container has little shared memory


def test_a_worker_may_get_a_signal_before_it_can_ignore_it():
    context = multiprocessing.get_context("spawn")
    with held_signals():
        process = context.Process(target=time.sleep, args=(0,))
        process.start()
        for number in ENDING:
            os.kill(process.pid, number)
    process.join()
    assert process.exitcode == 0
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & {*ENDING}


@pytest.mark.parametrize("channels", [1, 3])
def test_a_copy_of_a_split_is_its_path(tmp_path, monkeypatch, channels):
    """It maps the same files to memory, whatever the working folder of the other process."""

    class Large(Numbered):
        name, image_size = "large", 100

        def read(self, keys):
            return (np.full((1, 100, 100), number % 251, np.uint8) for number, _ in enumerate(keys))

    monkeypatch.chdir(tmp_path)
    split = Split(build(Large(), Path()), "train", channels)
    samplers = [Sampler(split, plan(), None), MinibatchSampler(split, Minibatches("train", 4, 1, 9, 0, False), None)]
    for sampler in (*samplers, MixtureSampler(samplers[:1] * 2, plan())):
        sampler.draw(0)
        batches = MetaBatches(sampler, 0, 1)
        content = pickle.dumps(batches)
        assert len(content) < 2000 < split.images.nbytes / 100
        monkeypatch.chdir("/")
        copied = pickle.loads(content)
        monkeypatch.chdir(tmp_path)
        for ours, theirs in zip(batches[1], copied[1], strict=True):
            assert torch.equal(ours.support.images, theirs.support.images) and ours.support.images.shape[2] == channels
    assert isinstance(pickle.loads(content).sampler.samplers[0].split.images, np.memmap)


def test_a_message_becomes_the_batch_that_it_holds():
    batch = [torch.empty(2, 0, 3), torch.arange(6).reshape(2, 3).T, torch.ones(2, dtype=torch.uint8), 7, np.arange(3.0)]
    content = bytes(ForkingPickler.dumps(Message(batch)))
    *tensors, number, array = pickle.loads(content)
    assert all(map(torch.equal, tensors, batch[:3])) and number == 7 and np.array_equal(array, batch[4])
    tensors[2] += 1  # its memory is its own
    assert len(content) > sum(tensor.nbytes for tensor in tensors)  # by value: not the name of shared memory


@pytest.mark.filterwarnings("ignore:.*LeafSpec")  # as runs do
def test_closed_data_have_no_workers(split, tmp_path):
    """Lightning does not end those of the training when a validation in it raises an error."""
    data = FewShot(Numbered(), plan(), plan(), [plan()], Augmentation([], {}), tmp_path, num_workers=1)
    data.trainer = Mock(global_rank=0, world_size=1, global_step=0, accumulate_grad_batches=1)
    before = set(multiprocessing.active_children())
    batches = iter(data.train_dataloader())
    next(batches)
    assert len(set(multiprocessing.active_children()) - before) == 1
    data.close()
    assert not set(multiprocessing.active_children()) - before
    data.close()


def test_joblib_and_daemonic_processes_load_tasks_too(split, monkeypatch, caplog):
    batches = MetaBatches(Sampler(split, plan(total=4), None), 0, 1)
    default, *others = start_methods()
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda allow_none: "loky")
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: [default, *others, "loky"])  # Python 3.14
    assert start_method() == default
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda allow_none: None)
    assert start_method() is None
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)
    with caplog.at_level("INFO"):
        (batch,) = make_loader(batches, 2)
    assert len(batch[0].index) == 4 and "data.num_workers=2 is ignored" in caplog.text


def test_workers_that_cannot_start_are_an_error_that_says_what_to_type(split, monkeypatch):
    class Local(Affine):
        """pickle finds no class inside a function."""

    views = Chain([Local(9, 0, (1, 1), 0)])
    with pytest.raises(UsageError, match=r"Local.* type data.num_workers=0"):
        make_loader(MetaBatches(Sampler(split, plan(), views), 0, 1), 1)
    workers = iter(make_loader(MetaBatches(Sampler(split, plan(), None), 0, 1), 2))
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(multiprocessing, "Queue", Mock(side_effect=full))
    with pytest.raises(UsageError, match=r"data.num_workers=2 .*No space left.* type data.num_workers=0"):
        next(workers)


@pytest.mark.parametrize(
    ("changes", "problem", "options"),
    [
        ({"way": 8}, "needs 8 classes.*has 7", {"train.way": 7}),
        ({"way": "5..20"}, "needs 20 classes.*has 7", {"train.way": "5..7"}),
        ({"shot": 6}, "need 10 images of each class, but class 'class 0'.*has 9", {"train.query": 3}),
        ({"shot": "1..9"}, "need 13 images", {"train.shot": "1..8", "train.query": 1}),
        ({"shot": 10, "query": 0}, "need 10 images", {"train.shot": 9}),
        ({"shot": 9, "query": 1}, "need 10 images", {"train.shot": 8}),
        ({"shot": "natural", "way": "8..50", "support": 60}, "needs 8 classes of one group", {"train.way": "2..7"}),
    ],
)
def test_what_a_split_lacks_has_values_that_suffice(changes, problem, options):
    categories = Numbered().splits()["train"]
    (shortage,) = plan(**changes).shortages(categories, "numbered")
    assert re.search(problem, shortage.problem) and shortage.options == options
    better = plan(**changes | {option.removeprefix("train."): value for option, value in options.items()})
    assert not better.shortages(categories, "numbered")


@pytest.mark.parametrize(
    ("sizes", "changes", "problem", "images"),
    [
        ([], {}, "has no classes", False),
        ([9], {}, "has one class, 'c0'", False),
        ([9, 1], {"shot": 1, "query": 1}, "class 'c1' .* has 1", True),
        ([9, 1], {"shot": "natural"}, "class 'c1' .* has 1", True),
    ],
)
def test_nothing_suffices_for_one_class_or_one_image(sizes, changes, problem, images):
    categories = [Category(f"c{c}", tuple(range(size))) for c, size in enumerate(sizes)]
    shortages = plan(**{"way": 2} | changes).shortages(categories, "numbered")
    assert [(shortage.options, shortage.images) for shortage in shortages] == [({}, images)]
    assert re.search(problem, shortages[0].problem)


@pytest.mark.parametrize(
    "changes",
    [
        {"way": 1},
        {"way": "5..2"},
        {"way": "many"},
        {"shot": 0},
        {"query": -1},
        {"query": 0, "split": "val"},
        {"tasks": 1.5},
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(changes):
    with pytest.raises(UsageError, match=f"{changes.get('split', 'train')}.{next(iter(changes))} to be an integer"):
        plan(**changes)


def test_as_float_ends_at_one():
    values = as_float(torch.tensor([0, 51, 255], dtype=torch.uint8), torch.float64)
    torch.testing.assert_close(values, torch.tensor([0, 0.2, 1], dtype=torch.float64))


def test_default_cache_is_the_users(composed, monkeypatch):
    from metafew.objectives.episodic import Episodic
    from metafew.objectives.regularizers import NoRegularizer
    from metafew.training.factory import make_data
    from metafew.training.instantiate import make

    cfg, _, _ = composed("cache_dir=null")
    data = make_data(cfg, make(cfg.dataset), Episodic(NoRegularizer()))
    assert data.cache.name == "metafew" and Path.home() in data.cache.parents
