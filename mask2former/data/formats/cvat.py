"""CVAT for images 1.1: an annotations.xml of polygons, ellipses and masks, and the images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.parsers import expat

import numpy as np

from ...errors import BadRecordError
from ...structures.masks import Patch, tighten
from .coco_data import CocoData, Context, DataBuilder
from .files import Tree, check_side, image_size, split_of
from .shapes import Part, add_object, circle
from .sniffing import is_cvat

NAME = "cvat"
LOOKED_FOR = "CVAT for images: annotations.xml with <image> elements, and the images"

_AREAS = frozenset({"polygon", "mask", "ellipse"})
_OTHERS = frozenset({"box", "polyline", "points", "cuboid", "tag", "skeleton"})
_MOST_TEXT = 1 << 16
_MOST_DEPTH = 64


def find(tree: Tree) -> list[Path]:
    """Return the XML files of CVAT."""
    return [path for path in tree.with_suffix(".xml") if is_cvat(path)]


class Shape(NamedTuple):
    """An element inside of an image."""

    kind: str
    attributes: dict[str, str]
    line: int


class Annotated(NamedTuple):
    """An `<image>` element."""

    attributes: dict[str, str]
    shapes: list[Shape]
    line: int


class _Parser:
    """Streams the images of a file; document types and entities, which can expand without end, are refused."""

    def __init__(self, file: Path, take: Callable[[Annotated], None]) -> None:
        self.file, self.take = file, take
        self.labels: list[str] = []
        self._open: list[str] = []
        self._image: Annotated | None = None
        self._text: list[str] = []
        self._length = 0
        self._expat = parser = expat.ParserCreate()
        parser.buffer_text = True
        parser.StartDoctypeDeclHandler = self._refuse
        parser.EntityDeclHandler = self._refuse
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._characters

    def run(self) -> None:
        try:
            with self.file.open("rb") as file:
                self._expat.ParseFile(file)
        except (expat.ExpatError, LookupError) as error:  # LookupError: an encoding that does not exist
            raise BadRecordError(self.file, f"is not an XML file: {error}") from error
        except OSError as error:
            raise BadRecordError(self.file, f"cannot be read: {error}") from error

    def _refuse(self, *_: object) -> None:
        raise BadRecordError(self.file, "declares a document type or entities, which CVAT never does; it is refused")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._open.append(name)
        if len(self._open) > _MOST_DEPTH:
            raise BadRecordError(self.file, "the XML is nested too deeply")
        line = self._expat.CurrentLineNumber
        if name == "track":
            raise BadRecordError(self.file, "is 'CVAT for video'; export 'CVAT for images 1.1' or COCO", f"line {line}")
        if name == "image":
            self._image = Annotated(attributes, [], line)
        elif self._image is not None and name in _AREAS | _OTHERS:
            self._image.shapes.append(Shape(name, attributes, line))
        self._text, self._length = [], 0

    def _characters(self, text: str) -> None:
        self._length += len(text)
        if self._length <= _MOST_TEXT:
            self._text.append(text)

    def _end(self, name: str) -> None:
        if self._open[-3:] == ["labels", "label", "name"]:
            self.labels.append("".join(self._text).strip())
        if name == "image" and self._image is not None:
            image, self._image = self._image, None
            self.take(image)
        self._open.pop()


def load(files: Sequence[Path], context: Context) -> dict[str, CocoData]:
    """Read all files; the classes are the labels of the project, in its order."""
    parsed: list[tuple[Path, list[Annotated]]] = []
    labels: list[str] = []
    for file in files:
        with context.guard():
            images: list[Annotated] = []
            parser = _Parser(file, images.append)
            parser.run()
            parsed.append((file, images))
            labels += [label for label in parser.labels if label not in labels]
    areas = {s.attributes.get("label") for _, images in parsed for image in images for s in image.shapes}
    builder = DataBuilder(context, NAME, labels if areas - {None} <= set(labels) and labels else None)
    reader = _Reader(builder)
    for file, images in parsed:
        for image in images:
            with context.guard():
                reader.add(file, image)
    reader.report(files)
    return builder.finish()


class _Reader:
    def __init__(self, builder: DataBuilder) -> None:
        self.builder = builder
        self.objects = 0
        self.skipped: dict[str, int] = {}

    def add(self, file: Path, image: Annotated) -> None:
        """Add an image and its objects; shapes of one group and label are one object, as in CVAT's COCO export."""
        context = self.builder.context
        where = f"line {image.line}"
        path = context.tree.find_image(image.attributes.get("name"), file, (file.parent / "images", file.parent), where)
        size = image_size(path)
        width, height = (check_side(image.attributes.get(key), key, file, where) for key in ("width", "height"))
        if (height, width) != size:
            raise BadRecordError(
                file, f"says {width}x{height} pixels (width x height), {path} has {size[1]}x{size[0]}", where
            )
        subset = [image.attributes.get("subset", "")]
        split = self.builder.split(split_of(subset) or split_of(context.tree.parts(path)))
        image_id = split.add_image(path, size)
        groups: dict[tuple, list[Part]] = {}
        for number, shape in enumerate(image.shapes):
            if shape.kind in _OTHERS:
                self.skipped[shape.kind] = self.skipped.get(shape.kind, 0) + 1
                continue
            with context.guard():
                line = f"line {shape.line}"
                label = shape.attributes.get("label", "")
                part = _part(shape, file, line, size)
                group = shape.attributes.get("group_id", "0")
                key = (label, line, number) if group in ("", "0") else (label, line := f"group {group}")
                groups.setdefault(key, []).append(part)
        for (label, line, *_), parts in groups.items():
            with context.guard():
                add_object(split, image_id, label, parts, file, line)
                self.objects += 1

    def report(self, files: Sequence[Path]) -> None:
        """Refuse files with boxes only, and count what is left out."""
        if self.skipped.get("box") and not self.objects:
            raise BadRecordError(
                files[0],
                f"its {self.skipped['box']} objects are boxes. Training needs masks: draw polygons or masks in CVAT "
                "(its AI tools make them of boxes)",
            )
        for kind, count in self.skipped.items():
            self.builder.context.note(f"{count} <{kind}> elements are left out: only areas can be trained on")


