"""Pretrained networks: weights from files of others, the pixels and outputs they were made for, and what is frozen."""

import json
import struct
from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch
from runs import TINY, weights
from torch import nn

from metafew.backbones.module import Wrapped
from metafew.backbones.standardize import IMAGENET, Standardize
from metafew.errors import UsageError
from metafew.norms.batch import BatchNorm
from metafew.training.checks import check_something_trains
from metafew.training.factory import make_backbone, make_source
from metafew.training.pretrained import freeze, load_backbone

SIZE = 8


class Encoder(nn.Module):
    """A convolution and a batch norm below a pooling and a classifier."""

    def __init__(self, channels=3, width=4, classes=None):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, width, 3), nn.BatchNorm2d(width)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Identity() if classes is None else nn.Linear(width, classes)

    def forward(self, x):
        return self.fc(self.pool(self.norm(self.conv(x)).relu()).flatten(1))


class Several(nn.Module):
    """Return maps, rows and tokens in a tuple, a dictionary or an object."""

    def __init__(self, kind="dict"):
        super().__init__()
        self.conv, self.kind = nn.Conv2d(3, 4, 3), kind

    def forward(self, x):
        maps = self.conv(x)
        found = {"maps": maps, "rows": maps.mean((2, 3)), "tokens": maps.flatten(2).mT, "loss": None}
        return {"dict": found, "tuple": tuple(found.values()), "object": SimpleNamespace(**found), "none": None}[
            self.kind
        ]


class Halves(nn.Module):
    def forward(self, x):
        return tuple(x.flatten(1).chunk(2, 1))


class Pairs(nn.Module):
    """Return the first half of the pixels, from a layer that returns both."""

    def __init__(self):
        super().__init__()
        self.split, self.unused = Halves(), nn.ReLU()

    def forward(self, x):
        return self.split(x)[0]


def wrapped(network=Encoder, channels=3, **options):
    torch.manual_seed(0)
    return Wrapped(channels, SIZE, BatchNorm, f"{__name__}.{network.__name__}", **{"norms": "own"} | options)


def state(seed=1, **arguments):
    """The weights of a network, with running moments that are not those of a new one."""
    torch.manual_seed(seed)
    network = Encoder(**arguments)
    network(torch.rand(8, arguments.get("channels", 3), SIZE, SIZE))
    return network.state_dict()


def learner(backbone, **dataset):
    return SimpleNamespace(backbone=backbone, provenance={"config": {"dataset": dataset}})


def write_safetensors(path, tensors):
    """Write a file as the specification of the format says: length of the header, header, values."""
    header, values = {"__metadata__": {"format": "pt"}}, b""
    names = {torch.float32: "F32", torch.int64: "I64", torch.bfloat16: "BF16"}
    for name, value in tensors.items():
        data = value.view(torch.int16).numpy().tobytes() if value.dtype == torch.bfloat16 else value.numpy().tobytes()
        offsets = [len(values), len(values) + len(data)]
        header[name] = {"dtype": names[value.dtype], "shape": [*value.shape], "data_offsets": offsets}
        values += data
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + values)


# pixels


def test_pixels_are_standardized_by_numbers_lists_or_those_of_imagenet():
    images = torch.rand(2, 3, 4, 4)
    assert Standardize(3)(images) is images
    torch.testing.assert_close(Standardize(3, std=1 / 255)(images), images * 255)
    torch.testing.assert_close(Standardize(1, 1, -1)(images[:, :1]), 1 - images[:, :1])
    mean, std = (torch.tensor(IMAGENET[name])[:, None, None] for name in ("mean", "std"))
    for words in ({"mean": "imagenet"}, {"std": "imagenet"}, {"mean": mean.flatten().tolist(), "std": "imagenet"}):
        torch.testing.assert_close(Standardize(3, **words)(images), (images - mean) / std)
    assert not Standardize(3, "imagenet").state_dict(), "so that older checkpoints fit"


@pytest.mark.parametrize(
    ("channels", "words"),
    [
        (3, {"mean": [0.5, 0.5]}), (3, {"mean": 127.5}), (3, {"std": [0.2, 0, 0.2]}), (3, {"std": 58.4}),
        (3, {"mean": "cifar"}), (1, {"mean": "imagenet"}), (3, {"std": float("nan")}), (3, {"std": True}),
    ],
)  # fmt: skip
def test_a_mean_or_deviation_of_other_pixels_is_refused(channels, words):
    with pytest.raises(UsageError, match=rf"expected backbone.{next(iter(words))} to be a number .*: type backbone\."):
        Standardize(channels, **words)


