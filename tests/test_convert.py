"""Any network under any norm: converted layers keep what they had, and every scheme works in networks of one's own."""

import copy
import pickle
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from contracts import SCHEMES
from contracts import norm as make_norm
from runs import TINY
from torch import nn

import metafew
from metafew.analysis.compare.settings import non_default_settings
from metafew.backbones.module import Wrapped
from metafew.episode import Episode, Labelled
from metafew.errors import UsageError
from metafew.heads.maml import MAML
from metafew.heads.protonet import ProtoNet
from metafew.norms.batch import BatchNorm
from metafew.norms.convert import construct
from metafew.norms.fast import accelerate
from metafew.norms.norm import Norm
from metafew.norms.own import OwnNorms
from metafew.norms.tasknorm import TaskNorm
from metafew.objectives.episodic import Episodic
from metafew.objectives.regularizers import NoRegularizer
from metafew.training import checkpoint
from metafew.training.factory import make_backbone

WAY, SIZE = 2, 8


class Block(nn.Module):
    """A residual block as torchvision has them."""

    def __init__(self, inputs, planes, stride, norm_layer):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride, 1, bias=False)
        self.bn1, self.relu = norm_layer(planes), nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = norm_layer(planes)
        shortcut = nn.Conv2d(inputs, planes, 1, stride, bias=False), norm_layer(planes)
        self.downsample = nn.Sequential(*shortcut) if inputs != planes else None

    def forward(self, x):
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """A small network in the style of torchvision's, whose constructor takes no ``norm_layer``."""

    def __init__(self, norm=nn.BatchNorm2d):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3, 1, 1, bias=False), norm(4)
        self.relu, self.maxpool = nn.ReLU(inplace=True), nn.MaxPool2d(2)
        self.layer1, self.layer2 = Block(4, 4, 1, norm), nn.Sequential(Block(4, 8, 2, norm))
        self.avgpool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x):
        x = self.layer2(self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(x))))))
        return self.avgpool(x).view(len(x), -1)


class Configurable(ResNet):
    """One whose constructor does, as torchvision's."""

    def __init__(self, norm_layer=None):
        super().__init__(norm_layer or nn.BatchNorm2d)
        self.given = norm_layer


class Frozen(ResNet):
    """One that freezes its first norm, and puts another in eval mode."""

    def __init__(self):
        super().__init__()
        self.bn1.requires_grad_(False)
        self.layer1.bn1.eval()


class FreezesInTrain(ResNet):
    """One that puts a norm in eval mode whenever it is put in training mode."""

    def train(self, mode=True):
        super().train(mode)
        self.bn1.eval()
        return self


class Transformer(nn.Module):
    """A patch embedding and a layer of a transformer, with layer norms over channels."""

    def __init__(self):
        super().__init__()
        self.patches, self.norm = nn.Conv2d(3, 4, 4, 4), nn.LayerNorm(4, eps=1e-6)

    def forward(self, x):
        return self.norm(self.patches(x).flatten(2).mT).mean(1)


class Activated(nn.BatchNorm2d):
    """A batch norm that ends with an activation, as ``BatchNormAct2d`` of timm; no pooling can precede it."""

    def __init__(self, channels):
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.Softmax(1)

    def forward(self, x):
        y = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training)
        return self.act(self.drop(y))


class Doubled(nn.BatchNorm2d):
    """A batch norm that does more than its modules say."""

    def forward(self, x):
        return 2 * super().forward(x)


class LayerNorms(nn.Sequential):
    """Rows with a layer norm, which the constructor replaces, and a batch norm."""

    def __init__(self, norm_layer=nn.LayerNorm):
        super().__init__(nn.Linear(4, 4), norm_layer(4), nn.BatchNorm1d(4))


def unlike(network):
    """Return a network in float64 with unlike weights, biases and running moments of its norms."""
    generator = torch.Generator().manual_seed(0)
    values = [value for value in [*network.parameters(), *network.buffers()] if value.ndim == 1]
    with torch.no_grad():
        for value in values:
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
    return network.double()


