"""Polygons of the objects of a result, in the forms that other tools read.

Coordinates are x, y in pixels with (0, 0) at the upper left corner of the image, as in COCO, QuPath, LabelMe and YOLO;
see `structures.polygons`. Outlines are exact unless a `tolerance` simplifies them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from .result_files import encode_image
from .result_objects import HasObjects, ObjectList
from .structures.classes import ClassTable
from .structures.polygons import Polygon, join_holes, join_polygons, signed_area, trace_polygons
from .utils.atomic_file import atomic_write
from .utils.file_io import write_bytes, write_json

# Image formats that LabelMe and Ultralytics read as they are; other images are written as PNG.
_COMMON_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
_MAX_DENSE = 1 << 28  # bytes of masks that are given as one array


# ------------------------------------------------------------------ COCO
def with_polygons(
    records: Iterable[Mapping[str, Any]], objects: ObjectList, tolerance: float = 0.0
) -> list[dict[str, Any]]:
    """Return COCO records with polygons as segmentation, one flat list x0, y0, x1, y1, ... for each part of the object.

    COCO's polygons have no holes. A hole is joined to its outline by a slit of zero width: with tolerance 0,
    pycocotools rasterizes the polygons to exactly the same mask. An object without pixels has no polygon and keeps its
    RLE. Boxes and areas stay those of the mask.
    """
    out = []
    for record, patch in zip(records, objects.masks, strict=True):
        polygons = [join_holes(polygon).ravel().tolist() for polygon in trace_polygons(patch, tolerance)]
        out.append({**record, "segmentation": polygons or record["segmentation"]})
    return out


# ------------------------------------------------------------------ GeoJSON, shapely
def geojson(result: HasObjects, task: str = "auto", *, transform: Sequence[float] | None = None) -> dict[str, Any]:
    """Return a GeoJSON FeatureCollection, ready for `json.dump`.

    Each object is a Polygon with holes, or a MultiPolygon; objects without pixels are left out. QuPath opens the file
    as detections: the properties are `objectType`, `name`, `classification` (name and color), `measurements` (score
    and area); and for other programs `id` (pixel value in the label map), `class`, `score` and `area` (pixels).

    Args:
        result: the result to convert.
        task: "instance", "panoptic" or "semantic"; "auto": the first of these that the result has.
        transform: six numbers a, b, c, d, e, f, or an `affine.Affine` (rasterio's `dataset.transform`), which make
            X = a x + b y + c and Y = d x + e y + f of pixels x, y; the order of GDAL is another one. None: pixels.

    Raises:
        ValueError: a transform of other numbers.
    """
    matrix = _affine(transform)
    objects, colors = result.objects(task), result.classes.colors
    features = []
    for i, patch in enumerate(objects.masks):
        polygons = trace_polygons(patch)
        if not polygons:
            continue
        name, number, area = objects.names[i], int(objects.ids[i]), int(objects.masks.areas[i])
        score = objects.scores[i]
        measurements = {"area px": area} if score is None else {"score": round(score, 6), "area px": area}
        properties = {
            "objectType": "detection",
            "name": f"{name} {number}",
            "classification": {"name": name, "color": [int(value) for value in colors[objects.labels[i]]]},
            "measurements": measurements,
            "id": number,
            "class": name,
            "score": None if score is None else round(score, 6),
            "area": area,
        }
        features.append({"type": "Feature", "geometry": _geometry(polygons, matrix), "properties": properties})
    return {"type": "FeatureCollection", "features": features}


def _affine(transform: Sequence[float] | None) -> np.ndarray | None:
    """Return the transform as (2, 3), or None."""
    if transform is None:
        return None
    numbers = np.array([float(value) for value in transform])
    if len(numbers) not in (6, 9) or not np.isfinite(numbers).all():
        raise ValueError(f"transform must be six numbers a, b, c, d, e, f (or an affine.Affine), not {transform}")
    return numbers[:6].reshape(2, 3)


def _geometry(polygons: Sequence[Polygon], matrix: np.ndarray | None) -> dict[str, Any]:
    parts = [[_closed(ring, matrix, k > 0) for k, ring in enumerate((p.exterior, *p.holes))] for p in polygons]
    if len(parts) == 1:
        return {"type": "Polygon", "coordinates": parts[0]}
    return {"type": "MultiPolygon", "coordinates": parts}


def _closed(ring: np.ndarray, matrix: np.ndarray | None, hole: bool) -> list[list[float]]:
    """Return a ring with its first point once more at the end, in the direction that RFC 7946 asks for."""
    if matrix is not None:
        ring = ring @ matrix[:, :2].T + matrix[:, 2]
        if (signed_area(ring) < 0) != hole:  # the transform mirrors
            ring = ring[::-1]
    return np.concatenate([ring, ring[:1]]).tolist()


def shapely_polygons(result: HasObjects, task: str = "auto") -> list[Any]:
    """Return a valid shapely Polygon or MultiPolygon of each object, an empty Polygon if it has no pixels.

    `.area` is the number of pixels; `.simplify(1.0)` keeps them valid and makes them small.

    Raises:
        ImportError: shapely is not installed; the message has the command.
    """
    try:
        from shapely import MultiPolygon
        from shapely import Polygon as ShapelyPolygon
    except ImportError as error:
        raise ImportError('to_shapely needs shapely: run pip install "shapely>=2.0"') from error
    out = []
    for patch in result.objects(task).masks:
        parts = [ShapelyPolygon(polygon.exterior, polygon.holes) for polygon in trace_polygons(patch)]
        out.append(parts[0] if len(parts) == 1 else MultiPolygon(parts) if parts else ShapelyPolygon())
    return out


# ------------------------------------------------------------------ supervision
def supervision_detections(result: HasObjects, task: str = "auto", *, compact: bool | None = None) -> Any:
    """Return `supervision.Detections`: xyxy, mask, confidence (1 where the model gives none), class_id.

    `data` holds "class_name" and "id" (pixel value in the label map).

    Args:
        result: the result to convert.
        task: "instance", "panoptic" or "semantic"; "auto": the first of these that the result has.
        compact: masks as `supervision.CompactMask` instead of bool (N, H, W); None: if they took more than 256 MiB.

    Raises:
        ImportError: supervision is not installed, or too old; the message has the command.
        MemoryError: the masks do not fit one array and `compact` is False.
    """
    try:
        import supervision
        from supervision import CompactMask
    except ImportError as error:
        raise ImportError('to_supervision needs supervision: run pip install "supervision>=0.30"') from error
    objects = result.objects(task)
    boxes = objects.masks.boxes.astype(np.float32).reshape(-1, 4)
    if compact is None:
        compact = len(objects) * objects.size[0] * objects.size[1] > _MAX_DENSE
    masks: Any
    if not len(objects):
        masks = np.zeros((0, *objects.size), dtype=bool)
    elif compact:
        masks = CompactMask.from_coco_rle(objects.masks.encode(), boxes, objects.size)
    else:
        masks = objects.masks.dense()
    return supervision.Detections(
        xyxy=boxes,
        mask=masks,
        confidence=np.array([1.0 if s is None else s for s in objects.scores], dtype=np.float32),
        class_id=objects.labels.astype(int),
        data={"class_name": np.array(objects.names, dtype=str), "id": objects.ids},
    )


# ------------------------------------------------------------------ LabelMe, YOLO
def labelme_record(
    result: HasObjects, task: str = "auto", *, image_path: str | None = None, tolerance: float = 1.0
) -> dict[str, Any]:
    """Return the content of a LabelMe file: polygons, and the image by its path, not embedded.

    Parts of one object have its id as `group_id`; holes are joined to the outline by a slit, as LabelMe has none. The
    description holds the score.

    Args:
        result: the result to convert.
        task: "instance", "panoptic" or "semantic"; "auto": the first of these that the result has.
        image_path: path of the image relative to the LabelMe file; default: the name of the image file.
        tolerance: pixels by which outlines may move, so that they have few points to drag; 0: exact outlines.
    """
    objects = result.objects(task)
    shapes = []
    for i, patch in enumerate(objects.masks):
        polygons, score = trace_polygons(patch, tolerance), objects.scores[i]
        for polygon in polygons:
            shapes.append(
                {
                    "label": objects.names[i],
                    "points": join_holes(polygon).astype(float).tolist(),
                    "group_id": int(objects.ids[i]) if len(polygons) > 1 else None,
                    "description": "" if score is None else f"score {score:.3f}",
                    "shape_type": "polygon",
                    "flags": {},
                    "mask": None,
                }
            )
    if image_path is None:
        image_path = result.path.name if result.path else "image.png"
    return {
        "version": "5.5.0",
        "flags": {},
        "shapes": shapes,
        "imagePath": image_path,
        "imageData": None,
        "imageHeight": objects.size[0],
        "imageWidth": objects.size[1],
    }


def yolo_lines(result: HasObjects, task: str = "auto", *, tolerance: float = 0.0) -> list[str]:
    """Return lines of a YOLO segmentation label file: class index, then x y of each point in 0..1 of the image's size.

    There is one line for each object, so that counts stay right: parts and holes are joined by slits of zero width, as
    the converters of Ultralytics do. Objects without pixels have no line. The format has no score.
    """
    objects = result.objects(task)
    height, width = objects.size
    lines = []
    for label, patch in zip(objects.labels, objects.masks, strict=True):
        ring = join_polygons(trace_polygons(patch, tolerance)) / (width, height)
        if len(ring):
            lines.append(" ".join([str(int(label)), *(f"{value:.6f}" for value in ring.ravel())]))
    return lines


def save_labelme(
    results: Iterable[HasObjects],
    directory: str | os.PathLike[str],
    *,
    task: str = "auto",
    tolerance: float = 1.0,
    overwrite: bool = False,
) -> list[Path]:
    """Write a LabelMe file for each result; `labelme DIRECTORY` opens them.

    The image is named by its path relative to the directory. Where it is no file that LabelMe reads, it is written
    beside the LabelMe file as PNG. Of images with the same name the later ones get `_2`, `_3`, ...

    Args:
        results: any iterable; one result is in memory at a time.
        directory: where to write; it is made.
        task: see `labelme_record`.
        tolerance: see `labelme_record`.
        overwrite: replace existing LabelMe files, in which there may be corrections by hand.

    Returns:
        The LabelMe files.

    Raises:
        FileExistsError: there is such a file, or an image where a PNG is to be written, and `overwrite` is False.
    """
    directory, names = Path(directory).expanduser(), _Names()
    written = []
    for result in results:
        stem = names.unique(result.path)
        path = directory / f"{stem}.json"
        _check_absent(path, overwrite)
        source = _common_file(result)
        image_path = f"{stem}.png" if source is None else _relative(source, directory)
        if source is None:
            _write_png(directory / image_path, result, overwrite)
        written.append(write_json(path, labelme_record(result, task, image_path=image_path, tolerance=tolerance)))
    return written


def save_yolo(
    results: Iterable[HasObjects],
    directory: str | os.PathLike[str],
    *,
    task: str = "auto",
    tolerance: float = 0.0,
    overwrite: bool = False,
) -> list[Path]:
    """Write a YOLO segmentation dataset: `images/`, `labels/` and `data.yaml`.

    Images are copied, those of other formats written as PNG. `data.yaml` uses all images for training and validation;
    split them before training. Of images with the same name the later ones get `_2`, `_3`, ...

    Args:
        results: any iterable; one result is in memory at a time.
        directory: where to write; it is made.
        task: see `yolo_lines`.
        tolerance: see `yolo_lines`.
        overwrite: replace existing label files, in which there may be corrections by hand.

    Returns:
        The label files, then `data.yaml` (which is not written if there are no results).

    Raises:
        FileExistsError: there is such a label file, or an image where a PNG is to be written, and `overwrite` is False.
        ValueError: the results have different classes.
    """
    directory, names = Path(directory).expanduser(), _Names()
    classes: ClassTable | None = None
    written = []
    for result in results:
        if classes is not None and result.classes.names != classes.names:
            raise ValueError(f"{directory}: the results come from models with different classes")
        classes = result.classes
        stem = names.unique(result.path)
        path = directory / "labels" / f"{stem}.txt"
        _check_absent(path, overwrite)
        source = _common_file(result)
        if source is None:
            _write_png(directory / "images" / f"{stem}.png", result, overwrite)
        else:
            _copy(source, directory / "images" / f"{stem}{source.suffix}")
        text = "".join(f"{line}\n" for line in yolo_lines(result, task, tolerance=tolerance))
        written.append(write_bytes(path, text.encode()))
    if classes is not None:
        content = {"train": "images", "val": "images", "names": dict(enumerate(classes.names))}
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        head = "# All images are in both sets: split them before training.\n"
        written.append(write_bytes(directory / "data.yaml", (head + text).encode()))
    return written


class _Names:
    """Names for files of one directory, without repetition; case does not count, as on macOS and Windows."""

    def __init__(self) -> None:
        self._used: set[str] = set()

    def unique(self, path: Path | None) -> str:
        stem = path.stem if path else "image"
        name, number = stem, 1
        while name.lower() in self._used:
            number += 1
            name = f"{stem}_{number}"
        self._used.add(name.lower())
        return name


def _common_file(result: HasObjects) -> Path | None:
    """Return the file that shows the image in other programs; None if there is none, as for a page of a stack."""
    path = result.path
    if path is None or getattr(result, "page", None) is not None or path.suffix.lower() not in _COMMON_SUFFIXES:
        return None
    return path if path.is_file() else None


def _write_png(path: Path, result: HasObjects, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists and may be another image; choose another directory, or overwrite=True")
    write_bytes(path, encode_image(Image.fromarray(result.image)))


def _check_absent(path: Path, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise FileExistsError(
            f"{path} exists and may have been corrected by hand; choose another directory, or pass overwrite=True"
        )


def _relative(path: Path, directory: Path) -> str:
    try:
        return Path(os.path.relpath(path.resolve(), directory.resolve())).as_posix()
    except ValueError:  # another drive on Windows
        return path.resolve().as_posix()


def _copy(source: Path, target: Path) -> None:
    if target.exists() and target.samefile(source):
        return
    with source.open("rb") as original, atomic_write(target) as file:
        shutil.copyfileobj(original, file)
