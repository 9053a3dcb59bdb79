"""Your own data as a folder of pictures and a folder of label maps with the same names, in one call."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Sequence
from typing import Any

from mask2former.visualize import color_of

from ..errors import BadRecordError
from .catalog import Records
from .own_names import locate, register_own
from .semantic import load_semantic

LAYOUT = """\
image folder/   any/name.jpg   (jpg, png, tif, bmp, webp)
label folder/   any/name.png   (png, tif, bmp; 8 or 16 bits): one channel, the value of a pixel is its class index"""

Path = str | os.PathLike[str]


def register_semantic_folder(
    name: str,
    image_root: Path,
    label_root: Path,
    classes: Sequence[str] | Path,
    *,
    ignore_value: int = 255,
) -> None:
    """Register a folder of pictures and a folder of label maps under a name of your choice.

    The value of a pixel is its class: 0 is the first of `classes`, which may be called "background" but is a class
    like any other. Pixels of `ignore_value` belong to no class and are not counted. Relative paths are looked up
    in the working directory, then below the dataset root. A second call with the same name replaces the first.

    Args:
        name: for DATASETS.TRAIN and DATASETS.TEST.
        image_root: folder of the pictures; folders inside it are searched too.
        label_root: folder of the label maps, named as the pictures but for the extension.
        classes: names, or a file: one name in a line, or a json list of names.
        ignore_value: "no class" in the label maps.

    Raises:
        FileNotFoundError: a file or folder does not exist.
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
        raise BadRecordError(path, 'a json of class names is a list: ["road", "sky"]')
    return content