def resnet(network=ResNet):
    torch.manual_seed(0)
    return unlike(network())


def wrapped(word, network=ResNet, **options):
    torch.manual_seed(0)
    norm = partial(make_norm(word), groups=2) if word == "group" else make_norm(word)
    backbone = Wrapped(3, SIZE, norm, f"{__name__}.{network.__name__}", **options)
    return accelerate(unlike(backbone))


def layers(network):
    """Return the normalization layers by name."""
    kinds = (Norm, nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)
    return {name: module for name, module in network.named_modules() if isinstance(module, kinds)}


@pytest.fixture
def images():
    return torch.rand(2, 8, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.double)


@pytest.fixture
def episode(images):
    labels = torch.arange(WAY).repeat(2, 4)
    return Episode(Labelled(images[:, :4], labels[:, :4]), Labelled(images[:, 4:], labels[:, 4:]), WAY, torch.arange(2))


@pytest.mark.parametrize("word", SCHEMES)
class TestEveryScheme:
    def test_takes_the_place_of_all_batch_norms(self, word, images):
        backbone = wrapped(word)
        assert layers(backbone).keys() == layers(Wrapped(3, SIZE, OwnNorms(), f"{__name__}.ResNet")).keys()
        assert len(backbone.norms) == len(layers(backbone)) == 6 and not backbone.own_norms
        backbone.eval()
        together = torch.cat(backbone.embed(images[:, :4], images[:, 4:]), 1)
        for task in range(2):
            single = torch.cat(backbone.embed(images[task : task + 1, :4], images[task : task + 1, 4:]), 1)
            torch.testing.assert_close(single[0], together[task], rtol=1e-9, atol=1e-12)

    def test_trains_under_protonet(self, word, episode):
        backbone = wrapped(word)
        Episodic(NoRegularizer())(backbone, ProtoNet(), [episode]).loss.backward()
        for name, value in backbone.named_parameters():
            assert not value.requires_grad or value.grad.abs().sum() > 0, name

    def test_adapts_in_the_inner_loop_of_maml(self, word, episode):
        backbone = wrapped(word)
        if backbone.couples_tasks:
            pytest.skip("heads that adapt the backbone cannot be trained with it")
        losses = []
        for inner in ("loop", "vmap"):
            torch.manual_seed(0)
            head = MAML(backbone, True, WAY, steps=1, lr=0.5, inner=inner).double()
            losses.append(Episodic(NoRegularizer())(backbone, head, [episode]).loss)
        torch.testing.assert_close(*losses, rtol=1e-9, atol=1e-12)
        before, after = next(head.adaptation(backbone, episode.support, WAY))
        assert not torch.equal(before["backbone.network.bn1.weight"], after["backbone.network.bn1.weight"])

    @pytest.mark.parametrize("shape", [(), (5,), (2, 3, 2)])
    @pytest.mark.parametrize("prepare", [nn.Sequential, lambda layer: accelerate(nn.Sequential(layer))])
    def test_takes_rows_sequences_and_volumes(self, word, shape, prepare):
        layer = prepare(unlike(make_norm(word)(4)))
        x = torch.rand(10, 4, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.double)
        with metafew.task_scope(2, 3):
            if word == "instance" and not shape:
                with pytest.raises(UsageError, match=r"expected maps .*got rows \(10, 4\).* type norm=layer"):
                    layer(x)
                return
            y, maps = layer(x), layer(x.reshape(10, 4, -1, 1))
        torch.testing.assert_close(y, maps.view(x.shape), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("prepare", [lambda network: network, accelerate])
def test_the_batch_scheme_equals_the_batch_norms_of_torch(prepare, images):
    """Where one task has only context: in evaluation by running moments, and in training by those of the batch."""
    before = resnet()
    for layer in layers(before).values():
        layer.eps, layer.momentum = 1e-3, 0.3
    after = prepare(metafew.convert(copy.deepcopy(before), BatchNorm))
    x = images.flatten(0, 1)
    for mode in (False, True):
        with metafew.task_scope(1, len(x)):
            found = after.train(mode)(x)
        expected = before.train(mode)(x)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    one, other = (
        torch.autograd.grad(y.sin().sum(), [*net.parameters()]) for y, net in ((found, after), (expected, before))
    )
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-10)
    torch.testing.assert_close(after.bn1.running_mean, before.bn1.running_mean)
    count = len(x) * SIZE**2  # torch records the unbiased variance
    start = resnet().bn1.running_var
    biased = start.lerp((before.bn1.running_var - 0.7 * start) / 0.3 * (count - 1) / count, 0.3)
    torch.testing.assert_close(after.bn1.running_var, biased)


