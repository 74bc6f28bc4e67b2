"""Exported networks compute what the model predicts: as modules, and in files of torch.export and ONNX."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from contracts import files, node, norm, skip_exempt
from contracts.heads import make_tested
from contracts.norms import scheme
from omegaconf import OmegaConf
from PIL import Image
from torch import nn

from metafew import export
from metafew.backbones.backbone import Backbone
from metafew.backbones.conv4 import Conv4
from metafew.backbones.module import Wrapped
from metafew.commands import export as command
from metafew.config.groups import CONF
from metafew.errors import UsageError
from metafew.export.layers import AdaptedHead
from metafew.export.networks import linear_layer
from metafew.heads.cosine import Cosine
from metafew.heads.protonet import ProtoNet
from metafew.inference import Model
from metafew.norms.fast import accelerate
from metafew.norms.tasknorm import TaskNorm
from metafew.training.instantiate import make

CLASSES = ["ant", "bee", "cat"]


class Activated(nn.BatchNorm2d):
    """A batch norm that ends with an activation, as ``BatchNormAct2d`` of timm."""

    def __init__(self, channels):
        super().__init__(channels)
        self.act = nn.Softplus()

    def forward(self, x):
        return self.act(super().forward(x))


class Followed(nn.Module):
    """Norms whose conversion needs hooks or other shapes: with an activation, over the last dimension, on rows."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.last, self.rows = (
            nn.Conv2d(1, 4, 3),
            Activated(4),
            nn.LayerNorm(4),
            nn.BatchNorm1d(4),
        )

    def forward(self, x):
        return self.rows(self.last(self.norm(self.conv(x)).flatten(2).mT).mean(1))


class Twice(Followed):
    """One norm in two places."""

    def forward(self, x):
        return self.norm(self.norm(self.conv(x))).mean((2, 3))


class Single(Followed):
    """A network that computes in float32 alone."""

    def forward(self, x):
        return super().forward(x.float())


class SingleFeatures(Followed):
    """A network whose features are in float32."""

    def forward(self, x):
        return super().forward(x).float()


LINEAR = {"anil", "boil", "cnaps", "fomaml", "logistic", "maml", "r2d2", "reptile", "ridge", "svm"}
LINEAR |= {"meta_curvature", "proto_maml"}
"""The heads whose logits are linear in the features of a query."""


def make_model(head, norm_name="tasknorm", width=4):
    """Return a model with a small network whose norms have unlike weights and running moments."""
    torch.manual_seed(0)
    backbone = Conv4(1, 16, norm(norm_name), width=width)
    with torch.no_grad():
        for layer in backbone.norms:
            for value in (layer.weight, layer.bias, *layer.buffers()):
                value.copy_(0.5 + torch.rand(value.shape))
    head = make_tested(head, backbone) if hasattr(head, "stem") else head
    choices = {"head": "own", "norm": norm_name, "dataset": "own"}
    return Model(accelerate(backbone), head.float(), choices, temperature=2.0).eval().requires_grad_(False)


