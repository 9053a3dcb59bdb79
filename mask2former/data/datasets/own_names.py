"""Dataset names of the user's own: registered once, changed when their files change, and never over another's."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from .catalog import Records, dataset_root, set_dataset

_registered: dict[str, tuple] = {}  # name -> what it was registered with, and the state of its files


def register_own(name: str, state: tuple, describe: Callable[[], tuple[Callable[[], Records], dict[str, Any]]]) -> None:
    """Register a name of the user's own; a second call with the same state does nothing, with another replaces it.

    Args:
        name: for DATASETS.TRAIN and DATASETS.TEST.
        state: everything on which the dataset depends; the first entry is a file or folder, for messages.
        describe: gives the loader and the metadata; called when there is something new.

    Raises:
        ValueError: the name is taken by other code.
    """
    if name not in _registered and name in DatasetCatalog:
        raise ValueError(f"the dataset name {name!r} is already in use, choose another for {state[0]}")
    if _registered.get(name) == state and name in DatasetCatalog:
        return
    load, metadata = describe()
    set_dataset(name, load, metadata)
    _registered[name] = state


def unregister(name: str) -> None:
    """Forget a name of the user's own; others are left alone."""
    if _registered.pop(name, None) is not None:
        DatasetCatalog.pop(name, None)
        MetadataCatalog.pop(name, None)


def locate(path: str | os.PathLike[str]) -> str:
    """Absolute path of a file or folder of the user: as given, or below the dataset root.

    Raises:
        FileNotFoundError: naming both places.
    """
    given = os.path.expanduser(os.fspath(path))
    candidates = [given] if os.path.isabs(given) else [given, os.path.join(dataset_root(), given)]
    for candidate in candidates:
        if os.path.exists(candidate):
            return os.path.abspath(candidate)
    tried = " nor ".join(os.path.abspath(candidate) for candidate in candidates)
    raise FileNotFoundError(f"found neither {tried}" if len(candidates) > 1 else f"{tried} does not exist")


def file_state(path: str) -> tuple:
    """Changes when the file is written again."""
    status = os.stat(path)
    return path, status.st_mtime_ns, status.st_size
