"""Panoptic quality of semantic predictions: each class of an image is one segment, things as well.

The MaskFormer papers compare semantic models by this metric beside mIoU (PQ^St): a class predicted in an image without
it is a false positive, however few its pixels.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..data.datasets.coco_annotations import is_id
from ..data.image_io import read_label_map
from ..errors import BadRecordError, report_bad_records
from ..structures.masks import SegmentationError, rle_to_patch
from ..utils.file_io import read_json
from ..utils.tables import distinct, side_by_side
from .panoptic_quality import VOID, CategoryCounts, ImageMatches, all_missed, match_segments, mean_quality, sum_counts

logger = logging.getLogger(__name__)


def class_matches(truth: np.ndarray, prediction: np.ndarray, ignore_label: int) -> ImageMatches:
    """Compare the classes of one image as segments; categories are classes.

    Args:
        truth: (h, w) classes, or `ignore_label`, which is treated as void.
        prediction: (h, w) classes; negative where nothing is predicted.

    Raises ValueError if the sizes differ.
    """
    wide = truth.astype(np.int64)
    # Segment ids start at 1, 0 is void.
    truth_map = np.where(wide == ignore_label, VOID, wide + 1)
    pred_map = np.maximum(prediction.astype(np.int64) + 1, VOID)
    return match_segments(truth_map, _segments(truth_map), pred_map, _segments(pred_map))


def _segments(ids: np.ndarray) -> list[dict[str, int]]:
    return [{"id": i, "category_id": i - 1} for i in np.unique(ids).tolist() if i != VOID]


def quality_metrics(images: Iterable[ImageMatches], class_names: Sequence[str]) -> dict[str, float]:
    """Compute and log PQ, SQ, RQ and `PQ-<class>` in percent over images; NaN for classes that do not appear."""
    counts = sum_counts(images)
    quality = mean_quality(counts, range(len(class_names)))
    absent = CategoryCounts()
    rows = [
        (name, 100 * entry.pq if entry.present else float("nan"))
        for name, entry in ((name, counts.get(i, absent)) for i, name in enumerate(class_names))
    ]
    logger.info("PQ per class, each class one segment:\n%s", side_by_side(("class", "PQ"), rows))
    summary = {"PQ": 100 * quality.pq, "SQ": 100 * quality.sq, "RQ": 100 * quality.rq}
    return {**summary, **{f"PQ-{name}": value for name, value in rows}}


def evaluate_semantic_pq(
    dataset_name: str, json_file: str | os.PathLike[str], *, skip_bad_records: bool = False
) -> dict[str, float]:
    """Compute PQ of the predictions that a semantic evaluation has written.

    Args:
        dataset_name: registered dataset with `sem_seg_file_name` in its records and `stuff_classes`.
        json_file: `sem_seg_predictions.json`: records `file_name`, `category_id`, `segmentation` (RLE). Of
            overlapping records the last one counts. Images without a record count as missed, with a warning.
        skip_bad_records: leave out and report images with a bad label map.

    Returns:
        "PQ", "SQ", "RQ" and `"PQ-<class>"` in percent.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: the dataset has no semantic ground truth, or a record or label map is missing or malformed
            (BadRecordError).
    """
    metadata = MetadataCatalog.get(dataset_name)
    names, ignore = metadata.get("stuff_classes"), metadata.get("ignore_label", 255)
    files = {r["file_name"]: r.get("sem_seg_file_name") for r in DatasetCatalog.get(dataset_name)}
    if not names or not all(files.values()):
        raise ValueError(
            f"dataset {dataset_name!r} has no semantic ground truth; set stuff_classes and sem_seg_file_name"
        )
    predictions = _read_predictions(json_file, metadata.get("stuff_dataset_id_to_contiguous_id"), len(names))
    unknown = sorted(set(predictions) - set(files))
    if unknown:
        raise ValueError(f"{json_file}: {unknown[0]!r} is not an image of dataset {dataset_name!r}")
    images, unseen = [], 0
    problems: list[BadRecordError] = []
    for file_name, labels in files.items():
        try:
            truth = _read_labels(labels, len(names), ignore)
        except BadRecordError as error:
            if not skip_bad_records:
                raise
            problems.append(error)
            continue
        if file_name not in predictions:
            unseen += 1
            images.append(all_missed([{"category_id": i} for i in np.unique(truth).tolist() if i != ignore]))
            continue
        try:
            prediction = _paint(predictions[file_name], (truth.shape[0], truth.shape[1]))
        except SegmentationError as error:
            raise BadRecordError(os.fspath(json_file), str(error), f"prediction of {file_name}") from error
        images.append(class_matches(truth, prediction, ignore))
    report_bad_records(f"dataset {dataset_name!r}", problems, len(problems))
    if unseen:
        logger.warning("%s: %d of %d images have no prediction; they count as missed", json_file, unseen, len(files))
    return quality_metrics(images, distinct(names))


def _read_labels(path: str, num_classes: int, ignore: int) -> np.ndarray:
    truth = read_label_map(path)
    unknown = [i for i in np.unique(truth).tolist() if not 0 <= i < num_classes and i != ignore]
    if unknown:
        raise BadRecordError(
            path, f"labels {unknown[:10]} are outside [0, {num_classes - 1}] and are not the ignore label {ignore}"
        )
    return truth


def _read_predictions(
    json_file: str | os.PathLike[str], mapping: Mapping[int, int] | None, num_classes: int
) -> dict[str, list[tuple[int, Any]]]:
    """Read (class, RLE) pairs by image; the RLEs are not checked yet."""
    predictions: dict[str, list[tuple[int, Any]]] = {}
    content = read_json(json_file, "semantic predictions")
    if not isinstance(content, list):
        raise ValueError(f"{json_file}: semantic predictions are a list of records, got {type(content).__name__}")
    for position, record in enumerate(content):
        where = f"record {position}"
        keys = ("file_name", "category_id", "segmentation")
        missing = [key for key in keys if not isinstance(record, Mapping) or key not in record]
        if missing:
            raise BadRecordError(os.fspath(json_file), f"has no {' and no '.join(missing)}", where)
        name, category = record["file_name"], record["category_id"]
        label = None if not is_id(category) else category if mapping is None else mapping.get(category)
        if label is None or not 0 <= label < num_classes:
            raise BadRecordError(os.fspath(json_file), f"category {category!r} is not one of the dataset", where)
        if not isinstance(name, str):
            raise BadRecordError(os.fspath(json_file), f"'file_name' must be text, not {name!r}", where)
        predictions.setdefault(name, []).append((label, record["segmentation"]))
    return predictions


def _paint(records: Sequence[tuple[int, Any]], size: tuple[int, int]) -> np.ndarray:
    """Return (h, w) classes, -1 where there is no record; SegmentationError for a malformed RLE."""
    classes = np.full(size, -1, dtype=np.int64)
    for label, rle in records:
        top, left, bits = rle_to_patch(rle, size)
        classes[top : top + bits.shape[0], left : left + bits.shape[1]][bits] = label
    return classes
