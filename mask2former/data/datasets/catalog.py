"""Names in detectron2's catalogs that can be set again, and checks of the files behind them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

Records = list[dict[str, Any]]

# Set by `register_all`.
_state = {"root": os.path.expanduser(os.environ.get("DETECTRON2_DATASETS", "datasets"))}


def dataset_root() -> str:
    """The folder below which the datasets lie: the last one given to `register_all`."""
    return _state["root"]


def set_dataset_root(root: str | os.PathLike[str] | None) -> str:
    """Set the folder of the datasets; None takes the variable DETECTRON2_DATASETS (default "datasets")."""
    chosen = os.fspath(root) if root is not None else os.environ.get("DETECTRON2_DATASETS", "datasets")
    _state["root"] = os.path.expanduser(chosen)
    return _state["root"]


def set_dataset(name: str, load: Callable[[], Records], metadata: dict[str, Any]) -> None:
    """Register a name, or set it anew; metadata that is the same stays the same object.

    detectron2 refuses to register a name twice and to change a metadata value, so the entries are replaced.
    """
    DatasetCatalog[name] = load
    if MetadataCatalog.get(name).as_dict() != {"name": name, **metadata}:
        MetadataCatalog.pop(name)
        MetadataCatalog.get(name).set(**metadata)


def require_files(name: str, paths: Iterable[str], layout: str) -> None:
    """Check that files and folders of a dataset exist.

    Args:
        name: of the dataset.
        paths: what must exist.
        layout: the expected folders, shown in the message.

    Raises:
        FileNotFoundError: naming dataset, path, the expected folders and how to set the root.
    """
    for path in paths:
        if not os.path.exists(path):
            raise FileNotFoundError(
                f"dataset {name!r}: {path} does not exist. Expected:\n\n{layout}\n\n"
                "The root is the environment variable DETECTRON2_DATASETS (default ./datasets), "
                "or the argument of mask2former.data.register_all(root). See datasets/README.md."
            )
