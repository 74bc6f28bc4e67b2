"""Export a trained model to formats that run without metafew: ``torch.export`` and ONNX.

A network that computes features is exported as it is. A task is exported as one network from images to logits, and no
longer contains its support set: every norm keeps the moments of the support images, and a head that is linear in the
features, as most heads that fit a classifier or adapt by gradient steps are, becomes a linear layer with the weights
that it found.
"""

from metafew.export.files import FORMATS, METADATA, save
from metafew.export.networks import feature_network, task_network

__all__ = ["FORMATS", "METADATA", "feature_network", "save", "task_network"]
