"""Training data written as COCO JSON, which DATASETS.COCO_JSON reads."""

from __future__ import annotations

import os
from pathlib import Path

from ...utils.file_io import write_json
from .coco import ROOT_KEY
from .coco_data import CocoData


def write_coco(data: CocoData, path: str | os.PathLike[str]) -> Path:
    """Write a split as a COCO instance JSON file, atomically; the images stay where they are.

    `DATASETS.COCO_JSON: [[name, path, data.image_root]]` trains on it. "info" holds the directory of the images, so
    that `load_data(path)` finds them again: relative to the file where they lie below the parent of its directory, so
    that both can be moved together, else absolute.

    Returns:
        The path of the file.
    """
    target = Path(os.path.abspath(path))
    root = Path(os.path.abspath(data.image_root))
    near = root.is_relative_to(target.parent.parent) and target.parent.parent != Path(target.anchor)
    shown = Path(os.path.relpath(root, target.parent)).as_posix() if near else str(root)
    info = {"description": f"instance annotations, read from {data.format}", ROOT_KEY: shown}
    return write_json(target, {"info": info, **{k: v for k, v in data.content.items() if k != "info"}})
