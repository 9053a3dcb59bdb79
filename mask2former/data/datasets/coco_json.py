"""Custom datasets: a COCO instance JSON file and a directory of images, registered in one call."""

from __future__ import annotations

import functools
import logging
import math
import os
from collections.abc import Callable, Container, Sequence
from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.data.datasets.coco import load_coco_json as load_with_detectron2
from detectron2.structures import BoxMode

from ...errors import BadRecordError, first_few, report_bad_records
from ...structures.masks import SegmentationError, check_polygons, rle_runs, without_degenerate_polygons
from ...utils.file_io import read_json_object
from .catalog import Records, file_state, locate, register_custom, require_files

logger = logging.getLogger(__name__)


def register_coco_json(
    name: str,
    json_file: str | os.PathLike[str],
    image_root: str | os.PathLike[str],
    *,
    keep_category_ids: Sequence[int] | None = None,
    skip_bad_records: bool = False,
) -> None:
    """Register a custom dataset: a COCO instance JSON file and its images.

    The categories are read now (classes in the order of their ids, which need not be contiguous), everything else when
    the dataset is loaded. A second call with the same name replaces the first.

    Args:
        name: for DATASETS.TRAIN and DATASETS.TEST.
        json_file: relative paths are looked up in the working directory, then below the dataset root.
        image_root: directory of the images, looked up the same way.
        keep_category_ids: use only these categories; objects of others become background in training. The JSON file is
            not changed, so an evaluation against it still counts them.
        skip_bad_records: leave out and report images with bad records instead of raising an error.

    Raises:
        FileNotFoundError: the JSON file or the directory does not exist.
        BadRecordError: the JSON file or its categories are malformed.
        ValueError: the name is already used by other code, or a category to keep is not in the file.
    """
    json_path, image_path = locate(json_file), locate(image_root)
    keep = tuple(keep_category_ids) if keep_category_ids is not None else None

    def describe() -> tuple[Callable[[], Records], dict[str, Any]]:
        categories = read_categories(json_path, read_json_object(json_path, lists=("categories",)), keep)
        load = functools.partial(load_coco_json, json_path, image_path, keep, skip_bad_records=skip_bad_records)
        metadata = {
            "thing_classes": [category for _, category in categories],
            "thing_dataset_id_to_contiguous_id": {key: index for index, (key, _) in enumerate(categories)},
            "evaluator_type": "coco",
            "json_file": json_path,
            "image_root": image_path,
        }
        return load, metadata

    register_custom(name, (*file_state(json_path), image_path, keep, skip_bad_records), describe)


def load_coco_json(
    json_file: str,
    image_root: str,
    keep_category_ids: Sequence[int] | None = None,
    *,
    skip_bad_records: bool = False,
) -> Records:
    """Read and check a COCO instance JSON file.

    Every record and mask is checked here, so that a bad one does not stop a training later; only checks that need the
    image are left to the mapper. Polygons of less than three points are degenerate and dropped. Objects without any
    other polygon are dropped too and counted in the log, as detectron2 does.

    Returns:
        Records in detectron2's format in the order of the image ids, with contiguous classes; annotations keep their
        "id". Records of files without "annotations" (test sets) have empty lists.

    Raises:
        FileNotFoundError: no such file.
        BadRecordError: the file is malformed or, without `skip_bad_records`, one of its records.
    """
    content = read_json_object(json_file, lists=("images", "categories"))
    declared = {key for key, _ in read_categories(json_file, content, None)}
    classes = {key: index for index, (key, _) in enumerate(read_categories(json_file, content, keep_category_ids))}
    annotations = content.get("annotations", [])
    if not isinstance(annotations, list):
        raise BadRecordError(json_file, "needs a list 'annotations'")
    problems: list[BadRecordError] = []
    records: dict[int, dict[str, Any]] = {}
    bad_images: set[int] = set()
    for position, image in enumerate(content["images"]):
        try:
            record = _image_record(json_file, image, position, image_root, records)
            records[record["image_id"]] = record
        except BadRecordError as error:
            if not skip_bad_records:
                raise
            problems.append(error)
            bad_images |= _image_ids(image, "id")  # of two images with the same id neither is used
    seen: set[int] = set()
    degenerate: list[str] = []
    for position, annotation in enumerate(annotations):
        try:
            if not _add_annotation(json_file, annotation, position, records, seen, declared, classes):
                degenerate.append(f"annotation {annotation['id']}")
        except BadRecordError as error:
            if not skip_bad_records:
                raise
            problems.append(error)
            bad_images |= _image_ids(annotation, "image_id")
    report_bad_records(json_file, problems, len(bad_images & records.keys()))
    _report_degenerate(json_file, degenerate)
    return [record for image_id, record in sorted(records.items()) if image_id not in bad_images]


