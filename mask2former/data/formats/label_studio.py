"""Label Studio: its JSON or JSON-MIN export with polygons, ellipses, rectangles and brush masks, and the images."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np

from ...errors import BadRecordError
from ...structures.masks import bitmap_to_patch
from ...utils.file_io import read_json
from .coco_data import CocoData, Context, DataBuilder
from .files import Tree, check_side, checked_name, image_size, split_of
from .shapes import Part, add_object, circle
from .sniffing import json_kind

NAME = "label_studio"
LOOKED_FOR = "Label Studio: a JSON list of tasks (export JSON or JSON-MIN), and the images"

_KINDS = {
    "polygonlabels": "polygon",
    "brushlabels": "brush",
    "ellipselabels": "ellipse",
    "rectanglelabels": "rectangle",
}
_PREFIX = re.compile(r"^[0-9a-f]{8}-")  # of uploaded files
_MOST_VALUES = 1 << 31


def find(tree: Tree) -> list[Path]:
    """Return the exports of Label Studio."""
    return [path for path in tree.with_suffix(".json") if json_kind(path) == NAME]


def load(files: Sequence[Path], context: Context) -> dict[str, CocoData]:
    """Read all tasks; the classes are the labels, sorted by name."""
    builder = DataBuilder(context, NAME)
    for file in files:
        try:
            tasks = read_json(file, "Label Studio export")
        except ValueError as error:
            raise BadRecordError(file, str(error)) from error
        if not isinstance(tasks, list):
            raise BadRecordError(file, "must contain a list of tasks")
        for number, task in enumerate(tasks):
            with context.guard():
                _add(builder, file, task, f"task {_name(task, number)}")
    return builder.finish()


def _name(task: Any, number: int) -> str:
    given = task.get("id") if isinstance(task, dict) else None
    return str(given) if isinstance(given, int) else f"number {number}"


def _add(builder: DataBuilder, file: Path, task: Any, where: str) -> None:
    if not isinstance(task, dict):
        raise BadRecordError(file, "is not an object", where)
    context = builder.context
    image = _find_image(context.tree, task, file, where)
    size = image_size(image)
    regions = _regions(task, context, file, where)
    if regions is None:
        context.note("tasks without an annotation are left out; submit an empty one for images without objects")
        return
    split = builder.split(split_of([*context.tree.parts(file), file.stem]) or split_of(context.tree.parts(image)))
    image_id = split.add_image(image, size)
    for number, (kind, value, result) in enumerate(_areas(regions, context)):
        place = f"{where}, region {result.get('id', number)}"
        with context.guard():
            label = _label(value, kind, file, place)
            part = _part(kind, value, result, size, file, place)
            add_object(split, image_id, label, [part], file, place)


def _find_image(tree: Tree, task: dict[str, Any], file: Path, where: str) -> Path:
    data = task["data"] if isinstance(task.get("data"), dict) else task
    values = [data[key] for key in ("image", "img", "image_url") if key in data]
    values += [value for value in data.values() if isinstance(value, str) and re.search(r"\.\w{3,4}$", value)]
    if not values:
        raise BadRecordError(file, "has no 'image'", where)
    name = checked_name(values[0], file, where)
    # Uploads, local storage and cloud storage: /data/upload/1/0a1b2c3d-cell.png, /data/local-files/?d=x/cell.png, s3://...
    name = unquote(name.split("?d=")[-1].split("?")[0].split("://")[-1])
    try:
        return tree.find_image(name.lstrip("/"), file, (file.parent,), where)
    except BadRecordError:
        short = _PREFIX.sub("", name.rsplit("/", 1)[-1])
        if short == name.rsplit("/", 1)[-1]:
            raise
        return tree.find_image(short, file, (file.parent,), where)


def _regions(task: dict[str, Any], context: Context, file: Path, where: str) -> list[Any] | None:
    """Return the regions of the first annotation that was not skipped, None where there is none."""
    annotations = task.get("annotations", task.get("completions"))
    if not isinstance(annotations, list):  # JSON-MIN: each control is a key of the task
        lists = [value for value in task.values() if isinstance(value, list)]
        entries = [entry for value in lists for entry in value if isinstance(entry, dict)]
        return [{**entry, "value": entry} for entry in entries] if lists else None
    usable = [entry for entry in annotations if isinstance(entry, dict) and not entry.get("was_cancelled")]
    usable.sort(key=lambda entry: not entry.get("ground_truth"))
    if not usable:
        return None
    if len(usable) > 1:
        context.note("tasks with several annotations: the ground truth, or else the first, is used")
    regions = usable[0].get("result") or []
    if not isinstance(regions, list):
        raise BadRecordError(file, "'result' must be a list", where)
    return regions


def _areas(regions: list[Any], context: Context) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Yield kind, value and region of every region that is an area."""
    for region in regions:
        value = region.get("value") if isinstance(region, dict) else None
        if not isinstance(value, dict):
            continue
        kind = next((name for key, name in _KINDS.items() if key in value), None)
        if kind is None:
            context.note("regions that are not polygons, ellipses, rectangles or brush masks are left out")
            continue
        yield kind, value, region


