"""One file per object, as in the 2018 Data Science Bowl: NAME/images/NAME.png and NAME/masks/*.png."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from ...errors import BadRecordError
from ...structures.masks import bitmap_to_patch
from .coco_data import OBJECT, CocoData, Context, DataBuilder
from .files import Tree, image_size, is_image, split_of
from .label_maps import read_ids

NAME = "object_masks"
LOOKED_FOR = "one mask file per object (Data Science Bowl 2018): NAME/images/NAME.png and NAME/masks/*.png"


class Found(NamedTuple):
    """Images with the files of their objects."""

    pairs: list[tuple[Path, list[Path]]]
    without: list[Path]  # images in such directories that have no masks


def find(tree: Tree) -> Found | None:
    """Return the images with their masks, or None where the layout is another."""
    by_directory: dict[Path, dict[str, list[Path]]] = defaultdict(lambda: {"images": [], "masks": []})
    for path in tree.files:
        kind = path.parent.name.lower()
        if kind in ("images", "masks") and is_image(path):
            by_directory[path.parent.parent][kind].append(path)
    single = {place: files for place, files in by_directory.items() if len(files["images"]) == 1}
    pairs = [(files["images"][0], files["masks"]) for files in single.values() if files["masks"]]
    # A mask of the name of the image is a label map; more than half of the directories must look the same.
    alike = [image for image, masks in pairs if len(masks) == 1 and masks[0].stem.lower() == image.stem.lower()]
    if not pairs or len(single) < len(by_directory) or 2 * len(alike) > len(pairs):
        return None
    return Found(pairs, [files["images"][0] for files in single.values() if not files["masks"]])


def load(found: Found, context: Context) -> dict[str, CocoData]:
    """Read every mask; the one class is "object"."""
    builder = DataBuilder(context, NAME, [OBJECT])
    for image, masks in found.pairs:
        with context.guard():
            size = image_size(image)
            split = builder.split(split_of(context.tree.parts(image)[:-2]))
            image_id = split.add_image(image, size)
            for file in masks:
                with context.guard():
                    bitmap = read_ids(file)
                    if bitmap.shape != size:
                        shown = f"{bitmap.shape[1]}x{bitmap.shape[0]} pixels, its image {image} {size[1]}x{size[0]}"
                        raise BadRecordError(file, f"is {shown}")
                    patch = bitmap_to_patch(bitmap, size)
                    if not patch.bits.size:
                        raise BadRecordError(file, "has no pixel of an object")
                    split.add_patch(image_id, OBJECT, patch, file)
    builder.add_negatives(found.without)
    return builder.finish()
