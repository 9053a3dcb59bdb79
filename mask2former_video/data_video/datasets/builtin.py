"""Registration of the names of YouTube-VIS, as defaults, with annotations listed by frame."""

from __future__ import annotations

import os
from typing import Any

from ..._sibling import core
from .ytvis import load_ytvis_json

_ytvis = core("data.datasets.ytvis")
_catalog = core("data.datasets.catalog")

# Name -> directory of the frames and JSON file, below the root.
_PREDEFINED_SPLITS_YTVIS_2019 = _ytvis.ytvis_splits("ytvis_2019")
_PREDEFINED_SPLITS_YTVIS_2021 = _ytvis.ytvis_splits("ytvis_2021")


def register_all_ytvis_2019(root: str | os.PathLike[str]) -> None:
    """Register YouTube-VIS 2019 below `root`; names that other code registered stay its own."""
    _ytvis.register_ytvis_family(os.fspath(root), "ytvis_2019", _load)


def register_all_ytvis_2021(root: str | os.PathLike[str]) -> None:
    """Register YouTube-VIS 2021 below `root`; names that other code registered stay its own."""
    _ytvis.register_ytvis_family(os.fspath(root), "ytvis_2021", _load)


def _load(name: str, layout: str, json_file: str, image_root: str) -> list[dict[str, Any]]:
    _catalog.require_files(name, [json_file, image_root], layout)
    return load_ytvis_json(json_file, image_root, name)


def _register() -> None:
    root = _catalog.dataset_root()
    register_all_ytvis_2019(root)
    register_all_ytvis_2021(root)


_by_frame = core("video_registration").YTVIS_BY_FRAME
_by_frame.add(_register)
_by_frame.activate()