def test_layers_keep_what_they_had():
    network = resnet()
    network.bn1.eps, network.bn1.momentum = 1e-3, None
    network.layer1.bn2 = network.layer1.bn1  # one layer in two places
    network.layer2[0].bn1 = nn.BatchNorm2d(8, affine=False, track_running_stats=False)
    before, old = network.state_dict(), network.bn1
    found = metafew.convert(network, BatchNorm)
    assert found is network and network.layer1.bn2 is network.layer1.bn1
    new = network.bn1
    assert new.weight is old.weight and new.bias is old.bias and new.running_var is old.running_var
    assert (new.eps, new.momentum, network.layer1.bn1.eps) == (1e-3, 0.1, 1e-5)
    after = network.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items() if "num_batches" not in key)
    bare = network.layer2[0].bn1
    assert not bare.weight.requires_grad and bare.weight.dtype == torch.double
    typed = metafew.convert(resnet(), partial(BatchNorm, eps=0.5, momentum=0.7)).bn1
    assert (typed.eps, typed.momentum) == (0.5, 0.7)


@pytest.mark.parametrize(
    ("norms", "kept"),
    [
        ("batch", {"bn1", "layer1.bn1"}),
        (["batch", "bn1"], {"layer1.bn1"}),
        (["layer1"], {"bn1", "layer2.0.bn1", "layer2.0.bn2", "layer2.0.downsample.1"}),
        (["batch", "layer1", "bn1"], set()),
    ],
)
def test_frozen_layers_and_those_in_eval_mode_stay_unless_they_are_named(norms, kept):
    network = metafew.convert(resnet(Frozen), TaskNorm, norms)
    found = layers(network)
    assert {name for name, layer in found.items() if not isinstance(layer, TaskNorm)} == kept
    assert not network.bn1.weight.requires_grad and not network.layer1.bn1.training
    assert all(layer.alpha.scale.requires_grad for layer in found.values() if isinstance(layer, TaskNorm))


def test_a_backbone_keeps_the_frozen_layers_of_its_network(images):
    backbone = wrapped("tasknorm", Frozen)
    assert type(backbone.network.bn1) is nn.BatchNorm2d and not backbone.network.layer1.bn1.training
    assert backbone.couples_tasks and not backbone.per_image, "bn1 takes moments of its batch"
    named = wrapped("layer", Frozen, norms=["batch", "bn1", "layer1"])
    assert not named.couples_tasks and named.per_image and named.eval().transductive is False


def test_a_norm_that_the_network_freezes_in_train_is_kept():
    assert [name for name, layer in layers(wrapped("tasknorm", FreezesInTrain)).items() if not layer.training] == [
        "network.bn1"
    ]
    assert type(wrapped("tasknorm", FreezesInTrain).network.bn1) is nn.BatchNorm2d


