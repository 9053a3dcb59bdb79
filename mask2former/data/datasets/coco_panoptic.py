"""The COCO panoptic format, also for custom datasets: a JSON file, and a PNG with segment ids for each image."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pycocotools.mask as coco_mask
from detectron2.structures import BoxMode

from ...errors import BadRecordError, report_bad_records
from ...structures.colors import color_of
from ...structures.panoptic_ids import MAX_ID
from ...structures.rle import encode_label_map
from ...utils.file_io import read_json_object
from .catalog import Records, file_state, locate, register_custom, require_files, require_some
from .categories import Category, panoptic_classes, panoptic_metadata
from .coco_annotations import is_area, is_box, is_id


class Object(NamedTuple):
    """Category of an id in an id map, and whether it is a crowd region."""

    category_id: int
    iscrowd: bool


def annotations_from_ids(ids: np.ndarray, objects: Mapping[int, Object]) -> list[dict[str, Any]]:
    """Build annotations in detectron2's format from an id map, in the order of the ids.

    Args:
        ids: int (H, W).
        objects: objects by id, which is not 0; other ids of the map are ignored.

    Returns:
        category_id, iscrowd, segmentation (compressed RLE), area and bbox (XYWH) of each object.
    """
    present = [segment for segment in np.unique(ids).tolist() if segment in objects]
    codes = encode_label_map(np.where(np.isin(ids, present), ids, 0))
    return [
        {
            "category_id": objects[segment].category_id,
            "iscrowd": int(objects[segment].iscrowd),
            "segmentation": codes[segment],
            "area": int(coco_mask.area(codes[segment])),
            "bbox": [float(side) for side in coco_mask.toBbox(codes[segment])],
            "bbox_mode": BoxMode.XYWH_ABS,
        }
        for segment in present
    ]


# The annotation and the entry of "images" that belongs to it (empty where the file has none) -> a path.
Locate = Callable[[dict[str, Any], dict[str, Any]], str]


@dataclass(frozen=True)
class PanopticLayout:
    """Files and classes of a panoptic dataset.

    Args:
        classes: dataset id -> class index and whether it is a thing.
        tree: expected directories, for messages.
        image: returns the path of the image in the image directory; None for the file name in "images", or else the
            name of the PNG with the extension .jpg.
        labels: returns the path of the semantic label map in its directory; None for the name of the PNG.
        image_id: converts an id of the file to that of the record.
    """

    classes: Mapping[int, tuple[int, bool]]
    tree: str
    image: Locate | None = None
    labels: Locate | None = None
    image_id: Callable[[Any], int | str] = int


def text_id(value: Any) -> str:
    """Convert the image id of a dataset whose ids are names.

    Raises:
        TypeError: it is neither text nor an integer.
    """
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise TypeError(f"image_id {value!r} is neither text nor an integer")
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
        iscrowd), sem_seg_file_name if `sem_seg_root` is given, and height and width if the file has them.

    Raises:
        FileNotFoundError: files are missing; shows the expected directories.
        BadRecordError: the JSON file is malformed or, without `skip_bad_records`, one of its annotations.
    """
    require_files(name, [panoptic_json], layout.tree)
    content = read_json_object(panoptic_json, lists=("annotations",))
    images = _by_id(content.get("images"))
    records: dict[Any, dict[str, Any]] = {}

    def add(annotation: dict[str, Any]) -> None:
        record = _record(annotation, images, layout, image_root, panoptic_root, sem_seg_root)
        if record["image_id"] in records:
            raise ValueError(f"image {record['image_id']!r} has two annotations")
        records[record["image_id"]] = record

    _read_annotations(panoptic_json, content["annotations"], layout.classes, skip_bad_records, add)
    result = list(records.values())
    for key in [key for key in result[0] if key.endswith("file_name")]:
        require_some(name, [record[key] for record in result], layout.tree)
    return result


@dataclass(frozen=True)
class PanopticAnnotations:
    """Content of a COCO panoptic JSON file, without what is bad.

    Attributes:
        content: as in the file.
        categories: id -> entry of the file.
        annotations: image id as text -> {"image_id", "file_name", "segments_info"}, checked; segments have "id",
            "category_id" (of the file), "iscrowd" (0 or 1), and "area" where the file has a number of 0 or more.
        left_out: ids, as text, of images with bad records.
        sizes: image id as text -> height and width, of images for which the file has them.
    """

    content: dict[str, Any]
    categories: dict[int, dict[str, Any]]
    annotations: dict[str, dict[str, Any]]
    left_out: frozenset[str]
    sizes: dict[str, tuple[int, int]]


