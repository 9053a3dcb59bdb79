"""The methods of `Result` that convert it to tables and shapes, and that write it to files."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from . import result_files, result_shapes, result_tables
from .data.image_io import LABEL_MAP_SUFFIXES, WRITABLE_SUFFIXES
from .result_objects import HasObjects
from .utils.file_io import write_json

KINDS = ("image", "labels", "coco", "table", "geojson", "masks")
_KIND_OF_SUFFIX = {".json": "coco", ".csv": "table", ".geojson": "geojson"}


class Exportable(HasObjects, Protocol):
    """What saving needs of a `Result`."""

    @property
    def size(self) -> tuple[int, int]:
        """Return height and width of the image."""

    def draw(self, *args: Any, **options: Any) -> Image.Image:
        """Draw the result over the image."""

    def to_coco(
        self, image_id: int = 1, task: str = "auto", *, polygons: bool = False, tolerance: float = 0.0
    ) -> list[dict[str, Any]]:
        """Return COCO result records."""

    def save_masks(self, directory: str | os.PathLike[str], stem: str | None = None) -> list[Path]:
        """Write label maps into a directory."""


def kind_of(path: Path) -> str:
    """Return what a file or directory of this name holds: one of `KINDS`.

    Raises:
        ValueError: unknown suffix.
    """
    stem, suffix = path.stem.lower(), path.suffix.lower()
    if path.is_dir() or not suffix:
        return "masks"
    if suffix in _KIND_OF_SUFFIX:
        return _KIND_OF_SUFFIX[suffix]
    if suffix not in WRITABLE_SUFFIXES:
        known = " ".join([*sorted(WRITABLE_SUFFIXES), *_KIND_OF_SUFFIX])
        raise ValueError(f"{path}: unknown suffix {path.suffix!r}; use {known} or a directory")
    is_label_map = suffix in LABEL_MAP_SUFFIXES - {".bmp"} and (stem == "labels" or stem.endswith("_labels"))
    return "labels" if is_label_map else "image"


class ResultExports:
    """Conversions and files; `Result` derives from it."""

    def to_rows(
        self: HasObjects,
        task: str = "auto",
        *,
        intensity: bool | np.ndarray = False,
        pixel_size: float | None = None,
        image: str | None = None,
    ) -> list[dict[str, Any]]:
        """Return one dictionary for each object; see `result_tables.rows` for arguments and columns."""
        return result_tables.rows(self, task, intensity=intensity, pixel_size=pixel_size, image=image)

    def to_dataframe(
        self: HasObjects,
        task: str = "auto",
        *,
        intensity: bool | np.ndarray = False,
        pixel_size: float | None = None,
        image: str | None = None,
    ) -> Any:
        """Return a pandas DataFrame with one row for each object; see `result_tables.rows` for arguments and columns.

        Raises:
            ImportError: pandas is not installed; the message has the command.
        """
        table = result_tables.rows(self, task, intensity=intensity, pixel_size=pixel_size, image=image)
        return result_tables.dataframe(table, result_tables.columns_of(intensity, pixel_size))

    def to_geojson(self: HasObjects, task: str = "auto", *, transform: Sequence[float] | None = None) -> dict[str, Any]:
        """Return a GeoJSON FeatureCollection of polygons with holes; see `result_shapes.geojson`."""
        return result_shapes.geojson(self, task, transform=transform)

    def to_shapely(self: HasObjects, task: str = "auto") -> list[Any]:
        """Return a valid shapely Polygon or MultiPolygon of each object; see `result_shapes.shapely_polygons`."""
        return result_shapes.shapely_polygons(self, task)

    def to_supervision(self: HasObjects, task: str = "auto", *, compact: bool | None = None) -> Any:
        """Return `supervision.Detections`; see `result_shapes.supervision_detections`."""
        return result_shapes.supervision_detections(self, task, compact=compact)

    def save(self: Exportable, path: str | os.PathLike[str], kind: str | None = None, **options: Any) -> list[Path]:
        """Write the result, atomically, in the format of the path's suffix.

        | name | `kind` | content | `options` |
        |---|---|---|---|
        | `.png`, `.jpg`, `.webp`, `.tif`, ... | image | the drawn image | arguments of `draw` |
        | `labels.tif`, `*_labels.tif`, also `.png` | labels | label map: 0 background, else the id of the object; 16 bits, as TIFF 32 bits for ids above 65,535 | `task` |
        | `.json` | coco | a COCO file with one image | `task`, `polygons`, `tolerance`: see `to_coco` |
        | `.csv` | table | one row for each object | arguments of `to_rows` |
        | `.geojson` | geojson | polygons with holes | arguments of `to_geojson` |
        | a directory (no suffix, or it exists) | masks | label maps as PNG, see `save_masks` | |

        Args:
            path: the file or directory.
            kind: None: by the name of the file, as in the table; otherwise one of image, labels, coco, table, geojson,
                masks.
            options: see the table.

        Returns:
            The files written.

        Raises:
            ValueError: unknown suffix or kind, or a kind that such a file cannot hold.
        """  # noqa: E501
        path = Path(path).expanduser()
        kind = kind_of(path) if kind is None else kind
        if kind == "masks":
            return self.save_masks(path, **options)
        if kind not in _WRITERS:
            raise ValueError(f"kind must be {', '.join(KINDS)}, not {kind!r}")
        return [_WRITERS[kind](self, path, **options)]


def _save_image(result: Exportable, path: Path, **drawing: Any) -> Path:
    if path.suffix.lower() not in WRITABLE_SUFFIXES:
        raise ValueError(f"{path}: an image is written as {' '.join(sorted(WRITABLE_SUFFIXES))}, not {path.suffix!r}")
    return result_files.write_image(path, result.draw(**drawing))


def _save_labels(result: Exportable, path: Path, task: str = "auto") -> Path:
    return result_files.write_label_map(path, result.objects(task).label_map())


def _save_coco(result: Exportable, path: Path, **options: Any) -> Path:
    coco_file = result_files.CocoDocument(result.classes)
    coco_file.add(result.to_coco(**options), result.size, result.path.name if result.path else None)
    return coco_file.save(path)


def _save_table(result: Exportable, path: Path, task: str = "auto", **options: Any) -> Path:
    names = result_tables.columns_of(options.get("intensity", False), options.get("pixel_size"))
    return result_tables.write_table(path, result_tables.rows(result, task, **options), names)


def _save_geojson(result: Exportable, path: Path, task: str = "auto", **options: Any) -> Path:
    return write_json(path, result_shapes.geojson(result, task, **options))


_WRITERS: dict[str, Callable[..., Path]] = {
    "image": _save_image,
    "labels": _save_labels,
    "coco": _save_coco,
    "table": _save_table,
    "geojson": _save_geojson,
}
