"""A tiny dataset in the COCO panoptic format, whose masks are known without reading it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 36, 48
# Per region its segment id and category. Id 0 is void; two regions of one id are an object in two pieces.
REGIONS = {
    "000000000017.png": [(7, 1), (256, 1), (70000, 18), (7, 1), (0, 0), (16777215, 92), (300, 90), (65536, 200)],
    "000000000023.png": [(9, 44), (511, 44), (131072, 1), (0, 0), (3000000, 92), (80, 184), (511, 44), (81, 200)],
}
CROWDS = (256, 131072)
CATEGORIES = [
    *({"id": number, "name": name, "isthing": 1} for number, name in ((1, "person"), (18, "dog"), (44, "bottle"))),
    *({"id": number, "name": name, "isthing": 0} for number, name in ((92, "banner"), (184, "tree-merged"))),
    {"id": 90, "name": "toothbrush", "isthing": 1},
    {"id": 200, "name": "rug-merged", "isthing": 0},
]


@dataclass(frozen=True)
class PanopticSample:
    """Two images of WIDTH x HEIGHT pixels, with void and one crowd region each.

    Attributes:
        json_file, image_dir, panoptic_dir: the dataset on disk.
        content: what the JSON holds.
        masks: file name of a panoptic PNG -> segment id -> bool (HEIGHT, WIDTH).
    """

    json_file: Path
    image_dir: Path
    panoptic_dir: Path
    content: dict[str, Any]
    masks: dict[str, dict[int, np.ndarray]]

    def truths(self) -> list[tuple[str, dict[str, Any], np.ndarray]]:
        """PNG name, entry of segments_info and mask of each segment."""
        return [
            (annotation["file_name"], segment, self.masks[annotation["file_name"]][segment["id"]])
            for annotation in self.content["annotations"]
            for segment in annotation["segments_info"]
        ]


def write_panoptic_sample(root: Path) -> PanopticSample:
    """Draw the dataset below `root`: each pixel belongs to the nearest of eight random points."""
    image_dir, panoptic_dir, json_file = root / "images", root / "panoptic", root / "panoptic.json"
    image_dir.mkdir(parents=True)
    panoptic_dir.mkdir()
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    images, annotations, all_masks = [], [], {}
    for number, (name, regions) in enumerate(REGIONS.items()):
        centers = np.random.default_rng(number).integers(0, (HEIGHT, WIDTH), (len(regions), 2))
        distances = [(rows - row) ** 2 + (columns - column) ** 2 for row, column in centers.tolist()]
        nearest = np.argmin(distances, axis=0)
        masks: dict[int, np.ndarray] = {}
        categories: dict[int, int] = {}
        png = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        for region, (segment, category) in enumerate(regions):
            if segment == 0:
                continue
            hit = nearest == region
            masks[segment] = masks.get(segment, False) | hit
            categories[segment] = category
            png[hit] = (segment & 255, segment >> 8 & 255, segment >> 16)
        Image.fromarray(png).save(panoptic_dir / name)
        Image.fromarray(255 - png).save(image_dir / name.replace("png", "jpg"))
        segments = [_segment(key, categories[key], mask) for key, mask in masks.items()]
        images.append({"id": int(name[:-4]), "file_name": name.replace("png", "jpg"), "height": HEIGHT, "width": WIDTH})
        annotations.append({"image_id": int(name[:-4]), "file_name": name, "segments_info": segments})
        all_masks[name] = masks
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    json_file.write_text(json.dumps(content))
    return PanopticSample(json_file, image_dir, panoptic_dir, content, all_masks)


def _segment(number: int, category: int, mask: np.ndarray) -> dict[str, Any]:
    row, column = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
    top, left, bottom, right = (int(v) for v in (row[0], column[0], row[-1] + 1, column[-1] + 1))
    box = [left, top, right - left, bottom - top]
    crowd = int(number in CROWDS)
    return {"id": number, "category_id": category, "area": int(mask.sum()), "bbox": box, "iscrowd": crowd}
