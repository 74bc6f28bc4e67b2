"""hub: image classification datasets of the Hugging Face hub, and local parquet files of the same format."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import requests
from filelock import FileLock

from metafew.config.option_values import check_choice, option_path
from metafew.data.download import TIMEOUT, Remote, explain, obtain
from metafew.data.duplicates import POLICIES
from metafew.data.formats.collection import Collection
from metafew.data.formats.columns import check_columns, check_columns_are_read
from metafew.data.formats.parquet import Parquet
from metafew.data.sources.class_splits import check_fractions_sum_to_one, divide, find_file
from metafew.data.sources.collected import Collected
from metafew.errors import UsageError
from metafew.io import write_json

HUB = "https://huggingface.co"
log = logging.getLogger(__name__)

PARTIAL = "partial-"
"""Prefix of the splits of a dataset of which the hub has converted only the first part."""
LISTING = "parquet.json"  # the hub's list of files, saved next to the files
FOLDER = re.compile(r"[^./\\][^/\\]*")  # names of configurations and splits become folder names
REFUSED = (401, 403, 404)  # the hub's answer for repositories that do not exist


class Hub(Collected):
    """All images of a repository, with its splits pooled and divided by class.

    The hub offers every dataset as parquet files. Of datasets published in another format, it converts only a part if
    they exceed 5 GB.

    Args:
        repo: ``OWNER/NAME`` or ``NAME`` of a public repository; None reads the parquet files in ``root``.
        root: a parquet file, or a folder of parquet files; or the folder of downloads, which are kept in
            ``OWNER--NAME/CONFIG/SPLIT/`` with the hub's list of files.
        config: one of the repository's configurations; None for the first.
        label: the column of labels; see :class:`~metafew.data.formats.parquet.Parquet`.
        splits: a JSON or CSV file of the classes of each split; see
            :func:`~metafew.data.sources.class_splits.divide`. None draws them.
        columns: the names of the columns ``class`` and ``split`` in that CSV file; None for the usual ones.
        fractions: fractions of the classes in ``train``, ``val`` and ``test``, if splits are drawn.
        split_seed: seed of that draw.
        channels: 1 or 3; images are converted.
        image_size: height and width of the stored images, in pixels.
        fit: ``crop`` takes the central square of an image, ``stretch`` resizes the full image, ``pad`` adds margins.
        white: the value of white in images of more than 8 bits; None for 65535 or, if there are images in floating
            point, a value derived from all.
        background: ``white`` or ``black``, behind transparent pixels and in margins; None for white, unless more
            transparent images are faint on white than on black.
        download: whether missing files are downloaded into ``root``.
        duplicates: how to treat equal images: ``warn``, ``error`` (refuse them) or ``drop``.
        invert: whether images are drawings in dark ink on a light background, to be stored with ink 255 on 0.

    Raises:
        UsageError: if an option has an invalid value.
    """

    name = "hub"
    own_images = True

    def __init__(
        self,
        repo: str | None,
        root: str | int,
        config: str | int | None,
        label: str | int | None,
        splits: str | None,
        columns: Mapping[str, str] | None,
        fractions: Sequence[float],
        split_seed: int,
        channels: int,
        image_size: int,
        fit: str,
        white: float | None,
        background: str | None,
        download: bool,
        duplicates: str = POLICIES[0],
        invert: bool = False,
    ):
        super().__init__(channels, image_size, fit, invert=invert, white=white, background=background)
        check_choice("dataset.duplicates", duplicates, POLICIES)
        if repo is not None and not re.fullmatch(r"(\w[\w.-]*/)?\w[\w.-]*", repo):
            raise UsageError(
                f"expected dataset.repo to be OWNER/NAME on {HUB}, got {repo}: type dataset.repo=OWNER/NAME"
            )
        check_fractions_sum_to_one(fractions)
        self.repo, self.root = repo, option_path("dataset.root", root)
        # The command line parses 2023 as a number.
        self.config, self.label_column = (None if name is None else str(name) for name in (config, label))
        self.listing, self.columns = splits, check_columns(columns)
        self.fractions, self.split_seed, self.download = fractions, split_seed, download
        self.duplicates = duplicates

    def find(self) -> tuple[list[Collection], Mapping[str, Sequence[str]]]:
        """Return the images of all files, and the class names of each split."""
        if self.repo is None and self.config is not None:
            raise UsageError(
                f"expected dataset.config=null, as dataset.repo=null reads the files in {self.root}, got "
                f"{self.config}: type dataset.config=null, or dataset.repo=OWNER/NAME"
            )
        check_columns_are_read(self.columns, [self.listing])
        local = [self.root] if self.root.is_file() else sorted(self.root.glob("*.parquet"))
        files = local if self.repo is None else self._downloads(self.repo)
        if not files:
            raise UsageError(
                f"expected a repository or parquet files for dataset=hub, but {self.root} holds no *.parquet: type "
                "dataset.repo=OWNER/NAME, or dataset.root=DIR of the files"
            )
        images = Parquet(files, self.label_column)
        listing = None if self.listing is None else find_file(self.root, "splits", self.listing)
        self.drawn = listing is None
        return [images], divide(images.classes, listing, self.fractions, self.split_seed, self.columns)

    def _downloads(self, repo: str) -> list[Path]:
        """Return the files of the configuration, and download missing ones."""
        folder = self.root / repo.replace("/", "--")
        configs = self._read_listing(folder / LISTING)
        config = next(iter(configs)) if self.config is None else self.config
        if config not in configs:
            raise UsageError(
                f"expected dataset.config to be a configuration of {repo}, but it has no configuration "
                f"'{config}': type dataset.config= and one of {', '.join(configs)}"
            )
        files = []
        places = [Path(urlsplit(url).path).parent.name for urls in configs[config].values() for url in urls]
        if any(name.startswith(PARTIAL) for name in (*configs[config], *places)):
            log.warning(
                "the hub has converted only the first part of %s to parquet files: images, and whole classes, may be "
                "missing; download the dataset in another form for all of them",
                repo,
            )
        for split, urls in configs[config].items():
            for url in urls:
                target, name = folder / config / split, Path(urlsplit(url).path).name
                checksum = published_checksum(url) if self.download and not (target / name).is_file() else None
                files.append(obtain(target, Remote(name, (url,), checksum), self.download, self.name))
        return files

    def _read_listing(self, saved: Path) -> dict[str, dict[str, list[str]]]:
        """Return the URLs of the files of each configuration and split, from the saved list or else from the hub."""
        if not saved.is_file():
            if not self.download:
                raise UsageError(
                    f"expected dataset.repo={self.repo} in {saved.parent}, and dataset.download=false forbids "
                    "downloading it: type dataset.download=true, or dataset.root=DIR of a folder that holds it"
                )
            listing = self._request_listing()
            try:
                saved.parent.mkdir(parents=True, exist_ok=True)
                with FileLock(saved.with_name(f".{saved.name}.lock")):  # of runs that start at the same time
                    write_json(saved, listing)
            except OSError as error:
                raise UsageError(f"{saved.parent} cannot be written ({error}): type data_dir=PATH") from error
        return json.loads(saved.read_text(encoding="utf-8"))

    def _request_listing(self) -> dict[str, dict[str, list[str]]]:
        """Request the URLs of the files of each configuration and split from the hub."""
        address = f"{HUB}/api/datasets/{self.repo}/parquet"
        try:
            response = requests.get(address, timeout=TIMEOUT)
            response.raise_for_status()
            listing = response.json()
        except requests.RequestException as error:
            refused = error.response is not None and error.response.status_code in REFUSED
            reason = "the hub has no public dataset of that name" if refused else f"that failed ({explain(error)})"
            raise UsageError(
                f"dataset.repo={self.repo} was requested from {address}, and {reason}: type dataset.repo=OWNER/NAME of "
                "one, or dataset.root=DIR of parquet files that you have"
            ) from error
        levels = [listing, *listing.values()] if isinstance(listing, dict) else []
        if len(levels) < 2 or not all(isinstance(v, dict) and all(map(FOLDER.fullmatch, v)) for v in levels):
            raise UsageError(f"{address} lists no parquet files: type dataset.repo=OWNER/NAME of a dataset with images")
        return listing


def published_checksum(url: str) -> str | None:
    """Return the checksum of a file, which the hub sends before it redirects to the storage of large files."""
    with suppress(requests.RequestException):  # the subsequent download reports the failure
        response = requests.head(url, allow_redirects=True, timeout=TIMEOUT)
        for each in (*response.history, response):
            if re.fullmatch("[0-9a-f]{64}", digest := each.headers.get("X-Linked-ETag", "").strip('"')):
                return f"sha256:{digest}"
    return None
