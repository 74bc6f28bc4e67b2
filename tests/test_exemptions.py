"""All exemptions from contracts, in one table: another one is a decision."""

import pkgutil
from importlib import import_module
from inspect import getmembers, isclass

import metafew

PACKAGES = ("heads", "norms", "objectives", "backbones")
EXEMPT = {
    ("backbones", "DropBlock", "cuda_graph"),
    ("heads", "CNAPs", "separable_classes"),
    ("heads", "FEAT", "separable_classes"),
    ("heads", "LDA", "onnx"),
    ("heads", "Logistic", "host_waits"),
    ("heads", "MAML", "exchangeable_classes"),
    ("heads", "PTMAP", "bfloat16"),
    ("heads", "R2D2", "cuda_graph"),
    ("heads", "Relation", "separable_classes"),
    ("heads", "Reptile", "exchangeable_classes"),
    ("heads", "Reptile", "support_order"),
    ("heads", "Ridge", "cuda_graph"),
    ("heads", "SVM", "host_waits"),
    ("norms", "BatchRenorm", "gradients_in_training"),
    ("objectives", "FeatureClustering", "host_waits"),
    ("objectives", "HyperplaneVariation", "host_waits"),
    ("objectives", "Reptile", "cuda_graph"),
    ("objectives", "Reptile", "gradient"),
}


def test_the_exemptions_are_these():
    found = set()
    for package in PACKAGES:
        for module in pkgutil.walk_packages([f"{metafew.__path__[0]}/{package}"], f"metafew.{package}."):
            for _, each in getmembers(import_module(module.name), isclass):
                if each.__module__ == module.name:
                    found |= {(package, each.__name__, contract) for contract in getattr(each, "exemptions", {})}
    assert found == EXEMPT
