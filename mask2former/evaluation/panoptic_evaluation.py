"""Panoptic quality on COCO-style panoptic ground truth, computed in memory."""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from PIL import Image
from tabulate import tabulate

from ..errors import BadRecordError
from ..structures.panoptic_ids import id_to_rgb
from ..utils.atomic_file import atomic_write
from ..utils.file_io import write_json
from ..utils.tables import distinct, side_by_side
from .gathering import gather_parts
from .ground_truth import PanopticTruth, image_size
from .panoptic_quality import (
    CategoryCounts,
    ImageMatches,
    Quality,
    all_missed,
    match_segments,
    mean_quality,
    sum_counts,
)

logger = logging.getLogger(__name__)

Segments = list[dict[str, Any]]
Part = dict[str, tuple[ImageMatches, dict[str, Any]]]  # image id as string -> matches, prediction record


def merge_parts(parts: Iterable[Part]) -> Part:
    """Merge the results of all ranks; an image that several ranks report counts once."""
    merged: Part = {}
    for part in parts:
        for image_id, entry in part.items():
            merged.setdefault(image_id, entry)
    return merged


class PanopticEvaluator(DatasetEvaluator):
    """PQ, SQ and RQ, equal to panopticapi.

    Each image is compared in memory, on the rank that predicted it. IoU is summed in the order of the annotation file,
    so the result does not depend on the number of ranks (panopticapi's last digit depends on the number of cores; this
    is its single-core result).

    Results: `{"panoptic_seg": {"PQ", "SQ", "RQ", "PQ_th" ... "RQ_st"}}` in percent, NaN for a group without any
    category present. Images of the annotation file without a prediction count as missed, with a warning. Written to
    `output_dir`: `predictions.json`, and with `save_predictions` its PNGs in `predictions/`.
    """

    def __init__(
        self,
        dataset_name: str,
        output_dir: str | None = None,
        *,
        save_predictions: bool = False,
        per_class: bool = False,
        distributed: bool = True,
        skip_bad_records: bool = False,
    ) -> None:
        """
        Args:
            dataset_name: registered dataset; its metadata has `panoptic_json`, `panoptic_root`,
                `thing_dataset_id_to_contiguous_id`, `stuff_dataset_id_to_contiguous_id`, and `label_divisor`
                for models that return no segments_info.
            output_dir: where predictions.json is written; nothing is written if None.
            save_predictions: also write one PNG per image, so that panopticapi can read predictions.json.
            per_class: add `"PQ-<class>"` to the results (they are always logged).
            distributed: collect results from all ranks.
            skip_bad_records: leave out and report images with bad records, and images without a prediction, which the
                loader has left out; also if the metadata has `skip_bad_records`.

        Raises:
            FileNotFoundError: the annotation file or the directory of PNGs is missing.
            ValueError: the dataset has no panoptic annotations, or malformed ones.
        """
        metadata = MetadataCatalog.get(dataset_name)
        for key in ("panoptic_json", "panoptic_root", "thing_dataset_id_to_contiguous_id"):
            if metadata.get(key) is None:
                raise ValueError(
                    f"dataset {dataset_name!r} has no {key} in its metadata, which panoptic quality requires; "
                    f"set MODEL.MASK_FORMER.TEST.PANOPTIC_ON False or use a panoptic dataset"
                )
        self._dataset_name = dataset_name
        self._skip = skip_bad_records or bool(metadata.get("skip_bad_records"))
        self._truth = PanopticTruth(metadata.panoptic_json, metadata.panoptic_root, skip_bad_records=self._skip)
        things = metadata.thing_dataset_id_to_contiguous_id
        self._thing_ids = {v: k for k, v in things.items()}
        self._stuff_ids = {v: k for k, v in metadata.get("stuff_dataset_id_to_contiguous_id", {}).items()}
        self._label_divisor = metadata.get("label_divisor")
        self._output_dir = output_dir
        self._save_pngs = save_predictions and output_dir is not None
        self._per_class = per_class
        self._distributed = distributed
        self._part: Part = {}

    def reset(self) -> None:
        self._part = {}

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Compare a batch with its ground truth.

        Args:
            inputs: dicts with `image_id`, and `file_name` if predictions are written.
            outputs: dicts with `panoptic_seg`: (id map (h, w) int, segments_info). Each segment has `id`,
                `category_id` and `isthing`; category ids are contiguous, or those of the dataset where `isthing` is
                absent. segments_info may be None: the map then holds category * label_divisor + instance, -1 void.

        Raises:
            ValueError: the image is not annotated, sizes differ, or map and segments are inconsistent.
            BadRecordError: the PNG of the ground truth is missing, broken or of another size.
        """
        for image, output in zip(inputs, outputs, strict=True):
            if "panoptic_seg" not in output:
                raise ValueError("the model output has no 'panoptic_seg'; set MODEL.MASK_FORMER.TEST.PANOPTIC_ON True")
            id_tensor, segments = output["panoptic_seg"]
            id_map = id_tensor.cpu().numpy()
            try:
                annotation = self._truth.annotation(image["image_id"])
                truth_map = self._truth.id_map(annotation, image_size(image))
            except BadRecordError as error:
                if not self._skip:
                    raise
                logger.warning("bad record skipped: %s", error)
                continue
            try:
                if segments is None:
                    id_map, segments = self._segments_from_labels(id_map)
                segments = [self._to_dataset_category(s) for s in segments]
                matches = match_segments(truth_map, annotation["segments_info"], id_map, segments)
            except ValueError as error:
                raise ValueError(f"panoptic prediction of image {image['image_id']!r}: {error}") from error
            record = self._record(image, annotation, id_map, segments)
            self._part.setdefault(str(image["image_id"]), (matches, record))

    def _segments_from_labels(self, labels: np.ndarray) -> tuple[np.ndarray, Segments]:
        """Split category * divisor + instance (-1 void) into ids from 1 and segments."""
        if not self._label_divisor:
            raise ValueError(f"segments_info is None, but dataset {self._dataset_name!r} has no label_divisor")
        segments: Segments = []
        for label in np.unique(labels).tolist():
            if label >= 0:
                category = label // self._label_divisor
                segments.append({"id": label + 1, "category_id": category, "isthing": category in self._thing_ids})
        return labels + 1, segments

    def _to_dataset_category(self, segment: Mapping[str, Any]) -> dict[str, Any]:
        plain = {k: v.item() if hasattr(v, "item") else v for k, v in segment.items() if k != "isthing"}
        if segment.get("isthing") is not None:
            ids = self._thing_ids if segment["isthing"] else self._stuff_ids
            kind = "thing" if segment["isthing"] else "stuff"
            if plain["category_id"] not in ids:
                raise ValueError(f"{kind} class {plain['category_id']} is not one of dataset {self._dataset_name!r}")
            plain["category_id"] = ids[plain["category_id"]]
        if plain["category_id"] not in self._truth.categories:
            raise ValueError(f"category {plain['category_id']} is not in {self._truth.json_file}")
        return plain

    def _record(
        self, image: Mapping[str, Any], annotation: Mapping[str, Any], id_map: np.ndarray, segments: Segments
    ) -> dict[str, Any]:
        """Return the entry of an image in predictions.json; writes its PNG if enabled."""
        if not self._output_dir:
            return {}
        source = image.get("file_name", annotation["file_name"])
        name = os.path.splitext(os.path.basename(source))[0] + ".png"
        if self._save_pngs:
            with atomic_write(os.path.join(self._output_dir, "predictions", name)) as stream:
                Image.fromarray(id_to_rgb(id_map)).save(stream, format="PNG", compress_level=1)
        return {"image_id": annotation["image_id"], "file_name": name, "segments_info": segments}

    def evaluate(self) -> dict[str, Any] | None:
        """Return PQ over the dataset; None on all ranks but the main one."""
        parts = gather_parts(self._part, self._distributed)
        if parts is None:
            return None
        merged = merge_parts(parts)
        if self._output_dir:
            content = {**self._truth.content, "annotations": [record for _, record in merged.values()]}
            write_json(os.path.join(self._output_dir, "predictions.json"), content)
        counts = sum_counts(self._in_order(merged))
        ids = list(self._truth.categories)
        things = [i for i in ids if self._truth.categories[i].get("isthing") == 1]
        groups = {
            "All": mean_quality(counts, ids),
            "Things": mean_quality(counts, things),
            "Stuff": mean_quality(counts, [i for i in ids if i not in set(things)]),
        }
        metrics = {
            f"{metric.upper()}{suffix}": 100 * getattr(groups[group], metric)
            for group, suffix in (("All", ""), ("Things", "_th"), ("Stuff", "_st"))
            for metric in ("pq", "sq", "rq")
        }
        self._log(groups)
        per_class = self._log_classes(counts)
        if self._per_class:
            metrics.update(per_class)
        return OrderedDict(panoptic_seg=metrics)

    def _in_order(self, merged: Part) -> list[ImageMatches]:
        """Return the matches of every annotated image, in the order of the annotation file."""
        images = []
        unseen = 0
        annotations = self._truth.annotations
        for annotation in annotations:
            entry = merged.get(str(annotation["image_id"]))
            unseen += entry is None
            if entry is not None:
                images.append(entry[0])
            elif not self._skip:
                images.append(all_missed(annotation["segments_info"]))
        if unseen:
            text = "are left out (DATALOADER.SKIP_BAD_RECORDS)" if self._skip else "count as missed"
            logger.warning(
                "dataset %s: %d of %d annotated images have no prediction; their segments %s",
                self._dataset_name,
                unseen,
                len(annotations),
                text,
            )
        self._report_inconsistent(images)
        return images

    def _report_inconsistent(self, images: Sequence[ImageMatches]) -> None:
        texts = {
            "unlisted": "pixels have ids that are not in 'segments_info'; predictions there count as wrong",
            "absent": "segments of 'segments_info' have no pixel in the PNG files; they can only be missed",
            "resized": "segments have an 'area' that is not their number of pixels in the map, which counts",
        }
        for key, text in texts.items():
            count = sum(getattr(image, key) for image in images)
            if count:
                logger.warning("%s: %d %s", self._truth.json_file, count, text)

    def _log(self, groups: Mapping[str, Quality]) -> None:
        rows = [[name, 100 * q.pq, 100 * q.sq, 100 * q.rq, q.categories] for name, q in groups.items()]
        table = tabulate(rows, headers=("", "PQ", "SQ", "RQ", "#categories"), tablefmt="pipe", floatfmt=".3f")
        logger.info("Panoptic quality on %s:\n%s", self._dataset_name, table)

    def _log_classes(self, counts: Mapping[int, CategoryCounts]) -> dict[str, float]:
        """Log the classes and return `"PQ-<class>"` in percent, NaN for classes that do not appear."""
        names = distinct([str(c.get("name", i)) for i, c in self._truth.categories.items()])
        absent = CategoryCounts()
        rows: list[tuple[str, float]] = []
        for name, category in zip(names, self._truth.categories, strict=True):
            entry = counts.get(category, absent)
            rows.append((name, 100 * entry.pq if entry.present else float("nan")))
        logger.info("PQ per class:\n%s", side_by_side(("class", "PQ"), rows))
        return {f"PQ-{name}": value for name, value in rows}
