"""Images with instance label maps (PNG, TIFF, NumPy): each value above 0 is one object.

The label map of an image lies in a sibling directory (images/ and labels/, masks/ or annotations/), or beside it with
an ending such as _mask. Masks of 0 and 255 are split into their connected components.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ...errors import BadRecordError, first_few
from ...structures.mask_list import MaskList
from ...structures.masks import Patch
from ...structures.panoptic_ids import rgb_to_id
from ..image_files import opened_image, page_count
from ..image_io import LABEL_MAP_SUFFIXES
from .coco_data import OBJECT, CocoData, Context, DataBuilder
from .files import SPLIT_NAMES, Tree, check_one, image_size, is_image, split_of, words

NAME = "label_maps"
LOOKED_FOR = (
    "instance label maps: images/ with labels/, masks/ or annotations/ of the same names (.png, .tif, .npy), or "
    "name_mask.png, name_masks.png, name_label.png, name_seg.png beside name.png"
)

_SUFFIXES = LABEL_MAP_SUFFIXES | {".npy"}
_IMAGE_WORDS = frozenset({"images", "image", "imgs", "img"})
_LABEL_WORDS = frozenset({"labels", "label", "masks", "mask", "annotations", "instances", "labelmaps", "gt"})
_ENDINGS = tuple(
    f"{mark}{ending}"
    for ending in ("cp_masks", "masks", "mask", "labels", "label", "seg", "instances", "gt")
    for mark in ("_", "-")
)
_IMAGE_ENDINGS = ("_image", "_img", "-image", "-img")
_MOST_PIXELS = 1 << 29
_MOST_OBJECTS = 100_000


class Pairing(NamedTuple):
    """Images with their label maps; both in the order of the names of the images."""

    pairs: list[tuple[Path, Path]]
    without: list[Path]  # images that have none
    same: dict[Path, list[Path]] = {}  # file -> files of the same name with other suffixes, itself included


def find(tree: Tree) -> Pairing | None:
    """Return images and label maps, or None where no image has one."""
    images: dict[str, Path] = {}
    labels: dict[str, Path] = {}
    same: dict[Path, list[Path]] = {}  # files of one name -> all of them
    for path in tree.files:
        suffix = path.suffix.lower()
        if suffix not in _SUFFIXES and not is_image(path):
            continue
        role, key = pair_key(tree, path)
        if role == "label" and suffix in _SUFFIXES:
            same.setdefault(labels.setdefault(key, path), []).append(path)
        elif role != "label" and (is_image(path) or suffix == ".npy"):
            same.setdefault(images.setdefault(key, path), []).append(path)
    pairs, taken = [], set()
    loose = {key: path for key, path in images.items() if path.suffix.lower() in _SUFFIXES}
    for key, image in images.items():
        label = next((labels[name] for name in _label_keys(key) if name in labels), None)
        if label is None:
            label = next((loose[name] for name in _label_keys(key) if name != key and name in loose), None)
        if label is not None and is_image(image):
            pairs.append((image, label))
            taken.add(label)
    pairs = [(image, label) for image, label in pairs if image not in taken]
    used = {image for image, _ in pairs} | taken
    others = set(tree.images)  # not .npy files beside them, such as those of Cellpose
    without = [path for path in images.values() if path not in used and path in others]
    copies = {path: paths for path, paths in same.items() if len(paths) > 1}
    return Pairing(pairs, without, copies) if pairs else None


def pair_key(tree: Tree, path: Path) -> tuple[str | None, str]:
    """Return "image", "label" or None, and the name that both files of a pair share."""
    role, kept = None, []
    for part in tree.parts(path):
        found = set(words(part))
        plain = found <= _IMAGE_WORDS | _LABEL_WORDS | SPLIT_NAMES.keys()
        if plain and found & _LABEL_WORDS:
            role = "label"
        elif plain and found & _IMAGE_WORDS:
            role = "image"
        else:
            kept.append(part.lower())
            continue
        kept += [word for word in words(part) if word in SPLIT_NAMES]
    return role, "/".join([*kept, path.stem.lower()])


def _label_keys(key: str) -> list[str]:
    bases = [key, *(key[: -len(ending)] for ending in _IMAGE_ENDINGS if key.endswith(ending))]
    return [*bases, *(base + ending for base in bases for ending in _ENDINGS)]


def load(pairing: Pairing, context: Context) -> dict[str, CocoData]:
    """Read all label maps; their one class is "object", or what classes.txt says."""
    tree = context.tree
    name = _class_name(tree)
    rule = _Rule.of([label for _, label in pairing.pairs], context)
    builder = DataBuilder(context, NAME, [name])
    for image, label in pairing.pairs:
        with context.guard():
            for path in (image, label):
                usable = [other for other in pairing.same.get(path, ()) if other.suffix.lower() != ".npy"]
                check_one(usable, f"the label map of {image.name}")
            _add(builder, image, label, name, rule)
    builder.add_negatives(pairing.without)
    return builder.finish()


def _class_name(tree: Tree) -> str:
    file = tree.root / "classes.txt"
    if not file.is_file():
        return OBJECT
    try:
        names = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise BadRecordError(file, f"cannot be read: {error}") from error
    if len(names) != 1:
        raise BadRecordError(
            file,
            f"names {len(names)} classes, but instance label maps have one class; use a format with classes (COCO, "
            "YOLO, VOC), or DATASETS.SEMANTIC_FOLDER for semantic label maps",
        )
    return names[0]


class _Rule(NamedTuple):
    """How values become objects, decided for the complete dataset."""

    components: bool  # masks of one value: every connected component is an object
    threshold: int  # values below it are background

    @classmethod
    def of(cls, files: Sequence[Path], context: Context) -> _Rule:
        values: Counter[int] = Counter()
        soft = 0
        for file in files:
            with contextlib.suppress(BadRecordError):  # reported when its objects are read
                found, counts = np.unique(read_ids(file), return_counts=True)
                above = dict(zip(found[found != 0].tolist(), counts[found != 0].tolist(), strict=True))
                inner = sum(above.values())
                if min(above, default=1) < 0:  # `label_patches` says what is wrong
                    return cls(False, 1)
                if len(above) > 1 and (max(above) != 255 or above[255] < 0.9 * inner or len(above) > 255):
                    return cls(False, 1)
                soft += inner - above.get(255, 0) if len(above) > 1 else 0
                values.update(above.keys())
        if not values or (len(values) > 1 and 255 not in values):
            return cls(False, 1)
        if len(values) == 1 or soft:
            shown = f"0 and {max(values)}" if len(values) == 1 else f"0 to 255 (thresholded at 128, {soft} soft pixels)"
            context.note(
                f"binary masks of {shown}: each connected component is one object, so objects that touch are merged"
            )
            return cls(True, 128 if len(values) > 1 else 1)
        return cls(False, 1)


def _add(builder: DataBuilder, image: Path, label: Path, name: str, rule: _Rule) -> None:
    size = image_size(image)
    ids = read_ids(label)
    if ids.shape != size:
        swapped = "; width and height are swapped, check the EXIF orientation" if ids.shape == size[::-1] else ""
        raise BadRecordError(
            label, f"is {ids.shape[1]}x{ids.shape[0]} pixels, its image {image} {size[1]}x{size[0]}{swapped}"
        )
    if rule.components:
        from scipy import ndimage

        ids, _ = ndimage.label(ids >= rule.threshold, structure=np.ones((3, 3)))
    split = builder.split(split_of(builder.context.tree.parts(image)))
    image_id = split.add_image(image, size)
    for number, patch in label_patches(ids, label):
        split.add_patch(image_id, name, patch, label, f"object {number}")


def label_patches(ids: np.ndarray, file: Path) -> list[tuple[int, Patch]]:
    """Return value and patch of each object of a label map int (H, W), in the order of the values.

    Raises:
        BadRecordError: negative values, or so many objects that it is hardly a label map.
    """
    values = np.unique(ids)
    values = values[values != 0]
    if len(values) and values[0] < 0:
        raise BadRecordError(file, f"has the negative value {values[0]}; objects are numbered from 1, 0 is background")
    if len(values) > _MOST_OBJECTS:
        raise BadRecordError(file, f"has {len(values)} different values; it is an image and not a label map")
    return list(zip(values.tolist(), MaskList.from_label_map(ids, values), strict=True))


def read_ids(path: Path) -> np.ndarray:
    """Read a label map: PNG, TIFF or BMP with 1 to 32 bits, palette, color (each color an object), or .npy.

    Returns:
        int64 (H, W); 0 is background.

    Raises:
        BadRecordError: the file is missing, broken, too large, or its values are not integers.
    """
    return to_ids(_read_npy(path) if path.suffix.lower() == ".npy" else np.asarray(open_bitmap(path)), path)


def to_ids(array: np.ndarray, path: Path) -> np.ndarray:
    """Convert an array of any layout that `read_ids` accepts to int64 (H, W).

    Raises:
        BadRecordError: naming `path`; more channels, or values that are not integers.
    """
    array = np.squeeze(array) if array.ndim > 2 and 1 in (array.shape[0], array.shape[-1]) else array
    if array.ndim == 3 and array.shape[2] in (3, 4) and array.dtype == np.uint8:
        color = array[:, :, :3]
        gray = (color[:, :, :1] == color).all()
        return color[:, :, 0].astype(np.int64) if gray else rgb_to_id(color).astype(np.int64)
    if array.ndim != 2:
        raise BadRecordError(path, f"a label map has one channel (H, W), this one has the shape {array.shape}")
    if array.dtype.kind == "f":
        if not np.isfinite(array).all() or (array != np.round(array)).any() or np.abs(array).max(initial=0) > 1 << 53:
            raise BadRecordError(path, "its values are not integers, so it is not a label map")
    elif array.dtype.kind not in "bui":
        raise BadRecordError(path, f"has the type {array.dtype}, but must have integers")
    return array.astype(np.int64)


def _read_npy(path: Path) -> np.ndarray:
    try:
        array = np.load(path, allow_pickle=False, mmap_mode="r")
    except FileNotFoundError as error:
        raise BadRecordError(path, "the file does not exist") from error
    except (OSError, ValueError, EOFError, SyntaxError, MemoryError) as error:
        hint = ""
        if path.stem.lower().endswith("_seg"):
            hint = "; _seg.npy of Cellpose is a pickle, which can run code: save the masks as PNG or TIFF in Cellpose"
        raise BadRecordError(path, f"is not an array of numbers: {first_few([str(error)])}{hint}") from error
    if array.size > _MOST_PIXELS:
        raise BadRecordError(path, f"has the shape {array.shape}, which is too large for one image; cut it into tiles")
    return np.asarray(array)


def open_bitmap(path: Path) -> Image.Image:
    """Open and decode a bitmap of labels or of colors; gray with alpha becomes gray.

    Raises:
        BadRecordError: the file is missing or broken, or has another mode.
    """
    try:
        with opened_image(path) as image:
            image.load()
            bitmap = image.getchannel(0) if image.mode == "LA" else image
            pages = page_count(image)
    except (MemoryError, BadRecordError):
        raise
    except FileNotFoundError as error:
        raise BadRecordError(path, "the file does not exist") from error
    except Exception as error:  # of any plug-in of Pillow, on a broken file
        raise BadRecordError(path, f"cannot be read as a label map: {error}") from error
    if pages > 1:
        raise BadRecordError(path, f"has {pages} pages, but a label map has one; save each page as a file of its own")
    if bitmap.mode not in ("1", "L", "P", "I", "F", "RGB", "RGBA") and not bitmap.mode.startswith("I;16"):
        raise BadRecordError(path, f"a label map has one channel or colors, this one is {bitmap.mode}")
    return bitmap
