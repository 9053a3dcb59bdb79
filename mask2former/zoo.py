"""The published models by name: configuration, weights, and the numbers they reach.

`zoo.json` holds the table: the 59 models of the reference implementation (weights under CC BY-NC 4.0, as
their authors published them) and the one that comes with this package. A name is dataset, task and backbone:
`coco-panoptic-r50`, `ade20k-semantic-swin-t`, `ytvis2019-swin-l`; Swin-B comes as `swin-b` (ImageNet-1k) and
`swin-b-in21k`.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import json
import logging
import os
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from urllib.parse import urlparse

from iopath.common.file_io import file_lock, get_cache_dir
from tqdm import tqdm

from mask2former.engine.errors import CorruptCheckpointError
from mask2former.files import atomic_write

logger = logging.getLogger(__name__)

ENVIRONMENT = "MASK2FORMER_WEIGHTS"
_PACKAGE = Path(__file__).parent
_TIMEOUT = 30  # seconds without an answer


@dataclass(frozen=True)
class ModelEntry:
    """One model.

    Attributes:
        name: unique name.
        dataset, task, backbone, schedule: what it was trained on and for, in words.
        queries: object queries, the most objects it can find in an image.
        config: YAML file relative to `configs/` (published models) or to the package (bundled ones).
        weights: URL, or path relative to the package.
        sha256: of the weights file, where known.
        md5_prefix: first six hexadecimal digits of the MD5, which the published file names end with.
        metrics: {metric: value in percent} on the validation set, as published.
        model_id: the authors' identifier of the training run.
        licence: of the weights.
    """

    name: str
    dataset: str
    task: str
    backbone: str
    queries: int
    schedule: str
    config: str
    weights: str
    sha256: str | None = None
    md5_prefix: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    model_id: str = ""
    licence: str = ""

    @property
    def bundled(self) -> bool:
        """Whether configuration and weights lie in this package."""
        return "://" not in self.weights

    @property
    def filename(self) -> str:
        """Name of the weights file, e.g. "model_final_94dc52.pkl"."""
        return PurePosixPath(urlparse(self.weights).path).name

    @property
    def config_file(self) -> str:
        """What `load_config` takes: a path for bundled models, a name below `configs/` for the others."""
        return str(_PACKAGE / self.config) if self.bundled else self.config


@functools.cache
def _table() -> dict[str, ModelEntry]:
    rows = json.loads((_PACKAGE / "zoo.json").read_text(encoding="utf-8"))
    return {row["name"]: ModelEntry(**row) for row in rows}


def list_models() -> list[str]:
    """All names, in the order of the table."""
    return list(_table())


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
        if name.removeprefix("configs/") == entry.config:
            return entry
    near = difflib.get_close_matches(wanted, table, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}?" if near else "mask2former.zoo.list_models() lists them."
    raise ValueError(f"no model named {name!r} in the zoo; {hint}")


def entry_of_file(name: str) -> ModelEntry | None:
    """The model whose weights have this file name (`model_final_94dc52.pkl`) or URL, if there is one."""
    for entry in _table().values():
        if not entry.bundled and name in (entry.weights, entry.filename):
            return entry
    return None


def resolve_weights(entry: ModelEntry | str) -> Path:
    """A local, verified file with the model's weights; downloaded to the cache if it is nowhere yet.

    Looked for in this order: the package (bundled models), the folder named by the environment variable
    MASK2FORMER_WEIGHTS (as `<file name>`, `<model name>.{safetensors,pth,pkl}` or the path of the URL), the
    cache of detectron2 (`$FVCORE_CACHE` or `~/.torch/iopath_cache`).

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


def _override(entry: ModelEntry) -> Path | None:
    folder = os.environ.get(ENVIRONMENT)
    if not folder:
        return None
    root = Path(folder).expanduser()
    for place in (root / entry.filename, root / urlparse(entry.weights).path.lstrip("/")):
        if place.is_file():
            _verify(entry, place)
            return place
    for suffix in (".safetensors", ".pth", ".pkl"):  # converted copies: the published checksum cannot match
        if (root / f"{entry.name}{suffix}").is_file():
            return root / f"{entry.name}{suffix}"
    return None


def _cache_file(entry: ModelEntry) -> Path:
    """Where detectron2's own downloads of this URL lie."""
    return Path(get_cache_dir()) / urlparse(entry.weights).path.lstrip("/")


def _download(entry: ModelEntry, target: Path) -> None:
    logger.info("Downloading %s (%s; licence of the weights: %s)", entry.weights, entry.name, entry.licence)
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
            _verify(entry, Path(file.name), shown=entry.weights)
    except CorruptCheckpointError:
        raise
    except OSError as error:  # no network, no such host, timeout, no space
        folder = os.environ.get(ENVIRONMENT)
        place = Path(folder).expanduser() / entry.filename if folder else target
        raise FileNotFoundError(
            f"cannot download the weights of {entry.name}: {error}.\n"
            f"Get this file on a machine with network:\n  {entry.weights}\n"
            f"and put it here:\n  {place}\n"
            f"or set {ENVIRONMENT} to the folder that holds {entry.filename}."
        ) from error


def _verify(entry: ModelEntry, file: Path, shown: str | None = None) -> None:
    """Compare the file's checksum with what is known: the SHA-256, or else the MD5 prefix in its name."""
    kind, expected = ("sha256", entry.sha256) if entry.sha256 else ("md5", entry.md5_prefix)
    if not expected:
        return
    digest = hashlib.new(kind, usedforsecurity=False)
    with file.open("rb") as stream:
        while chunk := stream.read(2**22):
            digest.update(chunk)
    if not digest.hexdigest().startswith(expected):
        raise CorruptCheckpointError(
            f"{shown or file}: {kind} {digest.hexdigest()} does not start with {expected}, so this is not "
            f"the whole weights file of {entry.name}. Delete it and download it again."
        )
