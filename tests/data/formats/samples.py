"""Small annotated images, and writers of each format that `mask2former.data.formats` reads."""

from __future__ import annotations

import base64
import io
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from mask2former.structures.masks import bitmap_to_patch, segmentation_to_mask
from mask2former.structures.rle import encode_patches

SIZE = (64, 96)  # height, width


class Thing(NamedTuple):
    """An object: class name and polygon (P, 2) in pixels."""

    name: str
    polygon: np.ndarray

    def mask(self) -> np.ndarray:
        """Return bool (H, W)."""
        return segmentation_to_mask([self.polygon.reshape(-1).tolist()], SIZE)


Sample = dict[str, list[Thing]]  # stem of the image -> its objects


def sample(seed: int = 0, images: int = 2, classes: tuple[str, ...] = ("cell", "debris")) -> Sample:
    """Draw images with objects that do not touch, all classes in the first image."""
    random = np.random.default_rng(seed)
    result: Sample = {}
    for number in range(images):
        things = []
        for cell in random.permutation(6)[: int(random.integers(2, 5))]:
            center = np.array([16 + 32 * (cell % 3), 16 + 32 * (cell // 3)]) + random.uniform(-2, 2, 2)
            # No gap of half a turn: such a polygon could fall apart into several pieces of pixels.
            angles = (np.arange(14) + random.uniform(-0.45, 0.45, 14)) * 2 * np.pi / 14
            radii = random.uniform(8, 12, (14, 1))
            polygon = center + radii * np.stack([np.cos(angles), np.sin(angles)], axis=1)
            things.append(Thing(classes[len(things) % len(classes)], polygon.round(3)))
        result[f"im{number}"] = things
    return result


def save_image(path: Path, seed: int = 0) -> Path:
    """Write an image of noise, different for each seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def save_images(directory: Path, data: Sample) -> None:
    for number, stem in enumerate(data):
        save_image(directory / f"{stem}.png", number)


def save_text(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def save_json(path: Path, content: Any) -> Path:
    return save_text(path, json.dumps(content))


def save_array(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, array)
    else:
        Image.fromarray(array).save(path)
    return path


def label_map(things: list[Thing], dtype: Any = np.uint16) -> np.ndarray:
    """Return the label map (H, W), objects from 1 on."""
    ids = np.zeros(SIZE, dtype=dtype)
    for number, thing in enumerate(things, start=1):
        ids[thing.mask()] = number
    return ids


def names(data: Sample) -> list[str]:
    return sorted({thing.name for things in data.values() for thing in things})


def coco_content(data: Sample, rle: bool = False) -> dict[str, Any]:
    """Return a COCO dictionary with category ids 3, 6, ... in the order of the names."""
    ids = {name: 3 * number for number, name in enumerate(names(data), start=1)}
    annotations: list[dict[str, Any]] = []
    for image_id, things in enumerate(data.values(), start=1):
        for thing in things:
            segmentation: Any = [thing.polygon.reshape(-1).tolist()]
            if rle:
                segmentation = encode_patches([bitmap_to_patch(thing.mask(), SIZE)], SIZE)[0]
            entry = {"id": len(annotations) + 1, "image_id": image_id, "category_id": ids[thing.name]}
            annotations.append({**entry, "segmentation": segmentation, "iscrowd": 0})
    return {
        "images": [
            {"id": number, "file_name": f"{stem}.png", "height": SIZE[0], "width": SIZE[1]}
            for number, stem in enumerate(data, start=1)
        ],
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for name, number in ids.items()],
    }


def write_coco(root: Path, data: Sample, rle: bool = False) -> None:
    save_images(root / "images", data)
    save_json(root / "annotations" / "instances.json", coco_content(data, rle))


def write_roboflow(root: Path, data: Sample) -> None:
    save_images(root / "train", data)
    content = coco_content(data)
    content["categories"] = [
        {"id": 0, "name": "things", "supercategory": "none"},
        *({**entry, "supercategory": "things"} for entry in content["categories"]),
    ]
    save_json(root / "train" / "_annotations.coco.json", content)


def write_label_maps(root: Path, data: Sample, suffix: str = ".png", directory: str = "labels") -> None:
    save_images(root / "images", data)
    for stem, things in data.items():
        save_array(root / directory / f"{stem}{suffix}", label_map(things))


def write_beside(root: Path, data: Sample, ending: str = "_mask", image_ending: str = "") -> None:
    for number, (stem, things) in enumerate(data.items()):
        save_image(root / f"{stem}{image_ending}.png", number)
        save_array(root / f"{stem}{ending}.tif", label_map(things))


def write_binary(root: Path, data: Sample) -> None:
    save_images(root / "images", data)
    for stem, things in data.items():
        save_array(root / "masks" / f"{stem}.png", np.where(label_map(things) > 0, 255, 0).astype(np.uint8))


def write_object_masks(root: Path, data: Sample) -> None:
    for number, (stem, things) in enumerate(data.items()):
        save_image(root / "stage1_train" / stem / "images" / f"{stem}.png", number)
        for position, thing in enumerate(things):
            bits = thing.mask().astype(np.uint8) * 255
            save_array(root / "stage1_train" / stem / "masks" / f"{position}.png", bits)


def yolo_line(thing: Thing, label: int) -> str:
    return f"{label} " + " ".join(f"{value:.6f}" for value in (thing.polygon / SIZE[::-1]).reshape(-1))


def write_yolo(root: Path, data: Sample) -> None:
    order = names(data)[::-1]  # not sorted: the order of data.yaml counts
    save_images(root / "images" / "train", data)
    save_text(root / "data.yaml", f"path: .\ntrain: images/train\nnames: {json.dumps(order)}\n")
    for stem, things in data.items():
        lines = [yolo_line(thing, order.index(thing.name)) for thing in things]
        save_text(root / "labels" / "train" / f"{stem}.txt", "\n".join(lines) + "\n")


_PALETTE = np.random.default_rng(1).integers(1, 255, 768, dtype=np.uint8).tolist()


def _palette_png(path: Path, indices: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(indices.astype(np.uint8))
    image.putpalette(_PALETTE)
    image.save(path)


def write_voc(root: Path, data: Sample) -> None:
    """Write palette files with a border of void, as Pascal VOC has them."""
    save_images(root / "VOC2012" / "JPEGImages", data)
    index = {"cell": 8, "debris": 15}
    for stem, things in data.items():
        ids, labels = label_map(things), np.zeros(SIZE, dtype=np.uint8)
        for thing in things:
            labels[thing.mask()] = index[thing.name]
        ids[:2], labels[:2] = 255, 255
        _palette_png(root / "VOC2012" / "SegmentationObject" / f"{stem}.png", ids)
        _palette_png(root / "VOC2012" / "SegmentationClass" / f"{stem}.png", labels)
    save_text(root / "VOC2012" / "ImageSets" / "Segmentation" / "train.txt", "".join(f"{stem}\n" for stem in data))


def write_voc_colors(root: Path, data: Sample) -> None:
    """Write files of colors and a labelmap.txt, as CVAT does."""
    save_images(root / "JPEGImages", data)
    colors = {"cell": (250, 50, 83), "debris": (51, 221, 255)}
    lines = [f"{name}:{','.join(map(str, color))}::" for name, color in colors.items()]
    save_text(root / "labelmap.txt", "# label:color_rgb:parts:actions\nbackground:0,0,0::\n" + "\n".join(lines) + "\n")
    for stem, things in data.items():
        ids, labels = np.zeros((*SIZE, 3), np.uint8), np.zeros((*SIZE, 3), np.uint8)
        for number, thing in enumerate(things, start=1):
            ids[thing.mask()], labels[thing.mask()] = (128 * (number % 2), 40 * number, 0), colors[thing.name]
        save_array(root / "SegmentationObject" / f"{stem}.png", ids)
        save_array(root / "SegmentationClass" / f"{stem}.png", labels)


def labelme_content(stem: str, shapes: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "version": "5.4.1",
        "flags": {},
        "shapes": shapes,
        "imagePath": f"{stem}.png",
        "imageData": None,
        "imageHeight": SIZE[0],
        "imageWidth": SIZE[1],
    }


def write_labelme(root: Path, data: Sample) -> None:
    save_images(root, data)
    for stem, things in data.items():
        shapes = [
            {"label": t.name, "points": t.polygon.tolist(), "group_id": None, "shape_type": "polygon"} for t in things
        ]
        save_json(root / f"{stem}.json", labelme_content(stem, shapes))


def write_labelme_masks(root: Path, data: Sample) -> None:
    save_images(root, data)
    for stem, things in data.items():
        shapes = []
        for thing in things:
            patch = bitmap_to_patch(thing.mask(), SIZE)
            height, width = patch.bits.shape
            buffer = io.BytesIO()
            Image.fromarray(patch.bits.astype(np.uint8)).save(buffer, "PNG")
            corners = [[patch.left, patch.top], [patch.left + width - 1, patch.top + height - 1]]
            mask = base64.b64encode(buffer.getvalue()).decode()
            shapes.append({"label": thing.name, "points": corners, "shape_type": "mask", "mask": mask})
        save_json(root / f"{stem}.json", labelme_content(stem, shapes))


def cvat_mask(thing: Thing) -> str:
    patch = bitmap_to_patch(thing.mask(), SIZE)
    flat = patch.bits.reshape(-1)
    edges = np.flatnonzero(np.diff(flat, prepend=False))
    runs = np.diff(np.concatenate([[0], edges, [flat.size]]))
    height, width = patch.bits.shape
    return (
        f'<mask label="{thing.name}" rle="{", ".join(map(str, runs))}" left="{patch.left}" top="{patch.top}" '
        f'width="{width}" height="{height}"/>'
    )


def cvat_polygon(thing: Thing) -> str:
    points = ";".join(f"{x:.2f},{y:.2f}" for x, y in thing.polygon)
    return f'<polygon label="{thing.name}" occluded="0" points="{points}" z_order="0"></polygon>'


def write_cvat(root: Path, data: Sample, shape: Callable[[Thing], str] = cvat_polygon) -> None:
    save_images(root / "images", data)
    labels = "".join(f"<label><name>{name}</name></label>" for name in names(data)[::-1])
    images = "".join(
        f'<image id="{number}" name="{stem}.png" width="{SIZE[1]}" height="{SIZE[0]}">'
        f"{''.join(shape(thing) for thing in things)}</image>"
        for number, (stem, things) in enumerate(data.items())
    )
    text = (
        f"<annotations><version>1.1</version><meta><task><labels>{labels}</labels></task></meta>{images}</annotations>"
    )
    save_text(root / "annotations.xml", f'<?xml version="1.0" encoding="utf-8"?>\n{text}')


def encode_brush(values: np.ndarray) -> list[int]:
    """Write the bit stream of Label Studio's brush masks, as runs of one value and literal values in turn."""
    bits: list[str] = [f"{len(values):032b}", f"{7:05b}", *(f"{size - 1:04b}" for size in (3, 8, 12, 16))]
    edges = np.flatnonzero(np.diff(values.astype(np.int64))) + 1
    bounds = [0, *edges.tolist(), len(values)]
    for start, stop in itertools.pairwise(bounds):
        while start < stop:
            length = min(stop - start, 1 << 12)
            index, size = (0, 3) if length <= 8 else (2, 12)
            if length == 1 or (length <= 8 and start % 3 == 0):  # literal values
                bits += [
                    f"0{index:02b}",
                    f"{length - 1:0{size}b}",
                    *(f"{v:08b}" for v in values[start : start + length]),
                ]
            else:
                bits += [f"1{index:02b}", f"{length - 1:0{size}b}", f"{values[start]:08b}"]
            start += length
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return [int(text[i : i + 8], 2) for i in range(0, len(text), 8)]


def label_studio_tasks(data: Sample, brush: bool = False) -> list[dict[str, Any]]:
    tasks = []
    for number, (stem, things) in enumerate(data.items(), start=1):
        result = []
        for position, thing in enumerate(things):
            size = {"original_width": SIZE[1], "original_height": SIZE[0], "image_rotation": 0}
            if brush:
                rle = encode_brush(np.repeat(thing.mask().reshape(-1) * np.uint8(255), 4))
                value: dict[str, Any] = {"format": "rle", "rle": rle, "brushlabels": [thing.name]}
            else:
                value = {"points": (thing.polygon / SIZE[::-1] * 100).tolist(), "polygonlabels": [thing.name]}
            kind = "brushlabels" if brush else "polygonlabels"
            result.append({**size, "value": value, "type": kind, "id": f"r{position}", "to_name": "image"})
        image = f"/data/upload/1/0a1b2c3d-{stem}.png"
        tasks.append({"id": number, "data": {"image": image}, "annotations": [{"result": result}]})
    return tasks


def write_label_studio(root: Path, data: Sample, brush: bool = False) -> None:
    save_images(root / "images", data)
    save_json(root / "project-1.json", label_studio_tasks(data, brush))
