"""Files of results: COCO records and documents, label maps, and writing that never leaves half a file."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from pycocotools import mask as mask_util

from mask2former.classes import VOID, ClassTable
from mask2former.files import write_bytes, write_json

if TYPE_CHECKING:
    from mask2former.results import Result


# ------------------------------------------------------------------ COCO
def coco_records(result: Result, image_id: int, task: str) -> list[dict[str, Any]]:
    """The records of `Result.to_coco`; `task` is instance, panoptic or semantic."""
    ids = result.classes.dataset_ids
    if task == "instance":
        found = result.instances
        assert found is not None
        rows = [(ids[k], float(s)) for k, s in zip(found.labels, found.scores, strict=True)]
        rles = encode_masks(found.masks)
    elif task == "panoptic":
        panoptic = result.panoptic
        assert panoptic is not None
        rows = [(ids[s.label], 1.0 if s.score is None else float(s.score)) for s in panoptic.segments]
        rles = encode_masks(np.equal(panoptic.map, s.id) for s in panoptic.segments)
    else:
        present = result.present_classes()
        rows = [(ids[k], 1.0) for k in present]
        assert result.semantic is not None
        rles = encode_masks(np.equal(result.semantic, k) for k in present)
    return [
        {
            "image_id": image_id,
            "category_id": category,
            "bbox": [float(v) for v in mask_util.toBbox(rle)],
            "area": int(mask_util.area(rle)),
            "score": round(score, 6),
            "segmentation": {"size": [int(v) for v in rle["size"]], "counts": rle["counts"].decode("ascii")},
        }
        for (category, score), rle in zip(rows, rles, strict=True)
    ]


class CocoDocument:
    """A COCO file (images, annotations, categories) that grows result by result, without keeping their masks.

    Annotations are complete ground-truth records (id, iscrowd) that also carry their score. Ids start at 1.
    """

    def __init__(self, classes: ClassTable) -> None:
        self._content: dict[str, Any] = {
            "info": {"description": "segmentation results of mask2former"},
            "licenses": [],
            "images": [],
            "annotations": [],
            "categories": classes.categories(),
        }

    def add(self, result: Result, file_name: str | None = None) -> None:
        images, annotations = self._content["images"], self._content["annotations"]
        image = image_record(result, len(images) + 1)
        images.append(image | {"file_name": file_name} if file_name else image)
        for record in result.to_coco(image["id"]):
            annotations.append({"id": len(annotations) + 1, "iscrowd": 0, **record})

    def as_dict(self) -> dict[str, Any]:
        return self._content

    def save(self, path: str | os.PathLike[str]) -> Path:
        return write_json(Path(path), self._content)


def image_record(result: Result, image_id: int) -> dict[str, Any]:
    """The entry of a COCO file's `images`."""
    height, width = result.image.shape[:2]
    name = result.path.name if result.path else f"image_{image_id}"
    return {"id": image_id, "file_name": name, "width": int(width), "height": int(height)}


def encode_masks(masks: Iterable[np.ndarray]) -> list[dict[str, Any]]:
    """Compressed RLE of (H, W) bool masks."""
    return [mask_util.encode(np.asfortranarray(mask.view(np.uint8))) for mask in masks]


# ------------------------------------------------------------------ label maps
def save_masks(result: Result, folder: Path, stem: str) -> list[Path]:
    """The files of `Result.save_masks`."""
    written = []
    if result.instances is not None:
        picture = Image.fromarray(result.instances.label_map())
        written.append(write_picture(folder / f"{stem}_instances.png", picture))
    if result.panoptic is not None:
        ids = result.panoptic.map.astype(np.int64)
        rgb = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
        written.append(write_picture(folder / f"{stem}_panoptic.png", Image.fromarray(rgb)))
        written.append(
            write_json(folder / f"{stem}_panoptic.json", _panoptic_document(result, f"{stem}_panoptic.png"))
        )
    if result.semantic is not None:
        written.append(
            write_picture(folder / f"{stem}_semantic.png", _semantic_picture(result.semantic, result.classes))
        )
    return written


def _panoptic_document(result: Result, file_name: str) -> dict[str, Any]:
    """The COCO panoptic json that belongs to one PNG."""
    assert result.panoptic is not None
    info = []
    for segment, record in zip(result.panoptic.segments, coco_records(result, 1, "panoptic"), strict=True):
        entry = {"id": segment.id, "isthing": int(segment.is_thing), "iscrowd": 0}
        info.append(entry | {key: record[key] for key in ("category_id", "bbox", "area", "score")})
    return {
        "images": [image_record(result, 1)],
        "annotations": [{"image_id": 1, "file_name": file_name, "segments_info": info}],
        "categories": result.classes.categories(),
    }


def _semantic_picture(semantic: np.ndarray, classes: ClassTable) -> Image.Image:
    if len(classes) > VOID:
        return Image.fromarray(np.minimum(semantic, 65535).astype(np.uint16))
    picture = Image.fromarray(np.minimum(semantic, VOID).astype(np.uint8))
    palette = [*classes.colors, *[(0, 0, 0)] * (256 - len(classes))]
    picture.putpalette(np.array(palette, np.uint8).tobytes())
    return picture


# ------------------------------------------------------------------ files
def encode_picture(picture: Image.Image, suffix: str = ".png") -> bytes:
    """The picture as the content of a file with this ending."""
    buffer = io.BytesIO()
    options: dict[str, Any] = {"quality": 92} if suffix in (".jpg", ".jpeg", ".webp") else {}
    picture.save(buffer, format=Image.registered_extensions()[suffix], **options)
    return buffer.getvalue()


def write_picture(path: Path, picture: Image.Image) -> Path:
    return write_bytes(path, encode_picture(picture, path.suffix.lower()))