@pytest.mark.parametrize(
    ("kind", "layer", "shape"),
    [
        ("layer", lambda: nn.LayerNorm(4), (5, 4)),
        ("group", lambda: nn.GroupNorm(2, 4), (4, 3, 3)),
        ("instance", lambda: nn.InstanceNorm2d(4, affine=True), (4, 3, 3)),
        ("batch", lambda: nn.BatchNorm1d(4), (4,)),
        ("batch", lambda: nn.BatchNorm3d(4), (4, 2, 2, 2)),
        ("batch", lambda: nn.SyncBatchNorm(4), (4, 2, 2)),
    ],
)
def test_every_kind_of_layer_is_replaced_on_request(kind, layer, shape):
    network = nn.Sequential(unlike(layer()))
    weight = network[0].weight
    x = torch.rand(6, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    if kind != "batch":
        with pytest.raises(UsageError, match=rf"1 {kind} norm: type backbone.norms=\[{kind}\]"):
            metafew.convert(network, TaskNorm)
    metafew.convert(network, TaskNorm, kind)
    assert network[0].weight is weight
    with metafew.task_scope(2, 2):
        assert network(x).shape == x.shape


def test_a_layer_norm_over_channels_is_replaced_in_a_transformer(images):
    network = metafew.convert(unlike(Transformer()), make_norm("instance"), ["layer"])
    tokens = network.patches(images[0]).flatten(2).mT
    expected = F.instance_norm(tokens.mT, eps=1e-6).mT * network.norm.weight + network.norm.bias
    with metafew.task_scope(1, 4):
        torch.testing.assert_close(network.norm(tokens), expected, rtol=1e-9, atol=1e-12)
        other = accelerate(pickle.loads(pickle.dumps(network)))
        torch.testing.assert_close(other(images[0]), network(images[0]), rtol=1e-9, atol=1e-12)


def test_an_activation_in_a_batch_norm_follows_the_new_layer(images):
    network = unlike(nn.Sequential(nn.Conv2d(3, 4, 3), Activated(4), nn.MaxPool2d(2))).eval()
    expected = network(images[0])
    metafew.convert(network, BatchNorm, ["1"])
    for prepared in (network, accelerate(copy.deepcopy(network))):
        with metafew.task_scope(1, 8):
            torch.testing.assert_close(prepared(images[0]), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("network", "norms", "said"),
    [
        (lambda: nn.Sequential(Doubled(3)), "batch", "got 0, a Doubled whose forward does more: type norm=own"),
        (lambda: nn.Sequential(nn.LayerNorm((3, 2, 2))), "layer", r"has weights for each of \(3, 2, 2\)"),
        (lambda: nn.Sequential(nn.LazyBatchNorm2d()), "batch", "whose channels its first input sets"),
        (lambda: nn.Linear(2, 2), "batch", "expected Linear to have batch norms .*got none: type norm=own"),
        (lambda: resnet().eval(), "batch", r"6 batch norms \(frozen or in eval mode\): .*=\[bn1,layer1,layer2\]$"),
        (resnet, ["layer9"], r"names of layers of these kinds, got layer9: type backbone.norms=layer"),
        (resnet, ["conv1"], "got conv1: type"),
        (resnet, [], "expected ResNet to have"),
    ],
)
def test_what_cannot_be_replaced_is_refused(network, norms, said):
    with pytest.raises(UsageError, match=said):
        metafew.convert(network(), TaskNorm, norms)


def test_a_constructor_with_norm_layer_gets_the_scheme():
    backbone = wrapped("tasknorm", Configurable)
    assert backbone.network.given.func is TaskNorm and len(backbone.norms) == 6
    backbone = wrapped("tasknorm", Configurable, arguments={"norm_layer": None})
    assert backbone.network.given is None and len(backbone.norms) == 6
    own = Wrapped(3, SIZE, OwnNorms(), f"{__name__}.Configurable")
    assert own.network.given is None and own.norms == [] and own.own_norms


@pytest.mark.parametrize("norms", ["layer2", ["batch", "layer2"]])
def test_a_constructor_with_norm_layer_does_not_get_a_scheme_for_modules(norms):
    backbone = wrapped("tasknorm", Configurable, norms=norms)
    converted = {name for name, layer in layers(backbone.network).items() if isinstance(layer, Norm)}
    below = {name for name in layers(backbone.network) if name.startswith("layer2.")}
    assert backbone.network.given is None and converted == (below if norms == "layer2" else {*layers(backbone.network)})


@pytest.mark.parametrize("norms", ["batch", "layer"])
def test_a_constructor_that_makes_layer_norms_does_not_get_a_scheme_for_batch_norms(norms):
    network = construct(LayerNorms, {}, TaskNorm, norms)
    assert network[1].weight.shape == (4,) and isinstance(network[1], TaskNorm) == (norms == "layer")
    assert isinstance(network[2], TaskNorm) == (norms == "batch")


def test_a_training_gives_the_running_moments_that_a_checkpoint_lacks():
    network = nn.Sequential(nn.BatchNorm2d(3))
    state = {"0.weight": torch.ones(3), "0.bias": torch.ones(3)}
    complete = checkpoint.complete_state(state, network, "a.ckpt", fit=True)
    assert complete["0.bias"].sum() == 3 and complete["0.running_var"].sum() == 3
    with pytest.raises(UsageError, match="expected a checkpoint with running moments"):
        checkpoint.complete_state(state, network, "a.ckpt", fit=False)


def test_a_loop_of_ones_own_trains_with_a_scheme(images):
    network = metafew.convert(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()).double(), BatchNorm
    )
    optimizer, losses = torch.optim.SGD(network.parameters(), 0.1), []
    for _ in range(4):
        with metafew.task_scope(n_tasks=2, n_context=4):
            losses.append((network(images.flatten(0, 1)).mean() - 1).square())
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    conv = network[0](images.flatten(0, 1)).unflatten(0, (2, 8)).detach()
    before = network[1].running_mean.clone()
    with metafew.task_scope(2, 4):
        network(images.flatten(0, 1))
        assert torch.equal(network[1].running_mean, before), "they are updated at the end of the scope"
    torch.testing.assert_close(network[1].running_mean, before.lerp(conv.mean((0, 1, 3, 4)), 0.1))


