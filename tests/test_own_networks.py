"""Networks of the user's own: what they froze stays frozen, and inner loops run those that vmap cannot batch."""

import logging

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from metafew.backbones.module import Wrapped
from metafew.episode import Episode, Labelled
from metafew.errors import UsageError
from metafew.evaluation.eval_mode import evaluating
from metafew.heads.fast_weights import adapting_names
from metafew.heads.maml import MAML
from metafew.heads.reptile import Reptile as ReptileHead
from metafew.norms.batch import BatchNorm
from metafew.objectives.episodic import Episodic
from metafew.objectives.regularizers import NoRegularizer
from metafew.objectives.reptile import Reptile
from metafew.training.pretrained import freeze

WAY, SIZE = 2, 8


class Pretrained(nn.Module):
    """A frozen convolution and batch norm below a layer that trains; both freeze in the constructor."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Linear(3, 3)
        self.conv.requires_grad_(False)
        self.norm.eval()
        self.modes = set()

    def forward(self, x):
        self.modes.add(self.norm.training)
        return self.out(self.norm(self.conv(x)).relu().mean((2, 3)))


class FreezesInTrain(nn.Sequential):
    """The other usual way to freeze a batch norm."""

    def __init__(self):
        super().__init__(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten())

    def train(self, mode=True):
        super().train(mode)
        self[1].eval()
        return self


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rows = nn.GRU(SIZE, 3, batch_first=True)

    def forward(self, x):
        return self.rows(x[:, 0])[0][:, -1]


class Branches(nn.Linear):
    """Read a value, as ``.item()`` and ``if`` do."""

    def __init__(self):
        super().__init__(SIZE * SIZE, 3)

    def forward(self, x):
        y = super().forward(x.flatten(1))
        return y / 10 if y.abs().max().item() > 1e6 else y


class Detours(Branches):
    """Leave torch, which fails in vmap with an error of another class."""

    def forward(self, x):
        scale = float(x.detach().double().numpy().mean() > -1)
        return nn.Linear.forward(self, x.flatten(1)) * scale


class Broken(Branches):
    """Fail in training, in a loop too."""

    def forward(self, x):
        if self.training:
            raise LookupError("no such layer")
        return super().forward(x)


def wrapped(network):
    torch.manual_seed(0)
    return Wrapped(1, SIZE, BatchNorm, f"{__name__}.{network.__name__}", norms="own").double()


@pytest.fixture
def episode():
    images = torch.rand(2, 8, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    labels = torch.arange(WAY).repeat(2, 4)
    return Episode(Labelled(images[:, :4], labels[:, :4]), Labelled(images[:, 4:], labels[:, 4:]), WAY, torch.arange(2))


@pytest.mark.parametrize("inner", ["loop", "vmap"])
@pytest.mark.parametrize("options", [{}, {"adapt": "no_norm"}, {"rates": "weight"}], ids=str)
def test_an_inner_loop_adapts_no_layer_that_the_network_froze(options, inner, episode):
    backbone = wrapped(Pretrained)
    freeze(
        backbone
    )  # a run may freeze all of it, as backbone.weights=CKPT does, and an inner loop still adapts the rest
    head = MAML(backbone, True, WAY, lr=1.0, inner=inner, **options).double().eval()
    before, after = next(head.adaptation(backbone, episode.support, WAY))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    norm = set() if "adapt" in options else {"backbone.network.norm.weight", "backbone.network.norm.bias"}
    assert moved == norm | {"backbone.network.out.weight", "backbone.network.out.bias", "weight", "bias"}
    assert not any("conv" in name for name in before)


class Attention(nn.Module):
    """Attention between the rows of an image, with a fused kernel, and a norm that is no layer norm."""

    def __init__(self):
        super().__init__()
        self.project, self.norm = nn.Linear(SIZE, 3 * SIZE), nn.RMSNorm(SIZE)

    def forward(self, x):
        query, key, value = self.project(x).chunk(3, -1)
        return self.norm(F.scaled_dot_product_attention(query, key, value)).mean((1, 2))


class Hard(nn.Linear):
    """An activation without a second derivative."""

    def __init__(self):
        super().__init__(SIZE * SIZE, 3)

    def forward(self, x):
        return F.hardsigmoid(super().forward(x.flatten(1)))


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # of a fused kernel in vmap
@pytest.mark.parametrize("inner", ["loop", "vmap"])
def test_attention_is_differentiated_twice(inner, episode):
    backbone = wrapped(Attention)
    head = MAML(backbone, True, WAY, lr=0.5, inner=inner).double()
    parameters = [backbone.network.project.weight, *head.output.parameters()]

    def loss():
        return Episodic(NoRegularizer())(backbone, head, [episode]).loss

    found = torch.autograd.grad(loss(), parameters)
    step, generator = 1e-5, torch.Generator().manual_seed(1)
    ways = [torch.randn(p.shape, generator=generator, dtype=torch.double) for p in parameters]
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            for p, way in zip(parameters, ways, strict=True):
                p += sign * step * way
        ends.append(loss().item())
        with torch.no_grad():
            for p, way in zip(parameters, ways, strict=True):
                p -= sign * step * way
    slope = sum((g * way).sum().item() for g, way in zip(found, ways, strict=True))
    assert slope == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-4, abs=1e-8)


def test_an_operation_without_a_second_derivative_advises_the_first_order(episode):
    backbone = wrapped(Hard)
    head = MAML(backbone, True, WAY).double()
    with pytest.raises(UsageError, match=r"has none .*hardsigmoid.*: type head\.first_order=true"):
        Episodic(NoRegularizer())(backbone, head, [episode])
    Episodic(NoRegularizer())(backbone, MAML(backbone, True, WAY, first_order=True).double(), [episode])


def test_names_of_layers_are_those_of_the_network():
    backbone = wrapped(Attention)
    assert adapting_names(backbone, freeze=["project"]) == ["network.norm.weight"]
    assert adapting_names(backbone, freeze=["network.project"]) == ["network.norm.weight"]
    assert adapting_names(backbone, "no_norm") == ["network.project.weight", "network.project.bias"]
    with pytest.raises(UsageError, match=r"got conv: type one of project\.weight, project\.bias, norm\.weight"):
        adapting_names(backbone, freeze=["conv"])


def test_the_outer_step_of_reptile_trains_no_layer_that_the_network_froze(episode):
    backbone, objective = wrapped(Pretrained), Reptile(NoRegularizer())
    head = ReptileHead(backbone, True, WAY, lr=0.1).double()
    objective.prepare(backbone, head)
    objective(backbone, head, [episode]).loss.backward()
    gradients = {name for name, p in backbone.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert gradients and not any("conv" in name for name in gradients)


@pytest.mark.parametrize("network", [Pretrained, FreezesInTrain])
def test_a_batch_norm_in_eval_mode_stays_in_it(network, episode):
    backbone = wrapped(network)
    (norm,) = (module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d))
    moments = norm.running_mean.clone()
    assert backbone.training and not backbone.couples_tasks, "so that heads may adapt the network to one task"
    head = MAML(backbone, True, WAY).double()
    for mode in (backbone.train, backbone.eval, backbone.train, nn.ModuleList([backbone]).train):
        mode()
        Episodic(NoRegularizer())(backbone, head, [episode]).loss.backward()
    with evaluating(backbone):
        backbone.embed(episode.support.images)
    assert not norm.training and torch.equal(norm.running_mean, moments) and not norm.num_batches_tracked
    assert getattr(backbone.network, "modes", {False}) == {False}
    assert [*backbone.network.children()][-1].training, "the other layers train"


def test_modules_replaced_by_synchronized_ones_stay_in_eval_mode():
    backbone = wrapped(Pretrained)
    backbone = nn.SyncBatchNorm.convert_sync_batchnorm(backbone).train()
    assert isinstance(backbone.network.norm, nn.SyncBatchNorm) and not backbone.network.norm.training


def test_a_batch_norm_in_training_still_couples_tasks():
    class Trains(FreezesInTrain):
        train = nn.Module.train

    globals()["Trains"] = Trains
    assert wrapped(Trains).couples_tasks


NETWORKS = [Recurrent, Branches, Detours]


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("inner", ["vmap", "chunk"])
def test_vmap_of_a_network_that_it_cannot_batch_is_refused(network, inner, episode):
    backbone = wrapped(network)
    head = MAML(backbone, True, WAY, inner=inner).double()
    with pytest.raises(UsageError, match=rf"head.inner={inner}, got one that it cannot \(.+\): type head.inner=loop$"):
        Episodic(NoRegularizer())(backbone, head, [episode])


@pytest.mark.parametrize("network", NETWORKS)
def test_auto_processes_such_a_network_in_a_loop(network, episode, monkeypatch, caplog):
    backbone = wrapped(network)
    head, loop = (MAML(backbone, True, WAY, inner=inner).double() for inner in ("auto", "loop"))
    loop.load_state_dict(head.state_dict())
    choose = MAML.execution
    monkeypatch.setattr(MAML, "execution", lambda head, backbone, _: choose(head, backbone, torch.device("cuda")))
    caplog.set_level(logging.INFO)
    for _ in range(2):
        losses = [Episodic(NoRegularizer())(backbone, each, [episode]).loss for each in (head, loop)]
        torch.testing.assert_close(*losses, rtol=1e-12, atol=0)
    (record,) = caplog.records
    assert record.getMessage().startswith("head.inner=auto is loop from here on, as vmap cannot process this network (")
    assert head.execution(backbone, torch.device("cuda")) == "loop"


def test_the_error_of_a_network_that_fails_in_a_loop_too_is_its_own(episode):
    backbone = wrapped(Broken)
    with pytest.raises(LookupError, match="no such layer"):
        Episodic(NoRegularizer())(backbone, MAML(backbone, True, WAY, inner="vmap").double(), [episode])


class InPlace(nn.Linear):
    """Standardize its input in place."""

    def __init__(self):
        super().__init__(SIZE * SIZE, 3)

    def forward(self, x):
        return super().forward(x.sub_(0.5).div_(0.5).flatten(1))


class Double(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(SIZE * SIZE, 3).double()

    def forward(self, x):
        return self.out(x.double().flatten(1))


class Bits(nn.Linear):
    def __init__(self, dtype):
        super().__init__(SIZE * SIZE, 3)
        self.dtype = getattr(torch, dtype)

    def forward(self, x):
        return super().forward(x.flatten(1)).to(self.dtype)


def test_a_network_that_works_in_place_does_not_change_the_images():
    backbone = Wrapped(1, SIZE, BatchNorm, f"{__name__}.InPlace", norms="own")
    images = torch.rand(1, 4, 1, SIZE, SIZE)
    before = images.clone()
    features, _ = backbone.embed(images)
    assert torch.equal(images, before)
    assert torch.equal(backbone.embed(images)[0], features)


class ThenInPlace(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(SIZE * SIZE, 4), nn.ReLU(inplace=True), nn.Linear(4, 2))


def test_the_output_of_a_layer_is_not_changed_by_the_next_one_in_place():
    backbone = Wrapped(1, SIZE, BatchNorm, f"{__name__}.ThenInPlace", norms="own", output="1")
    images = torch.randn(1, 8, 1, SIZE, SIZE)
    features, _ = backbone.embed(images)
    torch.testing.assert_close(features[0], backbone.network[1](images[0].flatten(1)))
    assert (features < 0).any()


def test_features_in_double_precision_are_those_of_the_images_for_heads():
    backbone = Wrapped(1, SIZE, BatchNorm, f"{__name__}.Double", norms="own")
    assert backbone.embed(torch.rand(1, 4, 1, SIZE, SIZE))[0].dtype == torch.float32


@pytest.mark.parametrize("dtype", ["int64", "complex64", "bool"])
def test_features_must_be_in_floating_point(dtype):
    with pytest.raises(UsageError, match=f"its features are torch.{dtype}, and not floating point"):
        Wrapped(1, SIZE, BatchNorm, f"{__name__}.Bits", {"dtype": dtype}, norms="own")