def _part(shape: Shape, file: Path, where: str, size: tuple[int, int]) -> Part:
    attributes = shape.attributes
    try:
        if shape.kind == "ellipse":
            x, y, rx, ry = (float(attributes[key]) for key in ("cx", "cy", "rx", "ry"))
            return circle(x, y, rx, ry, float(attributes.get("rotation", 0)))
        if shape.kind == "mask":
            return _mask(attributes, file, where, size)
        pairs = [pair.split(",") for pair in attributes["points"].split(";")]
        return [[float(x), float(y)] for x, y in pairs]
    except KeyError as error:
        raise BadRecordError(file, f"<{shape.kind}> has no {error.args[0]!r}", where) from error
    except BadRecordError:
        raise
    except (ValueError, OverflowError) as error:
        raise BadRecordError(file, f"<{shape.kind}> holds something that is not a number: {error}", where) from error


def _mask(attributes: dict[str, str], file: Path, where: str, size: tuple[int, int]) -> Patch:
    """Decode a mask: runs of 0 and 1, row by row inside its box, starting with 0."""
    runs = np.array([int(run) for run in attributes["rle"].split(",")], dtype=np.int64)
    left, top = int(float(attributes["left"])), int(float(attributes["top"]))
    width, height = (check_side(attributes[key], key, file, where) for key in ("width", "height"))
    if left < 0 or top < 0 or left + width > size[1] or top + height > size[0]:
        raise BadRecordError(file, f"the mask lies outside of the image of {size[1]}x{size[0]} pixels", where)
    if runs.min() < 0 or runs.max() > width * height or runs.sum() != width * height:
        raise BadRecordError(file, f"the runs of the mask do not add up to {width} x {height} pixels", where)
    bits = (np.arange(len(runs)) % 2 == 1).repeat(runs).reshape(height, width)
    return tighten(Patch(top, left, bits))