def _label(value: dict[str, Any], kind: str, file: Path, where: str) -> str:
    labels = value.get(f"{kind}labels")
    if not isinstance(labels, list) or not labels or not isinstance(labels[0], str):
        raise BadRecordError(file, "the region has no label", where)
    return labels[0]


def _part(
    kind: str, value: dict[str, Any], result: dict[str, Any], size: tuple[int, int], file: Path, where: str
) -> Part:
    if kind == "brush":
        return bitmap_to_patch(_brush(value, result, size, file, where), size)
    height, width = size
    try:
        if kind == "polygon":
            return [[float(x) / 100 * width, float(y) / 100 * height] for x, y in value["points"]]
        x, y = float(value["x"]) / 100 * width, float(value["y"]) / 100 * height
        degrees = float(value.get("rotation", 0))
        if kind == "ellipse":
            return circle(x, y, float(value["radiusX"]) / 100 * width, float(value["radiusY"]) / 100 * height, degrees)
        return _rectangle(x, y, float(value["width"]) / 100 * width, float(value["height"]) / 100 * height, degrees)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise BadRecordError(file, f"the {kind} is malformed: {error}", where) from error


def _rectangle(x: float, y: float, width: float, height: float, degrees: float) -> list[list[float]]:
    """Return the corners of a rectangle that is turned clockwise around its top left corner."""
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    corners = ((0, 0), (width, 0), (width, height), (0, height))
    return [[float(x + a * cosine - b * sine), float(y + a * sine + b * cosine)] for a, b in corners]


def _brush(value: dict[str, Any], result: dict[str, Any], size: tuple[int, int], file: Path, where: str) -> np.ndarray:
    rle = value.get("rle")
    width, height = (check_side(result.get(f"original_{k}"), f"original_{k}", file, where) for k in ("width", "height"))
    if (height, width) != size:
        raise BadRecordError(file, f"the mask is {width}x{height} pixels, the image {size[1]}x{size[0]}", where)
    if not isinstance(rle, list) or not all(type(byte) is int and 0 <= byte < 256 for byte in rle):
        raise BadRecordError(file, "'rle' must be a list of bytes", where)
    try:
        values = decode_brush(np.array(rle, dtype=np.uint8), 4 * width * height)
    except ValueError as error:
        raise BadRecordError(file, f"{error}; export the project as COCO instead", where) from error
    return values.reshape(height, width, 4)[:, :, 3] > 0  # red, green, blue, alpha


def decode_brush(data: np.ndarray, expected: int) -> np.ndarray:
    """Decode the bit stream of a brush mask.

    It starts with 32 bits: how many values follow, 5 bits: size of a value less 1, and 4 times 4 bits: sizes of lengths
    less 1. Then come blocks: 1 bit (whether one value is repeated), 2 bits (which of the four sizes), the length less 1
    in so many bits, and one value or as many as the length says. The highest bit comes first.

    Args:
        data: uint8, the bytes.
        expected: number of values that the image needs.

    Returns:
        uint8 (expected,).

    Raises:
        ValueError: another number of values, values of more than 8 bits, or too few bits.
    """
    if expected > _MOST_VALUES:
        raise ValueError("the brush mask is too large")
    bits = np.unpackbits(data)
    place = 0

    def read(count: int) -> int:
        nonlocal place
        if place + count > len(bits):
            raise ValueError("the brush mask is truncated")
        number = int("".join(map(str, bits[place : place + count])), 2)
        place += count
        return number

    total, word = read(32), read(5) + 1
    lengths = [read(4) + 1 for _ in range(4)]
    if total != expected or word > 8:
        raise ValueError(f"the brush mask has {total} values of {word} bits, not {expected} of up to 8")
    values = np.zeros(total, dtype=np.uint8)
    weights = (1 << np.arange(word)[::-1]).astype(np.int64)
    done = 0
    while done < total:
        repeated = read(1)
        length = 1 + read(lengths[read(2)])
        if done + length > total:
            raise ValueError("the brush mask has too many values")
        if repeated:
            values[done : done + length] = read(word)
        else:
            stop = place + length * word
            if stop > len(bits):
                raise ValueError("the brush mask is truncated")
            values[done : done + length] = bits[place:stop].reshape(length, word) @ weights
            place = stop
        done += length
    return values
