"""Datasets of the shapes world: their files, in the layout of `mask2former/data/datasets/shapes.py`.

Files are written atomically, annotation files after the images that they list. A directory whose writing was
interrupted is completed by the same call: scenes are drawn again, and files that are already right stay.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from ...errors import BadRecordError
from ...structures.panoptic_ids import id_to_rgb
from ...utils.atomic_file import remove_abandoned
from ...utils.file_io import parse_json, write_bytes, write_json
from ...utils.locks import Lock
from ...utils.parallel import map_parallel
from ..datasets.categories import things
from ..datasets.shapes import ShapesFiles
from .annotations import class_indices, segment_ids, segments, tracks
from .readme import readme
from .sampling import SPLITS, VERSION, Split, sample
from .scene import CLASSES, Options

_JPEG_QUALITY = 95
_IDS_PER_SAMPLE = 1000  # annotation id = image id x 1000 + number


@dataclass(frozen=True)
class Recipe:
    """What a dataset consists of.

    Args:
        options: what its scenes may hold.
        seed: 0 or more.
        images: number of images by split.
        clips: number of clips by split.
        frames: frames of a clip, at least 2.

    Raises:
        ValueError: a number is outside its range, or there is nothing to write.
    """

    options: Options = field(default_factory=Options)
    seed: int = 0
    images: dict[Split, int] = field(default_factory=lambda: {"train": 2000, "val": 200})
    clips: dict[Split, int] = field(default_factory=lambda: {"train": 200, "val": 20})
    frames: int = 12

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"the seed must be 0 or more, not {self.seed}")
        if min(*self.images.values(), *self.clips.values()) < 0 or not any(
            (*self.images.values(), *self.clips.values())
        ):
            raise ValueError("numbers of images and clips must be 0 or more, and not all 0")
        if not 2 <= self.frames <= 1000:
            raise ValueError(f"a clip must have 2 to 1000 frames, not {self.frames}")


def write_dataset(out: str | Path, recipe: Recipe, workers: int | None = None) -> list[str]:
    """Write a dataset, or complete one that the same recipe began; more images and clips may be added to it.

    Args:
        out: directory; new, empty, or begun by this function.
        recipe: what it consists of.
        workers: worker processes; None: one for each core, at most 16. The files do not depend on it.

    Returns:
        One line about each annotation file.

    Raises:
        ValueError: the directory holds other files, or a dataset of another recipe.
        InUseError: another process writes there.
        OSError: a file cannot be written.
    """
    out = Path(out)
    _check_directory(out, recipe)
    with Lock(out / ".lock", str(out)):
        files = ShapesFiles(str(out))
        write_json(files.recipe, _description(recipe), indent=2)
        write_bytes(files.classes, "".join(f"{entry['name']}\n" for entry in CLASSES).encode())
        write_bytes(files.readme, readme(_description(recipe)).encode())
        lines = []
        for split in SPLITS:
            _remove_abandoned(files, split)
            if recipe.images[split]:
                lines += _write_images(files, recipe, split, workers)
            if recipe.clips[split]:
                lines += _write_clips(files, recipe, split, workers)
    return lines


# ------------------------------------------------------------------ what is there already
def _description(recipe: Recipe) -> dict[str, Any]:
    return {"generator": "mask2former.data.shapes", "version": VERSION, **asdict(recipe)}


def _check_directory(out: Path, recipe: Recipe) -> None:
    if not out.exists() or (out.is_dir() and not [entry for entry in out.iterdir() if entry.name != ".lock"]):
        return
    if not out.is_dir():
        raise ValueError(f"{out} is a file; choose a directory")
    file = ShapesFiles(str(out)).recipe
    try:
        found = parse_json(file)
    except (FileNotFoundError, BadRecordError):
        found = None
    if not isinstance(found, dict) or found.get("generator") != "mask2former.data.shapes":
        raise ValueError(f"{out} is not empty, and no dataset of this command; choose another directory")
    requested = _as_read(_description(recipe))
    clips = found.get("clips")
    of_clips = any(recipe.clips.values()) and (not isinstance(clips, dict) or any(clips.values()))
    for key in ("version", "seed", "options", *(("frames",) if of_clips else ())):
        if found.get(key) != requested[key]:
            raise ValueError(
                f"{out} holds a dataset with {key} {found.get(key)}, not {requested[key]} ({file}); choose another "
                "directory or remove it, or give the options that it was made with to complete it"
            )
    for key in ("images", "clips"):
        counts = found.get(key)
        for split in SPLITS:
            number = counts.get(split) if isinstance(counts, dict) else None
            if not isinstance(number, int) or number > requested[key][split]:
                raise ValueError(
                    f"{out} holds {number} {key} of {split}, more than the {requested[key][split]} asked for ({file}); "
                    "choose another directory or remove it"
                )


def _as_read(values: dict[str, Any]) -> dict[str, Any]:
    """Return values as they come back from a JSON file: tuples become lists."""
    return {
        key: _as_read(value) if isinstance(value, dict) else list(value) if isinstance(value, tuple) else value
        for key, value in values.items()
    }


def _remove_abandoned(files: ShapesFiles, split: Split) -> None:
    """Remove temporary files of a run that was killed."""
    directories = [Path(files.images(split)), Path(files.panoptic_png(split)), Path(files.semantic_png(split))]
    for directory in (*directories, *Path(files.frames(split)).glob("*")):
        remove_abandoned(directory, re.compile(r"\d+\.(jpg|png)"))


# ------------------------------------------------------------------ images
class _Task(NamedTuple):
    """A sample to write; its number counts from 0, its id from 1."""

    files: ShapesFiles
    recipe: Recipe
    split: Split
    number: int

    @property
    def id(self) -> int:
        return self.number + 1


class _Sample(NamedTuple):
    """Entry of "images" or "videos", and the annotations."""

    entry: dict[str, Any]
    annotations: list[dict[str, Any]]


def _write_images(files: ShapesFiles, recipe: Recipe, split: Split, workers: int | None) -> list[str]:
    samples = _map(_write_image, files, recipe, split, recipe.images[split], f"{split} images", workers)
    images = [sample.entry for sample in samples]
    panoptic = [
        {
            "image_id": entry["id"],
            "file_name": entry["file_name"].replace(".jpg", ".png"),
            "segments_info": [_without(segment, "segmentation", "isthing") for segment in found],
        }
        for entry, found in samples
    ]
    objects = [
        {**_without(segment, "isthing"), "id": entry["id"] * _IDS_PER_SAMPLE + number, "image_id": entry["id"]}
        for entry, found in samples
        for number, segment in enumerate([segment for segment in found if segment["isthing"]])
    ]
    info = _info(recipe, split, f"../images/{split}")
    categories = [_without(entry, "color") for entry in things(CLASSES)]
    instance = {"info": info, "images": images, "annotations": objects, "categories": categories}
    write_json(files.instances(split), instance)
    write_json(files.panoptic(split), {**instance, "annotations": panoptic, "categories": list(CLASSES)})
    count = sum(len(found) for _, found in samples)
    return [
        f"{split}: {len(images)} images, {len(objects)} objects: {files.instances(split)}",
        f"{split}: {len(images)} images, {count} segments: {files.panoptic(split)}",
    ]


def _write_image(task: _Task) -> _Sample:
    files, split = task.files, task.split
    rendering = sample(task.recipe.options, task.recipe.seed, split, task.number)
    stem = f"{task.number:06d}"
    _keep_or_write(Path(files.images(split)) / f"{stem}.jpg", _jpeg(rendering.images[0]))
    ids = rendering.ids[0]
    colors = id_to_rgb(segment_ids(rendering)[ids])
    _keep_or_write(Path(files.panoptic_png(split)) / f"{stem}.png", _png(cv2.cvtColor(colors, cv2.COLOR_RGB2BGR)))
    _keep_or_write(Path(files.semantic_png(split)) / f"{stem}.png", _png(class_indices(rendering)[ids]))
    height, width = ids.shape
    return _Sample({"id": task.id, "file_name": f"{stem}.jpg", "height": height, "width": width}, segments(rendering))


# ------------------------------------------------------------------ clips
def _write_clips(files: ShapesFiles, recipe: Recipe, split: Split, workers: int | None) -> list[str]:
    samples = _map(_write_clip, files, recipe, split, recipe.clips[split], f"{split} clips", workers)
    content = {
        "info": _info(recipe, split, f"{split}/JPEGImages"),
        "videos": [sample.entry for sample in samples],
        "annotations": [annotation for sample in samples for annotation in sample.annotations],
        "categories": [_without(entry, "color") for entry in things(CLASSES)],
    }
    write_json(files.videos(split), content)
    return [f"{split}: {len(samples)} clips, {len(content['annotations'])} objects: {files.videos(split)}"]


def _write_clip(task: _Task) -> _Sample:
    recipe = task.recipe
    rendering = sample(recipe.options, recipe.seed, task.split, task.number, frames=recipe.frames, kind="clip")
    names = [f"{task.number:05d}/{frame:05d}.jpg" for frame in range(recipe.frames)]
    for name, image in zip(names, rendering.images, strict=True):
        _keep_or_write(Path(task.files.frames(task.split)) / name, _jpeg(image))
    height, width = recipe.options.size
    entry = {"id": task.id, "file_names": names, "height": height, "width": width, "length": recipe.frames}
    head = {"video_id": task.id, "height": height, "width": width, "length": recipe.frames}
    found = enumerate(tracks(rendering))
    return _Sample(entry, [{"id": task.id * _IDS_PER_SAMPLE + number, **head, **track} for number, track in found])


# ------------------------------------------------------------------ common
def _map(
    function: Callable[[_Task], _Sample],
    files: ShapesFiles,
    recipe: Recipe,
    split: Split,
    count: int,
    title: str,
    workers: int | None,
) -> list[_Sample]:
    make = functools.partial(_Task, files, recipe, split)
    return list(map_parallel(function, [make(number) for number in range(count)], title, workers))


def _info(recipe: Recipe, split: Split, image_root: str) -> dict[str, Any]:
    text = f"shapes world, {split} split, seed {recipe.seed}, version {VERSION}"
    return {"description": text, "image_root": image_root}


def _without(entry: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key not in keys}


def _jpeg(image: np.ndarray) -> bytes:
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return _encoded(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])


def _png(pixels: np.ndarray) -> bytes:
    return _encoded(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 3])


def _encoded(suffix: str, pixels: np.ndarray, options: Sequence[int]) -> bytes:
    done, content = cv2.imencode(suffix, pixels, options)
    if not done:
        raise RuntimeError(f"OpenCV cannot encode {suffix} images")
    return content.tobytes()


def _keep_or_write(path: Path, content: bytes) -> None:
    try:
        if path.read_bytes() == content:
            return
    except FileNotFoundError:
        pass
    write_bytes(path, content, durable=False)  # after a power failure it is compared again
