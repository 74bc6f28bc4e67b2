"""Export a trained model, alone or adapted to a task, to a file that runs without metafew.

  metafew export ckpt=PATH [support=DIR] [out=model.pt2]

Without support, the file computes features, which requires a norm that needs no context. With support, one folder of
example images per class as metafew predict takes it, it computes the logits of these classes, whose softmax gives the
probabilities; this works with any norm and head that are not transductive. The suffix of out chooses the format: .pt2
for torch.export, or .onnx, which needs the extra metafew[export]. The input is a batch of images (n, c, h, w) in
float32 from 0 to 1, for any n: what model.conversion makes of image files, divided by 255; the file contains their size
and the names of the classes as metadata. The images of support are converted as in training, unless you type
fit=crop|stretch|pad, invert=true|false, white=NUMBER|null or background=white|black|null. A model with a custom network
(backbone=module) requires trust=my_package.MyNetwork; chosen=NAME selects one of several options of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metafew.commands import predict
from metafew.commands.image_conversion import choose_conversion
from metafew.data.formats.conversion import CHOICES
from metafew.errors import UsageError

DEFAULTS = {"support": "", "out": "model.pt2", "trust": "", "chosen": ""} | dict.fromkeys(CHOICES, "")
USAGE = __doc__.split("\n\n")[1].strip()
SUFFIXES = (".pt2", ".onnx")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return predict.run(export, arguments, __doc__)


def export(arguments: Sequence[str]) -> None:
    """Write the file, and print what it takes and returns."""
    values = parse(arguments)
    out = Path(values["out"])
    examples = predict.read_examples(Path(values["support"])) if values["support"] else None
    model = predict.load(values)
    conversion = choose_conversion(model, values, examples)
    from metafew.export import feature_network, save, task_network  # imports torch

    description: dict[str, Any] = {
        "input": "images",
        "channels": model.channels,
        "image_size": model.image_size,
        "conversion": conversion.options,
        "choices": model.choices,
    }
    if examples is None:
        network, description["output"] = feature_network(model), "features"
    else:
        task = predict.adapt(model, examples, conversion)
        network, description["output"], description["classes"] = task_network(task), "logits", task.classes
    save(network, out, model, description)
    shape = f"images (n, {model.channels}, {model.image_size}, {model.image_size}) from 0 to 1"
    columns = f" of {', '.join(description['classes'])}" if examples else ""
    print(f"{out} computes {description['output']}{columns} from {shape}")


def parse(arguments: Sequence[str]) -> dict[str, str]:
    """Return the value of each key of the command line."""
    values = predict.parse(arguments, ("ckpt",), DEFAULTS, USAGE)
    if Path(values["out"]).suffix not in SUFFIXES:
        raise UsageError(
            f"expected out to be a file ending in {' or '.join(SUFFIXES)}, got {values['out']}: type out=model.pt2"
        )
    return values
