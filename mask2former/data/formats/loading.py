"""Finding the format of training data, and reading it."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

from ...errors import BadRecordError
from ...utils.file_io import is_special, short_path
from ...utils.hints import did_you_mean
from . import coco, cvat, huggingface, label_maps, label_studio, labelme, object_masks, voc, yolo
from .coco_data import CocoData, Context
from .files import Tree, is_image

# In the order in which they are tried: a format with more of its own signs comes first.
_READERS: tuple[ModuleType, ...] = (
    *(huggingface, voc, object_masks, coco, cvat, labelme, label_studio, yolo),
    label_maps,
)
FORMATS: dict[str, ModuleType] = {reader.NAME: reader for reader in _READERS}
_ANNOTATION_FILES: tuple[ModuleType, ...] = (coco, cvat, labelme, label_studio)  # one file can be passed


class FormatError(ValueError):
    """The format of training data is unknown; the message lists what was looked for and the nearest guess."""


def detect_format(path: str | os.PathLike[str]) -> str:
    """Return the name of the format of a file or directory, a key of `FORMATS`.

    Raises:
        FileNotFoundError: the path does not exist.
        FormatError: no format fits.
    """
    return _find(_tree(path), "auto")[0].NAME


def load_data(
    path: str | os.PathLike[str] | Any,
    format: str = "auto",
    *,
    problems: list[BadRecordError] | None = None,
    negatives: bool = True,
    **options: Any,
) -> dict[str, CocoData]:
    """Read training data of any format of `FORMATS` as COCO instances.

    Args:
        path: directory, annotation file, or a `datasets.Dataset` or `DatasetDict` in memory.
        format: name of the format; "auto" finds it.
        problems: list that takes bad records, which are then left out. None raises the first one.
        negatives: keep images without objects; they teach what is background.
        options: of the format: `image_root` (COCO: directory that its file names start from), `image_dir` (Hugging
            Face: directory that its images are written to, by default below ~/.cache/mask2former).

    Returns:
        Split ("train", "val", "test", or "all" where the data has no splits) -> its data. All splits have the same
        categories. `notes` of each say what was decided and left out.

    Raises:
        FileNotFoundError: the path does not exist.
        FormatError: no format fits.
        BadRecordError: a file or record is malformed; names file and record.
        ValueError: unknown format, or data without one usable image.
    """
    if format != "auto" and format not in FORMATS:
        raise ValueError(
            f"format {format!r} is unknown; use auto, {', '.join(FORMATS)}.{did_you_mean(format, FORMATS)}"
        )
    if huggingface.is_dataset(path):
        return huggingface.load_dataset(path, Context(Tree(Path()), problems, negatives, options))
    tree = _tree(path)
    reader, found = _find(tree, format)
    return reader.load(found, Context(tree, problems, negatives, options))


class _OneFile(Tree):
    """The directory of one annotation file, of which only this annotation file counts."""

    def __init__(self, file: Path) -> None:
        file = file.absolute()
        beside = file.parent.name.lower() in ("annotations", "annotation", "labels")  # beside the images
        super().__init__(file.parent.parent if beside else file.parent)
        self.file = file

    def with_suffix(self, *suffixes: str) -> list[Path]:
        return [self.file] if self.file.suffix.lower() in suffixes else []


def _tree(path: str | os.PathLike[str]) -> Tree:
    place = Path(path).expanduser()
    if not place.exists():
        raise FileNotFoundError(f"training data {short_path(place)} does not exist")
    if is_special(place):
        raise FormatError(f"{place} is a pipe or device; pass a directory or an annotation file")
    if place.is_dir():
        return Tree(place)
    if place.suffix.lower() in (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar"):
        raise FormatError(f"{place} is an archive; unpack it and pass the directory")
    if place.suffix.lower() in (".yaml", ".yml"):  # data.yaml of YOLO stands for its directory
        return Tree(place.parent)
    return _OneFile(place)


def _find(tree: Tree, format: str) -> tuple[ModuleType, Any]:
    readers = _READERS if format == "auto" else (FORMATS[format],)
    if isinstance(tree, _OneFile):
        readers = tuple(reader for reader in readers if reader in _ANNOTATION_FILES) or readers
    for reader in readers:
        found = reader.find(tree)
        if found:
            return reader, found
    place = tree.file if isinstance(tree, _OneFile) else tree.root
    looked = "\n".join(f"  {reader.LOOKED_FOR}" for reader in readers)
    what = "the format of the training data is unknown" if format == "auto" else f"is not in the format {format!r}"
    raise FormatError(f"{place}: {what}: {_guess(tree)}.\nLooked for:\n{looked}")


def _guess(tree: Tree) -> str:
    """Say what there is, and what is missing to make it the nearest format."""
    if not tree.files:
        return "the directory is empty"
    images = tree.images
    others = Counter(path.suffix.lower() or "files without a suffix" for path in tree.files if not is_image(path))
    listed = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(5))
    if not images:
        return f"found no image, only {listed}"
    text = f"found {len(images)} image{'s' * (len(images) != 1)} but no annotations"
    directories = Counter(path.parent for path in images)
    place = tree.relative(directories.most_common(1)[0][0])
    if listed:
        text += f" (only {listed} beside them)"
    names = sorted(path.name for path in directories)
    if len(directories) == 1:
        expected = "labels/" if place == "." else str(PurePosixPath(place).parent / "labels") + "/"
        return f"{text}: expected label maps or YOLO .txt files of the same names in {expected}, or a COCO .json"
    return f"{text}: no image in {', '.join(names[:5])} has a label of the same name"
