"""Custom datasets: a COCO instance JSON file and a directory of images, registered in one call."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.data.datasets.coco import load_coco_json as load_with_detectron2
from detectron2.structures import BoxMode

from ...errors import BadRecordError, first_few
from ...utils.file_io import read_json_object
from .catalog import Records, file_state, locate, register_custom, require_files
from .coco_annotations import InstanceAnnotations, read_categories, read_instances

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
        skip_bad_records: leave out and report images with bad records instead of raising an error; so does the
            evaluation.

    Raises:
        FileNotFoundError: the JSON file or the directory does not exist.
        NotADirectoryError, IsADirectoryError: a file is given for a directory, or the reverse.
        BadRecordError: the JSON file or its categories are malformed.
        ValueError: the name is already used by other code, or a category to keep is not in the file.
    """
    json_path, image_path = locate(json_file, directory=False), locate(image_root, directory=True)
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
            "skip_bad_records": skip_bad_records,
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
    content = read_instances(json_file, skip_bad_records=skip_bad_records)
    kept = content.categories if keep_category_ids is None else _kept(json_file, content, keep_category_ids)
    classes = {key: index for index, key in enumerate(kept)}
    records: dict[int, dict[str, Any]] = {
        key: {
            "file_name": os.path.join(image_root, image["file_name"]),
            "image_id": key,
            "height": image["height"],
            "width": image["width"],
            "annotations": [],
        }
        for key, image in content.images.items()
    }
    for annotation in content.annotations:
        if annotation["category_id"] in classes:
            entry = _record_of(annotation, classes)
            records[annotation["image_id"]]["annotations"].append(entry)
    _report_degenerate(json_file, content.degenerate)
    return [record for _, record in sorted(records.items())]


def _kept(file: str, content: InstanceAnnotations, keep: Sequence[int]) -> list[int]:
    entries = [{"id": key, "name": name} for key, name in content.categories.items()]
    return [key for key, _ in read_categories(file, {"categories": entries}, keep)]


def _record_of(annotation: dict[str, Any], classes: dict[int, int]) -> dict[str, Any]:
    """Return an annotation of `read_instances` in detectron2's format."""
    entry = {"id": annotation["id"], "category_id": classes[annotation["category_id"]]}
    # Training must not learn from objects with "ignore", as it must not from crowds.
    entry["iscrowd"] = int(annotation["iscrowd"] or annotation["ignore"])
    if "segmentation" in annotation:
        entry["segmentation"] = annotation["segmentation"]
    if "bbox" in annotation:
        entry["bbox"], entry["bbox_mode"] = annotation["bbox"], BoxMode.XYWH_ABS
    return entry


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