def is_id(value: Any) -> bool:
    """Return whether a value of a JSON file is an integer (True and False are not)."""
    return isinstance(value, int) and not isinstance(value, bool)


def check_id(file: str, entry: Any, where: str, entry_type: str, known: Container[int]) -> str:
    """Check that an entry of a list is an object with a unique id, and return its name for messages.

    Raises:
        BadRecordError: it is not.
    """
    if not isinstance(entry, dict):
        raise BadRecordError(file, "is not an object", where)
    if not is_id(entry.get("id")):
        raise BadRecordError(file, f"needs an integer 'id', has {entry.get('id')!r}", where)
    where = f"{entry_type} {entry['id']}"
    if entry["id"] in known:
        raise BadRecordError(file, "the id is used twice", where)
    return where


def check_sides(file: str, entry: dict[str, Any], where: str) -> None:
    """Check height and width of an image.

    Raises:
        BadRecordError: one is missing or not a positive integer.
    """
    for key in ("height", "width"):
        if not is_id(entry.get(key)) or entry[key] < 1:
            raise BadRecordError(file, f"needs a positive integer {key!r} in pixels, has {entry.get(key)!r}", where)


def check_class_and_crowd(
    file: str, annotation: dict[str, Any], where: str, declared: Container[int]
) -> tuple[int, bool]:
    """Check and return the category id of an annotation, one of `declared`, and whether it is a crowd.

    Raises:
        BadRecordError: another category, or "iscrowd" is neither 0 nor 1.
    """
    category: Any = annotation.get("category_id")
    crowd = annotation.get("iscrowd", 0)
    if not is_id(category) or category not in declared:
        raise BadRecordError(file, f"category {category!r} is not declared in 'categories'", where)
    if crowd not in (0, 1):
        raise BadRecordError(file, f"'iscrowd' must be 0 or 1, not {crowd!r}", where)
    return category, bool(crowd)


def _image_ids(entry: Any, key: str) -> set[int]:
    """Return the id of the image that a malformed entry belongs to, if it has one."""
    return {entry[key]} if isinstance(entry, dict) and is_id(entry.get(key)) else set()


def read_categories(file: str, content: dict[str, Any], keep: Sequence[int] | None) -> list[tuple[int, str]]:
    """Return id and name of every category to keep, in the order of the ids; None keeps all.

    Raises:
        BadRecordError: the categories are malformed.
        ValueError: a category to keep is not in the file.
    """
    names: dict[int, str] = {}
    for position, category in enumerate(content["categories"]):
        where = f"categories[{position}]"
        if not isinstance(category, dict) or not is_id(category.get("id")):
            raise BadRecordError(file, "needs an integer 'id'", where)
        if not isinstance(category.get("name"), str) or not category["name"]:
            raise BadRecordError(file, "needs a 'name'", where)
        if category["id"] in names:
            raise BadRecordError(file, f"id {category['id']} is used twice", where)
        names[category["id"]] = category["name"]
    if not names:
        raise BadRecordError(file, "declares no categories")
    if keep is not None:
        unknown = sorted(set(keep) - names.keys())
        if unknown or not keep:
            raise ValueError(f"{file}: categories to keep are {list(keep)}, but the file has {sorted(names)}")
        names = {key: names[key] for key in keep}
    return sorted(names.items())


def _image_record(
    file: str, image: Any, position: int, image_root: str, known: dict[int, dict[str, Any]]
) -> dict[str, Any]:
    where = check_id(file, image, f"images[{position}]", "image", known)
    if not isinstance(image.get("file_name"), str) or not image["file_name"]:
        raise BadRecordError(file, f"needs a 'file_name', has {image.get('file_name')!r}", where)
    check_sides(file, image, where)
    return {
        "file_name": os.path.join(image_root, image["file_name"]),
        "image_id": image["id"],
        "height": image["height"],
        "width": image["width"],
        "annotations": [],
    }


