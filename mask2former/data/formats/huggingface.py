"""Hugging Face datasets, saved to disk or in memory: images with objects (polygons, RLE) or with label maps."""

from __future__ import annotations

import hashlib
import importlib
import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import BadRecordError
from ...structures.masks import SegmentationError, rle_to_patch
from ...utils.file_io import write_bytes
from ..image_files import open_regular, open_with_pillow
from .coco_data import OBJECT, CocoData, Context, DataBuilder
from .files import SPLIT_NAMES, Tree
from .label_maps import label_patches, to_ids

NAME = "huggingface"
LOOKED_FOR = "Hugging Face datasets: a directory of save_to_disk (dataset_dict.json or dataset_info.json)"

_IMAGES = ("image", "img", "pixel_values")
_MAPS = ("label_map", "instances", "instance_mask", "instance_map", "mask", "masks", "label", "labels", "annotation")
_OBJECTS = ("objects", "annotations", "instances")
_SEGMENTATIONS = ("segmentation", "segmentations", "polygons", "polygon", "segments", "masks", "rle")
_CLASSES = ("category", "categories", "category_id", "label", "labels", "class", "classes", "name")
_SUFFIXES = {
    "JPEG": ".jpg",
    "MPO": ".jpg",
    "PNG": ".png",
    "TIFF": ".tif",
    "BMP": ".bmp",
    "WEBP": ".webp",
    "GIF": ".gif",
}


def find(tree: Tree) -> Path | None:
    """Return the directory where it is one of `save_to_disk`."""
    for name in ("dataset_dict.json", "state.json"):
        if (tree.root / name).is_file() and tree.with_suffix(".arrow"):
            return tree.root
    return None


def load(found: Path, context: Context) -> dict[str, CocoData]:
    """Read a saved dataset; its images are written to a directory of the cache, or to the option `image_dir`."""
    library = _library()
    try:
        dataset = library.load_from_disk(str(found))
    except Exception as error:  # of pyarrow and datasets, on broken files
        raise BadRecordError(found, f"cannot be read as a Hugging Face dataset: {error}") from error
    return load_dataset(dataset, context, Path(found))


def is_dataset(value: Any) -> bool:
    """Return whether a value is a `Dataset` or `DatasetDict`, without an import of the library."""
    return type(value).__module__.split(".")[0] == "datasets"


def _library() -> Any:
    try:
        library: Any = importlib.import_module("datasets")
    except ImportError:
        library = None
    if not hasattr(library, "load_from_disk"):  # a directory "datasets" in the working directory can be imported, too
        raise ImportError("Hugging Face datasets are read with the package datasets: pip install datasets")
    return library


def load_dataset(dataset: Any, context: Context, place: Path | None = None) -> dict[str, CocoData]:
    """Read a `datasets.Dataset` or `DatasetDict`.

    It needs a column of images, and either "objects" with segmentations and categories, or a column of label maps.
    `place` is the directory that it was loaded from: images that it names instead of holding them must lie there.
    """
    parts = dict(dataset) if isinstance(dataset, Mapping) else {None: dataset}
    first = next(iter(parts.values()), None)
    if first is None or not hasattr(first, "features"):
        raise ValueError(
            "the Hugging Face dataset has no splits that can be read; streaming datasets are not supported"
        )
    reader = _Reader(first.features, context, _image_dir(parts, context), place)
    for name, part in parts.items():
        if name is not None and not re.fullmatch(r"\w[\w.-]*", str(name)):  # it names a directory of images
            raise ValueError(f"the Hugging Face dataset has a split {str(name)[:40]!r}, which is no name of a split")
        split = SPLIT_NAMES.get(str(name).lower(), str(name)) if name is not None else None
        reader.read(split, part)
    return reader.builder.finish()


def _image_dir(parts: Mapping[Any, Any], context: Context) -> Path:
    given = context.options.get("image_dir")
    if given is None:
        prints = "".join(str(getattr(part, "_fingerprint", len(part))) for part in parts.values())
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        given = cache / "mask2former" / "huggingface" / hashlib.blake2b(prints.encode(), digest_size=8).hexdigest()
    root = Path(os.path.abspath(given))
    root.mkdir(parents=True, exist_ok=True)
    context.note(f"the images are written to {root}")
    context.tree = Tree(root)
    return root


