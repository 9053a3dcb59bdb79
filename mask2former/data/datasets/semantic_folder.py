"""Semantic datasets: a directory of images and a directory of label maps with the same names; also custom ones."""

from __future__ import annotations

import functools
import json
import logging
import os
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

from ...errors import BadRecordError, first_few
from ...structures.colors import color_of
from ..image_io import IMAGE_SUFFIXES, LABEL_MAP_SUFFIXES
from .catalog import Records, locate, register_own, require_files

logger = logging.getLogger(__name__)


class Pairs(NamedTuple):
    """Images and label maps by name; names are paths below their directory without extension."""

    pairs: list[tuple[str, str]]  # (image, label map), in the order of the names
    without_labels: list[str]  # images
    without_image: list[str]  # label maps


def pair_files(image_root: str, label_root: str) -> Pairs:
    """Find the label map of every image: same directory and name below the two roots, whatever the extension.

    Raises:
        ValueError: two images or two label maps have one name.
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
        Records with file_name and sem_seg_file_name, in the order of the names. Files without a partner are left
        out and counted in the log.

    Raises:
        FileNotFoundError: a directory is missing, or holds no pair; shows the expected directories.
        ValueError: two files of one directory have the same name.
    """
    require_files(name, [image_root, sem_seg_root], layout)
    found = pair_files(image_root, sem_seg_root)
    if not found.pairs:
        raise FileNotFoundError(
            f"dataset {name!r}: none of the {len(found.without_labels)} images below {image_root} has a label map of "
            f"its name among the {len(found.without_image)} below {sem_seg_root}. Expected:\n\n{layout}"
        )
    for what, paths in (("images without labels", found.without_labels), ("label maps alone", found.without_image)):
        if paths:
            logger.warning("dataset %s: %d %s are left out: %s", name, len(paths), what, first_few(paths))
    return [{"file_name": image, "sem_seg_file_name": labels} for image, labels in found.pairs]


def _by_name(root: str, suffixes: Collection[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for directory, _, files in os.walk(root, followlinks=True):
        for file in files:
            stem, suffix = os.path.splitext(file)
            if suffix.lower() not in suffixes or file.startswith("."):
                continue
            path = os.path.join(directory, file)
            key = os.path.relpath(os.path.join(directory, stem), root)
            if key in found:
                raise ValueError(f"{path} and {found[key]} have one name; their partner cannot be told")
            found[key] = path
    return found


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
    """Register a directory of images and a directory of label maps under a name of your choice.

    The value of a pixel is its class: 0 is the first of `classes`, which may be called "background" but is a class
    like any other. Pixels of `ignore_value` belong to no class and are not counted. Relative paths are looked up
    in the working directory, then below the dataset root. A second call with the same name replaces the first.

    Args:
        name: for DATASETS.TRAIN and DATASETS.TEST.
        image_root: directory of the images; directories inside it are searched too.
        label_root: directory of the label maps, named as the images but for the extension.
        classes: names, or a file: one name in a line, or a JSON list of names.
        ignore_value: "no class" in the label maps.

    Raises:
        FileNotFoundError: a file or directory does not exist.
        ValueError: no classes, a name twice, or the dataset's name is taken by other code.
    """
    images, labels = locate(image_root), locate(label_root)
    names = _class_names(classes)
    if not isinstance(ignore_value, int) or isinstance(ignore_value, bool):
        raise ValueError(f"dataset {name!r}: ignore_value is the value of a pixel, not {ignore_value!r}")

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

    register_own(name, (images, labels, *names, ignore_value), describe)


def _class_names(classes: Sequence[str] | Path) -> list[str]:
    source = "classes"
    if isinstance(classes, (str, os.PathLike)):
        source = locate(classes)
        classes = _read_names(source)
    names = list(classes)
    if not names or not all(isinstance(entry, str) and entry for entry in names):
        raise ValueError(f"{source}: needs a list of class names, has {names[:5]!r}")
    twice = sorted({entry for entry in names if names.count(entry) > 1})
    if twice:
        raise ValueError(f"{source}: the class names {twice[:5]} occur twice")
    return names


def _read_names(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
        if not path.endswith(".json"):
            return [line.strip() for line in text.splitlines() if line.strip()]
        content = json.loads(text)
    except (OSError, ValueError) as error:
        raise BadRecordError(path, f"is no list of class names: {error}") from error
    if not isinstance(content, list):
        raise BadRecordError(path, 'a JSON of class names is a list: ["road", "sky"]')
    return content
