"""Pascal VOC masks: JPEGImages, SegmentationObject and SegmentationClass, ImageSets; also as CVAT exports them."""

from __future__ import annotations

import functools
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...errors import BadRecordError
from ...structures.panoptic_ids import rgb_to_id
from .coco_data import OBJECT, CocoData, Context, DataBuilder
from .files import SPLITS, Tree, check_one, image_size
from .label_maps import label_patches, open_bitmap

NAME = "voc"
LOOKED_FOR = "Pascal VOC: JPEGImages/, SegmentationObject/*.png and SegmentationClass/*.png"

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
_VOID = 255  # value of pixels of no class in palette files
_VOID_COLOR = (224, 224, 192)  # the same in files of colors


class Found(NamedTuple):
    """A directory with JPEGImages and SegmentationObject."""

    root: Path
    objects: dict[str, Path]  # stem -> file
    classes: dict[str, Path]
    images: dict[str, Path]
    same: dict[str, list[Path]]  # stem -> images, where there are several


def find(tree: Tree) -> Found | None:
    """Return the files of the one directory that holds SegmentationObject, or None."""
    roots = sorted({p.parent.parent for p in tree.files if p.parent.name.lower() == "segmentationobject"})
    if not roots:
        return None
    if len(roots) > 1:
        raise ValueError(f"{roots[0]} and {roots[1]} are both Pascal VOC datasets; pass one of them")
    root = roots[0]

    def stems(name: str) -> dict[str, Path]:
        return {p.stem: p for p in tree.images if p.parent.parent == root and p.parent.name.lower() == name}

    objects = stems("segmentationobject")
    images = stems("jpegimages") or stems("images")
    directories = {path.parent for path in images.values()}
    same: dict[str, list[Path]] = defaultdict(list)
    for path in tree.images:
        if path.parent in directories:
            same[path.stem].append(path)
    return Found(root, objects, stems("segmentationclass"), images, same) if objects else None


def load(found: Found, context: Context) -> dict[str, CocoData]:
    """Read the masks of the images that ImageSets lists, or of all."""
    table = _ClassTable.read(found, context)
    splits = _splits(found)
    used: set[int] = set()
    objects = []
    for split, stems in splits.items():
        for stem in stems:
            with context.guard():
                image, size, entries = _read(found, stem, table)
                objects.append((split, image, size, entries))
                used |= {label for label, _ in entries}
    names = table.names(used)
    builder = DataBuilder(context, NAME, list(names.values()))
    for split, image, size, entries in objects:
        part = builder.split(split)
        image_id = part.add_image(image, size)
        for label, patch in entries:
            part.add_patch(image_id, names[label], patch, image)
    return builder.finish()


def _splits(found: Found) -> dict[str | None, list[str]]:
    directory = found.root / "ImageSets" / "Segmentation"
    if not directory.is_dir():
        directory = found.root / "ImageSets" / "Main"
    lists: dict[str | None, list[str]] = {}
    for split in (*SPLITS, "trainval"):
        file = directory / f"{split}.txt"
        if file.is_file() and not (split == "trainval" and lists):
            lines = file.read_text(encoding="utf-8-sig", errors="replace").splitlines()
            stems = [Path(line.split()[0]).name for line in lines if line.strip()]
            if any(stem in found.objects for stem in stems):  # the test set of VOC has no masks
                lists["train" if split == "trainval" else split] = stems
    return lists or {None: sorted(found.objects)}


def _read(found: Found, stem: str, table: _ClassTable) -> tuple[Path, tuple[int, int], list]:
    image = found.images.get(stem)
    if image is None:
        raise BadRecordError(found.root / "JPEGImages" / f"{stem}.jpg", "the image does not exist")
    check_one(found.same[stem], f"the mask of {stem}")
    if stem not in found.objects:
        raise BadRecordError(
            found.root / "SegmentationObject" / f"{stem}.png", "the mask of the objects does not exist"
        )
    size = image_size(image)
    file = found.objects[stem]
    ids = _object_ids(file)
    _check_size(file, ids, size, image)
    labels = None
    if found.classes:
        class_file = found.classes.get(stem)
        if class_file is None:
            raise BadRecordError(
                found.root / "SegmentationClass" / f"{stem}.png", "the mask of the classes does not exist"
            )
        labels = table.indices(class_file)
        _check_size(class_file, labels, size, image)
    entries = []
    for number, patch in label_patches(ids, file):
        label = 1
        if labels is not None:
            height, width = patch.bits.shape
            window = labels[patch.top : patch.top + height, patch.left : patch.left + width][patch.bits]
            counts = np.bincount(window[window > 0])
            if not counts.size:
                raise BadRecordError(file, f"object {number} has no class in {found.classes[stem]}")
            label = int(counts.argmax())
        entries.append((label, patch))
    return image, size, entries


