"""Evaluation of video instances: results.json in the submission format, and video AP where there is ground truth."""

from __future__ import annotations

import copy
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
from ..utils.overrides import extensible, unchanged
from ..utils.tables import distinct, side_by_side
from .gathering import gather_parts
from .ground_truth import warn_of_crowded
from .instance_evaluation import merge_predictions
from .video_ap import VideoScores, evaluate_videos

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


@extensible
class YTVISEvaluator(DatasetEvaluator):
    """Video AP of YouTube-VIS, and results.json for its evaluation server.

    Results: `{"segm": {"AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AP-<class>" ...}}` in percent, NaN
    where there is no ground truth of that size or class; empty for files without annotations (validation and test of
    YouTube-VIS). results.json is written to `output_dir` in both cases.

    Subclasses override `process`, which appends to `_predictions`; `_eval_predictions`, which fills `_results`;
    `_derive_coco_results`, which makes metrics of scores.
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: object = None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        use_fast_impl: bool = True,
        returned: int | None = None,
    ) -> None:
        """
        Args:
            dataset_name: registered dataset. Its metadata has `json_file`, `thing_dataset_id_to_contiguous_id`,
                `thing_classes` and, to leave out videos with bad records, `skip_bad_records`.
            tasks: unused; keeps the position of the next arguments compatible with the reference.
            distributed: collect predictions from all ranks; the main rank evaluates.
            output_dir: where results.json is written; nothing is written if None.
            use_fast_impl: unused, as `tasks`.
            returned: objects that the model can find in a clip, by TEST.DETECTIONS_PER_VIDEO and its queries: a warning
                tells of clips with more objects.

        Raises:
            FileNotFoundError: the annotation file does not exist.
            ValueError: the dataset has no annotation file, or a malformed one.
        """
        self._dataset_name = dataset_name
        self._distributed = distributed
        self._output_dir = output_dir
        metadata = self._metadata = MetadataCatalog.get(dataset_name)
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
        if returned is not None and self._do_evaluation:
            assert self._truth is not None
            objects = (video.id for video in self._truth.videos.values() for track in video.tracks if not track.crowd)
            warn_of_crowded(dataset_name, "clips", objects, returned, "TEST.DETECTIONS_PER_VIDEO")
        self._predictions: list[dict[str, Any]] = []
        self._videos: set[Any] = set()
        self._results: OrderedDict[str, dict[str, float]] = OrderedDict()
        self._logger, self._cpu_device = logger, torch.device("cpu")  # for subclasses

    @property
    def _do_evaluation(self) -> bool:
        """Return whether there is ground truth to compare with, on the main rank."""
        return self._truth is not None and self._truth.has_truth

    def reset(self) -> None:
        """Forget all predictions."""
        self._predictions = []
        self._videos = set()

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
            self._check_classes(records)
            if clip["video_id"] in self._videos:
                logger.warning("video %r is predicted more than once; the first prediction counts", clip["video_id"])
                continue
            self._videos.add(clip["video_id"])
            self._predictions.extend(records)

    def _check_classes(self, records: Sequence[Mapping[str, Any]]) -> None:
        for record in records:
            if record["category_id"] not in self._dataset_ids:
                raise ValueError(
                    f"video {record['video_id']!r}: predicted class {record['category_id']} is not one of the "
                    f"{len(self._names)} classes of dataset {self._dataset_name!r}; MODEL.SEM_SEG_HEAD.NUM_CLASSES "
                    "must match the dataset"
                )

    def evaluate(self) -> dict[str, Any]:
        """Write results.json and return AP where there is ground truth; empty on all ranks but the main one.

        Raises:
            ValueError: a predicted video, number of frames or mask size differs from the dataset.
        """
        parts = gather_parts(self._predictions, self._distributed)
        if parts is None:
            return {}
        predictions = merge_predictions([_by_video(part) for part in parts])
        if not predictions:
            logger.warning("dataset %s: the model predicted no object", self._dataset_name)
        self._results = OrderedDict()
        self._eval_predictions(predictions)
        return copy.deepcopy(self._results)

    def _eval_predictions(self, predictions: Sequence[Mapping[str, Any]]) -> None:
        """Write results.json and fill `_results` with the metrics, on the main rank.

        Args:
            predictions: records of `clip_to_records` of all videos, classes as the model numbers them; not changed.
        """
        assert self._truth is not None
        self._check_classes(predictions)  # a subclass may have its own `process`
        records = [{**p, "category_id": self._dataset_ids[p["category_id"]]} for p in predictions]
        path = os.path.join(self._output_dir, RESULTS_FILE) if self._output_dir else None
        if path:
            write_json(path, records)
            logger.info("%d tracks written to %s", len(records), path)
        if not self._do_evaluation:
            remedy = f"zip {path} for the evaluation server" if path else "set OUTPUT_DIR to keep the tracks"
            logger.warning("%s has no annotations, so no AP is computed: %s", self._truth.file, remedy)
            return
        known = sorted(set(self._dataset_ids.values()) & set(self._truth.categories))
        records = [record for record in records if record["video_id"] not in self._truth.left_out]
        # Records of a subclass's own `process` have not been looked at.
        checked = unchanged(self, YTVISEvaluator, "process")
        scores = evaluate_videos(self._truth, records, known, checked=checked)
        names = {key: self._names[index] for index, key in self._dataset_ids.items()}
        labels = distinct([names[category] for category in scores.category_ids])
        self._results["segm"] = self._derive_coco_results(scores, class_names=labels)

    def _derive_coco_results(
        self, coco_eval: VideoScores, class_names: Sequence[str] | None = None
    ) -> dict[str, float]:
        """Log and return the metrics in percent.

        Args:
            coco_eval: the scores; `eval`, `stats` and `params` are those of pycocotools' `COCOeval`.
            class_names: of the categories, for `"AP-<class>"`; none of those if None.
        """
        metrics = coco_eval.summary()
        logger.info("Video AP on %s:\n%s", self._dataset_name, create_small_table(metrics))
        per_class = coco_eval.per_class(class_names) if class_names is not None else {}
        if per_class:
            rows = [(key.removeprefix("AP-"), ap) for key, ap in per_class.items()]
            logger.info("AP per class:\n%s", side_by_side(("class", "AP"), rows))
        return {**metrics, **per_class}


def _by_video(records: Sequence[dict[str, Any]]) -> list[tuple[Any, list[dict[str, Any]]]]:
    """Group records by video, in the order of their first."""
    videos: dict[Any, list[dict[str, Any]]] = {}
    for record in records:
        videos.setdefault(record["video_id"], []).append(record)
    return list(videos.items())
