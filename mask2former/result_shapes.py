"""Polygons of the objects of a result, in the forms that other tools read.

Coordinates are x, y in pixels with (0, 0) at the upper left corner of the image, as in COCO, QuPath, LabelMe and YOLO;
see `structures.polygons`. Outlines are exact unless a `tolerance` simplifies them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .result_labels import labelme_record, save_labelme, save_yolo, yolo_lines
from .result_objects import HasObjects, ObjectList
from .structures.polygons import Polygon, join_holes, signed_area, trace_polygons

__all__ = [
    "geojson",
    "labelme_record",
    "save_labelme",
    "save_yolo",
    "shapely_polygons",
    "supervision_detections",
    "with_polygons",
    "yolo_lines",
]

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