def read_panoptic_json(file: str, *, skip_bad_records: bool = False) -> PanopticAnnotations:
    """Read and check a COCO panoptic JSON file with the checks of training, without the PNG files.

    Raises:
        FileNotFoundError: no such file.
        BadRecordError: the file is malformed or, without `skip_bad_records`, one of its annotations.
    """
    content = read_json_object(file, lists=("annotations", "categories"))
    categories: dict[int, dict[str, Any]] = {}
    for position, entry in enumerate(content["categories"]):
        if not isinstance(entry, dict) or not is_id(entry.get("id")) or entry["id"] in categories:
            raise BadRecordError(file, "needs an integer 'id' that no other has", f"categories[{position}]")
        categories[entry["id"]] = entry
    annotations: dict[str, dict[str, Any]] = {}

    def add(annotation: dict[str, Any]) -> None:
        annotations[str(annotation["image_id"])] = annotation

    left_out = _read_annotations(file, content["annotations"], categories, skip_bad_records, add)
    images = _by_id(content.get("images"))
    sized = {str(key): (entry.get("height"), entry.get("width")) for key, entry in images.items()}
    sizes = {key: (h, w) for key, (h, w) in sized.items() if isinstance(h, int) and isinstance(w, int)}
    return PanopticAnnotations(content, categories, annotations, left_out, sizes)


