"""Semantic datasets, also custom ones: a directory of images, and a directory of label maps with the same names."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

from ...errors import BadRecordError, first_few
from ...structures.colors import color_of
from ...utils.file_io import parse_json
from ...utils.text_files import read_text
from ..file_listing import list_files
from ..image_io import IMAGE_SUFFIXES, LABEL_MAP_SUFFIXES, image_names
from .catalog import Records, locate, register_custom, require_files

logger = logging.getLogger(__name__)

_MAX_BYTES = 1 << 20  # of a file of class names


class Pairs(NamedTuple):
    """Images and label maps, matched by their relative path without extension."""

    pairs: list[tuple[str, str]]  # (image, label map), in the order of the names
    without_labels: list[str]  # images without a label map
    without_image: list[str]  # label maps without an image


def pair_files(image_root: str, label_root: str) -> Pairs:
    """Find the label map of every image: the same relative path in both directories, with any extension.

    Raises:
        ValueError: two images or two label maps have the same name.
    """
    images, labels = _by_name(image_root, IMAGE_SUFFIXES), _by_name(label_root, LABEL_MAP_SUFFIXES)
    return Pairs(
        [(images[key], labels[key]) for key in sorted(images.keys() & labels.keys())],
        [images[key] for key in sorted(images.keys() - labels.keys())],
        [labels[key] for key in sorted(labels.keys() - images.keys())],
    )


def load_semantic(name: str, image_root: str, sem_seg_root: str, layout: str) -> Records:
    """Load a semantic dataset.

    Returns:
        Records with file_name and sem_seg_file_name, in the order of the names. Files without a counterpart are
        left out and counted in the log.

    Raises:
        FileNotFoundError: a directory is missing, or no image has a label map; shows the expected directories.
        ValueError: two files of one directory have the same name.
    """
    require_files(name, [image_root, sem_seg_root], layout)
    files = pair_files(image_root, sem_seg_root)
    if not files.pairs:
        raise FileNotFoundError(
            f"dataset {name!r}: none of the {len(files.without_labels)} images in {image_root} has a label map of the "
            f"same name among the {len(files.without_image)} in {sem_seg_root}. Expected:\n\n{layout}"
        )
    groups = {"images without a label map": files.without_labels, "label maps without an image": files.without_image}
    for group, paths in groups.items():
        if paths:
            logger.warning("dataset %s: %d %s are left out: %s", name, len(paths), group, first_few(paths))
    return [{"file_name": image, "sem_seg_file_name": labels} for image, labels in files.pairs]


def _by_name(root: str, suffixes: Collection[str]) -> dict[str, str]:
    by_name: dict[str, str] = {}
    by_directory: dict[str, list[str]] = {}
    for listed in list_files(root):
        by_directory.setdefault(str(listed.parent), []).append(listed.name)
    for directory, files in by_directory.items():
        for file in image_names(files, suffixes):
            path = os.path.join(directory, file)
            key = os.path.relpath(os.path.splitext(path)[0], root)
            if key in by_name:
                raise ValueError(
                    f"{path} and {by_name[key]} have the same name, so their match is ambiguous; rename one"
                )
            by_name[key] = path
    return by_name


LAYOUT = """\
image directory/   any/name.jpg   (jpg, png, tif, bmp, webp, ...)
label directory/   any/name.png   (png, tif, bmp; 8 or 16 bits): one channel, the value of a pixel is its class index"""

Path = str | os.PathLike[str]


def register_semantic_folder(
    name: str,
    image_root: Path,
    label_root: Path,
    classes: Sequence[str] | Path,
    *,
    ignore_value: int = 255,
) -> None:
    """Register a custom dataset: a directory of images and a directory of label maps.

    The value of a pixel is its class index: 0 is the first of `classes`, which may be called "background" but is like
    any other class. Pixels of `ignore_value` belong to no class and are ignored. Relative paths are looked up in the
    working directory, then below the dataset root. A second call with the same name replaces the first.

    Args:
        name: for DATASETS.TRAIN and DATASETS.TEST.
        image_root: directory of the images, searched recursively.
        label_root: directory of the label maps, with the same names as the images except for the extension.
        classes: class names, or a file with one name per line or a JSON list of names.
        ignore_value: value of pixels without a class in the label maps.

    Raises:
        FileNotFoundError: a file or directory does not exist.
        NotADirectoryError, IsADirectoryError: a file is given for a directory, or the reverse.
        ValueError: no classes, a duplicate class name, or the dataset's name is already used by other code.
    """
    images, labels = locate(image_root, directory=True), locate(label_root, directory=True)
    names = _class_names(classes)
    if not isinstance(ignore_value, int) or isinstance(ignore_value, bool):
        raise ValueError(
            f"dataset {name!r}: ignore_value must be an integer, the value of a pixel, not {ignore_value!r}"
        )

    def describe() -> tuple[Callable[[], Records], dict[str, Any]]:
        metadata = {
            "stuff_classes": names,
            "stuff_colors": [list(color_of(index)) for index in range(len(names))],
            "image_root": images,
            "sem_seg_root": labels,
            "evaluator_type": "sem_seg",
            "ignore_label": ignore_value,
        }
        return functools.partial(load_semantic, name, images, labels, LAYOUT), metadata

    register_custom(name, (images, labels, *names, ignore_value), describe)


def _class_names(classes: Sequence[str] | Path) -> list[str]:
    source = "classes"
    if isinstance(classes, (str, os.PathLike)):
        source = locate(classes, directory=False)
        classes = _read_names(source)
    names = list(classes)
    if not names or not all(isinstance(entry, str) and entry for entry in names):
        raise ValueError(f"{source}: needs a list of class names, has {names[:5]!r}")
    duplicates = sorted({entry for entry in names if names.count(entry) > 1})
    if duplicates:
        raise ValueError(f"{source}: the class names {duplicates[:5]} occur twice; names must be unique")
    return names


def _read_names(path: str) -> list[str]:
    if not path.endswith(".json"):
        return [line.strip() for line in read_text(path, _MAX_BYTES).splitlines() if line.strip()]
    content = parse_json(path)
    if not isinstance(content, list):
        raise BadRecordError(path, 'a JSON file of class names must be a list: ["road", "sky"]')
    return content
