"""Replaceable entries of detectron2's catalogs, and checks of the files of a dataset."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata

Records = list[dict[str, Any]]

# Set by `register_all`.
_state = {"root": os.path.expanduser(os.environ.get("DETECTRON2_DATASETS", "datasets"))}


def dataset_root() -> str:
    """Return the directory that holds the datasets: the last root passed to `register_all`."""
    return _state["root"]


def set_dataset_root(root: str | os.PathLike[str] | None) -> str:
    """Set and return the directory of the datasets; None takes DETECTRON2_DATASETS (default "datasets")."""
    directory = os.fspath(root) if root is not None else os.environ.get("DETECTRON2_DATASETS", "datasets")
    _state["root"] = os.path.expanduser(directory)
    return _state["root"]


class FileMetadata(Metadata):
    """Metadata whose entries are partly read from files of the dataset at the first access.

    Args:
        keys: keys that `read` returns.
        read: reads their values; raises FileNotFoundError if the files are missing.
        fixed: entries that need no file.
    """

    def __init__(self, keys: Iterable[str], read: Callable[[], dict[str, Any]], **fixed: Any) -> None:
        super().__init__(**fixed)
        self.__dict__["_pending"] = (frozenset(keys), read)

    def __getattr__(self, key: str) -> Any:
        keys, read = self.__dict__.get("_pending", (frozenset(), None))
        if key not in keys:
            return super().__getattr__(key)
        self._fill(read())
        return getattr(self, key)

    def _fill(self, values: dict[str, Any]) -> None:
        self.__dict__.pop("_pending", None)
        self.__dict__.update(values)

    def as_dict(self) -> dict[str, Any]:
        """Return all entries; without those from files if the files are missing."""
        if "_pending" in self.__dict__:
            with contextlib.suppress(FileNotFoundError):
                self._fill(self.__dict__["_pending"][1]())
        return {key: value for key, value in super().as_dict().items() if key != "_pending"}


def set_dataset(name: str, load: Callable[[], Records], metadata: Metadata | dict[str, Any]) -> None:
    """Register a name, or replace its entries; equal metadata stays the same object.

    detectron2 refuses to register a name twice and to change a metadata value, so the entries are replaced.
    """
    DatasetCatalog[name] = load
    if isinstance(metadata, Metadata):
        MetadataCatalog[name] = metadata
    elif MetadataCatalog.get(name).as_dict() != {"name": name, **metadata}:
        MetadataCatalog.pop(name)
        MetadataCatalog.get(name).set(**metadata)


def require_files(name: str, paths: Iterable[str], layout: str) -> None:
    """Check that files and directories of a dataset exist.

    Args:
        name: name of the dataset.
        paths: files and directories that must exist.
        layout: the expected directories, shown in the message.

    Raises:
        FileNotFoundError: a path is missing; names it, the expected directories and how to set the root.
    """
    for path in paths:
        if not os.path.exists(path):
            raise FileNotFoundError(
                f"dataset {name!r}: {path} does not exist. Expected:\n\n{layout}\n\n"
                "The root is the environment variable DETECTRON2_DATASETS (default ./datasets), "
                "or the argument of mask2former.data.register_all(root). See datasets/README.md."
            )


def require_some(name: str, paths: Sequence[str], layout: str) -> None:
    """Check that at least one of the first, middle and last of many files exists.

    A single missing file is reported by the mapper, or by `python -m mask2former.data check`.

    Raises:
        FileNotFoundError: as `require_files`, for the first file.
    """
    sample = [paths[0], paths[len(paths) // 2], paths[-1]]
    if not any(os.path.exists(path) for path in sample):
        require_files(name, sample, layout)


_registered: dict[str, tuple] = {}  # name -> arguments of its registration, and the state of its files


def register_custom(
    name: str, state: tuple, describe: Callable[[], tuple[Callable[[], Records], dict[str, Any]]]
) -> None:
    """Register a custom dataset; a second call with the same state does nothing, with another state replaces it.

    Args:
        name: for DATASETS.TRAIN and DATASETS.TEST.
        state: everything that the dataset depends on; the first entry is a file or directory, for messages.
        describe: returns the load function and the metadata; called if the state is new.

    Raises:
        ValueError: the name is already used by other code.
    """
    if name not in _registered and name in DatasetCatalog:
        raise ValueError(f"the dataset name {name!r} is already in use, use another name for {state[0]}")
    if _registered.get(name) == state and name in DatasetCatalog:
        return
    load, metadata = describe()
    set_dataset(name, load, metadata)
    _registered[name] = state


def unregister(name: str) -> None:
    """Remove a custom dataset from the catalogs; other datasets stay."""
    if _registered.pop(name, None) is not None:
        DatasetCatalog.pop(name, None)
        MetadataCatalog.pop(name, None)


def locate(path: str | os.PathLike[str], *, directory: bool) -> str:
    """Return the absolute path of a file or directory: as given, or below the dataset root.

    Args:
        path: an absolute one is not looked up below the dataset root.
        directory: whether it must be a directory or may not be one.

    Raises:
        FileNotFoundError: neither exists; names both paths.
        NotADirectoryError, IsADirectoryError: it is a file instead of a directory, or the reverse.
    """
    given = os.path.expanduser(os.fspath(path))
    candidates = [given] if os.path.isabs(given) else [given, os.path.join(dataset_root(), given)]
    for candidate in candidates:
        if os.path.exists(candidate):
            found = os.path.abspath(candidate)
            if directory and not os.path.isdir(found):
                raise NotADirectoryError(f"{found} is a file; give the directory")
            if not directory and os.path.isdir(found):
                raise IsADirectoryError(f"{found} is a directory; give the file")
            return found
    tried = " nor ".join(os.path.abspath(candidate) for candidate in candidates)
    raise FileNotFoundError(f"neither {tried} exists" if len(candidates) > 1 else f"{tried} does not exist")


def file_state(path: str) -> tuple:
    """Return path, modification time and size of a file, which change when it is written again."""
    status = os.stat(path)
    return path, status.st_mtime_ns, status.st_size
