"""Instance segmentation AP on COCO-style ground truth."""

from __future__ import annotations

import copy
import logging
import math
import os
import tempfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import pycocotools.mask as mask_util
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_json
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Instances
from detectron2.utils import comm
from detectron2.utils.logger import create_small_table
from pycocotools.coco import COCO

from ..structures.rle import encode_masks
from ..utils.atomic_file import atomic_write
from ..utils.file_io import write_json
from ..utils.tables import distinct, side_by_side
from .coco_ap import CocoScores, check_task, check_truth, evaluate_coco
from .gathering import gather_parts
from .ground_truth import PanopticTruth, load_coco_truth, truth_from_panoptic, warn_of_crowded

logger = logging.getLogger(__name__)

Prediction = dict[str, Any]  # "image_id", "instances": COCO result records, classes as the model numbers them


def instances_to_records(instances: Instances, image_id: Any, tasks: Sequence[str]) -> list[dict[str, Any]]:
    """Return COCO result records of one image, in the order of `instances`.

    Args:
        instances: with `scores` (N,), `pred_classes` (N,) and `pred_masks` (N, h, w), or, for box models,
            `pred_boxes`.
        image_id: written into each record.
        tasks: "segm" and "boundary" add `segmentation`, "bbox" adds `bbox` (XYWH; from the masks where there are any,
            because mask models predict no boxes).

    Records with a score that is not finite are left out and logged.

    Raises:
        ValueError: a mask task is requested, but `instances` has no `pred_masks`.
    """
    count = len(instances)
    if count == 0:
        return []
    scores = instances.scores.tolist()
    classes = instances.pred_classes.tolist()
    records: list[dict[str, Any]] = [
        {"image_id": image_id, "category_id": c, "score": s} for c, s in zip(classes, scores, strict=True)
    ]
    rles = None
    if instances.has("pred_masks"):
        masks = instances.pred_masks
        rles = encode_masks(masks if isinstance(masks, torch.Tensor) else masks.tensor)
    if "segm" in tasks or "boundary" in tasks:
        if rles is None:
            raise ValueError(f"image {image_id!r}: predicted instances have no pred_masks, which mask AP requires")
        for record, rle in zip(records, rles, strict=True):
            record["segmentation"] = rle
    if "bbox" in tasks:
        if rles is not None:
            boxes = mask_util.toBbox(rles).tolist()
        else:
            corners = instances.pred_boxes.tensor
            boxes = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], dim=1).tolist()
        for record, box in zip(records, boxes, strict=True):
            record["bbox"] = box
    finite = [record for record in records if math.isfinite(record["score"])]
    if len(finite) < count:
        logger.warning("image %r: %d instances with a non-finite score are left out", image_id, count - len(finite))
    return finite


def merge_predictions(parts: Sequence[Sequence[tuple[Any, list[dict[str, Any]]]]]) -> list[dict[str, Any]]:
    """Merge (image id, records) of all ranks into one list; an image that several ranks report counts once."""
    seen: set[Any] = set()
    merged: list[dict[str, Any]] = []
    repeated = 0
    for part in parts:
        for image_id, records in part:
            if image_id in seen:
                repeated += 1
                continue
            seen.add(image_id)
            merged.extend(records)
    if repeated:
        logger.warning("%d images were predicted more than once; the first prediction of each counts", repeated)
    return merged