# outputs


@pytest.mark.parametrize(
    ("kind", "output"), [("dict", "rows"), ("object", "rows"), ("tuple", 1), ("tuple", "1"), ("dict", "conv")]
)
def test_the_features_are_one_of_several_outputs_or_of_a_layer(kind, output):
    backbone = wrapped(Several, arguments={"kind": kind}, output=output, readout="mean")
    images = torch.rand(5, 3, SIZE, SIZE)
    torch.testing.assert_close(backbone(images), backbone.network.conv(images).mean((2, 3)))
    assert backbone.features == 4


@pytest.mark.parametrize("output", ["maps", "tokens"])
def test_the_mean_of_a_readout_is_over_positions_and_tokens(output):
    images = torch.rand(5, 3, SIZE, SIZE)
    mean, flat = (wrapped(Several, output=output, readout=readout) for readout in ("mean", "flatten"))
    torch.testing.assert_close(mean(images), mean.network.conv(images).mean((2, 3)))
    assert (mean.features, flat.features) == (4, 4 * (SIZE - 2) ** 2)


def test_a_map_has_the_positions_of_the_output():
    backbone, images = wrapped(Several, output="maps", readout="map"), torch.rand(5, 3, SIZE, SIZE)
    torch.testing.assert_close(backbone(images).unflatten(1, backbone.map_shape), backbone.network.conv(images))
    assert wrapped(Several, output="maps").map_shape == backbone.map_shape
    assert wrapped(Several, output="tokens").map_shape is wrapped(Several, output="maps", readout="mean").map_shape


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        (Several, {}, "one of maps, rows, tokens, .*, or a layer, got null: type backbone.output=maps"),
        (Several, {"output": "pooler"}, "one of maps, rows, tokens, .* got pooler: type backbone.output=maps"),
        (Several, {"arguments": {"kind": "tuple"}}, "one of 0, 1, 2, .* got null: type backbone.output=0"),
        (Several, {"arguments": {"kind": "none"}}, "to be a layer, as the network returns a NoneType without tensors"),
        (Encoder, {"output": "pooler"}, "null or a layer, .* a tensor, got pooler: type backbone.output=null"),
        (Pairs, {"output": "split"}, "a layer that returns a tensor, got split, which returns a tuple: .*output=null"),
        (Pairs, {"output": "unused"}, "got unused, which the network does not call: type backbone.output=null"),
        (Encoder, {"readout": "max"}, "expected backbone.readout to be flatten or mean or map, got max"),
        (Several, {"output": "rows", "readout": "map"}, r"maps \(b, c, h, w\) .* got an output of shape \(2, 4\)"),
    ],
)
def test_an_output_that_is_not_there_is_refused_with_those_that_are(network, options, message):
    with pytest.raises(UsageError, match=message):
        wrapped(network, **options)


