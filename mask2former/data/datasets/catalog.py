"""Entries of detectron2's catalogs that other registrations replace, and checks of the files of a dataset."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata

from ...utils.registry import Defaults, defaults_of

logger = logging.getLogger(__name__)

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


def _datasets() -> Defaults:
    return defaults_of(DatasetCatalog, "data", "register", _register_dataset)


def _metadata() -> Defaults:
    return defaults_of(MetadataCatalog, "data")


def _register_dataset(catalog: Any, name: str, func: Any) -> None:
    if _datasets().give_way(name):
        _metadata().give_way(name)
    type(catalog).register(catalog, name, func)


class DefaultMetadata(Metadata):
    """Metadata of a default: its values can be changed, which detectron2 refuses. It then belongs to who changed it."""

    def __setattr__(self, key: str, value: Any) -> None:
        held = self.__dict__.get(key)
        if held is None or held == value:
            super().__setattr__(key, value)
            return
        _metadata().ours.pop(self.name, None)
        self.__dict__[key] = value


class FileMetadata(DefaultMetadata):
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

    def __setattr__(self, key: str, value: Any) -> None:
        if key in self.__dict__.get("_pending", ((),))[0]:  # not compared: the files may be missing
            self.__dict__[key] = value
            _metadata().ours.pop(self.name, None)
        else:
            super().__setattr__(key, value)

    def _fill(self, values: dict[str, Any]) -> None:
        self.__dict__.pop("_pending", None)
        self.__dict__.update({key: value for key, value in values.items() if key not in self.__dict__})

    def as_dict(self) -> dict[str, Any]:
        """Return all entries; without those from files if the files are missing."""
        if "_pending" in self.__dict__:
            with contextlib.suppress(FileNotFoundError):
                self._fill(self.__dict__["_pending"][1]())
        return {key: value for key, value in super().as_dict().items() if key != "_pending"}


def set_dataset(name: str, load: Callable[[], Records], metadata: FileMetadata | dict[str, Any]) -> None:
    """Register a default, or replace it; equal metadata stays the same object.

    A name that other code has registered stays its own, except those that detectron2 registers at its import.
    """
    datasets, described = _datasets(), _metadata()
    builtin = _is_builtin(name)
    if name in DatasetCatalog and not datasets.holds(name) and not builtin:
        logger.info("dataset %s is registered by other code and stays as it is", name)
        return
    datasets.set(name, load)
    held = MetadataCatalog.data.get(name)
    if held is not None and len(vars(held)) > 1 and not described.holds(name) and not builtin:
        return  # other code has set it
    if isinstance(metadata, FileMetadata):
        described.set(name, metadata)
    elif not described.holds(name) or MetadataCatalog.get(name).as_dict() != {"name": name, **metadata}:
        described.set(name, DefaultMetadata(name=name, **metadata))


def _is_builtin(name: str) -> bool:
    """Return whether detectron2 registered a name at its import, with files below the root that it took then."""
    load = DatasetCatalog.data.get(name)
    if load is None or not str(getattr(load, "__module__", "")).startswith("detectron2.data."):
        return False
    from detectron2.data.datasets import builtin

    paths = [value for value in MetadataCatalog.get(name).as_dict().values() if isinstance(value, str)]
    return any(path.startswith(os.path.join(builtin._root, "")) for path in paths)


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
    DatasetCatalog[name] = load
    if MetadataCatalog.get(name).as_dict() != {"name": name, **metadata}:
        MetadataCatalog.pop(name)
        MetadataCatalog.get(name).set(**metadata)
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
