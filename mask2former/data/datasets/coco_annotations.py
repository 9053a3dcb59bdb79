"""The checked reader of COCO instance JSON files, for training, evaluation and tools alike."""

from __future__ import annotations

import math
from collections.abc import Collection, Container, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...errors import BadRecordError, report_bad_records
from ...structures.masks import SegmentationError, read_polygons, rle_runs
from ...utils.file_io import read_json_object

_MOST_SIDE = 1 << 20  # pixels
_MOST_PIXELS = (1 << 31) - 1  # of an image: pycocotools counts them in 32 bits
_LARGEST = float(1 << 53)  # number of a box or an area


@dataclass
class InstanceAnnotations:
    """Content of a COCO instance JSON file, without what is bad.

    Attributes:
        file: name of the file.
        categories: id -> name, by ascending id.
        images: id -> {"id", "height", "width", and "file_name"}, in the order of the file.
        annotations: in the order of the file, {"id", "image_id", "category_id" (of the file), "iscrowd" (0 or 1),
            "ignore" (bool)} each, and where the file has them: "segmentation" (flat polygons of three points or more,
            or RLE), "bbox" (four finite numbers, XYWH), "area" (a number of 0 or more) and "score" (not checked).
        has_truth: whether the file has "annotations"; test sets have none.
        left_out: ids of images with bad records.
        degenerate: annotations without any polygon of three points, which are left out.
    """

    file: str
    categories: dict[int, str] = field(default_factory=dict)
    images: dict[Any, dict[str, Any]] = field(default_factory=dict)
    annotations: list[dict[str, Any]] = field(default_factory=list)
    has_truth: bool = True
    left_out: frozenset[Any] = frozenset()
    degenerate: list[str] = field(default_factory=list)


def read_instances(
    json_file: str, *, skip_bad_records: bool = False, benchmark: bool = False, needs: Collection[str] = ()
) -> InstanceAnnotations:
    """Read and check a COCO instance JSON file.

    Every record and mask is checked here, so that a bad one stops neither a training nor an evaluation later, and the
    same images are left out in both.

    Args:
        json_file: file name.
        skip_bad_records: leave out and report images with bad records instead of raising an error.
        benchmark: also accept what files of benchmarks and results have: image ids that are text, ids of annotations
            that are missing or used twice, images and categories without a name.
        needs: which of "segmentation" and "bbox" every annotation must have.

    Raises:
        FileNotFoundError: no such file.
        BadRecordError: the file is malformed or, without `skip_bad_records`, one of its records.
    """
    content = read_json_object(json_file, lists=("images", "categories"))
    annotations = content.get("annotations", [])
    if not isinstance(annotations, list):
        raise BadRecordError(json_file, "needs a list 'annotations'")
    result = InstanceAnnotations(json_file, has_truth="annotations" in content)
    result.categories = dict(read_categories(json_file, content, None, unnamed=benchmark))
    problems: list[BadRecordError] = []
    bad: set[Any] = set()
    reader = _Reader(result, benchmark, needs)
    for key, add, entries in (("id", reader.add_image, content["images"]), ("image_id", reader.add, annotations)):
        for position, entry in enumerate(entries):
            try:
                add(entry, position)
            except BadRecordError as error:
                if not skip_bad_records:
                    raise
                problems.append(error)
                if isinstance(entry, dict) and _is_image_id(entry.get(key), benchmark):
                    bad.add(entry[key])  # of two images with the same id neither is used
    if len({type(key) for key in result.images}) > 1:
        raise BadRecordError(json_file, "some ids of 'images' are integers and others text")
    report_bad_records(json_file, problems, len(bad & result.images.keys()))
    if bad:
        if bad >= result.images.keys():
            raise BadRecordError(json_file, f"all of its images have bad records, the first is {problems[0]}")
        result.images = {key: image for key, image in result.images.items() if key not in bad}
        result.annotations = [entry for entry in result.annotations if entry["image_id"] not in bad]
    result.left_out = frozenset(bad)
    return result


