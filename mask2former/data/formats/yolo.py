"""YOLO segmentation: images/ and labels/*.txt of normalized polygons, with the class names in data.yaml."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import BadRecordError
from ...utils.yaml_files import read_yaml
from .coco_data import CocoData, Context, DataBuilder
from .files import SPLITS, Tree, check_one, image_size, split_of
from .label_maps import pair_key

NAME = "yolo"
LOOKED_FOR = "YOLO segmentation: data.yaml with names, or images/ and labels/ with a .txt for each image"

_MOST_BYTES = 1 << 26
_NAME_FILES = ("classes.txt", "obj.names", "labels.txt", "_darknet.labels")


class Found(NamedTuple):
    """Label files with their images, and the file of the class names."""

    pairs: list[tuple[Path, list[Path]]]  # label file, and the image: none is an error, and so are several
    without: list[Path]  # images that have no label file
    config: Path | None


def find(tree: Tree) -> Found | None:
    """Return label files and images, or None where no .txt file has polygons or boxes."""
    configs = [path for path in tree.with_suffix(".yaml", ".yml") if len(tree.parts(path)) < 2]
    config = next((path for path in configs if isinstance(_config(path).get("names"), (list, dict))), None)
    texts = [path for path in tree.with_suffix(".txt") if path.name.lower() not in _NAME_FILES]
    images: dict[str, list[Path]] = defaultdict(list)
    for path in tree.images:
        images[pair_key(tree, path)[1]].append(path)
    pairs: list[tuple[Path, list[Path]]] = []
    sure = False
    for path in texts:
        role, key = pair_key(tree, path)
        matches, labels = images.get(key, []), _looks_like_labels(path)
        sure |= labels and bool(matches)
        # Of an image, also one that begins with nonsense: read as an error, not taken for an image without objects.
        if (role == "label" and (labels or matches)) or (matches and labels):
            pairs.append((path, matches))
    if not sure:
        return None
    used = {image for _, matches in pairs for image in matches}
    return Found(pairs, [path for path in tree.images if path not in used], config)


def _looks_like_labels(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            first = file.readline(4096).split()
    except OSError:
        return False
    return not first or (first[0].isdigit() and len(first) >= 5)


def _config(path: Path) -> dict[str, Any]:
    """Read a YAML file; empty where it is no mapping, or is damaged and not called data.yaml.

    Raises:
        BadRecordError: data.yaml is damaged, without which the classes would have no names.
    """
    try:
        content = read_yaml(path)
    except (OSError, BadRecordError):
        if path.stem.lower() == "data":
            raise
        return {}
    return content if isinstance(content, dict) else {}


def load(found: Found, context: Context) -> dict[str, CocoData]:
    """Read all label files; the class order is that of the file of the names."""
    reader = _Reader(found, context)
    for text, images in found.pairs:
        with context.guard():
            reader.add(text, images)
    reader.check_boxes()
    reader.add_negatives()
    return reader.builder.finish()


class _Reader:
    def __init__(self, found: Found, context: Context) -> None:
        self.found, self.context = found, context
        config = _config(found.config) if found.config is not None else {}
        self.names = _class_names(found, config, context)
        self.builder = DataBuilder(context, NAME, list(self.names.values()))
        self.roots = _split_roots(found.config, config, context.tree) if found.config is not None else {}
        self.boxes = self.polygons = 0
        self.first_boxes: Path | None = None

    def split(self, image: Path) -> str | None:
        """Return the split of an image: that of data.yaml, else that of its directories.

        Of directories inside each other, the innermost decides: with train "images" and val "images/val" no image of
        the second is trained on.
        """
        listed = next((name for name, (_, files) in self.roots.items() if image in files), None)
        if listed is not None:
            return listed
        roots = [(directory, name) for name, (directories, _) in self.roots.items() for directory in directories]
        around = [(len(directory.parts), name) for directory, name in roots if image.is_relative_to(directory)]
        return max(around)[1] if around else split_of(self.context.tree.parts(image))

    def add(self, text: Path, images: Sequence[Path]) -> None:
        """Read the label file of an image."""
        if not images:
            raise BadRecordError(text, "has no image of the same name")
        check_one(images, f"whose labels {text.name} has")
        image = images[0]
        size = image_size(image)
        split = self.builder.split(self.split(image))
        image_id = split.add_image(image, size)
        for number, values in _lines(text):
            where = f"line {number}"
            label = self._class(values[0], text, where)
            numbers = _numbers(values[1:], text, where)
            if len(numbers) == 4:
                self.boxes += 1
                self.first_boxes = self.first_boxes or text
                continue
            if len(numbers) % 2:
                raise BadRecordError(text, f"has {len(numbers)} numbers after the class, not pairs of x and y", where)
            scaled = [value * size[1 - position % 2] for position, value in enumerate(numbers)]
            split.add_polygons(image_id, label, [scaled], text, where)
            self.polygons += 1

    def _class(self, value: str, text: Path, where: str) -> str:
        try:
            number = float(value)  # some programs write 1.0
            return self.names[int(number) if number.is_integer() else -1]
        except (ValueError, OverflowError, KeyError) as error:
            known = f"0 to {max(self.names)}" if self.names else "none"
            raise BadRecordError(
                text, f"class {value[:20]!r} is not one of those of the names ({known})", where
            ) from error

    def check_boxes(self) -> None:
        """Refuse data for detection; count single boxes among polygons."""
        if self.boxes and not self.polygons:
            raise BadRecordError(
                str(self.first_boxes),
                f"all {self.boxes} objects are boxes (class, x, y, width, height). Training needs masks: export the "
                "dataset for segmentation, or make masks of the boxes with a tool such as SAM",
            )
        if self.boxes:
            self.context.note(f"{self.boxes} boxes among {self.polygons} polygons are left out")

    def add_negatives(self) -> None:
        """Add images without a label file, which YOLO takes for empty."""
        inside = [image for image in self.found.without if not self.roots or self.split(image) is not None]
        known = {self.split(image) for _, images in self.found.pairs for image in images}
        missing = 0
        for image in inside:
            split = self.split(image)
            if split not in known:
                missing += 1
                continue
            with self.context.guard():
                self.builder.split(split).add_image(image)
        if missing:
            self.context.note(f"{missing} images of splits without any label file are left out")


def _lines(text: Path) -> list[tuple[int, list[str]]]:
    try:
        if text.stat().st_size > _MOST_BYTES:
            raise BadRecordError(text, "is larger than 64 MiB, which is no label file of one image")
        lines = text.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadRecordError(text, f"cannot be read: {error}") from error
    return [(number, line.split()) for number, line in enumerate(lines, start=1) if line.strip()]


def _numbers(values: Sequence[str], text: Path, where: str) -> list[float]:
    try:
        numbers = [float(value) for value in values]
    except ValueError as error:
        raise BadRecordError(text, "holds something that is not a number", where) from error
    if not all(math.isfinite(value) for value in numbers):
        raise BadRecordError(text, "contains NaN or infinity", where)
    if any(not -0.5 <= value <= 1.5 for value in numbers):
        raise BadRecordError(text, "the coordinates are not normalized: they must lie between 0 and 1", where)
    return numbers


def _class_names(found: Found, config: dict[str, Any], context: Context) -> dict[int, str]:
    names = config.get("names")
    if isinstance(names, list):
        return _checked(dict(enumerate(names)), found.config)
    if isinstance(names, dict):
        return _checked(names, found.config)
    tree = context.tree
    for file in tree.files:
        if file.name.lower() in _NAME_FILES and len(tree.parts(file)) < 2:
            lines = [line.strip() for line in file.read_text(encoding="utf-8-sig", errors="replace").splitlines()]
            return _checked(dict(enumerate(line for line in lines if line)), file)
    used = {int(values[0]) for text, _ in found.pairs for _, values in _lines(text) if values[0].isdigit()}
    context.note("no data.yaml or classes.txt names the classes, so they are called class_0, class_1, ...")
    return {number: f"class_{number}" for number in sorted(used)}


def _checked(names: dict[Any, Any], file: Path | None) -> dict[int, str]:
    checked = {}
    for key, name in names.items():
        # Not shown in the message: aliases of YAML can stand for more text than memory holds.
        if isinstance(name, bool) or not isinstance(name, (str, int, float)):
            kind = type(name).__name__
            raise BadRecordError(str(file), f"names must be a list of names, or numbers with names, but holds a {kind}")
        if isinstance(key, bool) or not isinstance(key, (str, int)) or not str(key).isdecimal():
            raise BadRecordError(str(file), f"class {str(name)[:40]!r} of names needs a number")
        checked[int(key)] = str(name)
    return dict(sorted(checked.items()))


def _split_roots(file: Path, config: dict[str, Any], tree: Tree) -> dict[str, tuple[list[Path], set[Path]]]:
    """Return for each split of data.yaml its directories, and its images where a text file lists them."""
    roots: dict[str, tuple[list[Path], set[Path]]] = {}
    base = config.get("path")
    starts = [file.parent / base, file.parent] if isinstance(base, str) else [file.parent]
    for split in SPLITS:
        given = config.get(split)
        directories: list[Path] = []
        files: set[Path] = set()
        for entry in given if isinstance(given, list) else [given]:
            if not isinstance(entry, str) or not entry:
                continue
            # Roboflow writes "../train/images" for a directory that lies beside the file.
            names = [entry, entry.removeprefix("../")]
            candidates = [Path(os.path.normpath(tree.root / start / name)) for start in starts for name in names]
            place = next((p for p in candidates if p.is_relative_to(tree.root) and p.exists()), None)
            if place is not None and place.is_dir():
                directories.append(place)
            elif place is not None and place.suffix.lower() == ".txt":
                lines = (" ".join(values) for _, values in _lines(place))
                files |= {tree.find_image(line, place, (place.parent, file.parent)) for line in lines}
        if directories or files:
            roots[split] = (directories, files)
    if len({tuple(map(str, d)) for d, f in roots.values() if not f}) < sum(not f for _, f in roots.values()):
        return {}  # train and val are the same directory, as in examples: there are no splits
    return roots