@pytest.mark.parametrize(("tasks", "context"), [(3, 1), (2, 9)])
def test_a_batch_that_is_not_of_these_tasks_is_refused(tasks, context, images):
    layer = TaskNorm(3).double()
    with (
        metafew.task_scope(tasks, context),
        pytest.raises(UsageError, match=f"of {tasks} tasks with {context} context"),
    ):
        layer(images.flatten(0, 1))
    with pytest.raises(UsageError, match="expected n_tasks to be an integer of at least 1"), metafew.task_scope(0, 1):
        pass


MODULE = ["backbone=module", f"backbone.target={__name__}.ResNet"]


@pytest.mark.parametrize(
    ("words", "norm", "backbone"),
    [
        (MODULE, "own", "module"),
        ([*MODULE, "norm=layer"], "layer", "module"),
        ([*MODULE, "norm=own"], "own", "module"),
        (["dataset=features", *MODULE], "own", "module"),
        (["dataset=features"], "none", "identity"),
        (["backbone=resnet12"], "tasknorm_l", "resnet12"),
    ],
)
def test_a_network_keeps_its_norms_unless_one_is_typed(composed, words, norm, backbone):
    _, choices, _ = composed(*words)
    assert (choices["norm"], choices["backbone"]) == (norm, backbone)


