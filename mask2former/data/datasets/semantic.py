"""Reading semantic datasets: a folder of pictures, and a folder of label maps with the same names."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection
from typing import NamedTuple

from ..errors import first_few
from .catalog import Records, require_files

logger = logging.getLogger(__name__)

IMAGE_EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp"})
LABEL_EXTENSIONS = frozenset({".png", ".tif", ".tiff", ".bmp"})


class Pairs(NamedTuple):
    """Pictures and label maps by name; names are paths below their folder without extension."""

    pairs: list[tuple[str, str]]  # (picture, label map), in the order of the names
    without_labels: list[str]  # pictures
    without_image: list[str]  # label maps


def pair_files(
    image_root: str,
    label_root: str,
    image_extensions: Collection[str] = IMAGE_EXTENSIONS,
    label_extensions: Collection[str] = LABEL_EXTENSIONS,
) -> Pairs:
    """Find the label map of every picture: same folder and name below the two roots, whatever the extension.

    Raises:
        ValueError: two pictures or two label maps have one name.
    """
    images, labels = _by_name(image_root, image_extensions), _by_name(label_root, label_extensions)
    return Pairs(
        [(images[key], labels[key]) for key in sorted(images.keys() & labels.keys())],
        [images[key] for key in sorted(images.keys() - labels.keys())],
        [labels[key] for key in sorted(labels.keys() - images.keys())],
    )


def load_semantic(
    name: str,
    image_root: str,
    sem_seg_root: str,
    layout: str,
    image_extensions: Collection[str] = IMAGE_EXTENSIONS,
    label_extensions: Collection[str] = LABEL_EXTENSIONS,
) -> Records:
    """Load a semantic dataset.

    Returns:
        Records with file_name and sem_seg_file_name, in the order of the names. Files without a partner are left
        out and counted in the log.

    Raises:
        FileNotFoundError: a folder is missing, or holds no pair; shows the expected folders.
        ValueError: two files of one folder have the same name.
    """
    require_files(name, [image_root, sem_seg_root], layout)
    found = pair_files(image_root, sem_seg_root, image_extensions, label_extensions)
    if not found.pairs:
        raise FileNotFoundError(
            f"dataset {name!r}: none of the {len(found.without_labels)} pictures below {image_root} has a label map of "
            f"its name among the {len(found.without_image)} below {sem_seg_root}. Expected:\n\n{layout}"
        )
    for what, paths in (("pictures without labels", found.without_labels), ("label maps alone", found.without_image)):
        if paths:
            logger.warning("dataset %s: %d %s are left out: %s", name, len(paths), what, first_few(paths))
    return [{"file_name": image, "sem_seg_file_name": labels} for image, labels in found.pairs]


def _by_name(root: str, extensions: Collection[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for folder, _, files in os.walk(root, followlinks=True):
        for file in files:
            stem, extension = os.path.splitext(file)
            if extension.lower() not in extensions or file.startswith("."):
                continue
            path = os.path.join(folder, file)
            key = os.path.relpath(os.path.join(folder, stem), root)
            if key in found:
                raise ValueError(f"{path} and {found[key]} have one name; their partner cannot be told")
            found[key] = path
    return found
