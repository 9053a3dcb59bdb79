"""LabelMe: a .json of shapes for each image."""

from __future__ import annotations

import base64
import binascii
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...errors import BadRecordError
from ...structures.masks import Patch, tighten
from ...utils.file_io import read_json_object
from .coco_data import CocoData, Context, DataBuilder
from .files import Tree, check_side, image_size, split_of
from .shapes import Part, add_object, circle
from .sniffing import json_kind

NAME = "labelme"
LOOKED_FOR = "LabelMe: a .json with shapes and imagePath for each image"

_IGNORED = frozenset({"__ignore__", "_background_"})
_POLYGONS = frozenset({"polygon", "oriented_rectangle", "linestrip_closed"})


def find(tree: Tree) -> list[Path]:
    """Return the annotation files of LabelMe."""
    return [path for path in tree.with_suffix(".json") if json_kind(path) == NAME]


def load(files: Sequence[Path], context: Context) -> dict[str, CocoData]:
    """Read all files; the classes are the labels, sorted by name."""
    builder = DataBuilder(context, NAME)
    skipped: dict[str, int] = {}
    used = set()
    for file in files:
        with context.guard():
            used.add(_add(builder, file, skipped))
    for kind, count in skipped.items():
        context.note(f"{count} shapes of the type {kind!r} are left out: only areas can be trained on")
    if len(files) > 1:
        builder.add_negatives(path for path in context.tree.images if path not in used)
    return builder.finish()


def _add(builder: DataBuilder, file: Path, skipped: dict[str, int]) -> Path:
    content = read_json_object(str(file), lists=("shapes",))
    tree = builder.context.tree
    image = tree.find_image(content.get("imagePath"), file, (file.parent,))
    size = image_size(image)
    if content.get("imageHeight") is not None and content.get("imageWidth") is not None:
        declared = tuple(check_side(content[key], key, file) for key in ("imageHeight", "imageWidth"))
        if declared != size:
            raise BadRecordError(
                file,
                f"was made for an image of {declared[1]}x{declared[0]} pixels (width x height), {image} has "
                f"{size[1]}x{size[0]}",
            )
    split = builder.split(split_of(tree.parts(file)) or split_of(tree.parts(image)))
    image_id = split.add_image(image, size)
    groups: dict[Any, list[tuple[Part, str]]] = {}
    for number, shape in enumerate(content["shapes"]):
        where = f"shapes[{number}]"
        with builder.context.guard():
            label, part, group = _shape(shape, file, where, size)
            if part is None:
                skipped[group] = skipped.get(group, 0) + 1
                continue
            key = (label, group) if group is not None else (label, None, number)
            groups.setdefault(key, []).append((part, where))
    for (label, *_), parts in groups.items():
        with builder.context.guard():
            add_object(split, image_id, label, [part for part, _ in parts], file, parts[0][1])
    return image


def _shape(shape: Any, file: Path, where: str, size: tuple[int, int]) -> tuple[str, Part | None, Any]:
    """Return label, area and group of a shape; without an area what kind of shape it is."""
    if not isinstance(shape, dict) or not isinstance(shape.get("label"), str) or not shape["label"].strip():
        raise BadRecordError(file, "a shape needs a 'label'", where)
    label, kind, group = shape["label"], shape.get("shape_type") or "polygon", shape.get("group_id")
    if label in _IGNORED:
        return label, None, label
    if not isinstance(kind, str):
        raise BadRecordError(file, f"shape_type must be a text, not {str(kind)[:40]}", where)
    if not isinstance(group, (int, str, type(None))):
        raise BadRecordError(file, f"group_id must be a number, not {str(group)[:40]}", where)
    points = _points(shape.get("points"), file, where)
    if kind in _POLYGONS:
        return label, points, group
    if kind == "rectangle" and len(points) == 2:
        (x0, y0), (x1, y1) = points
        return label, [[x0, y0], [x1, y0], [x1, y1], [x0, y1]], group
    if kind == "rectangle" and len(points) == 4:
        return label, points, group
    if kind == "circle" and len(points) == 2:
        (x, y), (edge_x, edge_y) = points
        radius = math.hypot(edge_x - x, edge_y - y)
        return label, circle(x, y, radius, radius), group
    if kind == "mask" and len(points) == 2:
        return label, _mask(shape.get("mask"), points, file, where, size), group
    if kind in ("rectangle", "circle", "mask"):
        raise BadRecordError(file, f"a {kind} has 2 points, this one {len(points)}", where)
    return label, None, str(kind)


def _points(points: Any, file: Path, where: str) -> list[list[float]]:
    if not isinstance(points, list) or not all(isinstance(p, list) and len(p) == 2 for p in points):
        raise BadRecordError(file, "'points' must be a list of [x, y]", where)
    try:
        checked = [[float(x), float(y)] for x, y in points]
    except (TypeError, ValueError, OverflowError) as error:
        raise BadRecordError(file, "'points' holds something that is not a number", where) from error
    if not all(math.isfinite(value) for point in checked for value in point):
        raise BadRecordError(file, "'points' contains NaN or infinity", where)
    return checked


def _mask(data: Any, points: list[list[float]], file: Path, where: str, size: tuple[int, int]) -> Patch:
    """Decode a mask: a PNG in base64, whose top left pixel is the first point."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(data, validate=True)), formats=("PNG",)) as image:
            if image.size[0] > size[1] + 1 or image.size[1] > size[0] + 1:
                raise BadRecordError(file, "the mask is larger than the image", where)
            bits = np.asarray(image.convert("L")) > 0
    except BadRecordError:
        raise
    except (TypeError, binascii.Error) as error:
        raise BadRecordError(file, "the mask is not in base64", where) from error
    except Exception as error:  # of Pillow, on a broken PNG
        raise BadRecordError(file, f"the mask is not a PNG: {error}", where) from error
    left, top = (round(value) for value in points[0])
    if left < 0 or top < 0:
        raise BadRecordError(file, f"the mask starts at {points[0]}, outside of the image", where)
    return tighten(Patch(top, left, bits[: max(0, size[0] - top), : max(0, size[1] - left)]))