def _check_size(file: Path, mask: np.ndarray, size: tuple[int, int], image: Path) -> None:
    if mask.shape != size:
        raise BadRecordError(file, f"is {mask.shape[1]}x{mask.shape[0]} pixels, its image {image} {size[1]}x{size[0]}")


def _object_ids(file: Path) -> np.ndarray:
    image = open_bitmap(file)
    array = np.asarray(image)
    if array.ndim == 3:
        ids = rgb_to_id(array[:, :, :3]).astype(np.int64)
        ids[ids == _color_id(_VOID_COLOR)] = 0
        return ids
    ids = array.astype(np.int64)
    if image.mode in ("P", "L"):
        ids[ids == _VOID] = 0
    return ids


class _ClassTable:
    """Which class a color or index of SegmentationClass stands for; index 0 is background, -1 no class."""

    def __init__(self, listed: list[tuple[str, tuple[int, int, int]]] | None, standard: bool, context: Context) -> None:
        self.listed, self.standard, self.context = listed, standard, context
        colors = [color for _, color in listed] if listed else [voc_color(index) for index in range(256)]
        self.by_color = {_color_id(color): index for index, color in enumerate(colors)}
        self.by_color.setdefault(_color_id(_VOID_COLOR), 0)

    @classmethod
    def read(cls, found: Found, context: Context) -> _ClassTable:
        """Read labelmap.txt of CVAT where there is one."""
        file = next((path for path in (found.root / "labelmap.txt",) if path.is_file()), None)
        if file is None:
            return cls(None, "voc20" in str(found.root).lower() or "vocdevkit" in str(found.root).lower(), context)
        listed = []
        for number, line in enumerate(file.read_text(encoding="utf-8-sig", errors="replace").splitlines(), start=1):
            if not line.strip() or line.startswith("#"):
                continue
            name, _, rest = line.partition(":")
            values = rest.split(":")[0].split(",")
            if len(values) != 3 or not all(v.strip().isdigit() and int(v) < 256 for v in values):
                raise BadRecordError(file, "must have the form name:red,green,blue::", f"line {number}")
            listed.append((name.strip(), (int(values[0]), int(values[1]), int(values[2]))))
        listed.sort(key=lambda entry: entry[1] != (0, 0, 0))  # the background first
        if not listed or listed[0][1] != (0, 0, 0):
            listed.insert(0, ("background", (0, 0, 0)))
        return cls(listed, False, context)

    def indices(self, file: Path) -> np.ndarray:
        """Read SegmentationClass: int64 (H, W) of class indices, 0 for background and void."""
        image = open_bitmap(file)
        if image.mode == "P" and self.listed:
            image = image.convert("RGB")  # the palette has the colors of labelmap.txt
        array = np.asarray(image)
        if array.ndim == 2:
            labels = array.astype(np.int64)
            labels[labels == _VOID] = 0
            return labels
        found, inverse = np.unique(rgb_to_id(array[:, :, :3]), return_inverse=True)
        unknown = [int(color) for color in found if int(color) not in self.by_color]
        if unknown:
            shown = tuple(unknown[0] >> shift & 255 for shift in (0, 8, 16))
            raise BadRecordError(file, f"has the color {shown}, which no class of labelmap.txt has")
        return np.array([self.by_color[int(color)] for color in found])[inverse].reshape(array.shape[:2])

    def names(self, used: set[int]) -> dict[int, str]:
        """Return the names of the classes, in their order."""
        if self.listed:
            return {index: name for index, (name, _) in enumerate(self.listed) if index}
        if self.standard and max(used, default=0) <= len(VOC_CLASSES):
            return dict(enumerate(VOC_CLASSES, start=1))
        if used <= {1}:
            return {1: OBJECT}
        self.context.note("no labelmap.txt names the classes, so they are called class_1, class_2, ...")
        return {index: f"class_{index}" for index in sorted(used)}


def _color_id(color: tuple[int, int, int]) -> int:
    return color[0] + 256 * color[1] + 65536 * color[2]


@functools.cache
def voc_color(index: int) -> tuple[int, int, int]:
    """Return the color of a class in the palette of Pascal VOC: the bits of the index, dealt to red, green, blue."""
    color = [0, 0, 0]
    for bit in range(8):
        color[bit % 3] |= (index >> bit & 1) << (7 - bit // 3)
    return color[0], color[1], color[2]