class _Reader:
    def __init__(self, features: Any, context: Context, root: Path, place: Path | None) -> None:
        self.context, self.root, self.place = context, root, place
        kinds = {name: type(feature).__name__ for name, feature in features.items()}
        images = [name for name, kind in kinds.items() if kind == "Image"]
        image = next((name for name in _IMAGES if name in images), images[0] if len(images) == 1 else None)
        if image is None:
            raise ValueError(f"the dataset has the columns {', '.join(kinds)}, but needs one of images: 'image'")
        self.image: str = image
        self.objects = next((name for name in _OBJECTS if name in features and name not in images), None)
        self.map = next((name for name in _MAPS if name in images and name != self.image), None)
        self.segmentation: str | None = None
        self.label: str | None = None
        names = None
        if self.objects is not None:
            inner = getattr(features[self.objects], "feature", features[self.objects])
            inner = inner[0] if isinstance(inner, list) else inner
            keys = list(inner) if isinstance(inner, Mapping) else []
            self.segmentation = next((key for key in _SEGMENTATIONS if key in keys), None)
            self.label = next((key for key in _CLASSES if key in keys), None)
            listed = getattr(inner[self.label], "feature", inner[self.label]) if self.label else None
            names = getattr(listed, "names", None)
        if self.segmentation is None and self.map is None:
            raise ValueError(
                f"the dataset has the columns {', '.join(kinds)}, but needs 'objects' with 'segmentation' (polygons or "
                f"RLE; boxes are not enough) or a column of label maps: {', '.join(_MAPS[:4])}"
            )
        self.names = names
        fixed = names if names else [OBJECT] if self.segmentation is None or self.label is None else None
        self.builder = DataBuilder(context, NAME, fixed)

    def read(self, split: str | None, part: Any) -> None:
        """Read the rows of a split."""
        part = part.cast_column(self.image, _library().Image(decode=False))
        for number, row in enumerate(part):
            with self.context.guard():
                self._add(split, row, Path(f"{split or 'all'}"), number)

    def _add(self, split: str | None, row: dict[str, Any], name: Path, number: int) -> None:
        where = f"row {number}"
        path = self._write(row[self.image], self.root / name, number, where)
        builder = self.builder.split(split)
        image_id = builder.add_image(path)
        if self.segmentation is None or self.objects is None:
            ids = to_ids(np.asarray(row[self.map or ""]), path)
            if ids.shape != builder.size(image_id):
                raise BadRecordError(path, f"has another size than its label map {ids.shape[1]}x{ids.shape[0]}", where)
            for value, patch in label_patches(ids, path):
                builder.add_patch(image_id, OBJECT, patch, path, f"{where}, object {value}")
            return
        for position, (segmentation, label) in enumerate(self._entries(row[self.objects], path, where)):
            place = f"{where}, object {position}"
            with self.context.guard():
                if isinstance(segmentation, Mapping):
                    try:
                        patch = rle_to_patch(dict(segmentation), builder.size(image_id))
                    except SegmentationError as error:
                        raise BadRecordError(path, str(error), place) from error
                    builder.add_patch(image_id, label, patch, path, place)
                else:
                    builder.add_polygons(image_id, label, _polygons(segmentation, path, place), path, place)

    def _entries(self, objects: Any, path: Path, where: str) -> Iterator[tuple[Any, str]]:
        rows: Sequence[Any]
        if isinstance(objects, Mapping):  # lists for each key
            segmentations = objects[self.segmentation]
            labels = objects[self.label] if self.label else [None] * len(segmentations)
            if len(labels) != len(segmentations):
                raise BadRecordError(path, f"{len(segmentations)} segmentations, but {len(labels)} classes", where)
            rows = list(zip(segmentations, labels, strict=True))
        else:
            rows = [(entry[self.segmentation], entry[self.label] if self.label else None) for entry in objects or []]
        for segmentation, label in rows:
            yield segmentation, self._class(label, path, where)

    def _class(self, label: Any, path: Path, where: str) -> str:
        if self.label is None:
            return OBJECT
        if self.names and isinstance(label, int):
            if not 0 <= label < len(self.names):
                raise BadRecordError(path, f"class {label} is not one of 0 to {len(self.names) - 1}", where)
            return self.names[label]
        return label if isinstance(label, str) else f"class_{label}"

    def _write(self, cell: Any, directory: Path, number: int, where: str) -> Path:
        data = cell.get("bytes") if isinstance(cell, dict) else None
        if data is None and isinstance(cell, dict) and isinstance(cell.get("path"), str):
            data = self._named(cell["path"], where)
        if not data:
            raise BadRecordError(directory, "has no image", where)
        try:
            with open_with_pillow(io.BytesIO(data)) as image:
                suffix = _SUFFIXES.get(image.format or "")
        except Exception as error:  # of any plug-in of Pillow, on broken data
            raise BadRecordError(directory, f"the image cannot be read: {error}", where) from error
        if suffix is None:
            raise BadRecordError(directory, "the image has a format that is not supported", where)
        path = directory / f"{number:06d}{suffix}"
        if not path.is_file() or path.read_bytes() != data:
            write_bytes(path, data)
        return path

    def _named(self, name: str, where: str) -> bytes:
        """Return the bytes of an image that the dataset names; one from somewhere else may not name any file here."""
        path = Path(name)
        if self.place is not None:
            place = Path(os.path.realpath(self.place))
            path = Path(os.path.realpath(place / name))
            if not path.is_relative_to(place):
                raise BadRecordError(name, f"lies outside of {self.place}, so it is not read", where)
        try:
            with open_regular(str(path)) as file:
                return file.read()
        except OSError as error:
            raise BadRecordError(name, f"cannot be read: {error}", where) from error


def _polygons(segmentation: Any, path: Path, where: str) -> list[Any]:
    if not isinstance(segmentation, (list, tuple)):
        raise BadRecordError(path, "a segmentation must be polygons or an RLE", where)
    flat = bool(segmentation) and not isinstance(segmentation[0], (list, tuple))
    return [segmentation] if flat else list(segmentation)


__all__ = ["LOOKED_FOR", "NAME", "find", "is_dataset", "load", "load_dataset"]
