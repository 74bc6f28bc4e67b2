"""Make the files of this folder, with the code that they are to be compared with: see README.md."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

import metafew
from metafew.episode import Labelled

HERE = Path(__file__).parent


def train(words: list[str], out: Path) -> None:
    """Carry out the command line with none of this machine's folders in its configuration."""
    places = {"METAFEW_CACHE", "METAFEW_DATA"}
    env = {key: value for key, value in os.environ.items() if key not in places}
    command = [sys.executable, "train.py", *words, f"hydra.run.dir={out}"]
    subprocess.run(command, cwd=HERE.parents[1], env=env, check=True)


def without_folders(path: Path) -> dict:
    """Return a checkpoint whose callback says best.ckpt alone, where Lightning writes the folder of the run too."""
    content = torch.load(path, weights_only=True)
    for state in content["callbacks"].values():
        state["dirpath"] = ""
        state["best_k_models"] = {Path(file).name: score for file, score in state["best_k_models"].items()}
        state |= {key: Path(state[key]).name for key in state if key.endswith("_path")}
    return content


def task() -> dict[str, torch.Tensor]:
    """Return five classes of blurred squares: two support images and two queries of each."""
    random = torch.Generator().manual_seed(0)
    squares = torch.rand(5, 1, 7, 7, generator=random).repeat_interleave(4, -1).repeat_interleave(4, -2)
    images = squares.repeat(4, 1, 1, 1)
    images = (images + 0.3 * torch.rand(images.shape, generator=random)).clamp(0, 1)
    return {"support": images[:10], "labels": torch.arange(5).repeat(2), "query": images[10:]}


if __name__ == "__main__":
    tensors = task()
    commands = [line.split() for line in (HERE / "commands.txt").read_text().splitlines()]
    for name, *words in commands:
        with TemporaryDirectory() as folder:
            train(words, Path(folder))
            torch.save(without_folders(Path(folder, "checkpoints", "last.ckpt")), HERE / f"{name}.ckpt")
            if name == "protonet":
                shutil.copy(Path(folder, "results.json"), HERE)
        model = metafew.load(HERE / f"{name}.ckpt", trust=["torch.nn.Conv2d"]).double()
        support, query = (tensors[part].double().unsqueeze(0) for part in ("support", "query"))
        with torch.no_grad():
            logits = model.head(model.backbone, Labelled(support, tensors["labels"].unsqueeze(0)), query, 5)
        tensors[name] = logits[0]
    torch.save(tensors, HERE / "tensors.pt")
