"""Files of exported networks."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import IO, Any

import torch
from torch import nn

from metafew.errors import UsageError, reason
from metafew.inference import Model
from metafew.io import atomic_write

FORMATS = {".pt2": "torch.export", ".onnx": "ONNX"}
METADATA = "metafew.json"
"""The name of the description in a file of ``torch.export``; in ONNX, its keys are metadata of the model."""


def save(network: nn.Module, path: str | PathLike, model: Model, description: dict[str, Any]) -> None:
    """Write a network of images to a file atomically, in the format of its suffix, for any number of images.

    Args:
        network: from images ``(n, c, h, w)`` in float32 to one row for each.
        path: a file whose suffix is one of :data:`FORMATS`.
        model: the model whose network it is.
        description: plain values that the file contains as metadata; ``output`` is the name of the rows in ONNX.

    Raises:
        UsageError: if the suffix is another, the packages for ONNX are not installed, the network cannot be exported,
            or the file cannot be written.
    """
    path = Path(path)
    if path.suffix not in FORMATS:
        raise UsageError(f"expected a file of {' or '.join(FORMATS)}, got {path}: type out=model.pt2")
    example = torch.rand(3, model.channels, model.image_size, model.image_size)
    shapes = ({0: torch.export.Dim("images", min=1)},)
    content = io.BytesIO()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with quiet():
            program = torch.export.export(network.cpu(), (example,), dynamic_shapes=shapes, strict=False)
            if path.suffix == ".onnx":
                write_onnx(program, content, description)
            else:
                torch.export.save(program, content, extra_files={METADATA: json.dumps(description)})
        with atomic_write(path, "wb") as file:
            file.write(content.getbuffer())
    except ImportError as error:
        raise UsageError(
            f"expected the packages for ONNX, got none ({reason(error)}): type pip install 'metafew[export]', or "
            "out=model.pt2"
        ) from error
    except OSError as error:
        raise UsageError(
            f"expected out={path} to be a file that can be written, got {error}: type out=FILE.pt2"
        ) from error
    except Exception as error:  # torch documents no class of errors for what it cannot export
        own_network = description.get("output") == "features" or model.choices.get("backbone") == "module"
        part = "backbone" if own_network else "head"
        other = "out=model.pt2, or " if path.suffix == ".onnx" else ""
        raise UsageError(
            f"expected operations that {FORMATS[path.suffix]} has, got others of {part}={model.choices[part]} "
            f"({reason(error)[:200]}): type {other}ckpt=PATH of a training with another {part}"
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress warnings of torch during the export that the user cannot act on."""
    log = logging.getLogger("torch.onnx")
    before = log.level
    log.setLevel(logging.ERROR)  # it warns that torchvision is not installed
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)


def write_onnx(program: torch.export.ExportedProgram, file: IO[bytes], description: dict[str, Any]) -> None:
    """Write a program as ONNX, with a description in its metadata, whose values are JSON."""
    exported: Any = torch.onnx.export(
        program, dynamo=True, input_names=["images"], output_names=[description.get("output", "output")], verbose=False
    )
    exported.model.metadata_props.update({key: json.dumps(value) for key, value in description.items()})
    file.write(exported.model_proto.SerializeToString())