def make_task(model):
    """Return a task of seven support images, and five queries."""
    images = torch.rand(12, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    return model.adapt(images[:7], [CLASSES[number % 3] for number in range(7)]), images[7:]


def close(logits, expected):
    torch.testing.assert_close(logits.softmax(-1), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("file", files("head"))
def test_a_task_under_any_head_becomes_a_network(file):
    model = make_model(file)
    task, queries = make_task(model)
    if model.head.transductive:
        with pytest.raises(UsageError, match="got head=own, which is transductive: type ckpt=PATH of a training with"):
            export.task_network(task)
        return
    network = export.task_network(task)
    close(network(queries), task.predict(queries))
    assert isinstance(network[1], torch.nn.Linear) == (file.stem in LINEAR)
    # Each image is a task of its own for its own moments, and the support set is in the network already.
    torch.testing.assert_close(network(queries[2:3]), network(queries)[2:3], rtol=1e-5, atol=1e-5)


def make_converted(network, **options):
    """Return a model with a network of this module, whose norms TaskNorm replaces."""
    torch.manual_seed(0)
    options = {"norms": ["batch", "layer"]} | options
    backbone = Wrapped(1, 16, TaskNorm, f"{__name__}.{network.__name__}", **options)
    choices = {"head": "protonet", "norm": "tasknorm", "backbone": "module", "dataset": "own"}
    return Model(accelerate(backbone), ProtoNet(), choices, temperature=2.0).eval().requires_grad_(False)


def test_a_network_whose_features_are_in_float32_is_exported():
    task, queries = make_task(make_converted(SingleFeatures))
    close(export.task_network(task)(queries), task.predict(queries))


@pytest.mark.parametrize("options", [{}, {"output": "norm", "readout": "mean"}], ids=str)
def test_what_follows_a_converted_norm_is_exported_with_it(options, tmp_path):
    task, queries = make_task(make_converted(Followed, **options))
    network = export.task_network(task)
    close(network(queries), task.predict(queries))
    export.save(network, tmp_path / "task.pt2", task.model, {})
    close(torch.export.load(tmp_path / "task.pt2").module()(queries), task.predict(queries))


def test_a_norm_in_two_places_cannot_be_exported():
    with pytest.raises(UsageError, match=r"calls each norm once, .* got one that calls a norm twice"):
        export.task_network(make_task(make_converted(Twice))[0])


def test_a_network_of_its_own_dtype_cannot_be_exported():
    with pytest.raises(UsageError, match=r"can compute in float64, .* got one that cannot \(.*\): remove .*x\.float"):
        export.task_network(make_task(make_converted(Single))[0])


@pytest.mark.parametrize("file", files("norm"))
def test_a_task_under_any_norm_becomes_a_network(file):
    model = make_model(ProtoNet(), file.stem)
    task, queries = make_task(model)
    if model.backbone.transductive:
        with pytest.raises(UsageError, match="got norm=transductive, which is transductive: type ckpt=PATH"):
            export.task_network(task)
    else:
        close(export.task_network(task)(queries), task.predict(queries))


@pytest.mark.parametrize("file", files("norm"))
def test_features_are_exported_under_every_norm_that_needs_no_context(file):
    model = make_model(ProtoNet(), file.stem)
    layer = scheme(file).eval()
    if layer.fixed_moments or layer.per_image:
        images = torch.rand(5, 1, 16, 16)
        torch.testing.assert_close(export.feature_network(model)(images), model.features(images))
    else:
        with pytest.raises(UsageError, match=f"got norm={file.stem}: type support=DIR for the model that is adapted"):
            export.feature_network(model)


class OwnNorm(torch.nn.Sequential):
    """A network for ``backbone=module``."""

    def __init__(self):
        super().__init__(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten())


def make_unadapted(name):
    """Return a model with a narrow network of conf/backbone under batch norms with unlike running moments."""
    options = node(CONF / "backbone" / f"{name}.yaml")
    for key in ("weights", "freeze"):  # which the run reads
        options.pop(key, None)
    changes = {"width": 4, "target": f"{__name__}.OwnNorm"}
    changes = {key: value for key, value in changes.items() if key in options}
    torch.manual_seed(0)
    backbone = make(OmegaConf.merge(options, changes), channels=1, image_size=16, norm=norm("batch"))
    for layer in backbone.norms:
        layer.running_mean.normal_(std=0.1)
        layer.running_var.uniform_(0.1, 0.4)
    return Model(accelerate(backbone), ProtoNet(), {"norm": "batch"}).eval().requires_grad_(False)


@pytest.mark.parametrize("file", files("backbone"))
def test_features_of_any_network_are_exported(file):
    model, images = make_unadapted(file.stem).double(), torch.rand(5, 1, 16, 16, dtype=torch.double)
    features = model.features(images)
    torch.testing.assert_close(export.feature_network(model)(images).float(), features)
    assert features.shape == (5, model.backbone.features) and features.std(0).max() > 0


def test_a_head_that_no_layer_equals_is_kept():
    task, _ = make_task(make_model(Cosine()))
    assert isinstance(export.task_network(task)[1], AdaptedHead)
    assert linear_layer(lambda features: features.square(), 3) is None
    assert linear_layer(lambda features: features * torch.nan, 3) is None


class OneLayer(Backbone):
    """A convolution and a norm, which torch exports in a quarter of the time of four."""

    features = 4 * 7 * 7

    def __init__(self):
        super().__init__(1, 16)
        self.layers = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, stride=2), norm("tasknorm")(4))

    def forward(self, images):
        return self.layers(images).flatten(1)


def test_a_file_of_torch_export_computes_the_same_for_any_number_of_images(tmp_path):
    torch.manual_seed(0)
    model = Model(OneLayer(), ProtoNet(), {"head": "protonet"}).eval().requires_grad_(False)
    task, queries = make_task(model)
    export.save(export.task_network(task), tmp_path / "model.pt2", model, {"classes": task.classes})
    described = {export.METADATA: ""}
    network = torch.export.load(tmp_path / "model.pt2", extra_files=described).module()
    assert json.loads(described[export.METADATA]) == {"classes": CLASSES}
    for count in (1, 5):
        close(network(queries[:count]), task.predict(queries[:count]))


