"""The published models by name: configuration, weights, and the numbers they reach; and the ImageNet backbones.

`zoo.json` holds the table, from which MODEL_ZOO.md is made, too: the 59 models of the reference implementation
(weights under CC BY-NC 4.0, as their authors published them), the one that comes with this package, and the
backbones that training starts from. A name is dataset, task and backbone: `coco-panoptic-r50`,
`ade20k-semantic-swin-t`, `ytvis2019-swin-l`; Swin-B comes as `swin-b` (ImageNet-1k) and `swin-b-in21k`.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlparse

from iopath.common.file_io import file_lock, get_cache_dir
from tqdm import tqdm

from .errors import CorruptCheckpointError
from .utils.file_io import atomic_write
from .utils.hints import did_you_mean

logger = logging.getLogger(__name__)

ENVIRONMENT = "MASK2FORMER_WEIGHTS"
_PACKAGE = Path(__file__).parent
_TIMEOUT = 30  # seconds without an answer


@dataclass(frozen=True, kw_only=True)
class WeightsFile:
    """A file of weights that can be downloaded, or lies in this package.

    Attributes:
        name: unique name.
        weights: URL, or path relative to the package.
        sha256: of the file, or its first digits, where known.
        md5_prefix: first six hexadecimal digits of the MD5, which the published file names end with.
        license: of the weights.
    """

    name: str
    weights: str
    sha256: str | None = None
    md5_prefix: str | None = None
    license: str = ""

    @property
    def bundled(self) -> bool:
        """Whether the file lies in this package."""
        return "://" not in self.weights

    @property
    def filename(self) -> str:
        """Name of the weights file, e.g. "model_final_94dc52.pkl"."""
        return PurePosixPath(urlparse(self.weights).path).name

    @property
    def places(self) -> tuple[str, ...]:
        """Where the file may lie in the user's own directory: by its name, or in the directories of the URL."""
        return self.filename, urlparse(self.weights).path.lstrip("/")

    @property
    def other_names(self) -> tuple[str, ...]:
        """File names under which converted copies are kept: their checksum is not the published one."""
        return tuple(f"{self.name}{suffix}" for suffix in (".safetensors", ".pth", ".pkl"))

    def known_as(self, name: str) -> bool:
        """Whether `name` is the URL or the file name."""
        return name in (self.weights, *self.places)


@dataclass(frozen=True, kw_only=True)
class ModelEntry(WeightsFile):
    """One model.

    Attributes:
        dataset, task, backbone, schedule: what it was trained on and for, in words.
        queries: object queries, the most objects it can find in an image.
        config: YAML file relative to `configs/` (published models) or to the package (bundled ones).
        config_aliases: further names of that file, which some documents use.
        metrics: {metric: value in percent} on the validation set, as published.
        model_id: the authors' identifier of the training run.
        note: what to know about the published row.
    """

    dataset: str
    task: str
    backbone: str
    queries: int
    schedule: str
    config: str
    config_aliases: tuple[str, ...] = ()
    metrics: dict[str, float] = field(default_factory=dict)
    model_id: str = ""
    note: str = ""

    @property
    def config_file(self) -> str:
        """What `load_config` takes: a path for bundled models, a name below `configs/` for the others."""
        return str(_PACKAGE / self.config) if self.bundled else self.config


@dataclass(frozen=True, kw_only=True)
class BackboneEntry(WeightsFile):
    """ImageNet weights that training starts from.

    Attributes:
        backbone: in words.
        config_name: MODEL.WEIGHTS in the configurations: a URL, or the name of the converted file.
        source: who trained it on what.
        used: whether a configuration uses it.
    """

    backbone: str
    config_name: str
    source: str
    used: bool = True

    @property
    def places(self) -> tuple[str, ...]:
        """detectron2's files only in their directories: there are two of the name R-50.pkl."""
        return super().places[1:] if "://" in self.config_name else super().places

    @property
    def other_names(self) -> tuple[str, ...]:
        """The converted copy that the configurations name goes first."""
        return (*(() if "://" in self.config_name else (self.config_name,)), *super().other_names)

    def known_as(self, name: str) -> bool:
        """Whether `name` is the URL, the file name, or what the configurations write."""
        return name == self.config_name or super().known_as(name)


@functools.cache
def _document() -> dict[str, list[dict[str, Any]]]:
    document: dict[str, list[dict[str, Any]]] = json.loads((_PACKAGE / "zoo.json").read_text(encoding="utf-8"))
    return document


@functools.cache
def _table() -> dict[str, ModelEntry]:
    return {
        row["name"]: ModelEntry(**{**row, "config_aliases": tuple(row.get("config_aliases", ()))})
        for row in _document()["models"]
    }


def list_models(task: str | None = None, dataset: str | None = None) -> list[str]:
    """Names, in the order of the table: all, or those of one task, one dataset, or both.

    Args:
        task: "panoptic", "instance", "semantic" or "video instance".
        dataset: "coco", "cityscapes", "ade20k", "mapillary", "ytvis2019", "ytvis2021" or "nuclei".

    Raises:
        ValueError: there is no such task or dataset; the message lists those there are.
    """
    entries = list(_table().values())
    for attribute, wanted in (("task", task), ("dataset", dataset)):
        known = dict.fromkeys(getattr(entry, attribute) for entry in _table().values())
        if wanted is not None and wanted not in known:
            raise ValueError(f"no models of {attribute} {wanted!r} in the zoo; there are {', '.join(known)}")
        entries = [entry for entry in entries if wanted in (None, getattr(entry, attribute))]
    return [entry.name for entry in entries]


@functools.cache
def list_backbones() -> tuple[BackboneEntry, ...]:
    """The ImageNet weights, those that the configurations use first."""
    return tuple(BackboneEntry(**row) for row in _document()["backbones"])