def test_own_norms_need_a_network_that_has_some(composed, caplog):
    cfg, _, _ = composed("norm=own")
    source = type("Source", (), {"channels": 1, "image_size": 28})
    with pytest.raises(UsageError, match="got own, the norms of a network of backbone=module: type norm=tasknorm"):
        make_backbone(cfg, source)
    cfg, _, _ = composed(*MODULE, "backbone.norms=[layer]")
    with pytest.raises(UsageError, match=r"for the layers of backbone.norms=\['layer'\], got norm=own"):
        make_backbone(cfg, source)
    cfg, _, _ = composed(*MODULE, "backbone.norms=own", "norm=batch")
    cfg.backbone.target = f"{__name__}.Grey"
    assert make_backbone(cfg, source).own_norms and "norm has no effect here" in caplog.text
    for norm, warned in (("tasknorm", True), ("none", False)):
        caplog.clear()
        make_backbone(composed("backbone=identity", f"norm={norm}")[0], source)
        assert ("norm has no effect here, as the network has no norms" in caplog.text) == warned
    cfg, _, _ = composed("backbone=module", "backbone.target=torch.nn.Flatten", "norm=batch")
    with pytest.raises(UsageError, match="expected Flatten to have batch norms that train"):
        make_backbone(cfg, source)


def test_checkpoints_of_converted_networks_reload(launch, tmp_path):
    tiny = [word for word in TINY if not word.startswith("backbone.")]
    tiny += ["dataset=glyphs", "test.total=4", "val.total=2", "trainer.max_steps=2", *GREY]
    own, _ = launch(out=tmp_path / "own", tiny=tiny)
    report, out = launch("norm=tasknorm", out=tmp_path / "tasknorm", tiny=tiny)
    assert (own["choices"]["norm"], report["choices"]["norm"]) == ("own", "tasknorm")
    assert own["metrics"] != report["metrics"] and "norm" not in non_default_settings(own)
    assert non_default_settings(report)["norm"] == "tasknorm"
    word = f"ckpt={out}/checkpoints/best.ckpt"
    again, _ = launch("norm=tasknorm", "stages=[test]", word, out=tmp_path / "again", tiny=tiny)
    assert again["metrics"] == report["metrics"]
    model = metafew.load(out / "checkpoints" / "best.ckpt", trust=[f"{__name__}.Grey"])
    assert [type(norm) for norm in model.backbone.norms] == [TaskNorm] * 6
    word = f"ckpt={tmp_path}/own/checkpoints/best.ckpt"
    batch, _ = launch("norm=batch", "stages=[test]", word, out=tmp_path / "batch", tiny=tiny)
    losses = [results["metrics"]["test/protonet/loss"]["mean"] for results in (batch, own)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5), "both use the running moments"


class Grey(ResNet):
    """One for drawings."""

    def forward(self, x):
        return super().forward(x.expand(-1, 3, -1, -1))


GREY = ["backbone=module", f"backbone.target={__name__}.Grey"]


def test_pretrained_weights_load_into_converted_layers(launch, tmp_path):
    torch.save(unlike(Grey()).float().state_dict(), tmp_path / "weights.pt")
    tiny = [word for word in TINY if not word.startswith("backbone.")]
    tiny += [*GREY, f"backbone.weights={tmp_path}/weights.pt", "stages=[test]", "test.total=4", "val.total=2"]
    own, batch, frozen = (
        launch(f"norm={word}", out=tmp_path / word, tiny=tiny)[0] for word in ("own", "batch", "frozen")
    )
    losses = [results["metrics"]["test/protonet/loss"]["mean"] for results in (own, batch, frozen)]
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-5)


def test_checkpoints_that_ignored_the_norm_keep_their_own():
    saved = checkpoint.read(Path(__file__).parent / "compatibility" / "module.ckpt")["metafew"]
    assert saved["choices"]["norm"] == "own" and saved["training"]["norm"] == saved["model"]["norm"]


@pytest.mark.slow
def test_a_model_of_timm_is_converted():
    timm = pytest.importorskip("timm")
    x = torch.rand(6, 3, 64, 64)
    for name in ("resnet18", "efficientnet_lite0", "mobilenetv3_small_050"):
        network = timm.create_model(name, num_classes=0).eval()
        expected = network(x)
        metafew.convert(network.train(), BatchNorm).eval()
        assert not any(type(layer) is nn.BatchNorm2d for layer in network.modules())
        with metafew.task_scope(1, 6):
            torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-4)
        metafew.convert(timm.create_model(name, num_classes=0), TaskNorm)
