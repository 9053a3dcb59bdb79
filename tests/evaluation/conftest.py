"""Small random and hand-made ground truth for the evaluators."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image


def rle(mask: np.ndarray) -> dict[str, Any]:
    encoded = mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode()}


def _random_mask(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    mask = np.zeros((h, w), np.uint8)
    y, x = rng.integers(0, h - 3), rng.integers(0, w - 3)
    mask[y : y + rng.integers(1, h // 2), x : x + rng.integers(1, w // 2)] = 1
    if rng.random() < 0.3:
        mask ^= (rng.random(mask.shape) < 0.02).astype(np.uint8)
    return mask


def _truth_of(rng: np.random.Generator, mask: np.ndarray, polygons: bool) -> dict[str, Any]:
    encoded = rle(mask)
    crowd = int(rng.random() < 0.15)
    box = mask_util.toBbox(encoded).tolist()
    segmentation: Any = encoded
    if polygons and not crowd and rng.random() < 0.4:
        x, y, w, h = box
        segmentation = [[x, y, x + w, y + 0.3, x + w * 0.9, y + h, x, y + h]]
    # areas that have little to do with the mask reach every size class
    area = float(mask_util.area(encoded)) * float(rng.choice([1, 20, 400]))
    return {"iscrowd": crowd, "area": area, "bbox": box, "segmentation": segmentation}


@pytest.fixture
def random_coco() -> Callable[..., tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Return a function (seed, images, classes, truths, detections) -> annotations and results with many ties."""

    def make(
        seed: int,
        images: int = 3,
        classes: int = 2,
        truths: int = 10,
        detections: int = 25,
        ties: bool = True,
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        rng = np.random.default_rng(seed)
        height, width = 40, 47
        categories = [{"id": 3 * c + 2, "name": f"class {c}"} for c in range(classes)]
        records = [{"id": i + 1, "height": height, "width": width} for i in range(images)]
        annotations: list[dict[str, Any]] = []
        results: list[dict[str, Any]] = []
        for image in records:
            pool = [_random_mask(rng, height, width) for _ in range(5)]

            def draw(pool: list[np.ndarray] = pool) -> np.ndarray:
                return pool[rng.integers(5)] if rng.random() < 0.6 else _random_mask(rng, height, width)

            for _ in range(rng.integers(0, truths + 1)):
                category = int(rng.choice(categories)["id"])
                record = {"id": len(annotations) + 1, "image_id": image["id"], "category_id": category}
                annotations.append({**record, **_truth_of(rng, draw(), polygons=True)})
            for _ in range(rng.integers(0, detections + 1)):
                score = float(rng.integers(0, 6)) / 6 if ties else float(np.float32(rng.random()))
                category = int(rng.choice(categories)["id"])
                result = {"image_id": image["id"], "category_id": category, "score": score}
                results.append({**result, "segmentation": rle(draw())})
        return {"images": records, "categories": categories, "annotations": annotations}, results

    return make


@pytest.fixture
def register() -> Iterator[Callable[..., str]]:
    """Register a dataset for one test: (name, records, **metadata) -> name."""
    names: list[str] = []

    def add(name: str, records: list[dict[str, Any]] | None = None, **metadata: Any) -> str:
        DatasetCatalog.register(name, lambda: [dict(r) for r in records or []])
        MetadataCatalog.get(name).set(**metadata)
        names.append(name)
        return name

    yield add
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def _label_blobs(rng: np.random.Generator, h: int, w: int, count: int) -> np.ndarray:
    """Draw (h, w) labels 0..count: overlapping rectangles."""
    labels = np.zeros((h, w), np.int64)
    for label in range(1, count + 1):
        y, x = rng.integers(0, h - 2), rng.integers(0, w - 2)
        labels[y : y + rng.integers(2, h), x : x + rng.integers(2, w)] = label
    return labels


def write_panoptic(path: Path, ids: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rgb = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
    Image.fromarray(rgb).save(path)


CATEGORIES = [{"id": 10 * i + 7, "name": f"c{i}", "isthing": int(i < 3)} for i in range(6)]


@pytest.fixture
def random_panoptic(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Return a function (seed, images) -> annotation file, PNG directory, content, [(ids (h, w), segments)]."""

    def make(seed: int, images: int = 4, h: int = 24, w: int = 31, segments: int = 8) -> dict[str, Any]:
        rng = np.random.default_rng(seed)
        directory = tmp_path / f"truth_{seed}"
        content: dict[str, Any] = {"images": [], "annotations": [], "categories": CATEGORIES[:5]}
        predictions = []
        for i in range(images):
            labels = _label_blobs(rng, h, w, int(rng.integers(0, segments + 1)))
            present = [n for n in np.unique(labels) if n]
            values = rng.choice(np.arange(1, 256**3), size=len(present), replace=False)
            ids = np.zeros_like(labels)
            infos = []
            for n, value in zip(present, values, strict=True):
                if rng.random() < 0.1:
                    continue  # void
                ids[labels == n] = value
                if rng.random() < 0.05:
                    continue  # in the PNG, not in the JSON
                category = int(rng.choice(content["categories"])["id"])
                area = int((labels == n).sum())
                crowd = int(rng.random() < 0.25)
                infos.append({"id": int(value), "category_id": category, "area": area, "iscrowd": crowd})
            name = f"{i:04d}.png"
            write_panoptic(directory / name, ids)
            content["images"].append({"id": i, "file_name": f"{i:04d}.jpg", "height": h, "width": w})
            content["annotations"].append({"image_id": i, "file_name": name, "segments_info": infos})
            predictions.append(_perturbed(rng, labels, ids, infos, content["categories"]))
        json_file = tmp_path / f"truth_{seed}.json"
        json_file.write_text(json.dumps(content))
        return {"json": str(json_file), "root": str(directory), "content": content, "predictions": predictions}

    return make


def _perturbed(
    rng: np.random.Generator, labels: np.ndarray, ids: np.ndarray, infos: list[dict], categories: list[dict]
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Derive a prediction from the ground truth: shifted, with wrong classes and extra segments."""
    moved = np.roll(labels, int(rng.integers(0, 3)), axis=int(rng.integers(0, 2)))
    extra = _label_blobs(rng, *labels.shape, 3) + 100
    moved = np.where(rng.random(labels.shape) < 0.05, extra, moved)
    category_of = {n: i["category_id"] for i in infos for n in np.unique(labels[ids == i["id"]])}
    result = np.zeros_like(labels)
    segments: list[dict[str, Any]] = []
    for n in np.unique(moved):
        if n == 0 or rng.random() < 0.1:
            continue
        category = category_of.get(n, int(rng.choice(categories)["id"]))
        segments.append({"id": len(segments) + 1, "category_id": category})
        result[moved == n] = len(segments)
    return result, segments
