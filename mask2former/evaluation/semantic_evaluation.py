"""Semantic segmentation IoU and accuracy."""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils.logger import create_small_table
from torch import Tensor

from ..data.image_io import read_label_map
from ..errors import BadRecordError, first_few
from ..modeling.label_maps import first_highest
from ..structures.rle import encode_label_map
from ..utils.atomic_file import atomic_write
from ..utils.file_io import write_json
from ..utils.tables import distinct, side_by_side
from .boundary_iou import DILATION_RATIO, boundary_areas
from .gathering import gather_parts
from .ground_truth import PanopticTruth, image_size
from .joint_runs import count_pairs, joint_runs
from .panoptic_quality import ImageMatches
from .semantic_pq import class_matches, quality_metrics

logger = logging.getLogger(__name__)


class LabelError(ValueError):
    """Ground truth has values that are no classes; callers that know the file raise a BadRecordError from it."""


def confusion_matrix(truth: np.ndarray, prediction: np.ndarray, num_classes: int, ignore_label: int) -> np.ndarray:
    """Count pixels by class: (K, K) int64, rows ground truth, columns prediction; ignored pixels are not counted.

    Args:
        truth: (h, w) integers, classes 0 to K - 1 or `ignore_label`.
        prediction: (h, w) integers, classes 0 to K - 1.

    Raises:
        ValueError: sizes differ, or a label is out of range.
    """
    if truth.shape != prediction.shape:
        raise ValueError(f"prediction is (h, w) = {prediction.shape}, ground truth is {truth.shape}")
    labels, classes, pixels = joint_runs(truth, prediction)
    counted = labels != ignore_label
    labels, classes, pixels = labels[counted], classes[counted], pixels[counted]
    if labels.size and (labels.min() < 0 or labels.max() >= num_classes):
        bad = np.unique(labels[(labels < 0) | (labels >= num_classes)]).tolist()
        raise LabelError(
            f"labels {bad[:10]} are outside [0, {num_classes - 1}] and are not the ignore label {ignore_label}"
        )
    if classes.size and (classes.min() < 0 or classes.max() >= num_classes):
        raise ValueError(f"the model predicts class {classes.max()}, the dataset has {num_classes} classes")
    return count_pairs(labels, classes, pixels, (num_classes, num_classes))


def semantic_metrics(confusion: np.ndarray, class_names: Sequence[str]) -> dict[str, float]:
    """Compute IoU and accuracy in percent from a confusion matrix (K, K), rows ground truth.

    mIoU, mACC: means over the classes with ground truth pixels. fwIoU: IoU weighted by ground truth pixels. pACC: pixel
    accuracy. `IoU-<class>`, `ACC-<class>`: NaN where the class has no ground truth pixel. Everything is NaN without
    ground truth pixels.
    """
    correct = confusion.diagonal().astype(float)
    truth = confusion.sum(axis=1).astype(float)
    predicted = confusion.sum(axis=0).astype(float)
    seen = truth > 0
    iou = np.full(len(confusion), np.nan)
    accuracy = np.full(len(confusion), np.nan)
    iou[seen] = correct[seen] / (truth[seen] + predicted[seen] - correct[seen])
    accuracy[seen] = correct[seen] / truth[seen]
    nan = float("nan")
    total = truth.sum()
    metrics = {
        "mIoU": 100 * (iou[seen].sum() / seen.sum()) if total else nan,
        "fwIoU": 100 * (iou[seen] * (truth / total)[seen]).sum() if total else nan,
    }
    metrics.update({f"IoU-{name}": 100 * value for name, value in zip(class_names, iou, strict=True)})
    metrics["mACC"] = 100 * (accuracy[seen].sum() / seen.sum()) if total else nan
    metrics["pACC"] = 100 * (correct.sum() / total) if total else nan
    metrics.update({f"ACC-{name}": 100 * value for name, value in zip(class_names, accuracy, strict=True)})
    return {key: float(value) for key, value in metrics.items()}


