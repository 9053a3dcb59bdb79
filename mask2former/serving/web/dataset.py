"""Training data to look at: images of a directory that was given at start, with the objects that are annotated."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...data.formats import load_data
from ...errors import BadRecordError
from ...result_parts import InstanceResult
from ...results import Result
from ...structures.classes import ClassTable
from ...structures.mask_list import MaskList
from ...structures.masks import segmentation_to_patch
from ..errors import InvalidOptionError, TooLargeError, UnreadableImageError
from ..limits import Limits, decode_image

ALL = "all classes"


@dataclass(frozen=True)
class _Split:
    root: Path  # images must lie below it
    image_root: Path
    images: list[dict[str, Any]]
    objects: dict[Any, list[dict[str, Any]]]  # by image id
    classes: ClassTable
    class_of: dict[int, int]  # category id -> class index
    notes: tuple[str, ...]


class Dataset:
    """A dataset of any format that `mask2former check` reads, most of all COCO.

    Args:
        path: directory or annotation file. Only files below the directory, or below that of the images of an
            annotation file, are read, whatever the annotations name.

    Raises:
        FileNotFoundError, ValueError: as `load_data`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        place = Path(path).expanduser()
        self.name = place.name
        self.problems: list[BadRecordError] = []
        self._splits: dict[str, _Split] = {}
        for name, data in load_data(place, problems=self.problems).items():
            categories = sorted(data.content["categories"], key=lambda entry: entry["id"])
            objects: dict[Any, list[dict[str, Any]]] = {}
            for annotation in data.content["annotations"]:
                objects.setdefault(annotation["image_id"], []).append(annotation)
            self._splits[name] = _Split(
                Path(os.path.realpath(place if place.is_dir() else data.image_root)),
                data.image_root,
                data.content["images"],
                objects,
                ClassTable(tuple(entry["name"] for entry in categories)),
                {entry["id"]: k for k, entry in enumerate(categories)},
                # Pages show them to people who need not know where the data lies.
                tuple(note.replace(str(data.image_root), data.image_root.name) for note in data.notes),
            )

    @property
    def splits(self) -> list[str]:
        """Return the names of the splits."""
        return list(self._splits)

    def classes(self, split: str) -> list[str]:
        """Return the names of the classes."""
        return list(self._split(split).classes.names)

    def notes(self, split: str) -> list[str]:
        """Return what a reader of the data has to know, one sentence each."""
        notes = list(self._split(split).notes)
        if self.problems:
            count, first = len(self.problems), self.problems[0]
            what = f"{count} bad records are left out, the first" if count > 1 else "one bad record is left out"
            where = f"{Path(first.file).name}: {first.record}" if first.record else Path(first.file).name
            notes.append(f"{what}: {where}: {first.reason}")
        return notes

    def images(self, split: str, name: str = ALL) -> list[int]:
        """Return the positions of the images that show a class."""
        found = self._split(split)
        if name == ALL:
            return list(range(len(found.images)))
        ids = {category for category, k in found.class_of.items() if found.classes.names[k] == name}
        shown = {key for key, objects in found.objects.items() if any(o["category_id"] in ids for o in objects)}
        return [i for i, image in enumerate(found.images) if image["id"] in shown]

    def result(self, split: str, position: int, limits: Limits) -> Result:
        """Return an image with its annotated objects as a result, whose scores are 1.

        Raises:
            InvalidOptionError: no such image; its file lies elsewhere or is missing.
            TooLargeError, UnreadableImageError, UnsupportedTypeError: the image is refused.
        """
        found = self._split(split)
        if not 0 <= position < len(found.images):
            raise InvalidOptionError("there is no such image")
        record = found.images[position]
        name = str(record["file_name"])
        image = decode_image(_read(found, name, limits), limits)
        size = (int(record["height"]), int(record["width"]))
        if image.shape[:2] != size:
            raise UnreadableImageError(
                f"{name} has {image.shape[1]}x{image.shape[0]} pixels, but the annotations say {size[1]}x{size[0]}"
            )
        objects = found.objects.get(record["id"], [])
        try:
            masks = MaskList((segmentation_to_patch(entry["segmentation"], size) for entry in objects), size)
        except ValueError as error:
            raise UnreadableImageError(f"an annotation of {name} cannot be drawn: {error}") from None
        labels = np.array([found.class_of[entry["category_id"]] for entry in objects], dtype=np.int64)
        names = tuple(
            found.classes.names[k] + (" (crowd)" if entry.get("iscrowd") else "") for k, entry in zip(labels, objects)
        )
        instances = InstanceResult(masks, np.ones(len(objects), dtype=np.float32), labels, names)
        return Result(image, found.classes, instances, path=Path(name))

    def _split(self, name: str) -> _Split:
        if name not in self._splits:
            raise InvalidOptionError("there is no such split")
        return self._splits[name]


def _read(split: _Split, name: str, limits: Limits) -> bytes:
    """Read an image file, if it lies where it may, symbolic links resolved."""
    real = Path(os.path.realpath(split.image_root / name))
    if not real.is_relative_to(split.root):
        raise InvalidOptionError(f"{name} is not below the directory of the dataset, so it is not shown")
    if not real.is_file():
        raise InvalidOptionError(f"{name} is missing")
    size = real.stat().st_size
    if size > limits.max_bytes:
        raise TooLargeError(f"{name} has {size:,} bytes; the limit is {limits.max_bytes:,}")
    return real.read_bytes()
