"""The model zoo: published models by name, with configuration, weights and metrics, and ImageNet backbones.

`zoo.json` holds the table, from which MODEL_ZOO.md is generated too: the 59 models of the reference implementation
(weights under CC BY-NC 4.0, as their authors published them), those that this package includes, and the
backbones that training starts from. A name is dataset, task and backbone: `coco-panoptic-r50`,
`ade20k-semantic-swin-t`, `ytvis2019-swin-l`; Swin-B comes as `swin-b` (ImageNet-1k) and `swin-b-in21k`.
"""

from __future__ import annotations

import functools
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlparse

from .utils.downloads import Digest, cache_file, check_digest, fetch
from .utils.hints import did_you_mean

logger = logging.getLogger(__name__)

ENVIRONMENT = "MASK2FORMER_WEIGHTS"
_PACKAGE = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class WeightsFile:
    """A weights file that can be downloaded or is included in this package.

    Attributes:
        name: unique name.
        weights: URL, or path relative to the package.
        sha256: SHA-256 of the file, or its first digits, where known.
        md5_prefix: first six hexadecimal digits of the MD5, which the published file names end with.
        license: license of the weights.
    """

    name: str
    weights: str
    sha256: str | None = None
    md5_prefix: str | None = None
    license: str = ""

    @property
    def bundled(self) -> bool:
        """Return whether the file is included in this package."""
        return "://" not in self.weights

    @property
    def filename(self) -> str:
        """Return the name of the weights file, e.g. "model_final_94dc52.pkl"."""
        return PurePosixPath(urlparse(self.weights).path).name

    @property
    def places(self) -> tuple[str, ...]:
        """Return the paths of the file below the user's weights directory: its name, and the path of its URL."""
        return self.filename, urlparse(self.weights).path.lstrip("/")

    @property
    def other_names(self) -> tuple[str, ...]:
        """Return the file names of converted copies, whose checksum is not the published one."""
        return tuple(f"{self.name}{suffix}" for suffix in (".safetensors", ".pth", ".pkl"))

    def known_as(self, name: str) -> bool:
        """Return whether `name` is the URL or the file name."""
        return name in (self.weights, *self.places)


@dataclass(frozen=True, kw_only=True)
class ModelEntry(WeightsFile):
    """A published model.

    Attributes:
        dataset, task, backbone, schedule: how it was trained, in words.
        queries: number of object queries, the largest number of objects in an image.
        config: YAML file relative to `configs/` (published models) or to the package (bundled ones).
        config_aliases: other names of that file, which some publications use.
        metrics: {metric: value in percent} on the validation set, as published.
        model_id: the authors' identifier of the training run.
        note: remark on the published row.
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
        """Return the argument for `load_config`: a path for bundled models, a name below `configs/` for the others."""
        return str(_PACKAGE / self.config) if self.bundled else self.config


@dataclass(frozen=True, kw_only=True)
class BackboneEntry(WeightsFile):
    """ImageNet weights that training starts from.

    Attributes:
        backbone: the architecture, in words.
        config_name: MODEL.WEIGHTS in the configurations: a URL, or the name of the converted file.
        source: who trained it, and on which dataset.
        used: whether a configuration uses it.
    """

    backbone: str
    config_name: str
    source: str
    used: bool = True

    @property
    def places(self) -> tuple[str, ...]:
        """Return the paths of the file; detectron2's only in their directories, because two are named R-50.pkl."""
        return super().places[1:] if "://" in self.config_name else super().places

    @property
    def other_names(self) -> tuple[str, ...]:
        """Return the file names of converted copies; the one that the configurations name comes first."""
        return (*(() if "://" in self.config_name else (self.config_name,)), *super().other_names)

    def known_as(self, name: str) -> bool:
        """Return whether `name` is the URL, the file name, or the name in the configurations."""
        return name == self.config_name or super().known_as(name)


@functools.cache
def _zoo_json() -> dict[str, list[dict[str, Any]]]:
    content: dict[str, list[dict[str, Any]]] = json.loads((_PACKAGE / "zoo.json").read_text(encoding="utf-8"))
    return content


@functools.cache
def _table() -> dict[str, ModelEntry]:
    return {
        row["name"]: ModelEntry(**{**row, "config_aliases": tuple(row.get("config_aliases", ()))})
        for row in _zoo_json()["models"]
    }


def list_models(task: str | None = None, dataset: str | None = None) -> list[str]:
    """List model names in the order of the table: all, or those of one task, one dataset, or both.

    Args:
        task: "panoptic", "instance", "semantic" or "video instance".
        dataset: "coco", "cityscapes", "ade20k", "mapillary", "ytvis2019", "ytvis2021", or that of a bundled model
            ("nuclei").

    Raises:
        ValueError: unknown task or dataset; the message lists the known ones.
    """
    entries = list(_table().values())
    for attribute, requested in (("task", task), ("dataset", dataset)):
        known = dict.fromkeys(getattr(entry, attribute) for entry in _table().values())
        if requested is not None and requested not in known:
            raise ValueError(f"no models of {attribute} {requested!r} in the zoo; choose from {', '.join(known)}")
        entries = [entry for entry in entries if requested in (None, getattr(entry, attribute))]
    return [entry.name for entry in entries]