@pytest.mark.parametrize("name", ["file/model.pt2", "folder.pt2"])
def test_a_path_that_cannot_be_written_is_named(name, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    (tmp_path / "folder.pt2").mkdir()
    monkeypatch.setattr(torch.export, "export", lambda *_, **__: None)
    monkeypatch.setattr(torch.export, "save", lambda _, file, **__: file.write(b"network"))
    with pytest.raises(UsageError, match=r"expected out=.*\.pt2 to be a file that can be written, got .*: type out="):
        export.save(torch.nn.Identity(), tmp_path / name, make_model(ProtoNet()), {})
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder.pt2"}


def test_other_files_are_refused_and_paths_may_be_strings(tmp_path):
    model = Model(OneLayer(), ProtoNet(), {"head": "protonet"}).eval().requires_grad_(False)
    export.save(export.task_network(make_task(model)[0]), f"{tmp_path}/model.pt2", model, {})
    assert (tmp_path / "model.pt2").is_file()
    with pytest.raises(UsageError, match=r"expected a file of \.pt2 or \.onnx, got model\.pt: type out=model\.pt2"):
        export.save(torch.nn.Identity(), "model.pt", model, {})


def read_onnx(path, images):
    """Return what onnxruntime computes, and the metadata of the file."""
    session = pytest.importorskip("onnxruntime").InferenceSession(str(path))
    (found,) = session.run(None, {"images": images.numpy()})
    return torch.from_numpy(found), session.get_modelmeta().custom_metadata_map


@pytest.mark.slow
@pytest.mark.parametrize("file", files("head"))
def test_a_task_under_any_head_is_exported_to_onnx(file, tmp_path):
    pytest.importorskip("onnxscript")
    model = make_model(file)
    if model.head.transductive:
        pytest.skip("not exported")
    skip_exempt(model.head, "onnx")
    task, queries = make_task(model)
    description = {"output": "logits", "classes": task.classes}
    export.save(export.task_network(task), tmp_path / "model.onnx", model, description)
    for count in (1, 5):
        logits, metadata = read_onnx(tmp_path / "model.onnx", queries[:count])
        close(logits, task.predict(queries[:count]))
    assert json.loads(metadata["classes"]) == CLASSES


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet12", "resnet18", "r2d2"])
def test_features_of_any_network_are_exported_to_onnx(name, tmp_path):
    pytest.importorskip("onnxscript")
    model, images = make_unadapted(name), torch.rand(5, 1, 16, 16)
    export.save(export.feature_network(model), tmp_path / "model.onnx", model, {"output": "features"})
    torch.testing.assert_close(
        read_onnx(tmp_path / "model.onnx", images)[0], model.features(images), rtol=1e-4, atol=1e-5
    )


def test_a_network_that_cannot_be_exported_is_a_usage_error(tmp_path):
    class Counts(torch.nn.Module):
        def forward(self, images):
            return images * int(images.sum())

    with pytest.raises(UsageError, match=r"expected operations that torch.export has, got others of head=own \("):
        export.save(Counts(), tmp_path / "model.pt2", make_model(ProtoNet()), {})


# the command


def test_the_command_knows_every_format():  # without torch, which its usage does not import
    assert {*command.SUFFIXES} == {*export.FORMATS}


@pytest.fixture
def saved(monkeypatch):
    """Load a small model in place of any checkpoint, and return what is saved in place of a file."""
    saved = SimpleNamespace(model=make_model(ProtoNet(), "batch"))
    monkeypatch.setattr(command.predict.metafew, "load", lambda path, trust, chosen: saved.model)
    monkeypatch.setattr(export, "save", lambda network, path, model, description: vars(saved).update(locals()))
    return saved


def test_the_command_exports_features(saved, tmp_path, capsys):
    assert command.main(["ckpt=best.ckpt", f"out={tmp_path}/deep/features.onnx"]) == 0
    images = torch.rand(2, 1, 16, 16)
    torch.testing.assert_close(saved.network(images), saved.model.features(images))
    assert saved.path == tmp_path / "deep" / "features.onnx" and saved.description["output"] == "features"
    shown = capsys.readouterr()
    assert "features.onnx computes features from images (n, 1, 16, 16) from 0 to 1" in shown.out
    assert "fit=crop and invert=false are used" in shown.err and saved.description["conversion"]["invert"] is False
    assert command.main(["ckpt=best.ckpt", "invert=true"]) == 0 and saved.description["conversion"]["invert"] is True


def test_the_command_exports_the_task_of_a_folder(saved, tmp_path, capsys):
    rng = np.random.default_rng(0)
    for name in CLASSES:
        (tmp_path / "support" / name).mkdir(parents=True)
        for number in range(2):
            file = tmp_path / "support" / name / f"{number}.png"
            Image.fromarray(rng.integers(0, 256, (16, 16), np.uint8)).save(file)
    assert command.main(["ckpt=best.ckpt", f"support={tmp_path}/support", "invert=true"]) == 0
    assert saved.description["conversion"]["invert"] is True
    assert saved.description["classes"] == CLASSES and saved.description["image_size"] == 16
    shown = 255 - np.asarray(Image.open(tmp_path / "support" / "bee" / "0.png"))
    logits = saved.network(torch.from_numpy(shown / np.float32(255))[None, None])
    assert CLASSES[logits.argmax()] == "bee"
    assert "logits of ant, bee, cat from images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["out=model.pt2"], "expected ckpt=... too, got out=model.pt2: type metafew export ckpt=PATH"),
        (["ckpt=a", "out=model.h5"], "expected out to be a file ending in .pt2 or .onnx, got model.h5: type out=model"),
        (["ckpt=a", "invert=yes"], "expected invert to be true or false, got yes: type invert=true"),
        (["ckpt=a", "query=b"], "got query=b: type metafew export"),
        (["ckpt=nowhere.ckpt"], "nowhere.ckpt"),
    ],
)
def test_the_command_explains_itself_in_one_line(words, message, capsys):
    assert command.main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("metafew: ") and error.count("\n") == 1 and message in error