class InstanceSegEvaluator(DatasetEvaluator):
    """COCO AP with any number of detections per image, equal to pycocotools.

    With the task "boundary" also boundary AP (Cheng et al., "Boundary IoU", CVPR 2021), where a match
    requires the boundaries to overlap as well.

    Differences from detectron2's COCOEvaluator: mask AP only, unless boxes are requested (they are then computed from
    the masks); AP without any prediction is 0, not an error; thing ids need not be contiguous; masks are encoded in one
    call per image; the result file is written atomically. Subclasses override the same methods: `process`, which
    appends to `_predictions`; `_eval_predictions`, which fills `_results`; `_derive_coco_results`, which makes metrics
    of scores.

    Results, by task: `{"segm": {"AP", "AP50", "AP75", "APs", "APm", "APl", "AR@<max>", "AP-<class>" ...}}` in percent,
    NaN where there is no ground truth. Written to `output_dir`: `coco_instances_results.json`, and
    `instances_predictions.pth`, the `_predictions` of all images, with classes as the model numbers them.
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str] | CfgNode | None = None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        max_dets_per_image: int | None = None,
        use_fast_impl: bool = True,
        allow_cached_coco: bool = True,
        skip_bad_records: bool = False,
        returned: int | None = None,
    ) -> None:
        """
        Args:
            dataset_name: registered dataset. Its metadata has `thing_dataset_id_to_contiguous_id`, `thing_classes` and
                `json_file`; without `json_file` the things of `panoptic_json` and `panoptic_root` are ground truth,
                else the annotations of the catalog.
            tasks: any of "segm", "bbox", "boundary"; ("segm",) if None, or a config, as detectron2 once took.
            distributed: collect predictions from all ranks; the main rank evaluates.
            output_dir: where results are written; nothing is written if None.
            max_dets_per_image: detections per image and category that are counted; 100 if None.
            use_fast_impl, allow_cached_coco: of detectron2's evaluator, without effect: there is one implementation,
                equal to pycocotools, and nothing is cached.
            skip_bad_records: leave out and report images with bad records, and images without a prediction, which the
                loader has left out; also if the metadata has `skip_bad_records`.
            returned: objects that the model can find in an image, by TEST.DETECTIONS_PER_IMAGE and its queries: a
                warning tells of images with more objects.

        Raises:
            FileNotFoundError: the annotation file does not exist.
            ValueError: unknown task, or the dataset has no instance annotations, or malformed ones.
        """
        self._tasks = ("segm",) if tasks is None or isinstance(tasks, CfgNode) else tuple(tasks) or ("segm",)
        for task in self._tasks:
            check_task(task)
        self._distributed = distributed
        self._output_dir = output_dir
        self._max_dets_per_image = 100 if max_dets_per_image is None else max_dets_per_image
        self._dataset_name = dataset_name
        self._metadata = MetadataCatalog.get(dataset_name)
        self._skip = skip_bad_records or bool(self._metadata.get("skip_bad_records"))
        needs_truth = not distributed or comm.is_main_process()
        self._truth: COCO | None = self._load_truth() if needs_truth else None
        if self._truth is not None and "annotations" in self._truth.dataset:
            for task in self._tasks:
                check_truth(self._truth, task)
            if returned is not None:
                objects = (a["image_id"] for a in self._truth.dataset["annotations"] if not a.get("iscrowd"))
                warn_of_crowded(dataset_name, "images", objects, returned, "TEST.DETECTIONS_PER_IMAGE")
        mapping = self._metadata.get("thing_dataset_id_to_contiguous_id")
        self._dataset_ids = None if mapping is None else {v: k for k, v in mapping.items()}
        self._predictions: list[Prediction] = []
        self._results: OrderedDict[str, dict[str, float]] = OrderedDict()
        self._logger, self._cpu_device = logger, torch.device("cpu")  # for subclasses

    @property
    def _coco_api(self) -> COCO | None:
        """Return the ground truth, on the main rank; the name of detectron2's evaluator."""
        return self._truth

    @property
    def _do_evaluation(self) -> bool:
        """Return whether there are annotations to compare with; the name of detectron2's evaluator."""
        return self._truth is not None and "annotations" in self._truth.dataset

    def _load_truth(self) -> COCO:
        json_file = self._metadata.get("json_file")
        needs = sorted({"bbox" if task == "bbox" else "segmentation" for task in self._tasks})
        if json_file:
            # What trains evaluates: a custom dataset has the checks of its training.
            custom = self._metadata.get("skip_bad_records") is not None
            benchmark = not custom or self._metadata.get("evaluator_type") != "coco"
            return load_coco_truth(json_file, skip_bad_records=self._skip, benchmark=benchmark, needs=needs)
        if self._metadata.get("panoptic_json") and self._metadata.get("panoptic_root"):
            logger.info("dataset %s: instances are made from panoptic annotations", self._dataset_name)
            panoptic = PanopticTruth(
                self._metadata.panoptic_json, self._metadata.panoptic_root, skip_bad_records=self._skip
            )
            things = self._metadata.get("thing_dataset_id_to_contiguous_id")
            return truth_from_panoptic(panoptic, things, skip_bad_records=self._skip)
        if not any("annotations" in record for record in DatasetCatalog.get(self._dataset_name)):
            raise ValueError(
                f"dataset {self._dataset_name!r} has no instance annotations and no json_file; "
                f"register it with one, or set MODEL.MASK_FORMER.TEST.INSTANCE_ON False"
            )
        with tempfile.TemporaryDirectory(prefix="instance_truth_") as directory:
            path = os.path.join(directory, "truth.json")
            convert_to_coco_json(self._dataset_name, path, allow_cached=False)
            return load_coco_truth(path, skip_bad_records=self._skip, needs=needs)

    def reset(self) -> None:
        self._predictions = []

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Keep the predictions of a batch: inputs with `image_id`, outputs with `instances`.

        Raises ValueError for missing instances or masks, or a class that is not in the dataset.
        """
        for image, output in zip(inputs, outputs, strict=True):
            if "instances" not in output:
                raise ValueError("the model output has no 'instances'; set MODEL.MASK_FORMER.TEST.INSTANCE_ON True")
            records = instances_to_records(output["instances"], image["image_id"], self._tasks)
            self._check_classes(records)
            self._predictions.append({"image_id": image["image_id"], "instances": records})

    def evaluate(self, img_ids: Sequence[Any] | None = None) -> dict[str, Any]:
        """Return AP over the dataset, or over `img_ids`; empty on all ranks but the main one.

        Raises:
            ValueError: a predicted image or mask size differs from the dataset.
        """
        parts = gather_parts(self._predictions, self._distributed)
        if parts is None:
            return {}
        predictions = merge_predictions([[(p["image_id"], [p]) for p in part] for part in parts])
        if not any(prediction["instances"] for prediction in predictions):
            logger.warning("dataset %s: the model predicted no instance", self._dataset_name)
        if self._output_dir:
            with atomic_write(os.path.join(self._output_dir, "instances_predictions.pth")) as stream:
                torch.save(predictions, stream)
        self._results = OrderedDict()
        self._eval_predictions(predictions, img_ids)
        return copy.deepcopy(self._results)

    def _eval_predictions(self, predictions: Sequence[Prediction], img_ids: Sequence[Any] | None = None) -> None:
        """Write the result file and fill `_results` with the metrics of each task, on the main rank.

        Args:
            predictions: of all images; not changed.
            img_ids: evaluate only these images; all if None.
        """
        records = self._to_dataset_ids([record for prediction in predictions for record in prediction["instances"]])
        if self._output_dir:
            path = os.path.join(self._output_dir, "coco_instances_results.json")
            write_json(path, records)
            logger.info("%d instances written to %s", len(records), path)
        if not self._do_evaluation:
            logger.warning("dataset %s has no annotations, so no AP is computed", self._dataset_name)
            return
        assert self._truth is not None
        if self._skip:
            img_ids = self._usable_images({prediction["image_id"] for prediction in predictions}, img_ids)
            records = [record for record in records if record["image_id"] in self._truth.imgs]
        categories, limit = self._known_categories(), self._max_dets_per_image
        for task in self._tasks:
            scores = evaluate_coco(self._truth, records, task, limit, img_ids, categories, checked=True)
            self._results[task] = self._derive_coco_results(scores, task, self._class_names(scores.category_ids))

    def _usable_images(self, predicted: set[Any], requested: Sequence[Any] | None) -> list[Any]:
        """Return the images that neither the loader nor the reader of the ground truth has left out."""
        assert self._truth is not None
        known = self._truth.imgs.keys()
        usable = predicted & known
        if usable != predicted | known:
            logger.warning(
                "dataset %s: %d of %d images are left out, because their records are bad (DATALOADER.SKIP_BAD_RECORDS)",
                self._dataset_name,
                len((predicted | known) - usable),
                len(predicted | known),
            )
        return [image_id for image_id in usable if requested is None or image_id in requested]

    def _check_classes(self, records: list[dict[str, Any]]) -> None:
        for record in records:
            if self._dataset_ids is not None and record["category_id"] not in self._dataset_ids:
                ids = sorted(self._dataset_ids)
                raise ValueError(
                    f"image {record['image_id']!r}: predicted class {record['category_id']} is not a thing "
                    f"class of {self._dataset_name!r} ({len(ids)} things, {ids[0]} to {ids[-1]}); "
                    f"MODEL.SEM_SEG_HEAD.NUM_CLASSES must match the dataset"
                )

    def _to_dataset_ids(self, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if self._dataset_ids is None:
            return records
        self._check_classes(records)  # a subclass may have its own `process`
        return [{**r, "category_id": self._dataset_ids[r["category_id"]]} for r in records]

    def _known_categories(self) -> list[int] | None:
        """Return the categories of the annotation file that are classes of the dataset, which may use a subset."""
        if self._dataset_ids is None or self._truth is None:
            return None
        return sorted(set(self._dataset_ids.values()) & set(self._truth.cats))

    def _class_names(self, category_ids: Sequence[int]) -> list[str]:
        """Return the names of categories, from the metadata, else from the annotation file."""
        assert self._truth is not None
        names = {i: str(self._truth.cats[i].get("name", i)) for i in category_ids}
        classes = self._metadata.get("thing_classes")
        mapping = self._metadata.get("thing_dataset_id_to_contiguous_id")
        if classes is not None and mapping is not None:
            # Ids may have gaps (ADE20K's things keep their indices among 150 classes), names have none.
            by_rank = len(mapping) == len(classes)
            for rank, (dataset_id, contiguous) in enumerate(sorted(mapping.items(), key=lambda item: item[1])):
                position = rank if by_rank else contiguous
                if dataset_id in names and position < len(classes):
                    names[dataset_id] = classes[position]
        return distinct([names[i] for i in category_ids])

    def _derive_coco_results(
        self, coco_eval: CocoScores, iou_type: str, class_names: Sequence[str] | None = None
    ) -> dict[str, float]:
        """Log and return the metrics of one task in percent.

        Args:
            coco_eval: the scores; `eval`, `stats` and `params` are those of pycocotools' `COCOeval`.
            iou_type: the task.
            class_names: of the categories, for `"AP-<class>"`; none of those if None.
        """
        metrics = coco_eval.summary()
        logger.info("Results of %s on %s:\n%s", iou_type, self._dataset_name, create_small_table(metrics))
        if any(math.isnan(value) for value in metrics.values()):
            logger.info("nan: there is no ground truth of that size or class")
        per_class = coco_eval.per_class(class_names) if class_names is not None else {}
        if per_class:
            rows = [(key.removeprefix("AP-"), ap) for key, ap in per_class.items()]
            logger.info("%s AP per class:\n%s", iou_type, side_by_side(("class", "AP"), rows))
        return {**metrics, **per_class}
