"""Contracts that every backbone under conf/backbone keeps, and what is particular to each."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from contracts import files
from contracts.backbones import BackboneContract
from omegaconf import OmegaConf
from torch import nn

from metafew.backbones.dropblock import DropBlock
from metafew.backbones.task_weights import accept_task_weights
from metafew.config.groups import CONF, load_option
from metafew.episode import Labelled
from metafew.errors import UsageError
from metafew.heads.maml import MAML
from metafew.norms.film import modulated
from metafew.norms.scope import rows
from metafew.training.instantiate import make

# The identity has no layer for a contract to be about: tests/test_features.py.
BACKBONES = sorted(file.stem for file in (CONF / "backbone").glob("*.yaml") if file.stem != "identity")
T, S, Q = 2, 3, 2


class Small(nn.Module):
    """A network with a batch norm of its own."""

    def __init__(self, channels: int, running: bool = True):
        super().__init__()
        self.conv = nn.Conv2d(channels, 4, 3, stride=4, bias=False)
        self.norm = nn.BatchNorm2d(4, track_running_stats=running)

    def forward(self, images):
        images = images.view(len(images), -1).view_as(images)
        return F.relu(self.norm(self.conv(images)))


def yaml(word):
    """Return what conf says of a backbone, but for ``weights``, which the run reads."""
    node = load_option(CONF / "backbone" / f"{word}.yaml")
    for key in ("weights", "freeze"):  # which the run reads
        node.pop(key, None)
    return node


def norm(word: str):
    return make(OmegaConf.load(CONF / "norm" / f"{word}.yaml"))


def backbone(word: str, channels: int = 3, image_size: int = 32, scheme: str | None = None, **changes):
    node, scheme = yaml(word), scheme or ("own" if word == "module" else "tasknorm")
    if word == "module":
        node = OmegaConf.merge(node, {"target": f"{__name__}.Small", "arguments": {"channels": channels}})
    if "width" in node:
        node.width = 4
    torch.manual_seed(0)
    return make(OmegaConf.merge(node, changes), channels=channels, image_size=image_size, norm=norm(scheme)).double()


def images(channels: int = 3, image_size: int = 32, count: int = S + Q, tasks: int = T):
    generator = torch.Generator().manual_seed(1)
    shape = (tasks, count, channels, image_size, image_size)
    return torch.randn(shape, generator=generator, dtype=torch.double)


def split(batch):
    return batch[:, :S], batch[:, S:]


def kernels(model):
    return iter([m.weight for m in model.modules() if isinstance(m, nn.Conv2d)])


@pytest.mark.parametrize("file", [file for file in files("backbone") if file.id != "identity"])
class TestContract(BackboneContract):
    @pytest.fixture
    def model(self, file):
        return partial(backbone, file.stem)


class TestConverted(BackboneContract):
    @pytest.fixture
    def model(self):
        return partial(backbone, "module", scheme="tasknorm")


@pytest.mark.parametrize(
    ("word", "size", "features"),
    [
        ("r2d2", 84, 51200),
        ("r2d2", 32, 8192),
        ("resnet12", 84, 16000),
        ("resnet12", 32, 2560),
        ("resnet18", 84, 512),
    ],
)
def test_features_are_those_of_the_papers(word, size, features):
    """Lee et al. (2019), Goldblum et al. (2020), Bronskill et al. (2020)."""
    node = yaml(word)
    with torch.device("meta"):
        assert make(node, channels=3, image_size=size, norm=norm("tasknorm")).features == features


@pytest.mark.parametrize("word", [word for word in BACKBONES if word != "module"])
def test_first_convolution_starts_by_he(word):
    """A standard deviation of sqrt(2 / fan), over the outgoing fan (He et al. 2015)."""
    kernel = next(kernels(backbone(word, width=24)))
    fan = kernel.shape[0] * kernel.shape[2] * kernel.shape[3]
    assert abs(kernel.std().item() / (2 / fan) ** 0.5 - 1) < 0.1


@pytest.mark.parametrize(
    ("word", "changes"),
    [
        ("r2d2", {"width": 0}),
        ("r2d2", {"dropout": [0.1]}),
        ("r2d2", {"dropout": [0.1, 1.0]}),
        ("r2d2", {"dropout": 0.1}),
        ("resnet12", {"width": 0}),
        ("resnet12", {"drop": 1.0}),
        ("resnet12", {"block_size": 0}),
        ("resnet12", {"readout": "max"}),
        ("conv4", {"bias": 1}),
        ("resnet18", {"width": 0}),
        ("resnet18", {"readout": "max"}),
    ],
)
def test_bad_values_are_refused(word, changes):
    (key,) = changes
    with pytest.raises(UsageError, match=f"expected backbone.{key} to be .*, got .*: type backbone.{key}="):
        backbone(word, **changes)


@pytest.mark.parametrize(
    ("word", "matters"), [("transductive", False), ("instance", False), ("batch", True), ("layer", True)]
)
def test_biases_of_convolutions_that_adapt_matter_unless_the_norm_subtracts_them(word, matters):
    options = {"width": 4, "downsample": "stride", "readout": "mean"}
    without, biased = (backbone("conv4", scheme=word, bias=bias, **options).eval() for bias in (False, True))
    added = biased.load_state_dict(without.state_dict(), strict=False).missing_keys
    assert added == [f"blocks.{i}.0.bias" for i in range(4)]
    assert not any(biased.get_parameter(name).any() for name in added)
    torch.manual_seed(0)
    support, query = split(images())
    labelled = Labelled(support, torch.tensor([0, 1, 1]).expand(T, -1))
    heads = [MAML(model, False, 2, test_steps=3, adapt="no_norm").double().eval() for model in (without, biased)]
    found = [
        head(accept_task_weights(model), labelled, query, 2)
        for head, model in zip(heads, (without, biased), strict=True)
    ]
    assert ((found[0] - found[1]).abs().max() > 1e-6) == matters
    if not matters:
        torch.testing.assert_close(*found)


def test_r2d2_is_blocks_three_and_four_and_the_last_has_no_activation():
    model = backbone("r2d2", scheme="none").eval()
    kernel, x, parts = kernels(model), images()[0], []
    for index in range(4):
        x = F.max_pool2d(F.conv2d(x, next(kernel), padding=1), 2)
        x = x if index == 3 else torch.where(x > 0, x, 0.1 * x)
        parts += [x.flatten(1)]
    features = model.embed(images()[:1])[0][0]
    torch.testing.assert_close(features, torch.cat(parts[2:], 1))
    assert (parts[2] < 0).any() and (parts[3] < 0).any()


def test_r2d2_drops_at_its_rates_in_training():
    model, batch = backbone("r2d2", scheme="none"), images(count=40)
    zero = (model.embed(batch)[0] == 0).double().mean((0, 1)).split([16 * 4**2, 21 * 2**2])
    assert zero[0].mean().item() == pytest.approx(0.1, abs=0.01) and zero[1].mean().item() == pytest.approx(
        0.3, abs=0.02
    )


def test_resnet12_ends_two_blocks_in_dropout_and_two_in_dropblock():
    drops = [m for m in backbone("resnet12", drop=0.2).modules() if isinstance(m, nn.Dropout | DropBlock)]
    assert [type(drop) for drop in drops] == [nn.Dropout, nn.Dropout, DropBlock, DropBlock]
    assert [drop.p for drop in drops[:2]] == [drop.drop for drop in drops[2:]] == [0.2, 0.2]


@pytest.mark.parametrize("readout", ["flatten", "mean"])
def test_resnet12_is_four_residual_blocks(readout):
    model = backbone("resnet12", scheme="none", readout=readout).eval()
    kernel, x = kernels(model), images()[0]
    for _ in range(4):
        y = F.leaky_relu(F.conv2d(x, next(kernel), padding=1), 0.1)
        y = F.conv2d(F.leaky_relu(F.conv2d(y, next(kernel), padding=1), 0.1), next(kernel), padding=1)
        x = F.max_pool2d(F.leaky_relu(y + F.conv2d(x, next(kernel)), 0.1), 2)
    features = model.embed(images()[:1])[0][0]
    assert model.features == features.shape[1]
    torch.testing.assert_close(features, x.flatten(1) if readout == "flatten" else x.mean((2, 3)))


@pytest.mark.parametrize("size", [18, 28, 35])
@pytest.mark.parametrize("word", ["conv4", "resnet12", "resnet18"])
def test_features_of_a_map_are_the_last_block_at_every_position(word, size):
    model, maps = backbone(word, image_size=size, readout="map").eval(), []
    model.blocks.register_forward_hook(lambda _, __, result: maps.append(result))
    features = model.embed(images(image_size=size))[0].flatten(0, 1)
    torch.testing.assert_close(features.unflatten(1, model.map_shape), maps[0])
    assert model.features == features.shape[1]
    mean = backbone(word, image_size=size, readout="mean").eval()
    torch.testing.assert_close(mean.embed(images(image_size=size))[0].flatten(0, 1), maps[0].mean((2, 3)))
    assert mean.map_shape is None and mean.features == maps[0].shape[1]


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_resnet18_modulates_the_residual_branches_only(gamma):
    model = backbone("resnet18", scheme="none").eval()
    kernel = kernels(model)
    x = F.relu(F.conv2d(images()[0], next(kernel), stride=2, padding=1))
    for block in range(8):
        stride = 2 if block in (2, 4, 6) else 1
        y = F.relu(gamma * F.conv2d(x, next(kernel), stride=stride, padding=1))
        y = gamma * F.conv2d(y, next(kernel), padding=1)
        x = F.relu(y + (x if stride == 1 else F.conv2d(x, next(kernel), stride=2)))
    vectors = {film: (torch.full((1, film.channels), gamma), torch.zeros(1, film.channels)) for film in model.films}
    with modulated(vectors):
        features = model.embed(images()[:1])[0][0]
    torch.testing.assert_close(features, x.mean((2, 3)))
    assert [film.stage for film in model.films] == [stage for stage in range(4) for _ in range(4)]


@pytest.mark.parametrize("word", ["conv4", "resnet18"])
def test_modulation_of_one_task_leaves_the_others(word):
    model, batch = backbone(word, scheme="layer").eval(), images()
    plain = model.embed(batch)[0]
    vectors = {film: (torch.ones(T, film.channels), torch.zeros(T, film.channels)) for film in model.films}
    with modulated(vectors):
        torch.testing.assert_close(model.embed(batch)[0], plain)
    for film in model.films:
        changed = torch.ones(T, film.channels)
        changed[0] = torch.linspace(0.5, 2, film.channels)
        with modulated(vectors | {film: (changed, torch.zeros(T, film.channels))}):
            features = model.embed(batch)[0]
        torch.testing.assert_close(features[1], plain[1])
        assert (features[0] - plain[0]).abs().max() > 1e-3


class TestDropBlock:
    def late(self, size: int = 5, drop: float = 0.1) -> DropBlock:
        block = DropBlock(drop, size)
        block.calls = 10**6
        return block

    @pytest.mark.parametrize(("calls", "keep"), [(0, 1.0), (20_000, 0.95), (40_000, 0.9), (10**6, 0.9)])
    def test_schedule(self, calls, keep):
        block = DropBlock(0.1, 5)
        block.calls = calls
        assert block.keep == pytest.approx(keep, abs=1e-12)

    @pytest.mark.parametrize(("side", "size"), [(10, 5), (5, 5), (4, 2), (10, 1), (3, 5)])
    def test_kept_fraction(self, side, size):
        """A position is kept if none of the squares that cover it was dropped."""
        torch.manual_seed(0)
        kept = (self.late(size)(torch.ones(40, 100, side, side)) > 0).float().mean().item()
        size = min(size, side)
        gamma = 0.1 / size**2 * side**2 / (side - size + 1) ** 2
        cover = [min(i, side - size) - max(0, i - size + 1) + 1 for i in range(side)]
        exact = sum((1 - gamma) ** (a * b) for a in cover for b in cover) / side**2
        assert kept == pytest.approx(exact, abs=0.015) and kept == pytest.approx(0.9, abs=0.025)

    def test_drops_squares(self):
        torch.manual_seed(0)
        zeros = (self.late(3, 0.3)(torch.ones(4, 8, 9, 9)) == 0).float()
        corners = 1 - F.max_pool2d(1 - zeros, 3, stride=1)
        assert torch.equal(F.max_pool2d(F.pad(corners, [2] * 4), 3, stride=1), zeros) and zeros.any()

    def test_mean_is_preserved(self):
        torch.manual_seed(0)
        dropped = self.late()(torch.full((4, 8, 10, 10), 3.0, dtype=torch.double))
        assert dropped.min() == 0 and dropped.mean().item() == pytest.approx(3, rel=1e-6)

    def test_nothing_left_is_zero(self):
        torch.manual_seed(0)
        assert all(self.late(5, 0.9)(torch.ones(1, 1, 5, 5)).isfinite().all() for _ in range(20))

    def test_the_seed_decides(self):
        first, again, other = (torch.manual_seed(s) and self.late()(torch.ones(2, 8, 10, 10)) for s in (0, 0, 1))
        assert torch.equal(first, again) and not torch.equal(first, other)

    def test_identity_in_evaluation(self):
        block, x = self.late(), torch.randn(4, 8, 10, 10)
        assert block.eval()(x) is x and block.calls == 10**6

    def test_calls_are_saved(self, tmp_path):
        model = backbone("resnet12")
        for _ in range(3):
            model.embed(*split(images()))
        model.eval().embed(images())
        torch.save(model.state_dict(), tmp_path / "state.pt")
        other = backbone("resnet12")
        other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        calls = [block.calls for block in other.modules() if isinstance(block, DropBlock)]
        assert calls == [3, 3]

    def test_tasks_drop_differently_under_vmap(self):
        block = self.late()

        def gradient(x):
            return torch.func.grad(lambda x: block(x).square().sum())(x)

        torch.manual_seed(0)
        same = torch.ones(1, 4, 10, 10).expand(3, -1, -1, -1, -1)
        grads = torch.vmap(gradient, randomness="different")(same)
        assert block.calls == 10**6 + 1
        assert all((part == 0).any() for part in grads)
        assert not torch.equal(grads[0] == 0, grads[1] == 0)


@pytest.mark.parametrize("word", ["r2d2", "resnet12", "resnet18"])
def test_weights_may_differ_by_task_under_vmap(word):
    model, batch = backbone(word, scheme="instance").eval(), images()
    factors = torch.tensor([1.0, 1.1], dtype=torch.double)

    def features(factor, task):
        weights = {name: factor * value for name, value in model.named_parameters()}
        with rows(1, S + Q):
            return torch.func.functional_call(model, weights, (task,))

    together = torch.vmap(features, randomness="different")(factors, batch)
    apart = torch.stack([features(factor, task) for factor, task in zip(factors, batch, strict=True)])
    torch.testing.assert_close(together, apart)
    model.train()
    assert torch.vmap(features, randomness="different")(factors, batch).isfinite().all()


class TestModule:
    def test_learns_through_embed(self):
        model = backbone("module")
        optimizer = torch.optim.SGD(model.parameters(), 0.5)
        losses = []
        for _ in range(5):
            context, targets = model.embed(*split(images()))
            losses.append((context.mean() - 1).square() + (targets.mean() - 1).square())
            optimizer.zero_grad()
            losses[-1].backward()
            optimizer.step()
        assert losses[-1] < losses[0] and model.network.norm.running_mean.abs().sum() > 0

    def test_first_look_leaves_no_trace(self):
        model = backbone("module")
        assert model.network.training and model.network.norm.num_batches_tracked == 0

    @pytest.mark.parametrize("running", [True, False])
    def test_says_what_its_batch_norms_couple(self, running):
        model = backbone("module", arguments={"running": running})
        batch, changed = images(), images()
        changed[1, -1] += 1
        for train in (True, False):
            plain, other = (torch.cat(model.train(train).embed(*split(b)), 1)[0] for b in (batch, changed))
            assert torch.equal(plain, other) != train, "tasks are coupled in training only"
        batch[0, -1] += 1
        apart = [model.embed(*split(b))[1][0, 0] for b in (batch, changed)]
        assert torch.equal(*apart) == running, "but the images of a task are, without running moments"
        assert model.own_norms and model.norms == []
        assert model.couples_tasks and model.transductive != running

    def test_without_batch_norm_nothing_is_coupled(self):
        arguments = {"in_channels": 3, "out_channels": 2, "kernel_size": 3}
        node = yaml("module")
        node = OmegaConf.merge(node, {"target": "torch.nn.Conv2d", "arguments": arguments})
        model = make(node, channels=3, image_size=28, norm=norm("own"))
        assert not model.couples_tasks and not model.transductive and model.features == 2 * 26**2

    @pytest.mark.parametrize(
        ("target", "arguments", "reason"),
        [
            (
                None,
                None,
                "expected backbone.target to be the dotted path of a network, got null: type backbone.target=",
            ),
            (
                "no_such_module.Net",
                None,
                r"no module no_such_module among .* or in .*: move it there, set PYTHONPATH to its folder",
            ),
            ("os.no_such_network", None, "which does not .*no_such_network.*type backbone.target="),
            ("torch.nn.Conv2d", None, r"backbone.arguments=\{\}, which does not.*missing.*type backbone.target="),
            ("builtins.dict", None, "returns a dict.*type backbone.target="),
            ("torch.nn.Flatten", {"start_dim": 0}, "map each image to one row.*3x32x32.*type backbone.arguments="),
            ("torch.nn.Conv2d", {"in_channels": 1, "out_channels": 2, "kernel_size": 3}, "3x32x32.*1 channels"),
        ],
    )
    def test_what_is_not_a_network_is_refused(self, target, arguments, reason):
        node = yaml("module")
        with pytest.raises(UsageError, match=reason) as caught:
            node = OmegaConf.merge(node, {"target": target, "arguments": arguments})
            make(node, channels=3, image_size=32, norm=norm("own"))
        assert "\n" not in str(caught.value)
