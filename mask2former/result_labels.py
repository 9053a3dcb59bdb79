"""Labels of results for LabelMe and Ultralytics (YOLO): their files, and directories of them with the images.

Coordinates are those of `result_shapes`. `save_labelme`, `save_yolo` and `mask2former predict --save-as` write by the
same rules: which images can be used as they are, how files are named, and that nothing is replaced.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from .data.image_files import opened_image
from .result_files import UniqueNames, encode_image
from .result_objects import HasObjects
from .structures.classes import ClassTable
from .structures.polygons import join_holes, join_polygons, trace_polygons
from .utils.file_io import write_bytes, write_json

_SHOWN = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".webp"})  # formats that labeling tools and browsers show
_MODES = ("RGB", "RGBA", "L", "P")  # and not 16 bits, of which each program shows something else
_ORIENTATION = 0x0112  # of EXIF


# ------------------------------------------------------------------ content of files
def labelme_record(
    result: HasObjects, task: str = "auto", *, image_path: str | None = None, tolerance: float = 1.0
) -> dict[str, Any]:
    """Return the content of a LabelMe file: polygons, and the image by its path, not embedded.

    Parts of one object have its id as `group_id`; holes are joined to the outline by a slit, as LabelMe has none. The
    description holds the score.

    Args:
        result: the result to convert.
        task: "instance", "panoptic" or "semantic"; "auto": the first of these that the result has.
        image_path: path of the image relative to the LabelMe file; default: the name of the image file.
        tolerance: pixels by which outlines may move, so that they have few points to drag; 0: exact outlines.
    """
    objects = result.objects(task)
    shapes = []
    for i, patch in enumerate(objects.masks):
        polygons, score = trace_polygons(patch, tolerance), objects.scores[i]
        for polygon in polygons:
            shapes.append(
                {
                    "label": objects.names[i],
                    "points": join_holes(polygon).astype(float).tolist(),
                    "group_id": int(objects.ids[i]) if len(polygons) > 1 else None,
                    "description": "" if score is None else f"score {score:.3f}",
                    "shape_type": "polygon",
                    "flags": {},
                    "mask": None,
                }
            )
    if image_path is None:
        image_path = result.path.name if result.path else "image.png"
    return {
        "version": "5.5.0",
        "flags": {},
        "shapes": shapes,
        "imagePath": image_path,
        "imageData": None,
        "imageHeight": objects.size[0],
        "imageWidth": objects.size[1],
    }


def yolo_lines(result: HasObjects, task: str = "auto", *, tolerance: float = 0.0) -> list[str]:
    """Return lines of a YOLO segmentation label file: class index, then x y of each point in 0..1 of the image's size.

    There is one line for each object, so that counts stay right: parts and holes are joined by slits of zero width, as
    the converters of Ultralytics do. Objects without pixels have no line. The format has no score.
    """
    objects = result.objects(task)
    height, width = objects.size
    lines = []
    for label, patch in zip(objects.labels, objects.masks, strict=True):
        ring = join_polygons(trace_polygons(patch, tolerance)) / (width, height)
        if len(ring):
            lines.append(" ".join([str(int(label)), *(f"{value:.6f}" for value in ring.ravel())]))
    return lines


# ------------------------------------------------------------------ directories
def plain_file(result: HasObjects) -> Path | None:
    """Return the file of an image if every program shows it as the model saw it; None if a PNG has to be made.

    That is: 8 bits, a common format, one page, and no orientation by EXIF, which some tools apply and others do not.
    """
    path = result.path
    if path is None or getattr(result, "page", None) is not None or path.suffix.lower() not in _SHOWN:
        return None
    with contextlib.suppress(OSError, ValueError), opened_image(path) as image:
        turned = image.getexif().get(_ORIENTATION, 1) != 1
        if image.mode in _MODES and not turned and image.size == result.image.shape[1::-1]:
            return path
    return None


def store_image(result: HasObjects, directory: Path, stem: str, *, overwrite: bool = False) -> Path:
    """Copy the image into a directory, as PNG where `plain_file` has none; return the file.

    Raises:
        FileExistsError: another image has this name there, and `overwrite` is False.
    """
    source = plain_file(result)
    target = directory / f"{stem}{'.png' if source is None else source.suffix.lower()}"
    content = encode_image(Image.fromarray(result.image)) if source is None else source.read_bytes()
    if target.exists() and target.read_bytes() == content:
        return target
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} exists and may be another image; choose another directory, or overwrite=True")
    return write_bytes(target, content)


class LabelMeDirectory:
    """Writer of a directory of LabelMe files.

    Args:
        directory: where to write; it is made.
        tolerance: see `labelme_record`.
        overwrite: replace existing files.
        copy: put the image beside its file, instead of naming it where it is.
    """

    def __init__(self, directory: Path, *, tolerance: float = 1.0, overwrite: bool = False, copy: bool = True) -> None:
        self.directory, self.tolerance, self.overwrite, self.copy = directory, tolerance, overwrite, copy

    def add(self, result: HasObjects, task: str, stem: str) -> Path:
        """Write the files of an image; return the LabelMe file.

        Raises:
            FileExistsError: see `save_labelme`.
        """
        path = self.directory / f"{stem}.json"
        _check_absent(path, self.overwrite)
        source = None if self.copy else plain_file(result)
        if source is not None:
            image_path = _relative(source, self.directory)
        else:
            image_path = store_image(result, self.directory, stem, overwrite=self.overwrite).name
        return write_json(path, labelme_record(result, task, image_path=image_path, tolerance=self.tolerance))


class YoloDirectory:
    """Writer of a YOLO segmentation dataset: images/, labels/ and data.yaml.

    Args:
        directory: where to write; it is made.
        tolerance: see `yolo_lines`.
        overwrite: replace existing files.
    """

    def __init__(self, directory: Path, *, tolerance: float = 0.0, overwrite: bool = False) -> None:
        self.directory, self.tolerance, self.overwrite = directory, tolerance, overwrite
        self._classes: ClassTable | None = None

    def add(self, result: HasObjects, task: str, stem: str) -> Path:
        """Write the files of an image; return the label file.

        Raises:
            FileExistsError, ValueError: see `save_yolo`.
        """
        if self._classes is not None and result.classes.names != self._classes.names:
            raise ValueError(f"{self.directory}: the results come from models with different classes")
        self._classes = result.classes
        path = self.directory / "labels" / f"{stem}.txt"
        _check_absent(path, self.overwrite)
        store_image(result, self.directory / "images", stem, overwrite=self.overwrite)
        text = "".join(f"{line}\n" for line in yolo_lines(result, task, tolerance=self.tolerance))
        return write_bytes(path, text.encode())

    def finish(self) -> list[Path]:
        """Write data.yaml; return it, or nothing if there was no result."""
        if self._classes is None:
            return []
        # Without "path", which Ultralytics takes as relative to the working directory and not to this file.
        content = {"train": "images", "val": "images", "names": dict(enumerate(self._classes.names))}
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        head = "# All images are in both sets: split them before training.\n"
        return [write_bytes(self.directory / "data.yaml", (head + text).encode())]


def save_labelme(
    results: Iterable[HasObjects],
    directory: str | os.PathLike[str],
    *,
    task: str = "auto",
    tolerance: float = 1.0,
    overwrite: bool = False,
) -> list[Path]:
    """Write a LabelMe file for each result; `labelme DIRECTORY` opens them.

    The image is named by its path relative to the directory. Where `plain_file` has none, it is written beside the
    LabelMe file as PNG. Of images with the same name the later ones get `_2`, `_3`, ...

    Args:
        results: any iterable; one result is in memory at a time.
        directory: where to write; it is made.
        task: see `labelme_record`.
        tolerance: see `labelme_record`.
        overwrite: replace existing LabelMe files, in which there may be corrections by hand.

    Returns:
        The LabelMe files.

    Raises:
        FileExistsError: there is such a file, or another image where a PNG is to be written, and `overwrite` is False.
    """
    writer = LabelMeDirectory(Path(directory).expanduser(), tolerance=tolerance, overwrite=overwrite, copy=False)
    names = UniqueNames()
    return [writer.add(result, task, names.unique(_stem(result))) for result in results]


def save_yolo(
    results: Iterable[HasObjects],
    directory: str | os.PathLike[str],
    *,
    task: str = "auto",
    tolerance: float = 0.0,
    overwrite: bool = False,
) -> list[Path]:
    """Write a YOLO segmentation dataset: `images/`, `labels/` and `data.yaml`.

    Images are copied; where `plain_file` has none, they are written as PNG. `data.yaml` uses all images for training
    and validation; split them before training. Of images with the same name the later ones get `_2`, `_3`, ...

    Args:
        results: any iterable; one result is in memory at a time.
        directory: where to write; it is made.
        task: see `yolo_lines`.
        tolerance: see `yolo_lines`.
        overwrite: replace existing label files, in which there may be corrections by hand.

    Returns:
        The label files, then `data.yaml` (which is not written if there are no results).

    Raises:
        FileExistsError: there is such a label file, or another image where one is to be written, and `overwrite` is
            False.
        ValueError: the results have different classes.
    """
    writer, names = YoloDirectory(Path(directory).expanduser(), tolerance=tolerance, overwrite=overwrite), UniqueNames()
    written = [writer.add(result, task, names.unique(_stem(result))) for result in results]
    return written + writer.finish()


def _stem(result: HasObjects) -> str:
    return result.path.stem if result.path else "image"


def _check_absent(path: Path, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise FileExistsError(
            f"{path} exists and may have been corrected by hand; choose another directory, or pass overwrite=True"
        )


def _relative(path: Path, directory: Path) -> str:
    try:
        return Path(os.path.relpath(path.resolve(), directory.resolve())).as_posix()
    except ValueError:  # another drive on Windows
        return path.resolve().as_posix()
