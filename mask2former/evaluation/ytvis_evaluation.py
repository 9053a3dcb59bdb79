"""Evaluation of video instances: results.json in the submission format, and video AP where there is ground truth."""

from __future__ import annotations

import logging
import math
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.logger import create_small_table
from torch import Tensor

from ..data.datasets.ytvis_json import VideoAnnotations, read_ytvis_json
from ..structures.rle import encode_masks
from ..utils.file_io import write_json
from ..utils.tables import distinct, side_by_side
from .gathering import gather_parts
from .instance_evaluation import merge_predictions
from .video_ap import evaluate_videos

logger = logging.getLogger(__name__)

RESULTS_FILE = "results.json"


def clip_to_records(output: Mapping[str, Any], video_id: Any) -> list[dict[str, Any]]:
    """Return result records of one clip, in the order of the predictions.

    Args:
        output: "pred_scores" (N,), "pred_labels" (N,), and "pred_masks", N bool tensors (T, h, w), or "pred_rles", N
            lists of T RLEs.
        video_id: written into each record.

    Returns:
        {"video_id", "category_id" (the label), "score", "segmentations"} each; the last are T RLEs, None in frames
        whose mask is empty. Records with a score that is not finite are left out and logged.
    """
    records = []
    predicted = output["pred_rles"] if "pred_rles" in output else output["pred_masks"]
    for score, label, masks in zip(output["pred_scores"], output["pred_labels"], predicted, strict=True):
        if not math.isfinite(score):
            logger.warning("video %r: an instance with score %s is left out", video_id, score)
            continue
        segmentations = masks if "pred_rles" in output else _encoded(torch.as_tensor(masks))
        record = {"video_id": video_id, "category_id": int(label), "score": float(score)}
        records.append({**record, "segmentations": segmentations})
    return records


def _encoded(masks: Tensor) -> list[dict[str, Any] | None]:
    """Encode masks (T, h, w) as T RLEs, None for an empty mask."""
    visible = masks.flatten(1).any(dim=1)
    rles = iter(encode_masks(masks[visible]))
    return [next(rles) if is_visible else None for is_visible in visible.tolist()]


class YTVISEvaluator(DatasetEvaluator):
    """Video AP of YouTube-VIS, and results.json for its evaluation server.

    Results: `{"segm": {"AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AP-<class>" ...}}` in percent, NaN
    where there is no ground truth of that size or class; empty for files without annotations (validation and test of
    YouTube-VIS). results.json is written to `output_dir` in both cases.
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: object = None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        use_fast_impl: bool = True,
    ) -> None:
        """
        Args:
            dataset_name: registered dataset. Its metadata has `json_file`, `thing_dataset_id_to_contiguous_id`,
                `thing_classes` and, to leave out videos with bad records, `skip_bad_records`.
            tasks: unused; keeps the position of the next arguments compatible with the reference.
            distributed: collect predictions from all ranks; the main rank evaluates.
            output_dir: where results.json is written; nothing is written if None.
            use_fast_impl: unused, as `tasks`.

        Raises:
            FileNotFoundError: the annotation file does not exist.
            ValueError: the dataset has no annotation file, or a malformed one.
        """
        self._dataset_name = dataset_name
        self._distributed = distributed
        self._output_dir = output_dir
        metadata = MetadataCatalog.get(dataset_name)
        if not metadata.get("json_file"):
            raise ValueError(
                f"dataset {dataset_name!r} has no json_file in its metadata; register it with DATASETS.YTVIS_JSON"
            )
        self._dataset_ids = {index: key for key, index in metadata.thing_dataset_id_to_contiguous_id.items()}
        self._names = list(metadata.thing_classes)
        needs_truth = not distributed or comm.is_main_process()
        skip = metadata.get("skip_bad_records", False)
        self._truth: VideoAnnotations | None = (
            read_ytvis_json(metadata.json_file, skip_bad_records=skip) if needs_truth else None
        )
        self._predictions: list[tuple[Any, list[dict[str, Any]]]] = []

    def reset(self) -> None:
        """Forget all predictions."""
        self._predictions = []

    def process(
        self, inputs: Sequence[Mapping[str, Any]], outputs: Mapping[str, Any] | Sequence[Mapping[str, Any]]
    ) -> None:
        """Keep the predictions of a batch.

        Args:
            inputs: clips with "video_id".
            outputs: outputs of VideoMaskFormer, see `clip_to_records`; one dict is a batch of one clip.

        Raises:
            ValueError: no video results, or a class that is not in the dataset.
        """
        for clip, output in zip(inputs, [outputs] if isinstance(outputs, Mapping) else outputs, strict=True):
            if "pred_masks" not in output and "pred_rles" not in output:
                raise ValueError("the model output has no tracks; set MODEL.META_ARCHITECTURE 'VideoMaskFormer'")
            records = clip_to_records(output, clip["video_id"])
            for record in records:
                if record["category_id"] not in self._dataset_ids:
                    raise ValueError(
                        f"video {clip['video_id']!r}: predicted class {record['category_id']} is not one of the "
                        f"{len(self._names)} classes of dataset {self._dataset_name!r}; MODEL.SEM_SEG_HEAD.NUM_CLASSES "
                        "must match the dataset"
                    )
                record["category_id"] = self._dataset_ids[record["category_id"]]
            self._predictions.append((clip["video_id"], records))

    def evaluate(self) -> dict[str, Any]:
        """Write results.json and return AP where there is ground truth; empty on all ranks but the main one.

        Raises:
            ValueError: a predicted video, number of frames or mask size differs from the dataset.
        """
        parts = gather_parts(self._predictions, self._distributed)
        if parts is None:
            return {}
        assert self._truth is not None
        records = merge_predictions(parts)
        if not records:
            logger.warning("dataset %s: the model predicted no object", self._dataset_name)
        path = os.path.join(self._output_dir, RESULTS_FILE) if self._output_dir else None
        if path:
            write_json(path, records)
            logger.info("%d tracks written to %s", len(records), path)
        if not self._truth.has_truth:
            remedy = f"zip {path} for the evaluation server" if path else "set OUTPUT_DIR to keep the tracks"
            logger.warning("%s has no annotations, so no AP is computed: %s", self._truth.file, remedy)
            return OrderedDict()
        return OrderedDict(segm=self._score(records))

    def _score(self, records: list[dict[str, Any]]) -> dict[str, float]:
        assert self._truth is not None
        known = sorted(set(self._dataset_ids.values()) & set(self._truth.categories))
        records = [record for record in records if record["video_id"] not in self._truth.left_out]
        scores = evaluate_videos(self._truth, records, known, checked=True)
        metrics = scores.summary()
        logger.info("Video AP on %s:\n%s", self._dataset_name, create_small_table(metrics))
        names = {key: self._names[index] for index, key in self._dataset_ids.items()}
        if len(known) > 1:
            labels = distinct([names[category] for category in known])
            per_class = {label: scores.ap(category=c) for label, c in zip(labels, known, strict=True)}
            logger.info("AP per class:\n%s", side_by_side(("class", "AP"), list(per_class.items())))
            metrics.update({f"AP-{name}": ap for name, ap in per_class.items()})
        return metrics