def lookup(name: str) -> ModelEntry:
    """The model of that name; case, `_` for `-`, and a missing or extra `-in21k` do not matter.

    A configuration file's name below `configs/` also finds its model.

    Raises:
        ValueError: no such model; the message suggests the nearest names.
    """
    table = _table()
    wanted = name.strip().lower().replace("_", "-").replace(" ", "-")
    for candidate in (wanted, f"{wanted}-in21k", wanted.removesuffix("-in21k")):
        if candidate in table:
            return table[candidate]
    for entry in table.values():
        if name.removeprefix("configs/") in (entry.config, *entry.config_aliases):
            return entry
    hint = did_you_mean(wanted, table, 3) or " mask2former.zoo.list_models() lists them."
    raise ValueError(f"no model named {name!r} in the zoo.{hint}")


def entry_of_file(name: str) -> WeightsFile | None:
    """The model or backbone whose weights have this file name (`model_final_94dc52.pkl`) or URL, if there is one.

    Backbones are also found by what configurations call them (`swin_tiny_patch4_window7_224.pkl`), although the file
    to download has another form.
    """
    for entry in (*_table().values(), *list_backbones()):
        if not entry.bundled and entry.known_as(name):
            return entry
    return None


def resolve_weights(entry: WeightsFile | str) -> Path:
    """A local, verified file with the weights of a model or backbone; downloaded to the cache if it is nowhere yet.

    Looked for in this order: the package (bundled models), the working directory (backbones only), the directory that
    the environment variable MASK2FORMER_WEIGHTS names (as `<file name>`, the path of the URL, a backbone's name in the
    configurations, or `<name>.{safetensors,pth,pkl}`), the cache of detectron2 (`$FVCORE_CACHE` or
    `~/.torch/iopath_cache`).

    Raises:
        FileNotFoundError: not there and no network; the message says the URL and where to put the file.
        CorruptCheckpointError: the file's checksum is wrong.
    """
    entry = lookup(entry) if isinstance(entry, str) else entry
    if entry.bundled:
        file = _PACKAGE / entry.weights
        if not file.is_file():
            raise FileNotFoundError(f"{entry.name}: {file} is missing; reinstall the package")
        return file
    override = _override(entry)
    if override is not None:
        return override
    cached = _cache_file(entry)
    cached.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(str(cached)):  # the processes of one training ask at the same time: one downloads
        if not cached.is_file():
            _download(entry, cached)
            return cached
    _verify(entry, cached)
    return cached


def _override(entry: WeightsFile) -> Path | None:
    for place in _own_places(entry):
        if place.is_file():
            _verify(entry, place)
            return place
    for directory in _own_directories():
        for name in entry.other_names:
            if (directory / name).is_file():
                return directory / name
    return None


def _own_places(entry: WeightsFile) -> Iterator[Path]:
    """Where the user may have put the published file."""
    if isinstance(entry, BackboneEntry):
        yield Path(entry.places[0])
    for directory in _own_directories():
        yield from (directory / place for place in entry.places)


def _own_directories() -> list[Path]:
    directory = os.environ.get(ENVIRONMENT)
    return [Path(directory).expanduser()] if directory else []


def _cache_file(entry: WeightsFile) -> Path:
    """Where detectron2's own downloads of this URL lie."""
    return Path(get_cache_dir()) / urlparse(entry.weights).path.lstrip("/")


def _download(entry: WeightsFile, target: Path) -> None:
    logger.info("Downloading %s (%s; license of the weights: %s)", entry.weights, entry.name, entry.license)
    try:
        with (
            urllib.request.urlopen(entry.weights, timeout=_TIMEOUT) as answer,
            atomic_write(target) as file,
            tqdm(
                total=int(answer.headers.get("Content-Length") or 0) or None,
                desc=entry.name,
                unit="B",
                unit_scale=True,
                unit_divisor=1024,
            ) as bar,
        ):
            while chunk := answer.read(2**20):
                file.write(chunk)
                bar.update(len(chunk))
            file.flush()
            if _checksum(entry) is None and bar.total not in (None, bar.n):
                raise CorruptCheckpointError(f"{entry.weights}: {bar.n} of {bar.total} bytes came; try again")
            _verify(entry, Path(file.name), shown=entry.weights)
    except CorruptCheckpointError:
        raise
    except OSError as error:  # no network, no such host, timeout, no space
        place = next((directory / entry.places[0] for directory in _own_directories()), target)
        raise FileNotFoundError(
            f"cannot download the weights of {entry.name}: {error}.\n"
            f"Get this file on a machine with network:\n  {entry.weights}\n"
            f"and put it here:\n  {place}\n"
            f"or set {ENVIRONMENT} to the directory that holds {entry.places[0]}."
        ) from error


def _verify(entry: WeightsFile, file: Path, shown: str | None = None) -> None:
    """Compare the file's checksum with what is known: the SHA-256, or else the MD5 prefix in its name."""
    known = _checksum(entry)
    if known is None:
        return
    kind, expected = known
    digest = hashlib.new(kind, usedforsecurity=False)
    with file.open("rb") as stream:
        while chunk := stream.read(2**22):
            digest.update(chunk)
    if not digest.hexdigest().startswith(expected):
        raise CorruptCheckpointError(
            f"{shown or file}: {kind} {digest.hexdigest()} does not start with {expected}, so this is not "
            f"the whole weights file of {entry.name}. Delete it and download it again."
        )


def _checksum(entry: WeightsFile) -> tuple[str, str] | None:
    """Kind, and first digits or all of them; None where nothing is known."""
    for kind, value in (("sha256", entry.sha256), ("md5", entry.md5_prefix)):
        if value:
            return kind, value
    return None
