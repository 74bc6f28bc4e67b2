"""Random views of images, against NumPy and Pillow."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from metafew.data.augment import Affine, Augmentation, Chain, ClassTurn, Colour, Crop, Flip
from metafew.data.sources import Category
from metafew.errors import UsageError

ALL = [Affine(15, 0.25, (0.7, 1.05), 2.5), Crop(3), Colour(0.4, 0.4, 0.4), Flip(), ClassTurn()]


def some(count=6, channels=3, size=9, seed=0):
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def draw(view, count=6, seed=0, classes=None):
    classes = np.zeros(count, int) if classes is None else classes
    return torch.from_numpy(view.draw(np.random.default_rng(seed), classes))


@pytest.mark.parametrize("view", ALL, ids=lambda v: type(v).__name__)
def test_a_view_treats_each_image_alone(view):
    images, parameters = some(), draw(view)
    assert parameters.shape == (6, view.size)
    together = view.apply(images, parameters)
    assert together.shape == images.shape and together.dtype == images.dtype
    assert together.min() >= 0 and together.max() <= 1
    for row in range(6):
        torch.testing.assert_close(view.apply(images[[row]], parameters[[row]]), together[[row]], atol=1e-12, rtol=0)
    assert not torch.equal(together, images)


@pytest.mark.parametrize("view", ALL, ids=lambda v: type(v).__name__)
def test_grey_images_are_seen_too(view):
    assert view.apply(some(channels=1), draw(view)).shape == (6, 1, 9, 9)


def test_affine_without_freedom_changes_nothing_and_shifts_in_pixels():
    images = some(channels=1, size=28)
    still = Affine(0, 0, (1, 1), 0)
    maps = draw(still)
    torch.testing.assert_close(still.apply(images, maps), images, atol=1e-5, rtol=0)
    maps.view(-1, 2, 3)[..., 2] = torch.tensor([-2 / 14, 0.0])  # the input point lies two pixels to the left
    moved = still.apply(images, maps)
    torch.testing.assert_close(moved[..., 2:], images[..., :-2], atol=1e-5, rtol=0)


class Largest:
    """In place of a random generator: it draws the largest value; of shifts, along one axis, and 0 along the other."""

    def __init__(self, axis=0):
        self.axis = axis

    def uniform(self, low, high, size):
        drawn = np.full(size, float(high))
        if drawn.ndim == 2:
            drawn[:, 1 - self.axis] = 0
        return drawn


def test_affine_shifts_along_each_axis_and_shears_rows():
    images = some(channels=1, size=28)
    shift = Affine(0, 0, (1, 1), 2)
    right, down = (shift.apply(images, torch.from_numpy(shift.draw(Largest(axis), np.zeros(6)))) for axis in (0, 1))
    for found, expected in ((right, images.roll(2, 3)), (down, images.roll(2, 2))):
        torch.testing.assert_close(found[..., 2:, 2:], expected[..., 2:, 2:], atol=1e-5, rtol=0)
    assert right[..., :2].abs().max() < 1e-5 and down[..., :2, :].abs().max() < 1e-5
    shear = Affine(0, 2, (1, 1), 0)
    slanted = shear.apply(images, torch.from_numpy(shear.draw(Largest(), np.zeros(6))))
    expected = torch.zeros_like(images)
    for row in range(28):  # 13.5 is the middle
        moved = 2 * row - 27
        columns = range(max(0, moved), min(28, 28 + moved))
        expected[..., row, columns] = images[..., row, [column - moved for column in columns]]
    torch.testing.assert_close(slanted, expected, atol=1e-5, rtol=0)


def test_affine_keeps_its_bounds():
    maps = Affine(30, 0.5, (0.5, 2.0), 7).draw(np.random.default_rng(0), np.zeros(2000)).reshape(-1, 2, 3)
    forward = np.linalg.inv(maps[:, :, :2])
    scale = np.sqrt(np.linalg.det(forward))
    angle = np.degrees(np.arctan2(forward[:, 1, 0], forward[:, 0, 0]))
    shear = (forward[:, :, 0] * forward[:, :, 1]).sum(1) / scale**2
    right, down = -(forward @ maps[:, :, 2:])[..., 0].T * 14
    for values, low, high in (
        (scale, 0.5, 2.0), (angle, -30, 30), (shear, -0.5, 0.5), (right, -7, 7), (down, -7, 7),
    ):  # fmt: skip
        assert low - 1e-3 <= values.min() < low + 0.1 * (high - low)
        assert high - 0.1 * (high - low) < values.max() <= high + 1e-3


def test_crop_is_a_slice_of_the_padded_image():
    images, view = some(50), Crop(2)
    parameters = draw(view, 50)
    assert set(parameters.flatten().tolist()) == {0, 1, 2, 3, 4}
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)))
    for image, whole, (top, left) in zip(view.apply(images, parameters), padded, parameters.tolist(), strict=True):
        assert np.array_equal(image, whole[:, top : top + 9, left : left + 9])


def test_half_of_the_images_are_flipped():
    images, parameters = some(400), draw(Flip(), 400)
    assert 160 < parameters.sum() < 240
    for image, seen, flipped in zip(images, Flip().apply(images, parameters), parameters.tolist(), strict=True):
        assert torch.equal(seen, image.flip(-1) if flipped[0] else image)


@pytest.mark.parametrize(
    ("place", "enhance"), [(0, ImageEnhance.Brightness), (1, ImageEnhance.Contrast), (2, ImageEnhance.Color)]
)
def test_colours_change_as_pillow_changes_them(place, enhance):
    strengths = [0.0, 0.0, 0.0]
    strengths[place] = 0.9
    view = Colour(*strengths)
    images, parameters = some(20), draw(view, 20)
    assert (parameters[:, place] - 1).abs().max() > 0.6
    for image, seen, factors in zip(images, view.apply(images, parameters), parameters, strict=True):
        pixels = (image.permute(1, 2, 0) * 255).round().byte().numpy()
        wanted = np.asarray(enhance(Image.fromarray(pixels)).enhance(factors[place].item())) / 255
        assert np.abs(seen.permute(1, 2, 0).numpy() - wanted).max() < 2.5 / 255


def test_a_class_turns_as_a_whole():
    classes = np.array([4, 7, 4, 7, 9, 4])
    images, seen_turns = some(), set()
    for seed in range(40):
        turns = draw(ClassTurn(), seed=seed, classes=classes)[:, 0].tolist()
        assert turns[0] == turns[2] == turns[5] and turns[1] == turns[3]
        seen_turns |= {tuple(turns[:2])}
        seen = ClassTurn().apply(images, torch.tensor(turns).unsqueeze(1))
        for image, view, turn in zip(images, seen, turns, strict=True):
            assert np.array_equal(view, np.rot90(image, turn, (1, 2)))
    assert len(seen_turns) > 10  # of 16: classes turn on their own


def test_a_chain_applies_its_views_in_order():
    crop, flip = Crop(2), Flip()
    chain, images = Chain([crop, flip]), some().unsqueeze(0)
    parameters = torch.tensor([[0.0, 4.0, 1.0]] * 6).unsqueeze(0)
    wanted = flip.apply(crop.apply(images[0], parameters[0, :, :2]), parameters[0, :, 2:])
    assert torch.equal(chain.apply(images, parameters)[0], wanted)
    assert chain.apply(images[:, :0], parameters[:, :0]).shape == (1, 0, 3, 9, 9)
    drawn = chain.draw(np.random.default_rng(1), np.zeros(6))
    assert drawn.dtype == np.float32 and drawn.shape == (6, 3)
    assert np.array_equal(drawn, chain.draw(np.random.default_rng(1), np.zeros(6)))


def test_only_the_splits_that_are_named_are_augmented():
    augmentation = Augmentation(["train"], {"crop": Crop(2), "flip": Flip()})
    jitter = Affine(0, 0, (1, 1), 0)
    assert [type(v) for v in augmentation.chain("train", jitter).views] == [Affine, Crop, Flip]
    assert [type(v) for v in augmentation.chain("val", jitter).views] == [Affine]
    assert augmentation.chain("test", None) is None
    assert Augmentation("test", {"crop": None}).chain("test", None) is None


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Crop(0), r"got 0: type augment\.views\.crop\.padding=8"),
        (lambda: Colour(1.5, 0, 0), r"between 0 and 1, got 1\.5"),
        (lambda: Augmentation(["all"], {}), "train, val and test, got all"),
        (lambda: Augmentation("all", {}), "train, val and test, got all"),
        (lambda: Affine(0, 0, [2], 0), r"got \[2\]: type scale"),
        (lambda: Affine(0, 0, [0, 0], 0), r"got \[0, 0\]: type scale"),
        (lambda: Affine(-15, 0, [1, 1], 0), "expected rotation to be a number of at least 0, got -15"),
        (lambda: Affine(0, -0.2, [1, 1], 0), "expected shear to be a number of at least 0"),
        (lambda: Affine(0, 0, [1, 1], -2), "expected shift to be a number of at least 0"),
        (
            lambda: Augmentation("val", {"turn": ClassTurn()}).check_applicable("val", 28, [Category("a", (), 1)]),
            "some classes of this split are rotations of others",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(make, said):
    with pytest.raises(UsageError, match=said):
        make()


def test_support_and_queries_of_a_class_turn_alike_and_shots_are_nested(composed):
    from metafew.objectives.episodic import Episodic
    from metafew.objectives.regularizers import NoRegularizer
    from metafew.training.factory import make_data, make_source

    drawn = []
    for shot in (1, 3):
        words = ["dataset.jitter=null", "augment=rotate_class", f"test.shot={shot}", "test.query=3"]
        cfg, _, _ = composed(*words, "+augment.views.flip={_target_: metafew.data.augment.Flip}")
        data = make_data(cfg, make_source(cfg), Episodic(NoRegularizer()))
        data.prepare_data()
        episode = data.sampler(data.test[0]).task(7)
        given, asked = episode.views.support[0], episode.views.query[0]
        for c in range(5):
            turns = torch.cat([given[episode.support.labels[0] == c], asked[episode.query.labels[0] == c]])[:, 0]
            assert len(turns.unique()) == 1
        views = dict(zip(episode.ids[0][0].tolist(), given.tolist(), strict=True))
        drawn.append((views, asked))
    (few, asked), (many, asked_again) = drawn
    assert torch.equal(asked, asked_again) and few.items() <= many.items() and (len(few), len(many)) == (5, 15)
    assert len(asked[:, 1].unique()) == 2


@pytest.mark.parametrize("word", ["standard", "rotate_class", "affine"])
def test_a_run_is_augmented(launch, composed, word, tmp_path):
    from metafew.data.datamodule import to_model_input
    from metafew.objectives.episodic import Episodic
    from metafew.objectives.regularizers import NoRegularizer
    from metafew.training.factory import make_data, make_source

    report, _ = launch("dataset.jitter=null", f"augment={word}", "train.tasks=1")
    assert report["choices"]["augment"] == word
    cfg, _, _ = composed("dataset.jitter=null", f"augment={word}", "train.tasks=1")
    data = make_data(cfg, make_source(cfg), Episodic(NoRegularizer()))
    for plan in (data.train, data.val):
        (episode,) = data.sampler(plan).batch([3])
        seen = to_model_input(episode, torch.float32)
        changed = not torch.equal(seen.support.images * 255, episode.support.images.float())
        assert changed == (plan.split == "train" or word == "rotate_class")
    assert seen.views is None
