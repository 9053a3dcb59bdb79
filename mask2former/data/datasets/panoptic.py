"""Reading the COCO panoptic format: one json, and a PNG with segment ids for each picture."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import BadRecordError, report_bad_records
from .catalog import Records, require_files, require_some
from .json_file import read_json_object

# The annotation and the entry of "images" that belongs to it (empty where the file has none) -> a path.
Locate = Callable[[dict[str, Any], dict[str, Any]], str]


@dataclass(frozen=True)
class PanopticLayout:
    """What tells one panoptic dataset from another.

    Args:
        classes: dataset id -> class index and whether it is a thing.
        tree: the expected folders, for messages.
        image: path of the picture below the folder of pictures; None: the file name in "images", else the name of
            the PNG with the extension .jpg.
        labels: path of the semantic label map below its folder; None: the name of the PNG.
        image_id: turns the id of the file into that of the record.
    """

    classes: Mapping[int, tuple[int, bool]]
    tree: str
    image: Locate | None = None
    labels: Locate | None = None
    image_id: Callable[[Any], int | str] = int


def text_id(value: Any) -> str:
    """Image id of datasets whose ids are names.

    Raises:
        TypeError: neither text nor an integer.
    """
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise TypeError(f"image_id {value!r} is no name")
    return str(value)


def load_panoptic(
    name: str,
    layout: PanopticLayout,
    image_root: str,
    panoptic_root: str,
    panoptic_json: str,
    sem_seg_root: str | None = None,
    *,
    skip_bad_records: bool = False,
) -> Records:
    """Load a dataset in the COCO panoptic format.

    Returns:
        Records with file_name, image_id, pan_seg_file_name, segments_info (category_id contiguous, isthing,
        iscrowd), sem_seg_file_name where a root is given, and height and width where the file has them.

    Raises:
        FileNotFoundError: files are missing; shows the expected folders.
        BadRecordError: the json file is malformed, or, without `skip_bad_records`, one of its annotations.
    """
    require_files(name, [panoptic_json], layout.tree)
    content = read_json_object(panoptic_json, lists=("annotations",))
    images = _by_id(content.get("images"))
    records: dict[Any, dict[str, Any]] = {}
    problems: list[BadRecordError] = []
    for position, annotation in enumerate(content["annotations"]):
        try:
            record = _record(annotation, images, layout, image_root, panoptic_root, sem_seg_root)
            if record["image_id"] in records:
                raise ValueError(f"image {record['image_id']!r} has two annotations")
            records[record["image_id"]] = record
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            missing = isinstance(error, KeyError)
            reason = f"{error.args[0]!r} is missing or undeclared" if missing else f"malformed: {error}"
            problems.append(BadRecordError(panoptic_json, reason, f"annotations[{position}]"))
            if not skip_bad_records:
                raise problems[-1] from error
    report_bad_records(panoptic_json, problems, len(problems))
    if not records:
        raise BadRecordError(panoptic_json, "contains no annotations")
    result = list(records.values())
    for key in [key for key in result[0] if key.endswith("file_name")]:
        require_some(name, [record[key] for record in result], layout.tree)
    return result


def _by_id(images: Any) -> dict[Any, dict[str, Any]]:
    """Entries of "images" by their id; what is malformed is left out, for sizes and names are optional."""
    if not isinstance(images, list):
        return {}
    entries = [entry for entry in images if isinstance(entry, dict)]
    return {entry["id"]: entry for entry in entries if isinstance(entry.get("id"), (int, str))}


def _record(
    annotation: dict[str, Any],
    images: dict[Any, dict[str, Any]],
    layout: PanopticLayout,
    image_root: str,
    panoptic_root: str,
    sem_seg_root: str | None,
) -> dict[str, Any]:
    image_id, file_name = annotation["image_id"], os.fspath(annotation["file_name"])
    image = images.get(image_id, {})
    if layout.image is not None:
        picture = layout.image(annotation, image)
    else:
        picture = os.fspath(image.get("file_name") or f"{os.path.splitext(file_name)[0]}.jpg")
    record = {
        "file_name": os.path.join(image_root, picture),
        "image_id": layout.image_id(image_id),
        "pan_seg_file_name": os.path.join(panoptic_root, file_name),
        "segments_info": [_convert_segment(segment, layout.classes) for segment in annotation["segments_info"]],
        **{key: image[key] for key in ("height", "width") if isinstance(image.get(key), int)},
    }
    if sem_seg_root is not None:
        labels = layout.labels(annotation, image) if layout.labels is not None else file_name
        record["sem_seg_file_name"] = os.path.join(sem_seg_root, labels)
    return record


def _convert_segment(segment: dict[str, Any], classes: Mapping[int, tuple[int, bool]]) -> dict[str, Any]:
    index, thing = classes[segment["category_id"]]
    return {**segment, "category_id": index, "isthing": thing, "iscrowd": int(segment.get("iscrowd", 0))}