def boundary_metrics(areas: np.ndarray, class_names: Sequence[str]) -> dict[str, float]:
    """Compute boundary IoU in percent from pixels in both boundaries and in at least one, (K, 2).

    mBIoU: mean over the classes that appear in ground truth or predictions. `BIoU-<class>`: NaN where it appears in
    neither.
    """
    iou = np.full(len(areas), np.nan)
    seen = areas[:, 1] > 0
    iou[seen] = 100 * areas[seen, 0] / areas[seen, 1]
    mean = float(iou[seen].mean()) if seen.any() else float("nan")
    rows = list(zip(class_names, iou.tolist(), strict=True))
    logger.info("Boundary IoU per class:\n%s", side_by_side(("class", "BIoU"), rows))
    return {"mBIoU": mean, **{f"BIoU-{name}": value for name, value in rows}}


@dataclass
class SemanticPart:
    """Counts of one rank: pixels by class (K, K), boundary pixels (K, 2), matches by image, records, skipped images."""

    confusion: np.ndarray
    boundary: np.ndarray
    matches: dict[str, ImageMatches] = field(default_factory=dict)
    predictions: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)  # images with bad ground truth


class SemanticEvaluator(DatasetEvaluator):
    """mIoU, fwIoU and accuracy, equal to detectron2's SemSegEvaluator, which fails with NumPy 2.

    Ground truth is read from the label maps of the dataset (`sem_seg_file_name`). A panoptic dataset without them is
    evaluated on labels made from its panoptic annotations, as COCO's label maps are prepared.

    Results: `{"sem_seg": {"mIoU", "fwIoU", "IoU-<class>" ..., "mACC", "pACC", "ACC-<class>" ...}}` in percent; with
    `boundary` also "mBIoU" and `"BIoU-<class>"`, with `panoptic_quality` also "PQ", "SQ", "RQ" and `"PQ-<class>"`.
    Written to `output_dir`: `sem_seg_predictions.json`, one RLE per image and class, and `sem_seg_evaluation.pth`, the
    metrics.
    """

    def __init__(
        self,
        dataset_name: str,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        boundary: bool = False,
        panoptic_quality: bool = False,
        dilation_ratio: float = DILATION_RATIO,
        skip_bad_records: bool = False,
    ) -> None:
        """
        Args:
            dataset_name: registered dataset; its metadata has `stuff_classes`, `ignore_label` (255) and
                `stuff_dataset_id_to_contiguous_id`.
            distributed: collect results from all ranks.
            output_dir: where predictions are written; nothing is written if None.
            boundary: also compute the boundary IoU of each class (Cheng et al., "Boundary IoU", CVPR 2021).
            panoptic_quality: also compute PQ with each class of an image as one segment.
            dilation_ratio: width of a boundary as a share of the image's diagonal.
            skip_bad_records: leave out and report images with a bad label map; also if the metadata has
                `skip_bad_records`.

        Raises:
            ValueError: the dataset has no classes or no semantic ground truth.
        """
        metadata = MetadataCatalog.get(dataset_name)
        classes = metadata.get("stuff_classes")
        if not classes:
            raise ValueError(f"dataset {dataset_name!r} has no stuff_classes in its metadata; semantic IoU needs them")
        self._dataset_name = dataset_name
        self._class_names = distinct(classes)
        self._num_classes = len(classes)
        self._ignore_label: int = metadata.get("ignore_label", 255)
        mapping = metadata.get("stuff_dataset_id_to_contiguous_id")
        self._dataset_ids: dict[int, int] = {} if mapping is None else {v: k for k, v in mapping.items()}
        self._distributed = distributed
        self._output_dir = output_dir
        self._boundary = boundary
        self._panoptic_quality = panoptic_quality
        self._dilation_ratio = dilation_ratio
        self._skip = skip_bad_records or bool(metadata.get("skip_bad_records"))
        self._truth_files = {
            record["file_name"]: record["sem_seg_file_name"]
            for record in DatasetCatalog.get(dataset_name)
            if "sem_seg_file_name" in record
        }
        self._panoptic: PanopticTruth | None = None
        if not self._truth_files:
            self._panoptic = self._panoptic_source(metadata)
        self.reset()

    def _panoptic_source(self, metadata: Any) -> PanopticTruth:
        things = metadata.get("thing_dataset_id_to_contiguous_id") or {}
        stuff = metadata.get("stuff_dataset_id_to_contiguous_id") or {}
        self._class_of = {**things, **stuff}
        in_range = all(0 <= c < self._num_classes for c in self._class_of.values())
        unambiguous = len(set(self._class_of.values())) == len(self._class_of) and in_range
        if not metadata.get("panoptic_json") or not metadata.get("panoptic_root") or not unambiguous:
            raise ValueError(
                f"dataset {self._dataset_name!r} has no semantic ground truth (sem_seg_file_name); "
                f"set MODEL.MASK_FORMER.TEST.SEMANTIC_ON False or register it with label maps"
            )
        logger.info("dataset %s: semantic labels are made from panoptic annotations", self._dataset_name)
        return PanopticTruth(metadata.panoptic_json, metadata.panoptic_root, skip_bad_records=self._skip)

    def reset(self) -> None:
        self._part = SemanticPart(
            np.zeros((self._num_classes, self._num_classes), dtype=np.int64),
            np.zeros((self._num_classes, 2), dtype=np.int64),
        )

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Accumulate the counts of a batch.

        Args:
            inputs: dicts with `file_name` (and `image_id` for labels made from panoptic annotations).
            outputs: dicts with `sem_seg`, (K, h, w) scores or (h, w) integer classes.

        Raises:
            ValueError: wrong number of classes, or sizes differ; names the file.
            BadRecordError: the label map is missing, broken, of another size, or has values that are no classes.
        """
        for image, output in zip(inputs, outputs, strict=True):
            if "sem_seg" not in output:
                raise ValueError("the model output has no 'sem_seg'; set MODEL.MASK_FORMER.TEST.SEMANTIC_ON True")
            prediction = self._classes(output["sem_seg"])
            try:
                source, truth = self._read_truth(image)
                try:
                    self._count(image["file_name"], truth, prediction)
                except LabelError as error:
                    raise BadRecordError(source, str(error)) from error
                except ValueError as error:
                    raise ValueError(f"{source}: {error}") from error
            except BadRecordError as error:
                if not self._skip:
                    raise
                logger.warning("bad record skipped: %s", error)
                self._part.left_out.append(image["file_name"])
                continue
            if self._output_dir:
                self._part.predictions.extend(self._records(prediction, image["file_name"]))

    def _count(self, file_name: str, truth: np.ndarray, prediction: np.ndarray) -> None:
        part, classes, ignore = self._part, self._num_classes, self._ignore_label
        part.confusion += confusion_matrix(truth, prediction, classes, ignore)
        if self._boundary:
            part.boundary += boundary_areas(truth, prediction, classes, ignore, self._dilation_ratio)
        if self._panoptic_quality:
            part.matches[file_name] = class_matches(truth, prediction, ignore)

    def _classes(self, scores: Tensor) -> np.ndarray:
        """Convert (K, h, w) scores or (h, w) classes to (h, w) classes on the CPU, copied in the smallest type."""
        if scores.dim() == 3:
            if scores.shape[0] != self._num_classes:
                raise ValueError(
                    f"the model predicts {scores.shape[0]} classes, dataset {self._dataset_name!r} has "
                    f"{self._num_classes}; set MODEL.SEM_SEG_HEAD.NUM_CLASSES"
                )
            scores = first_highest(scores)
        return scores.cpu().numpy()

    def _read_truth(self, image: Mapping[str, Any]) -> tuple[str, np.ndarray]:
        if self._panoptic is None:
            path = self._truth_files.get(image["file_name"], image.get("sem_seg_file_name"))
            if path is None:
                raise ValueError(f"{image['file_name']}: dataset {self._dataset_name!r} has no label map for it")
            labels = read_label_map(path)
            size = image_size(image)
            if size is not None and labels.shape != size:
                raise BadRecordError(path, f"is {list(labels.shape)} (height, width), its image {list(size)}")
            return path, labels
        annotation = self._panoptic.annotation(image["image_id"])
        ids = self._panoptic.id_map(annotation, image_size(image))
        # Ids are up to 2^24. Memory that is not written is not allocated if it begins with zeros.
        beyond_ignored = np.zeros(int(ids.max(initial=0)) + 1, dtype=np.int64)
        for segment in annotation["segments_info"]:
            if segment["id"] < len(beyond_ignored):
                beyond_ignored[segment["id"]] = self._class_of_segment(annotation, segment) - self._ignore_label
        return annotation["file_name"], beyond_ignored[ids] + self._ignore_label

    def _class_of_segment(self, annotation: Mapping[str, Any], segment: Mapping[str, Any]) -> int:
        if segment["category_id"] not in self._class_of:
            reason = f"category {segment['category_id']} is not one of dataset {self._dataset_name!r}"
            raise BadRecordError(annotation["file_name"], reason, f"segment {segment['id']}")
        return self._class_of[segment["category_id"]]

    def _records(self, prediction: np.ndarray, file_name: str) -> list[dict[str, Any]]:
        return [
            {"file_name": file_name, "category_id": self._dataset_ids.get(label, label), "segmentation": rle}
            for label, rle in encode_label_map(prediction).items()
        ]

    def evaluate(self) -> dict[str, Any] | None:
        """Return metrics over all images; None on all ranks but the main one."""
        parts = gather_parts(self._part, self._distributed)
        return None if parts is None else self.evaluate_parts(parts)

    def _report_absent(self, confusion: np.ndarray) -> None:
        absent = [name for name, count in zip(self._class_names, confusion.sum(axis=1), strict=True) if not count]
        if absent:
            logger.warning(
                "dataset %s: %d of %d classes do not occur in the ground truth that was evaluated (pixels of value %d "
                "are ignored): %s",
                self._dataset_name,
                len(absent),
                len(self._class_names),
                self._ignore_label,
                first_few(absent),
            )

    def evaluate_parts(self, parts: Sequence[SemanticPart]) -> dict[str, Any]:
        """Return metrics of the counts of all ranks."""
        if self._output_dir:
            path = os.path.join(self._output_dir, "sem_seg_predictions.json")
            write_json(path, [record for part in parts for record in part.predictions])
        left_out = sorted({name for part in parts for name in part.left_out})
        if left_out:
            logger.warning(
                "dataset %s: %d images are left out, because their ground truth is bad: %s",
                self._dataset_name,
                len(left_out),
                first_few(left_out),
            )
        confusion = np.sum([part.confusion for part in parts], axis=0)
        self._report_absent(confusion)
        metrics = semantic_metrics(confusion, self._class_names)
        if self._boundary:
            metrics.update(boundary_metrics(np.sum([part.boundary for part in parts], axis=0), self._class_names))
        if self._panoptic_quality:
            matches = {name: match for part in parts for name, match in part.matches.items()}
            # In a fixed order, whichever rank saw the images: the last digit of sums depends on it.
            metrics.update(quality_metrics((matches[name] for name in sorted(matches)), self._class_names))
        if self._output_dir:
            with atomic_write(os.path.join(self._output_dir, "sem_seg_evaluation.pth")) as stream:
                torch.save(metrics, stream)
        shown = ("mIoU", "fwIoU", "mACC", "pACC", "mBIoU", "PQ")
        summary = {key: metrics[key] for key in shown if key in metrics}
        logger.info("Semantic segmentation on %s:\n%s", self._dataset_name, create_small_table(summary))
        rows = [(n, metrics[f"IoU-{n}"], metrics[f"ACC-{n}"]) for n in self._class_names]
        logger.info("IoU per class:\n%s", side_by_side(("class", "IoU", "ACC"), rows, width=9))
        if self._num_classes == 1:
            logger.warning(
                "dataset %s has one class, so every pixel is assigned to it: IoU is 100 whatever the model predicts",
                self._dataset_name,
            )
        return OrderedDict(sem_seg=metrics)