class _Reader:
    """Adds checked records to `result`; see `read_instances`."""

    def __init__(self, result: InstanceAnnotations, benchmark: bool, needs: Collection[str]) -> None:
        self.result, self.benchmark, self.needs = result, benchmark, needs
        self.seen: set[int] = set()

    def add_image(self, image: Any, position: int) -> None:
        file, known = self.result.file, self.result.images
        where = check_id(file, image, f"images[{position}]", "image", known, text=self.benchmark)
        record = {"id": image["id"]}
        if "file_name" in image or not self.benchmark:
            name = image.get("file_name")
            if not isinstance(name, str) or not name or "\0" in name:
                raise BadRecordError(file, f"needs a 'file_name', has {name!r}", where)
            record["file_name"] = name
        check_sides(file, image, where)
        known[image["id"]] = {**record, "height": image["height"], "width": image["width"]}

    def add(self, annotation: Any, position: int) -> None:
        file = self.result.file
        where = f"annotations[{position}]"
        if not self.benchmark:
            where = check_id(file, annotation, where, "annotation", self.seen)
            self.seen.add(annotation["id"])
        elif not isinstance(annotation, dict):
            raise BadRecordError(file, "is not an object", where)
        elif is_id(annotation.get("id")):
            where = f"annotation {annotation['id']}"
        image_id = annotation.get("image_id")
        image = self.result.images.get(image_id) if _is_image_id(image_id, self.benchmark) else None
        if image is None:
            raise BadRecordError(file, f"belongs to image {image_id!r}, which is not in 'images'", where)
        entry = check_annotation(file, annotation, image, where, self.result.categories)
        # A training drops crowds and objects with "ignore", so one without a mask is as good as one with an empty mask.
        unused = "segmentation" in self.needs and "segmentation" not in entry and (entry["iscrowd"] or entry["ignore"])
        if entry.get("segmentation") == [] or unused:
            self.result.degenerate.append(where)
            return
        for key in self.needs:
            if key not in entry:
                raise BadRecordError(file, f"of image {image_id!r} has no {key!r}", where)
        if "bbox" in self.needs and min(entry["bbox"][2:]) < 0:
            raise BadRecordError(file, f"'bbox' {entry['bbox']} has a negative width or height", where)
        self.result.annotations.append(entry)


def check_annotation(
    file: str, annotation: dict[str, Any], image: dict[str, Any], where: str, declared: Container[int]
) -> dict[str, Any]:
    """Check an annotation and return it in one form, see `InstanceAnnotations`; degenerate polygons give an empty list.

    Args:
        file: for messages.
        annotation: as in the file, with "id" if it has one.
        image: its image, with "id", "height" and "width".
        where: name of the annotation, for messages.
        declared: known category ids.

    Raises:
        BadRecordError: it is malformed. A bad area is none: it is left out.
    """
    category, crowd = check_class_and_crowd(file, annotation, where, declared)
    ignore = _flag(file, annotation, "ignore", where)
    entry = {"id": annotation.get("id"), "image_id": image["id"], "category_id": category, "iscrowd": int(crowd)}
    entry["ignore"] = ignore
    segmentation = check_segmentation(file, annotation.get("segmentation"), image, where)
    if segmentation is not None:
        entry["segmentation"] = segmentation
    if annotation.get("bbox") is not None:
        entry["bbox"] = check_box(file, annotation["bbox"], where)
    if is_area(annotation.get("area")):
        entry["area"] = annotation["area"]
    if "score" in annotation:
        entry["score"] = annotation["score"]
    return entry


def is_id(value: Any) -> bool:
    """Return whether a value of a JSON file is an integer (True and False are not)."""
    return isinstance(value, int) and not isinstance(value, bool)


def _is_image_id(value: Any, text: bool) -> bool:
    return is_id(value) or (text and isinstance(value, str) and value != "")


def is_area(value: Any) -> bool:
    """Return whether a value of a JSON file is an area: a finite number of 0 or more."""
    return type(value) in (int, float) and 0 <= value < _LARGEST


def check_id(file: str, entry: Any, where: str, entry_type: str, known: Container[int], *, text: bool = False) -> str:
    """Check that an entry of a list is an object with a unique id, and return its name for messages.

    Args:
        file: for messages.
        entry: of the list.
        where: its place, for messages.
        entry_type: for the name, "image" or "annotation".
        known: ids that are used already.
        text: the id may also be text that is not empty.

    Raises:
        BadRecordError: it is not.
    """
    if not isinstance(entry, dict):
        raise BadRecordError(file, "is not an object", where)
    if not _is_image_id(entry.get("id"), text):
        raise BadRecordError(file, f"needs an integer 'id', has {entry.get('id')!r}", where)
    where = f"{entry_type} {entry['id']}"
    if entry["id"] in known:
        raise BadRecordError(file, "the id is used twice", where)
    return where


