"""Image classification sets of the Hugging Face hub, and parquet files of the same form."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import requests

from metafew.data.download import TIMEOUT, Remote, explain, obtain
from metafew.data.formats import Collection
from metafew.data.formats.parquet import Parquet
from metafew.data.sources.class_splits import check_fractions, divide
from metafew.data.sources.collected import Collected
from metafew.errors import UsageError
from metafew.io import write_json

HUB = "https://huggingface.co"
ANSWER = "parquet.json"  # what the hub answered, beside the files
FOLDER = re.compile(r"[^./\\][^/\\]*")  # names of configurations and splits become names of folders
REFUSED = (401, 403, 404)  # the hub says 401 of repositories that are not there


class Hub(Collected):
    """The images of a repository in all of its splits, which are pooled and divided by class.

    The hub offers every set as parquet files; of sets above 5 GB that were published otherwise it converts a part.

    Args:
        repo: 'OWNER/NAME' or 'NAME' of a public repository; None reads the parquet files that lie in `root`.
        root: A parquet file, or a folder of them; or the folder of downloaded files, which lie in
            OWNER--NAME/CONFIG/SPLIT/ with the hub's list of them.
        config: One of the repository's configurations; None takes the first.
        label: The column of labels; see `metafew.data.formats.parquet.Parquet`.
        splits: A JSON or CSV file of the classes of each split; see `metafew.data.sources.class_splits.divide`. None
            draws them.
        fractions: Of the classes for 'train', 'val' and 'test', where splits are drawn.
        split_seed: What the draw follows from.
        channels: 1 or 3.
        image_size: Height and width of the images, in pixels.
        fit: 'crop' or 'stretch'.
        download: Whether missing files are fetched into `root`.

    Raises:
        UsageError: A setting cannot be what was typed.
    """

    name = "hub"

    def __init__(
        self,
        repo: str | None,
        root: str,
        config: str | None,
        label: str | None,
        splits: str | None,
        fractions: Sequence[float],
        split_seed: int,
        channels: int,
        image_size: int,
        fit: str,
        download: bool,
    ):
        super().__init__(channels, image_size, fit)
        if repo is not None and not re.fullmatch(r"(\w[\w.-]*/)?\w[\w.-]*", repo):
            raise UsageError(f"dataset.repo is OWNER/NAME on {HUB}, not {repo}: type dataset.repo=OWNER/NAME")
        check_fractions(fractions)
        self.repo, self.root, self.label = repo, Path(root).expanduser(), label
        self.config = None if config is None else str(config)  # 2023 is typed as a number
        self.listing = None if splits is None else Path(splits).expanduser()
        self.fractions, self.split_seed, self.download = fractions, split_seed, download

    def find(self) -> tuple[list[Collection], Mapping[str, Sequence[str]]]:
        """Return the images of all files, and the classes of each split.

        Raises:
            UsageError: Files are missing and cannot be fetched, or are not what they should be.
        """
        here = [self.root] if self.root.is_file() else sorted(self.root.glob("*.parquet"))
        files = here if self.repo is None else self._fetched()
        if not files:
            raise UsageError(
                f"dataset=hub wants a repository or parquet files, and {self.root} holds no *.parquet: type "
                "dataset.repo=OWNER/NAME, or dataset.root=DIR of the files"
            )
        images = Parquet(files, self.label)
        return [images], divide(images.classes, self.listing, self.fractions, self.split_seed)

    def _fetched(self) -> list[Path]:
        """The files of the configuration, each downloaded unless it is there."""
        folder = self.root / self.repo.replace("/", "--")
        configs = self._files_of(folder / ANSWER)
        config = next(iter(configs)) if self.config is None else self.config
        if config not in configs:
            raise UsageError(
                f"{self.repo} has no configuration '{config}': type dataset.config= and one of {', '.join(configs)}"
            )
        return [self._obtain(folder / config / split, url) for split, urls in configs[config].items() for url in urls]

    def _obtain(self, folder: Path, url: str) -> Path:
        """The file of one address."""
        name = Path(urlsplit(url).path).name
        checksum = published(url) if self.download and not (folder / name).is_file() else None
        return obtain(folder, Remote(name, (url,), checksum), self.download, self.name)

    def _files_of(self, saved: Path) -> dict[str, dict[str, list[str]]]:
        """The addresses of the files of each configuration and split: as saved, or else as the hub says."""
        if not saved.is_file():
            if not self.download:
                raise UsageError(
                    f"dataset.repo={self.repo} is not in {saved.parent}, and dataset.download=false forbids fetching "
                    "it: type dataset.download=true, or dataset.root=DIR of a folder that holds it"
                )
            answer = self._ask()
            try:
                write_json(saved, answer)
            except OSError as error:
                raise UsageError(f"{saved.parent} cannot be written ({error}): type data_dir=PATH") from error
        return json.loads(saved.read_text())

    def _ask(self) -> dict[str, dict[str, list[str]]]:
        """The hub's answer."""
        address = f"{HUB}/api/datasets/{self.repo}/parquet"
        try:
            response = requests.get(address, timeout=TIMEOUT)
            response.raise_for_status()
            answer = response.json()
        except requests.RequestException as error:
            refused = error.response is not None and error.response.status_code in REFUSED
            reason = "the hub has no public set of that name" if refused else f"that failed ({explain(error)})"
            raise UsageError(
                f"dataset.repo={self.repo} was asked for at {address}, and {reason}: type dataset.repo=OWNER/NAME of "
                "one, or dataset.root=DIR of parquet files that you have"
            ) from error
        levels = [answer, *answer.values()] if isinstance(answer, dict) else []
        if len(levels) < 2 or not all(isinstance(v, dict) and all(map(FOLDER.fullmatch, v)) for v in levels):
            raise UsageError(f"{address} lists no parquet files: type dataset.repo=OWNER/NAME of a set with images")
        return answer


def published(url: str) -> str | None:
    """Return the checksum of a file, which the hub tells before it redirects to where large files lie."""
    with suppress(requests.RequestException):  # fetching the file will meet it too, and say so
        response = requests.head(url, allow_redirects=True, timeout=TIMEOUT)
        for each in (*response.history, response):
            if re.fullmatch("[0-9a-f]{64}", digest := each.headers.get("X-Linked-ETag", "").strip('"')):
                return f"sha256:{digest}"
    return None