def _add_annotation(
    file: str,
    annotation: Any,
    position: int,
    records: dict[int, dict[str, Any]],
    seen: set[int],
    declared: set[int],
    classes: dict[int, int],
) -> bool:
    """Check one annotation and add it to the record of its image; False if its polygons are degenerate."""
    where = check_id(file, annotation, f"annotations[{position}]", "annotation", seen)
    seen.add(annotation["id"])
    image_id = annotation.get("image_id")
    if not is_id(image_id) or image_id not in records:
        raise BadRecordError(file, f"belongs to image {image_id!r}, which is not in 'images'", where)
    category, crowd = check_class_and_crowd(file, annotation, where, declared)
    segmentation = check_segmentation(file, annotation.get("segmentation"), records[image_id], where)
    if category not in classes:
        return True
    if segmentation == []:
        return False
    entry = {"id": annotation["id"], "category_id": classes[category], "iscrowd": int(crowd)}
    # Evaluation leaves out objects with "ignore"; training must not learn from them either.
    if annotation.get("ignore"):
        entry["iscrowd"] = 1
    if segmentation is not None:
        entry["segmentation"] = segmentation
    if annotation.get("bbox") is not None:
        entry["bbox"], entry["bbox_mode"] = _check_box(file, annotation["bbox"], where), BoxMode.XYWH_ABS
    records[image_id]["annotations"].append(entry)
    return True


def check_segmentation(
    file: str, segmentation: Any, record: dict[str, Any], where: str
) -> list[list[float]] | dict[str, Any] | None:
    """Check a segmentation and return it without degenerate polygons.

    Raises:
        BadRecordError: it is malformed.
    """
    if segmentation is None:
        return None
    if not isinstance(segmentation, (list, dict)):
        raise BadRecordError(file, "'segmentation' must be a list of polygons or an RLE", where)
    size = record["height"], record["width"]
    try:
        if isinstance(segmentation, dict):
            rle_runs(segmentation, size)  # also for the evaluation: pycocotools never returns from some malformed RLE
        else:
            segmentation = without_degenerate_polygons(segmentation)
            if segmentation:
                check_polygons(segmentation, size)
    except SegmentationError as error:
        raise BadRecordError(file, str(error), where) from error
    return segmentation


def _check_box(file: str, box: Any, where: str) -> list[float]:
    numbers = isinstance(box, list) and len(box) == 4
    if not numbers or not all(type(x) in (int, float) and math.isfinite(x) for x in box):
        raise BadRecordError(file, "'bbox' must be [x, y, width, height]", where)
    return box


def _report_degenerate(file: str, degenerate: list[str]) -> None:
    if degenerate:
        text = "%s: %d objects have only degenerate polygons (less than three points) and are dropped: %s"
        logger.warning(text, file, len(degenerate), first_few(degenerate))


def load_instances(name: str, layout: str, json_file: str, image_root: str) -> Records:
    """Load a COCO instance JSON file with detectron2; image ids stay as they are (numbers, or names in ADE20K).

    Raises:
        FileNotFoundError: the JSON file or the directory of images is missing; shows the expected directories.
        BadRecordError: the JSON file is not in COCO's format, or has categories that the dataset does not have.
    """
    require_files(name, [json_file, image_root], layout)
    try:
        # Without the name: detectron2 would take the class list from the file and reject an incomplete one.
        records = load_with_detectron2(json_file, image_root)
    except (KeyError, TypeError, ValueError, AssertionError) as error:
        reason = f"is not in COCO's instance format: {type(error).__name__}: {error}"
        raise BadRecordError(json_file, reason) from error
    classes = MetadataCatalog.get(name).thing_dataset_id_to_contiguous_id
    for record in records:
        for annotation in record["annotations"]:
            category = annotation["category_id"]
            if category not in classes:
                where = f"image {record['image_id']}"
                raise BadRecordError(json_file, f"category {category} is not one of dataset {name!r}", where)
            annotation["category_id"] = classes[category]
    return records