def check_sides(file: str, entry: dict[str, Any], where: str) -> None:
    """Check height and width of an image.

    Raises:
        BadRecordError: one is missing or not a positive integer, or the image is too large.
    """
    for key in ("height", "width"):
        if not is_id(entry.get(key)) or not 1 <= entry[key] <= _MOST_SIDE:
            raise BadRecordError(
                file, f"needs a positive integer {key!r} in pixels, up to {_MOST_SIDE}, has {entry.get(key)!r}", where
            )
    if entry["height"] * entry["width"] > _MOST_PIXELS:
        raise BadRecordError(file, f"has {entry['height']} x {entry['width']} pixels, more than {_MOST_PIXELS}", where)


def check_class_and_crowd(
    file: str, annotation: dict[str, Any], where: str, declared: Container[int]
) -> tuple[int, bool]:
    """Check and return the category id of an annotation, one of `declared`, and whether it is a crowd.

    Raises:
        BadRecordError: another category, or "iscrowd" is neither 0 nor 1 (nor null, which is 0).
    """
    category: Any = annotation.get("category_id")
    if not is_id(category) or category not in declared:
        raise BadRecordError(file, f"category {category!r} is not declared in 'categories'", where)
    return category, _flag(file, annotation, "iscrowd", where)


def _flag(file: str, annotation: dict[str, Any], key: str, where: str) -> bool:
    value = annotation.get(key)
    if value is not None and (not isinstance(value, (int, float)) or value not in (0, 1)):
        raise BadRecordError(file, f"{key!r} must be 0 or 1, not {value!r}", where)
    return bool(value)


def check_segmentation(
    file: str, segmentation: Any, record: dict[str, Any], where: str
) -> list[list[float]] | dict[str, Any] | None:
    """Check a segmentation and return it with flat polygons, without degenerate ones.

    Raises:
        BadRecordError: it is malformed.
    """
    if segmentation is None:
        return None
    size = record["height"], record["width"]
    try:
        if isinstance(segmentation, list):
            return read_polygons(segmentation, size)
        if isinstance(segmentation, dict):
            rle_runs(segmentation, size)  # also for the evaluation: pycocotools never returns from some malformed RLE
            return segmentation
    except SegmentationError as error:
        raise BadRecordError(file, str(error), where) from error
    raise BadRecordError(file, "'segmentation' must be a list of polygons or an RLE", where)


def is_box(value: Any) -> bool:
    """Return whether a value is a list of four finite numbers."""
    numbers = isinstance(value, list) and len(value) == 4 and set(map(type, value)) <= {int, float}
    return numbers and min(value) > -_LARGEST and max(value) < _LARGEST and not math.isnan(sum(value))


def check_box(file: str, box: Any, where: str) -> list[float]:
    """Check and return a box [x, y, width, height].

    Raises:
        BadRecordError: it does not have four finite numbers.
    """
    if not is_box(box):
        raise BadRecordError(file, "'bbox' must be [x, y, width, height]", where)
    return box


def check_score(file: str, score: Any, where: str) -> float:
    """Check and return the score of a result.

    Raises:
        BadRecordError: it is not a finite number.
    """
    if type(score) not in (int, float) or not -_LARGEST < score < _LARGEST or not math.isfinite(score):
        raise BadRecordError(file, f"'score' must be a finite number, not {score!r}", where)
    return float(score)


def read_categories(
    file: str, content: dict[str, Any], keep: Sequence[int] | None, *, unnamed: bool = False
) -> list[tuple[int, str]]:
    """Return id and name of every category to keep, in the order of the ids; None keeps all.

    Args:
        file: for messages.
        content: of the file, with a list "categories".
        keep: ids of the categories to keep.
        unnamed: a missing name is the id.

    Raises:
        BadRecordError: the categories are malformed.
        ValueError: a category to keep is not in the file.
    """
    names: dict[int, str] = {}
    for position, category in enumerate(content["categories"]):
        where = f"categories[{position}]"
        if not isinstance(category, dict) or not is_id(category.get("id")):
            raise BadRecordError(file, "needs an integer 'id'", where)
        name = str(category["id"]) if unnamed and "name" not in category else category.get("name")
        if not isinstance(name, str) or not name:
            raise BadRecordError(file, "needs a 'name'", where)
        if category["id"] in names:
            raise BadRecordError(file, f"id {category['id']} is used twice", where)
        names[category["id"]] = name
    if not names:
        raise BadRecordError(file, "declares no categories")
    if keep is not None:
        unknown = sorted(set(keep) - names.keys())
        if unknown or not keep:
            raise ValueError(f"{file}: categories to keep are {list(keep)}, but the file has {sorted(names)}")
        names = {key: names[key] for key in keep}
    return sorted(names.items())
