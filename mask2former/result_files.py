"""Result files: COCO records and files, label maps and images; all are written atomically."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as mask_util

from .structures.classes import VOID, ClassTable
from .structures.panoptic_ids import id_to_rgb
from .structures.rle import Rle
from .utils.file_io import write_bytes, write_json

Size = tuple[int, int]  # height and width in pixels


# ------------------------------------------------------------------ COCO
def coco_records(image_id: int, rows: Iterable[tuple[int, float]], rles: Iterable[Rle]) -> list[dict[str, Any]]:
    """Return COCO result records with box and area.

    Args:
        image_id: image id of all records.
        rows: category id and score of each object.
        rles: the mask of each object, as `structures.rle.encode_masks` returns them.
    """
    return [
        {
            "image_id": image_id,
            "category_id": category,
            "bbox": [float(v) for v in mask_util.toBbox(rle)],
            "area": int(mask_util.area(rle)),
            "score": round(score, 6),
            "segmentation": rle,
        }
        for (category, score), rle in zip(rows, rles, strict=True)
    ]


def image_record(image_id: int, file_name: str | None, size: Size) -> dict[str, Any]:
    """Return the entry of a COCO file's `images`; without a name it is `"image_<id>"`."""
    height, width = size
    return {"id": image_id, "file_name": file_name or f"image_{image_id}", "width": int(width), "height": int(height)}


class CocoDocument:
    """A COCO file (images, annotations, categories) that grows image by image, without keeping masks.

    Annotations have the fields of ground truth (id, iscrowd) and a score. Ids start at 1.
    """

    def __init__(self, classes: ClassTable) -> None:
        self._content: dict[str, Any] = {
            "info": {"description": "segmentation results of mask2former"},
            "licenses": [],
            "images": [],
            "annotations": [],
            "categories": classes.categories(),
        }

    def add(self, records: Iterable[Mapping[str, Any]], size: Size, file_name: str | None = None) -> None:
        """Add an image of `size` and its result records, whose image ids become that of the new image."""
        images, annotations = self._content["images"], self._content["annotations"]
        image = image_record(len(images) + 1, file_name, size)
        images.append(image)
        for record in records:
            number = {"id": len(annotations) + 1, "iscrowd": 0}
            annotations.append({**number, **record, "image_id": image["id"]})

    def as_dict(self) -> dict[str, Any]:
        """Return the content that `save` writes."""
        return self._content

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the file and return its path."""
        return write_json(Path(path).expanduser(), self._content)


# ------------------------------------------------------------------ label maps
def write_label_map(path: Path, label_map: np.ndarray) -> Path:
    """Write a label map (H, W), nonnegative integers, with 16 bits (TIFF, PNG) or 32 bits (TIFF); return the path.

    Raises:
        ValueError: another suffix, or values above 65,535 for a PNG.
    """
    suffix, largest = path.suffix.lower(), int(label_map.max(initial=0))
    if suffix not in (".png", ".tif", ".tiff"):
        raise ValueError(f"{path}: label maps are written as .tif or .png, not {path.suffix!r}")
    if largest < 1 << 16:
        return write_image(path, Image.fromarray(label_map.astype(np.uint16)))
    if suffix == ".png":
        raise ValueError(f"{path}: {largest} is too large for the 16 bits of a PNG; use the suffix .tif")
    return write_image(path, Image.fromarray(label_map.astype(np.int32)))  # Pillow writes no unsigned 32 bits


def write_panoptic(
    path: Path, ids: np.ndarray, segments: Sequence[Mapping[str, Any]], image: Mapping[str, Any], classes: ClassTable
) -> list[Path]:
    """Write a panoptic PNG and beside it its COCO panoptic JSON; return both paths.

    Args:
        path: path of the PNG.
        ids: (H, W) integer segment ids, 0 where there is no segment.
        segments: entries of "segments_info".
        image: entry of "images", as `image_record` returns it.
        classes: the classes to list as categories.
    """
    annotation = {"image_id": image["id"], "file_name": path.name, "segments_info": list(segments)}
    content = {"images": [image], "annotations": [annotation], "categories": classes.categories()}
    return [
        write_image(path, Image.fromarray(id_to_rgb(ids))),
        write_json(path.with_suffix(".json"), content),
    ]


def semantic_image(semantic: np.ndarray, classes: ClassTable) -> Image.Image:
    """Return a label map (H, W) as an image: 8 bits with the class colors as palette, or 16 bits for many classes."""
    if len(classes) > VOID:
        return Image.fromarray(np.minimum(semantic, 65535).astype(np.uint16))
    image = Image.fromarray(np.minimum(semantic, VOID).astype(np.uint8))
    palette = [*classes.colors, *[(0, 0, 0)] * (256 - len(classes))]
    image.putpalette(np.array(palette, np.uint8).tobytes())
    return image


# ------------------------------------------------------------------ images
class UniqueNames:
    """Stems for the files of one directory, without repetition; case does not count, as on macOS and Windows."""

    def __init__(self) -> None:
        self._used: set[str] = set()

    def unique(self, stem: str) -> str:
        """Return the stem, with `_2`, `_3`, ... if it was returned before."""
        name, number = stem, 1
        while name.casefold() in self._used:
            number += 1
            name = f"{stem}_{number}"
        self._used.add(name.casefold())
        return name


def encode_image(image: Image.Image, suffix: str = ".png") -> bytes:
    """Encode an image in the file format of `suffix`."""
    buffer = io.BytesIO()
    options: dict[str, Any] = {"quality": 92} if suffix in (".jpg", ".jpeg", ".webp") else {}
    if suffix in (".tif", ".tiff") and image.mode.startswith("I"):  # label maps have large areas of one value
        options["compression"] = "tiff_adobe_deflate"
    image.save(buffer, format=Image.registered_extensions()[suffix], **options)
    return buffer.getvalue()


def write_image(path: Path, image: Image.Image) -> Path:
    """Write an image file and return its path."""
    return write_bytes(path, encode_image(image, path.suffix.lower()))