def list_bundled() -> list[str]:
    """List the names of the models that come with the package, the default one first."""
    return [entry.name for entry in _table().values() if entry.bundled]


@functools.cache
def list_backbones() -> tuple[BackboneEntry, ...]:
    """List the ImageNet weights, those that the configurations use first."""
    return tuple(BackboneEntry(**row) for row in _zoo_json()["backbones"])


def lookup(name: str) -> ModelEntry:
    """Find a model by its name, or by its configuration file's name below `configs/`.

    Case, `_` for `-`, and a missing or extra `-in21k` do not matter.

    Raises:
        ValueError: no such model; the message suggests the most similar names.
    """
    table = _table()
    requested = name.strip().lower().replace("_", "-").replace(" ", "-")
    for candidate in (requested, f"{requested}-in21k", requested.removesuffix("-in21k")):
        if candidate in table:
            return table[candidate]
    for entry in table.values():
        if name.removeprefix("configs/") in (entry.config, *entry.config_aliases):
            return entry
    hint = did_you_mean(requested, table, 3) or " `mask2former models` lists them (mask2former.zoo.list_models())."
    raise ValueError(f"no model named {name!r} in the zoo.{hint}")


def entry_of_file(name: str) -> WeightsFile | None:
    """Find the model or backbone whose weights have this file name (`model_final_94dc52.pkl`) or URL, else None.

    Backbones are also found by their name in the configurations (`swin_tiny_patch4_window7_224.pkl`), although the
    file to download has another format.
    """
    for entry in (*_table().values(), *list_backbones()):
        if not entry.bundled and entry.known_as(name):
            return entry
    return None


def resolve_weights(entry: WeightsFile | str) -> Path:
    """Return a local, verified file with the weights of a model or backbone, downloaded if necessary.

    Searches, in this order, the package (bundled models), the working directory (backbones only), the directory named
    by the environment variable MASK2FORMER_WEIGHTS (as `<file name>`, the path of the URL, a backbone's name in the
    configurations, or `<name>.{safetensors,pth,pkl}`), and the cache of `utils.downloads`, to which it downloads.

    Raises:
        FileNotFoundError: no file and no network; the message gives the URL and where to put the file.
        CorruptCheckpointError: the checksum does not match.
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
    if not cache_file(entry.weights).is_file():
        logger.info("Weights of %s, license: %s", entry.name, entry.license)
    return fetch(entry.weights, _checksum(entry), lambda cached: _advice(entry, cached))


def local_weights(entry: WeightsFile | str) -> Path | None:
    """Return the file that `resolve_weights` would use if it is on this machine, else None; nothing is verified."""
    entry = lookup(entry) if isinstance(entry, str) else entry
    if entry.bundled:
        candidates = [_PACKAGE / entry.weights]
    else:
        converted = [directory / name for directory in _user_directories() for name in entry.other_names]
        candidates = [*_user_paths(entry), *converted, cache_file(entry.weights)]
    return next((path for path in candidates if path.is_file()), None)


def _override(entry: WeightsFile) -> Path | None:
    for path in _user_paths(entry):
        if path.is_file():
            check_digest(path, f"{path} ({entry.name})", _checksum(entry))
            return path
    for directory in _user_directories():
        for name in entry.other_names:
            if (directory / name).is_file():
                return directory / name
    return None


def _user_paths(entry: WeightsFile) -> Iterator[Path]:
    """Yield the paths where the user may have put the published file."""
    if isinstance(entry, BackboneEntry):
        yield Path(entry.places[0])
    for directory in _user_directories():
        yield from (directory / path for path in entry.places)


def _user_directories() -> list[Path]:
    directory = os.environ.get(ENVIRONMENT)
    return [Path(directory).expanduser()] if directory else []


def _advice(entry: WeightsFile, cached: Path) -> str:
    """Return where a file that was downloaded by hand is found."""
    destination = next((directory / entry.places[0] for directory in _user_directories()), cached)
    text = (
        f"or put the weights of {entry.name} here:\n  {destination}\n"
        f"or set {ENVIRONMENT} to the directory that holds {entry.places[0]}. License of the weights: {entry.license}."
    )
    former = Path(os.environ.get("FVCORE_CACHE", "~/.torch/iopath_cache")).expanduser()
    if (former / urlparse(entry.weights).path.lstrip("/")).is_file():
        text += f"\ndetectron2's cache has such a file; {ENVIRONMENT}={former} uses it."
    return text


def _checksum(entry: WeightsFile) -> Digest | None:
    """Return the algorithm and the known digits, the first ones or all; None if no checksum is known."""
    for algorithm, value in (("sha256", entry.sha256), ("md5", entry.md5_prefix)):
        if value:
            return algorithm, value
    return None
