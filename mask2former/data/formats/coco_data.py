"""Training data as COCO instances, whatever its format was, and the builder that the readers use."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import BadRecordError
from ...structures.masks import (
    Patch,
    SegmentationError,
    boxes_from_patches,
    check_polygons,
    polygons_to_patches,
    read_polygons,
)
from ...structures.rle import encode_patches
from .files import SPLITS, Tree, image_size, split_of

OBJECT = "object"  # class of data whose format has no classes


@dataclass(frozen=True)
class CocoData:
    """One split of training data.

    Attributes:
        image_root: directory that the file names start from.
        content: COCO instances dictionary: "images" (id, file_name, height, width), "annotations" (id, image_id,
            category_id, iscrowd, area, bbox, segmentation as polygons or RLE), "categories" (id, name).
        format: name of the format that was read, for example "yolo".
        notes: what the reader decided or left out, one sentence each.
    """

    image_root: Path
    content: dict[str, Any]
    format: str
    notes: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """Class names in the order of the category ids, which is the order of the classes in training."""
        return [entry["name"] for entry in sorted(self.content["categories"], key=lambda entry: entry["id"])]


class Context:
    """What all readers share: the files, the problems found so far, and the notes.

    Args:
        tree: files of the dataset.
        problems: list that takes bad records, which are then left out; None raises the first one.
        negatives: whether images without objects are kept.
        options: of single formats.
    """

    def __init__(
        self,
        tree: Tree,
        problems: list[BadRecordError] | None = None,
        negatives: bool = True,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.tree = tree
        self.problems = problems
        self.negatives = negatives
        self.options = dict(options or {})
        self.notes: list[str] = []

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """Collect a BadRecordError, or let it pass where none are collected."""
        try:
            yield
        except BadRecordError as error:
            if self.problems is None:
                raise
            self.problems.append(error)

    def note(self, text: str) -> None:
        """Keep a sentence for the user, once."""
        if text not in self.notes:
            self.notes.append(text)


class DataBuilder:
    """Collects images and objects of all splits, and makes COCO dictionaries with the same categories of them.

    Args:
        context: files and problems.
        format: name of the format.
        names: class names in their order; None collects them and sorts them by name.
    """

    def __init__(self, context: Context, format: str, names: Sequence[str] | None = None) -> None:
        self.context = context
        self.format = format
        self.names = list(names) if names is not None else None
        twice = [name for name, count in Counter(self.names).items() if count > 1]
        if twice:
            raise ValueError(f"{context.tree.root}: class {twice[0]!r} is listed twice; names must be unique")
        self._splits: dict[str, SplitBuilder] = {}
        self._degenerate = self._empty = 0

    def split(self, name: str | None) -> SplitBuilder:
        """Return the builder of a split, "all" for None."""
        key = name or "all"
        return self._splits.setdefault(key, SplitBuilder(self))

    def count_degenerate(self) -> None:
        """Count an object that has no polygon of three points."""
        self._degenerate += 1

    def add_empty(self, file: Path, where: str | None, image: dict[str, Any]) -> None:
        """Leave out an object without a pixel in its image: a problem where these are collected, else counted."""
        reason = f"the object has no pixel inside the image of {image['width']}x{image['height']} pixels"
        if self.context.problems is not None:
            self.context.problems.append(BadRecordError(file, reason, where))
        self._empty += 1

    def add_negatives(self, images: Iterable[Path]) -> None:
        """Add images that no annotation names, in splits that have annotations; count the others."""
        tree = self.context.tree
        without: Counter[str] = Counter()
        for image in images:
            split = split_of(tree.parts(image))
            if (split or "all") not in self._splits:
                without[split or "outside of a split"] += 1
                continue
            with self.context.guard():
                self.split(split).add_image(image)
        for name, count in without.items():
            self.context.note(f"{name}: none of its {count} images has annotations, so they are left out")

    def finish(self) -> dict[str, CocoData]:
        """Return the splits, in the order train, val, test; "all" where there is only one without a name.

        Raises:
            ValueError: no image was found.
        """
        context = self.context
        if self._degenerate:
            context.note(f"{self._degenerate} objects without a polygon of at least three points are left out")
        if self._empty:
            context.note(f"{self._empty} objects without a pixel inside their image are left out")
        splits = {name: split for name, split in self._splits.items() if split.images}
        if not splits and not context.problems:
            raise ValueError(f"{context.tree.root}: found no image with annotations of the format {self.format!r}")
        if len(splits) > 1 and "all" in splits:
            context.note(f"{len(splits['all'].images)} images outside of a split count as train")
            loose = splits.pop("all")
            splits.setdefault("train", SplitBuilder(self)).append(loose)
        used = {name for split in splits.values() for name in split.classes()}
        names = self.names if self.names is not None else sorted(used) or [OBJECT]
        order = [name for name in (*SPLITS, "all") if name in splits]
        order += [name for name in splits if name not in order]
        contents = {name: splits[name].content(names, context.negatives) for name in order}
        for name, content in contents.items():
            _report_negatives(context, name, content, splits[name])
        notes = tuple(context.notes)
        return {name: CocoData(context.tree.root, content, self.format, notes) for name, content in contents.items()}


def _report_negatives(context: Context, name: str, content: dict[str, Any], split: SplitBuilder) -> None:
    empty = split.empty()
    if empty:
        what = "kept as negatives" if context.negatives else "left out"
        context.note(f"{name}: {empty} of {len(split.images)} images have no objects and are {what}")


class SplitBuilder:
    """Images and objects of one split, with class names instead of ids."""

    def __init__(self, parent: DataBuilder) -> None:
        self.parent = parent
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self._numbers: dict[Path, int] = {}

    def add_image(self, path: Path, size: tuple[int, int] | None = None) -> int:
        """Add an image once and return its id; `size` (height, width) is read from the file where it is None.

        Raises:
            BadRecordError: the image cannot be read.
        """
        if path not in self._numbers:
            height, width = image_size(path) if size is None else size
            self._numbers[path] = len(self.images) + 1
            name = self.parent.context.tree.relative(path)
            self.images.append({"id": len(self.images) + 1, "file_name": name, "height": height, "width": width})
        return self._numbers[path]

    def size(self, image_id: int) -> tuple[int, int]:
        """Return height and width of an image."""
        image = self.images[image_id - 1]
        return image["height"], image["width"]

    def add_polygons(
        self,
        image_id: int,
        name: str,
        polygons: Sequence[Any],
        file: Path,
        where: str | None = None,
        crowd: bool = False,
    ) -> None:
        """Add an object that is the union of polygons, flat lists x0, y0, x1, y1, ... or arrays (P, 2), in pixels.

        Raises:
            BadRecordError: NaN, not numbers, or far outside of the image.
        """
        size = self.size(image_id)
        try:
            usable = read_polygons([_flat(polygon) for polygon in polygons], size)
            if not usable:
                self.parent.count_degenerate()
                return
            checked = check_polygons(usable, size)
        except SegmentationError as error:
            raise BadRecordError(file, str(error), where) from error
        patch = polygons_to_patches([checked], size)[0]
        segmentation = [[round(float(value), 3) for value in points.reshape(-1)] for points in checked]
        self._add(image_id, name, patch, segmentation, file, where, crowd)

    def add_patch(
        self, image_id: int, name: str, patch: Patch, file: Path, where: str | None = None, crowd: bool = False
    ) -> None:
        """Add an object that is given by its mask, which must lie inside the image."""
        rle = encode_patches([patch], self.size(image_id))[0]
        self._add(image_id, name, patch, rle, file, where, crowd)

    def _add(
        self, image_id: int, name: str, patch: Patch, segmentation: Any, file: Path, where: str | None, crowd: bool
    ) -> None:
        if not isinstance(name, str) or not name.strip():
            raise BadRecordError(file, f"an object needs the name of its class, has {name!r}", where)
        known = self.parent.names
        if known is not None and name not in known:
            raise BadRecordError(file, f"class {name!r} is not one of {', '.join(known[:20])}", where)
        if not patch.bits.any():
            self.parent.add_empty(file, where, self.images[image_id - 1])
            return
        left, top, right, bottom = boxes_from_patches([patch])[0].tolist()
        self.annotations.append(
            {
                "image_id": image_id,
                "name": name,
                "iscrowd": int(crowd),
                "area": int(np.count_nonzero(patch.bits)),
                "bbox": [left, top, right - left, bottom - top],
                "segmentation": segmentation,
            }
        )

    def append(self, other: SplitBuilder) -> None:
        """Take over the images and objects of another split."""
        offset = len(self.images)
        self.images += [{**image, "id": image["id"] + offset} for image in other.images]
        self.annotations += [{**entry, "image_id": entry["image_id"] + offset} for entry in other.annotations]

    def classes(self) -> Counter[str]:
        """Return how many objects each class has."""
        return Counter(entry["name"] for entry in self.annotations)

    def empty(self) -> int:
        """Return the number of images without objects."""
        return len(self.images) - len({entry["image_id"] for entry in self.annotations})

    def content(self, names: Sequence[str], negatives: bool) -> dict[str, Any]:
        """Return the COCO dictionary, with category ids from 1 on in the order of `names`."""
        ids = {name: number for number, name in enumerate(names, start=1)}
        annotations = [
            {"id": number, "category_id": ids[entry["name"]], **{k: v for k, v in entry.items() if k != "name"}}
            for number, entry in enumerate(self.annotations, start=1)
        ]
        shown = {entry["image_id"] for entry in annotations}
        images = [image for image in self.images if negatives or image["id"] in shown]
        categories = [{"id": number, "name": name} for name, number in ids.items()]
        return {"images": images, "annotations": annotations, "categories": categories}


def _flat(polygon: Any) -> list[Any]:
    """Return a polygon as a flat list, so that points as pairs are read too."""
    if isinstance(polygon, np.ndarray):
        return polygon.reshape(-1).tolist()
    if not isinstance(polygon, (list, tuple)):
        raise SegmentationError("a polygon is not a list of points")
    if polygon and all(isinstance(point, (list, tuple)) and len(point) == 2 for point in polygon):
        return [value for point in polygon for value in point]
    return list(polygon)