def _read_annotations(
    file: str,
    annotations: list[Any],
    categories: Container[int],
    skip_bad_records: bool,
    add: Callable[[dict[str, Any]], None],
) -> frozenset[str]:
    """Check annotations and pass them to `add`, whose errors count too; return the ids of images that are left out."""
    problems: list[BadRecordError] = []
    good: set[str] = set()
    bad: set[str] = set()
    for position, annotation in enumerate(annotations):
        try:
            checked = _check_annotation(annotation, categories)
            if str(checked["image_id"]) in good:
                raise ValueError(f"image {checked['image_id']!r} has two annotations")
            add(checked)
            good.add(str(checked["image_id"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            reason = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else f"malformed: {error}"
            problems.append(BadRecordError(file, reason, f"annotations[{position}]"))
            if not skip_bad_records:
                raise problems[-1] from error
            if isinstance(annotation, dict):
                bad.add(str(annotation.get("image_id")))
    report_bad_records(file, problems, len(problems))
    if not good:
        raise BadRecordError(file, "contains no annotations" if not problems else "contains no usable annotation")
    return frozenset(bad - good)


def _check_annotation(annotation: Any, categories: Container[int]) -> dict[str, Any]:
    """Return an annotation with segments in one form; ValueError if it is malformed."""
    if not isinstance(annotation, dict):
        raise ValueError("is not an object")
    image_id = same_id(annotation.get("image_id"))
    missing = [key for key in ("segments_info", "file_name") if key not in annotation]
    if missing:
        raise ValueError(
            f"image {image_id!r} has no {' and no '.join(missing)}; use the panoptic annotation file, not the "
            "instance annotation file"
        )
    name, segments = annotation["file_name"], annotation["segments_info"]
    if not isinstance(name, str) or not name or "\0" in name:
        raise ValueError(f"image {image_id!r} needs the 'file_name' of its PNG, has {name!r}")
    if not isinstance(segments, list):
        raise ValueError(f"image {image_id!r} needs a list 'segments_info'")
    seen: set[int] = set()
    checked = [_check_segment(segment, categories, seen, image_id) for segment in segments]
    return {**annotation, "segments_info": checked}


def _check_segment(segment: Any, categories: Container[int], seen: set[int], image_id: int | str) -> dict[str, Any]:
    if not isinstance(segment, dict):
        raise ValueError(f"image {image_id!r}: a segment is not an object")
    number: Any = segment.get("id")
    category, crowd = segment.get("category_id"), segment.get("iscrowd")
    where = f"image {image_id!r}: segment {number!r}"
    if not is_id(number) or not 1 <= number <= MAX_ID or number in seen:
        state = "is used twice" if is_id(number) and number in seen else f"is not an integer from 1 to {MAX_ID}"
        raise ValueError(f"{where}: its id {state}")
    seen.add(number)
    if not is_id(category) or category not in categories:
        raise ValueError(f"{where}: category {category!r} is not declared in 'categories'")
    if crowd is not None and (not isinstance(crowd, (int, float)) or crowd not in (0, 1)):
        raise ValueError(f"{where}: 'iscrowd' must be 0 or 1, not {crowd!r}")
    checked = {**segment, "iscrowd": int(crowd or 0)}
    for key, is_valid in (("area", is_area), ("bbox", is_box)):  # nothing here needs them, but samples show them
        if key in checked and not is_valid(checked[key]):
            del checked[key]
    return checked


def _by_id(images: Any) -> dict[Any, dict[str, Any]]:
    """Return the entries of "images" by id, without malformed ones: sizes and names are optional."""
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
        image_file = layout.image(annotation, image)
    else:
        image_file = os.fspath(image.get("file_name") or f"{os.path.splitext(file_name)[0]}.jpg")
    record = {
        "file_name": os.path.join(image_root, image_file),
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
    return {**segment, "category_id": index, "isthing": thing}


LAYOUT = """\
panoptic.json   {"categories": [{"id", "name", "isthing"}, ...],
                 "images": [{"id", "file_name", "height", "width"}, ...],
                 "annotations": [{"image_id", "file_name", "segments_info": [{"id", "category_id"}, ...]}, ...]}
image directory/   file_name of each entry of "images" (or the name of the PNG file with .jpg)
PNG directory/     file_name of each entry of "annotations": RGB, segment id = R + 256 G + 65536 B, 0 = no segment"""

Path = str | os.PathLike[str]


def register_panoptic(
    name: str,
    json_file: Path,
    image_root: Path,
    png_root: Path,
    *,
    sem_seg_root: Path | None = None,
    instances_json: Path | None = None,
    ignore_value: int = 255,
    skip_bad_records: bool = False,
) -> None:
    """Register a custom dataset in the COCO panoptic format.

    The categories are read now (classes in the order of their ids, which need not be contiguous; "isthing" marks those
    with countable objects), everything else when the dataset is loaded. Relative paths are looked up in the working
    directory, then below the dataset root. A second call with the same name replaces the first.

    Args:
        name: for DATASETS.TRAIN and DATASETS.TEST.
        json_file: see `LAYOUT`.
        image_root: directory of the images.
        png_root: directory of the PNG files with segment ids.
        sem_seg_root: directory of label maps named as the PNG files; without it, semantic results are evaluated on
            labels made from the segments.
        instances_json: COCO instance JSON file of the things, with the same ids; needed to evaluate instance AP.
        ignore_value: value of pixels without a class in the label maps.
        skip_bad_records: leave out and report images with bad records instead of raising an error; so does the
            evaluation.

    Raises:
        FileNotFoundError: a file or directory does not exist.
        NotADirectoryError, IsADirectoryError: a file is given for a directory, or the reverse.
        BadRecordError: the JSON file or its categories are malformed.
        ValueError: the name is already used by other code.
    """
    json_path = locate(json_file, directory=False)
    directories = {"image_root": image_root, "panoptic_root": png_root}
    paths = {key: locate(path, directory=True) for key, path in directories.items()} | {"panoptic_json": json_path}
    labels = {} if sem_seg_root is None else {"sem_seg_root": locate(sem_seg_root, directory=True)}
    instances = {} if instances_json is None else {"json_file": locate(instances_json, directory=False)}

    def describe() -> tuple[Callable[[], Records], dict[str, Any]]:
        classes = _read_categories(json_path)
        layout = PanopticLayout(panoptic_classes(classes), LAYOUT, image_id=same_id)
        load = functools.partial(load_panoptic, name, layout, **paths, **labels, skip_bad_records=skip_bad_records)
        metadata = {
            **panoptic_metadata(classes, ignore_label=ignore_value),
            **paths,
            **labels,
            **instances,
            "evaluator_type": "coco_panoptic_seg",
            "skip_bad_records": skip_bad_records,
        }
        return load, metadata

    settings = (*paths.values(), *labels.items(), *instances.items(), ignore_value, skip_bad_records)
    register_custom(name, (*file_state(json_path), *settings), describe)


def same_id(value: Any) -> int | str:
    """Return the image id of a file that has integers, or names.

    Raises:
        TypeError: it is neither an integer nor text.
    """
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise TypeError(f"image_id {value!r} is neither an integer nor text")
    return value


def _read_categories(file: str) -> list[Category]:
    """Read the categories in the order of their ids, with default colors if the file has none."""
    categories: dict[int, Category] = {}
    for position, entry in enumerate(read_json_object(file, lists=("categories",))["categories"]):
        where = f"categories[{position}]"
        if not isinstance(entry, dict) or not is_id(entry.get("id")) or entry["id"] < 0:
            raise BadRecordError(file, "needs an integer 'id' of 0 or more", where)
        if not isinstance(entry.get("name"), str) or not entry["name"]:
            raise BadRecordError(file, "needs a 'name'", where)
        if entry.get("isthing") not in (0, 1):
            raise BadRecordError(file, "needs 'isthing': 1 for things (countable objects), 0 for stuff", where)
        if entry["id"] in categories:
            raise BadRecordError(file, f"id {entry['id']} is used twice", where)
        if entry.get("color") and not _is_color(entry["color"]):
            raise BadRecordError(file, "'color' must be [red, green, blue] from 0 to 255", where)
        categories[entry["id"]] = entry
    if not categories:
        raise BadRecordError(file, "declares no categories")
    return [
        {
            "id": key,
            "name": entry["name"],
            "isthing": int(entry["isthing"]),
            "color": [int(value) for value in entry.get("color") or color_of(index)],
        }
        for index, (key, entry) in enumerate(sorted(categories.items()))
    ]


def _is_color(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(is_id(part) and 0 <= part <= 255 for part in value)