class Auxiliary(nn.Module):
    """A network that returns several outputs in training only, as ``inception_v3`` of torchvision."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        y = self.conv(x).flatten(1)
        return (y, 2 * y) if self.training else y


def test_the_first_output_is_that_of_networks_with_further_ones_in_training():
    backbone, images = wrapped(Auxiliary, output=0), torch.rand(2, 3, SIZE, SIZE)
    torch.testing.assert_close(backbone.train()(images), backbone.eval()(images))


def test_frozen_instance_norms_keep_their_moments(tmp_path):
    backbone = wrapped(Tracked)
    freeze(backbone, "all")
    backbone.train()(torch.rand(2, 3, SIZE, SIZE))
    assert not backbone.network[1].running_mean.any()


class Tracked(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4, track_running_stats=True), nn.Flatten())


def test_a_dataset_without_channels_is_not_advised_to_have_them(composed):
    words = ["backbone=module", f"backbone.target={__name__}.Auxiliary", "dataset=glyphs"]
    with pytest.raises(UsageError, match=r"type backbone\.arguments=") as error:
        cfg = composed(*words)[0]
        make_backbone(cfg, make_source(cfg))
    assert "dataset.channels" not in str(error.value)


def test_a_layer_is_read_in_vmap_too():
    backbone = wrapped(arguments={"classes": 7}, output="pool")
    freeze(backbone)
    images = torch.rand(2, 5, 3, SIZE, SIZE)
    torch.testing.assert_close(torch.vmap(backbone)(images), torch.stack([backbone(each) for each in images]))
    assert backbone.features == 4 and backbone.read.latest is None


@pytest.mark.parametrize(("channels", "own"), [(3, 1), (1, 3)])
def test_a_network_for_other_channels_advises_them(channels, own):
    with pytest.raises(UsageError, match=rf"type dataset.channels={own}, or backbone.arguments="):
        wrapped(channels=channels, arguments={"channels": own})


# what is frozen


def frozen(backbone):
    return {name.removeprefix("network.") for name, p in backbone.named_parameters() if not p.requires_grad}


@pytest.mark.parametrize("names", [["conv"], ["conv", "norm"], ["network.norm"], "norm", ["conv.weight"]], ids=str)
def test_layers_are_frozen_by_name(names):
    backbone = wrapped()
    freeze(backbone, names)
    names = [names] if isinstance(names, str) else [name.removeprefix("network.") for name in names]
    assert frozen(backbone) == {name for name, _ in Encoder().named_parameters() if name.startswith(tuple(names))}
    assert backbone.train().network.norm.training == ("norm" not in names) == backbone.couples_tasks


def test_a_frozen_network_keeps_its_running_moments_and_lets_heads_adapt_it():
    backbone = wrapped()
    assert backbone.couples_tasks
    freeze(backbone)
    backbone.train()
    before = backbone.network.norm.running_mean.clone()
    backbone.embed(torch.rand(2, 5, 3, SIZE, SIZE))
    assert torch.equal(backbone.network.norm.running_mean, before) and not backbone.couples_tasks
    assert frozen(backbone) == {name for name, _ in Encoder().named_parameters()}
    freeze(unfrozen := wrapped(), "none")
    assert not frozen(unfrozen)


def test_a_layer_that_is_not_there_cannot_be_frozen():
    with pytest.raises(
        UsageError, match=r"a list of layers, such as conv, norm, got layer1: type backbone.freeze=\[conv"
    ):
        freeze(wrapped(), ["layer1"])


def test_only_in_eval_mode_has_each_image_its_features():
    assert not wrapped().per_image and wrapped().eval().per_image
    freeze(frozen := wrapped())
    assert frozen.train().per_image


# files


FORMS = {
    "plain": lambda found: found,
    "state_dict": lambda found: {"state_dict": found, "epoch": 3, "optimizer": {"state": {0: torch.ones(2)}}},
    "params": lambda found: {"params": {"encoder": {**found}, "head": {"scale": torch.ones(1)}}},
    "module": lambda found: OrderedDict((f"module.encoder.{name}", value) for name, value in found.items()),
    "other parts": lambda found: {"q." + n: v for n, v in found.items()} | {"fc.weight": torch.ones(1)},
    "old": lambda found: {name: value for name, value in found.items() if "tracked" not in name},
}


@pytest.mark.parametrize("form", FORMS)
def test_weights_are_found_as_authors_save_them(form, tmp_path, caplog):
    torch.save(FORMS[form](state()), tmp_path / "net.pth")
    load_backbone(learner(backbone := wrapped()), str(tmp_path / "net.pth"), True)
    found = {name: value for name, value in backbone.network.state_dict().items() if "tracked" not in name}
    assert all(torch.equal(value, state()[name]) for name, value in found.items()) and not caplog.text


def test_tensors_of_safetensors(tmp_path):
    found = state()
    found["norm.weight"] = found["norm.weight"].bfloat16()
    write_safetensors(tmp_path / "model.safetensors", found)
    load_backbone(learner(backbone := wrapped()), str(tmp_path / "model.safetensors"), True)
    assert all(torch.equal(value, found[name].to(value.dtype)) for name, value in backbone.network.state_dict().items())


def test_values_that_the_network_lacks_are_named(tmp_path, caplog):
    torch.save(state(classes=7), tmp_path / "net.pt")
    load_backbone(learner(wrapped()), str(tmp_path / "net.pt"), True)
    assert f"the network has no fc.weight and fc.bias, which are in {tmp_path}/net.pt and not used" in caplog.text


@pytest.mark.parametrize(
    ("saved", "dataset", "message"),
    [
        (
            {"width": 5},
            {},
            r"with \w+\.\w+ of shape \(5.*\) and not \(4.*\): type backbone.target=... and backbone.argum",
        ),
        (
            {"channels": 1},
            {"channels": 3},
            "expected images of 1 channels, .* got images of 3: type dataset.channels=1",
        ),
        ({"channels": 1}, {}, "expected images of 1 channels, .* got images of 3: type dataset=NAME of such images"),
    ],
)
def test_weights_of_other_shapes_are_refused(saved, dataset, message, tmp_path):
    torch.save(state(**saved), tmp_path / "net.pt")
    with pytest.raises(UsageError, match=message):
        load_backbone(learner(wrapped(), **dataset), str(tmp_path / "net.pt"), True)


def test_missing_weights_are_named_with_those_that_are_there_instead(tmp_path):
    found = {name.replace("conv", "stem"): value for name, value in state().items()}
    torch.save(found, tmp_path / "net.pt")
    with pytest.raises(UsageError) as caught:
        load_backbone(learner(wrapped()), str(tmp_path / "net.pt"), True)
    assert "got a file without conv." in str(caught.value) and "with stem.weight and stem.bias instead: type" in str(
        caught.value
    )


def test_what_is_no_file_of_weights_is_refused(tmp_path):
    torch.save(Encoder(), tmp_path / "network.pt")
    (tmp_path / "text.pt").write_text("no weights")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    for name in ("network.pt", "text.pt", "cut.safetensors", "nowhere.pt"):
        with pytest.raises(
            UsageError, match=r"^expected backbone.weights to be .*: .*type backbone.weights=FILE$"
        ) as caught:
            load_backbone(learner(wrapped()), str(tmp_path / name), True)
        assert "\n" not in str(caught.value)


# runs


OWN = ["backbone=module", f"backbone.target={__name__}.Encoder", "backbone.arguments={channels:1}", "dataset=glyphs"]
SMALL = [word for word in TINY if not word.startswith("backbone")]


@pytest.fixture
def file(tmp_path):
    torch.save(state(channels=1), path := tmp_path / "net.pt")
    return path


def test_one_command_measures_heads_on_frozen_features(launch, file, tmp_path):
    words = [*OWN, f"backbone.weights={file}", "backbone.mean=0.1", "evaluate=[ridge,svm]", "stages=[test]"]
    report, _ = launch(*words, tiny=SMALL)
    assert all(report["metrics"][f"test/{head}/accuracy"]["tasks"] == 6 for head in ("protonet", "ridge", "svm"))
    assert report["choices"]["norm"] == "own" and report["steps"] == 0
    with pytest.raises(UsageError, match="as head=cnaps must be trained, got none: type ckpt=PATH"):
        launch("backbone.freeze=all", "evaluate=[cnaps]", "stages=[test]")


@pytest.mark.parametrize(("options", "advised"), [({"freeze": "all"}, True), ({}, False)])
def test_only_a_backbone_that_can_be_frozen_is_advised_to_train(options, advised):
    frozen = SimpleNamespace(parameters=list, trained="protonet")
    with pytest.raises(UsageError, match="which trains nothing") as raised:
        check_something_trains(SimpleNamespace(learner=frozen, config={"backbone": options}))
    assert ("backbone.freeze=none" in str(raised.value)) == advised


def test_a_network_without_weights_is_tested_if_it_is_frozen(launch):
    words = [*OWN, "stages=[test]"]
    with pytest.raises(UsageError, match=r"stages=\[test\], got none: type ckpt=PATH, or .* backbone.freeze=all if"):
        launch(*words, tiny=SMALL)
    report, _ = launch(*words, "backbone.freeze=all", tiny=SMALL)
    assert report["metrics"]["test/protonet/accuracy"]["tasks"] == 6


def test_training_on_a_frozen_network_trains_the_head_or_says_that_nothing_is_left(launch, file, tmp_path):
    words = [*OWN, f"backbone.weights={file}", "stages=[fit]", "trainer.max_steps=1"]
    with pytest.raises(UsageError, match=r"have none that is not frozen: type stages=\[test\], which trains nothing"):
        launch(*words, tiny=SMALL)
    _, out = launch(*words, "head=cosine", tiny=SMALL, out=tmp_path / "cosine")
    found = weights(out)
    assert found["heads.cosine.scale"] != 10
    assert all(torch.equal(found[f"backbone.network.{name}"], value) for name, value in state(channels=1).items())
    _, out = launch(*words, "backbone.freeze=[norm]", tiny=SMALL, out=tmp_path / "part")
    changed = {
        name
        for name, value in state(channels=1).items()
        if not torch.equal(weights(out)[f"backbone.network.{name}"], value)
    }
    assert changed == {"conv.weight", "conv.bias"}
