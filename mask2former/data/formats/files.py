"""Files of a directory of training data: images that annotation files name, sizes, splits."""

from __future__ import annotations

import contextlib
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import UnidentifiedImageError

from ...errors import BadRecordError
from ..file_listing import list_files
from ..image_files import opened_image
from ..image_io import IMAGE_SUFFIXES, read_image

# Names of directories and parts of file names -> the split they stand for.
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training", "trainset"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "testset"), "test"),
}
SPLITS = ("train", "val", "test")

_ROTATED = frozenset({5, 6, 7, 8})  # EXIF orientations that swap width and height
_WIDTH, _HEIGHT, _ORIENTATION = 256, 257, 274  # tags of TIFF and EXIF
_MOST_SIDE = 1 << 20


def is_image(path: Path) -> bool:
    """Return whether the suffix, in any case, is that of an image."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def is_file(path: Path) -> bool:
    """Return whether a file exists; False for names that the file system cannot hold."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def words(name: str) -> list[str]:
    """Return the lower-case words of a file name: "instances_train2017" -> ["instances", "train", "2017"]."""
    return re.findall(r"[^\W\d_]+|\d+", name.lower())


def split_of(names: Iterable[str]) -> str | None:
    """Return the split that one of these names stands for, from the last to the first, or None."""
    for name in reversed(list(names)):
        for word in words(name):
            if word in SPLIT_NAMES:
                return SPLIT_NAMES[word]
    return None


class Tree:
    """The files below the directory of a dataset, listed once."""

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.abspath(root))

    @cached_property
    def files(self) -> list[Path]:
        """Return all files, absolute, in the order of their names."""
        return list_files(self.root)

    @cached_property
    def images(self) -> list[Path]:
        """Return the files with the suffix of an image; `.npy` files beside other images are masks or features."""
        images = [path for path in self.files if is_image(path)]
        return [path for path in images if path.suffix.lower() != ".npy"] or images

    def with_suffix(self, *suffixes: str) -> list[Path]:
        """Return the files with one of these suffixes, in any case."""
        return [path for path in self.files if path.suffix.lower() in suffixes]

    def relative(self, path: Path) -> str:
        """Return a path below the root with "/" between its parts."""
        return path.relative_to(self.root).as_posix()

    def parts(self, path: Path) -> tuple[str, ...]:
        """Return the names of the directories between root and file."""
        return path.relative_to(self.root).parts[:-1]

    @cached_property
    def _by_name(self) -> dict[str, list[Path]]:
        names = defaultdict(list)
        for path in self.images:
            names[path.name.lower()].append(path)
        return names

    @cached_property
    def _by_stem(self) -> dict[str, list[Path]]:
        stems = defaultdict(list)
        for path in self.images:
            stems[path.stem.lower()].append(path)
        return stems

    def find_image(self, name: object, file: Path, bases: Iterable[Path] = (), where: str | None = None) -> Path:
        """Return the image that an annotation file names.

        It is looked up in `bases`, and then by its file name alone, because paths of the computer where it was
        annotated are common. It always lies below the root.

        Args:
            name: relative or absolute path; "/" or "\\" between its parts.
            file: annotation file, for messages.
            bases: directories that a relative name starts from, best first.
            where: record in the file, for messages.

        Raises:
            BadRecordError: not a file name, outside of the root, missing, or several images have this name.
        """
        text = checked_name(name, file, where)
        candidates = [Path(os.path.normpath(base / text)) for base in (*bases, self.root)]
        inside = [path for path in candidates if path.is_relative_to(self.root)]
        for path in inside:
            if is_image(path) and is_file(path):
                return path
        last = text.rsplit("/", 1)[-1]
        matches = self._by_name.get(last.lower(), [])
        if not matches and not is_image(Path(last)):
            matches = self._by_stem.get(last.lower(), [])
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise BadRecordError(file, f"image {text!r} is ambiguous: {matches[0]} or {matches[1]}", where)
        if not inside:
            raise BadRecordError(file, f"image {text!r} lies outside of {self.root}, so it is not read", where)
        raise BadRecordError(file, f"image {text!r} does not exist below {self.root}", where)


def checked_name(name: object, file: Path, where: str | None = None) -> str:
    """Return a file name of an annotation file, with "/" between its parts.

    Raises:
        BadRecordError: it is not text, empty, or not a file name.
    """
    if not isinstance(name, str) or not name.strip() or "\0" in name or len(name) > 4096:
        shown = name if not isinstance(name, str) else name[:40]
        raise BadRecordError(file, f"{shown!r} is not the file name of an image", where)
    return name.replace("\\", "/")


def image_size(path: Path) -> tuple[int, int]:
    """Return height and width of an image, after its EXIF orientation.

    Only the header is read, except of formats that Pillow does not know, but `read_image` does.

    Raises:
        BadRecordError: the file is missing or not an image.
    """
    try:
        with opened_image(path) as image:
            # Pillow gives the size of a rotated TIFF after the rotation, that of others before it.
            tags: Any = getattr(image, "tag_v2", {})
            width, height = int(tags.get(_WIDTH, image.width)), int(tags.get(_HEIGHT, image.height))
            with contextlib.suppress(Exception):  # a broken EXIF block must not make the image unusable
                if image.getexif().get(_ORIENTATION) in _ROTATED:
                    width, height = height, width
            return height, width
    except FileNotFoundError as error:
        raise BadRecordError(path, "the file does not exist") from error
    except BadRecordError:
        raise
    except UnidentifiedImageError:
        height, width = read_image(str(path)).shape[:2]
        return height, width
    except Exception as error:  # of any plug-in of Pillow, on a broken file
        raise BadRecordError(path, f"cannot be read as an image: {error}") from error


def check_one(paths: Sequence[Path], purpose: str) -> None:
    """Check that only one file has a name that annotations refer to without its suffix.

    Raises:
        BadRecordError: several have it.
    """
    if len(paths) > 1:
        raise BadRecordError(paths[1], f"has the same name as {paths[0].name}, so {purpose} is ambiguous; rename one")


def check_side(value: object, name: str, file: Path, where: str | None = None) -> int:
    """Return a width or height of an annotation file as an integer.

    Raises:
        BadRecordError: not an integer from 1 to 1,048,576.
    """
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        number = -1.0
    if not (1 <= number <= _MOST_SIDE) or number != int(number):
        raise BadRecordError(file, f"{name} must be an integer of pixels from 1 on, not {str(value)[:40]!r}", where)
    return int(number)
