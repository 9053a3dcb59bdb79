"""The datasets discs_train and discs_val: images that are drawn at the first use. Put your own `records` here."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as coco_mask
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image

ROOT = Path("data")
SIZE = 96


def records(name: str, count: int) -> list[dict[str, Any]]:
    """Return the records of a dataset: per image its file, size and objects, with class indices from 0."""
    (ROOT / name).mkdir(parents=True, exist_ok=True)
    return [_draw(ROOT / name / f"{i}.png", i, np.random.default_rng([count, i])) for i in range(count)]


def _draw(path: Path, number: int, random: np.random.Generator) -> dict[str, Any]:
    x, y = np.meshgrid(np.arange(SIZE), np.arange(SIZE))
    image, annotations = random.integers(0, 60, (SIZE, SIZE, 3), dtype=np.uint8), []
    for left in (16, 64):
        radius, top = random.integers(8, 16), random.integers(20, 76)
        mask = (x - left) ** 2 + (y - top) ** 2 < radius**2
        image[mask] += np.uint8(150)
        box = [left - radius, top - radius, 2 * radius, 2 * radius]
        annotations.append({"id": 2 * number + len(annotations) + 1, "category_id": 0, "iscrowd": 0, "bbox": box})
        rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))  # or a list of polygons
        annotations[-1] |= {"bbox_mode": BoxMode.XYWH_ABS, "segmentation": rle}
    if not path.exists():
        Image.fromarray(image).save(path)
    return {"file_name": str(path), "image_id": number, "height": SIZE, "width": SIZE, "annotations": annotations}


for name, count in (("discs_train", 40), ("discs_val", 10)):
    DatasetCatalog.register(name, partial(records, name, count))
    MetadataCatalog.get(name).set(thing_classes=["disc"], evaluator_type="coco")
