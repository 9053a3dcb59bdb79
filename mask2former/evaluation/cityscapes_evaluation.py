"""Cityscapes metrics by the official scripts: IoU of classes and categories, and instance AP.

COCO AP of the same predictions differs (object sizes, crowds and the curve are treated differently); papers report the
AP computed here.
"""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Instances
from detectron2.utils import comm
from detectron2.utils.logger import create_small_table
from PIL import Image, UnidentifiedImageError

from ..data.image_files import opened_image
from ..modeling.label_maps import first_highest
from ..utils.tables import side_by_side
from .cityscapes_scripts import Additions, load_script, script_errors, script_settings
from .gathering import gather_parts

logger = logging.getLogger(__name__)

IMAGE_END = "_leftImg8bit"


def truth_file(record: Mapping[str, Any], gt_dir: str | None, kind: str) -> str:
    """Return the annotation file of an image: `gtFine/<split>/<city>/<name>_gtFine_<kind>.png`.

    Args:
        record: with `sem_seg_file_name` in the same directory, or with `file_name` in a directory named after the city.
        gt_dir: directory of the cities, for records without `sem_seg_file_name`.
        kind: "labelIds" or "instanceIds".

    Raises:
        ValueError: neither `sem_seg_file_name` nor `gt_dir` is given.
    """
    labels = record.get("sem_seg_file_name")
    if labels:
        return os.path.join(os.path.dirname(labels), f"{os.path.basename(labels).rsplit('_', 1)[0]}_{kind}.png")
    city, name = os.path.split(record["file_name"])
    if not gt_dir:
        raise ValueError(
            f"{record['file_name']}: the dataset's metadata has no gt_dir; set it to the annotation directory"
        )
    return os.path.join(gt_dir, os.path.basename(city), f"{core_name(name)}_gtFine_{kind}.png")


def core_name(file_name: str) -> str:
    """Return `<city>_<sequence>_<frame>` from the path of an image."""
    return os.path.splitext(os.path.basename(file_name))[0].removesuffix(IMAGE_END)


class _CityscapesEvaluator(DatasetEvaluator):
    """Base of both evaluators: each rank writes and compares its own images; the main rank accumulates.

    The scripts read predictions from files. Each rank has its own directory, so no shared file system is needed.
    """

    kind = ""  # of the annotation files

    def __init__(self, dataset_name: str, result_dir: str | None = None, *, distributed: bool = True) -> None:
        """
        Args:
            dataset_name: registered dataset. Its records locate the annotation files by `sem_seg_file_name`, or
                by `file_name` and the metadata's `gt_dir`.
            result_dir: directory for the prediction files, which the Cityscapes server accepts too; each rank has a
                subdirectory. A temporary directory if None.
            distributed: collect results from all ranks.

        Raises:
            ValueError: cityscapesScripts is not installed, or the annotation file of a record is unknown.
        """
        self._labels = load_script("labels")
        self._dataset_name = dataset_name
        self._metadata = MetadataCatalog.get(dataset_name)
        self._distributed = distributed
        self._result_dir = result_dir
        gt_dir = self._metadata.get("gt_dir")
        self._truth_files = {
            record["file_name"]: truth_file(record, gt_dir, self.kind) for record in DatasetCatalog.get(dataset_name)
        }
        self.reset()

    def reset(self) -> None:
        self._temporary = None
        self._predictions: dict[str, str] = {}  # image -> file of its prediction
        if self._result_dir is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="cityscapes_eval_")
        self._directory = (
            self._temporary.name
            if self._temporary
            else os.path.abspath(os.path.join(self._result_dir or "", f"process_{comm.get_rank()}"))
        )
        os.makedirs(self._directory, exist_ok=True)

    def _truth(self, image: Mapping[str, Any], size: tuple[int, int]) -> str:
        """Return the annotation file of an image after checking its size: on a mismatch the scripts exit."""
        path = self._truth_files.get(image["file_name"])
        if path is None:
            raise ValueError(f"{image['file_name']} is not an image of dataset {self._dataset_name!r}")
        for required in (path, path.replace("labelIds", "instanceIds")):
            if not os.path.isfile(required):
                raise FileNotFoundError(f"Cityscapes annotations: no file {required} for image {image['file_name']}")
            try:  # of the formats that are read here: the scripts open them with whatever Pillow has
                with opened_image(required) as label_map:
                    shape = label_map.size[::-1]
            except UnidentifiedImageError as error:
                raise ValueError(f"{required}: is not a label map, or damaged") from error
            if shape != size:
                raise ValueError(f"{required}: prediction is (h, w) = {size}, ground truth is {shape}")
        return path

    def _path(self, image: Mapping[str, Any], end: str) -> str:
        return os.path.join(self._directory, core_name(image["file_name"]) + end)

    def _merged(self, parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Merge results by image, in the order of the dataset; an image that several ranks report counts once."""
        entries: dict[str, Any] = {}
        for part in parts:
            for name, entry in part.items():
                entries.setdefault(name, entry)
        merged = {name: entries[name] for name in self._truth_files if name in entries}
        unseen = len(self._truth_files) - len(merged)
        if unseen:
            logger.warning(
                "dataset %s: %d of %d images have no prediction and are left out",
                self._dataset_name,
                unseen,
                len(self._truth_files),
            )
        return merged


@dataclass
class _PairCounts:
    """Counts of one image as the script computes them."""

    confusion: np.ndarray
    instances: dict[str, dict[str, dict[str, Any]]]


class CityscapesSemSegEvaluator(_CityscapesEvaluator):
    """IoU of the 19 classes and 7 categories, and the instance-weighted iIoU, by cityscapesScripts.

    Results: `{"sem_seg": {"IoU", "iIoU", "IoU_sup", "iIoU_sup", "mIoU", "IoU-<class>" ..., "iIoU-<class>" ...}}` in
    percent; mIoU equals IoU; NaN where there is no ground truth.
    """

    kind = "labelIds"

    def __init__(self, dataset_name: str, result_dir: str | None = None, *, distributed: bool = True) -> None:
        self._script = load_script("evalPixelLevelSemanticLabeling")
        super().__init__(dataset_name, result_dir, distributed=distributed)
        evaluated = {x.trainId: x.id for x in self._labels.labels if not x.ignoreInEval}
        self._ids = np.array([evaluated[i] for i in range(len(evaluated))], dtype=np.uint8)

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Write the predictions of a batch: inputs with `file_name`, outputs with `sem_seg`, (19, h, w) scores or
        (h, w) classes.

        Raises ValueError for a wrong number of classes or a wrong size, FileNotFoundError for a missing annotation.
        """
        for image, output in zip(inputs, outputs, strict=True):
            if "sem_seg" not in output:
                raise ValueError("the model output has no 'sem_seg'; set MODEL.MASK_FORMER.TEST.SEMANTIC_ON True")
            scores = output["sem_seg"]
            if scores.dim() != 2 and (scores.dim() != 3 or len(scores) != len(self._ids)):
                raise ValueError(
                    f"Cityscapes has {len(self._ids)} classes, the model predicts {tuple(scores.shape)}; "
                    f"set MODEL.SEM_SEG_HEAD.NUM_CLASSES {len(self._ids)}"
                )
            classes = (first_highest(scores) if scores.dim() == 3 else scores).cpu().numpy()
            if scores.dim() == 2 and classes.max(initial=0) >= len(self._ids):
                raise ValueError(
                    f"Cityscapes has {len(self._ids)} classes, the model predicts class {classes.max()}; "
                    f"set MODEL.SEM_SEG_HEAD.NUM_CLASSES {len(self._ids)}"
                )
            self._truth(image, classes.shape)
            path = self._path(image, "_pred.png")
            Image.fromarray(self._ids[classes]).save(path, compress_level=1)
            self._predictions[image["file_name"]] = path

    def evaluate(self) -> dict[str, Any] | None:
        """Return metrics over all predicted images; None on all ranks but the main one."""
        counts = {name: self._compare(path, self._truth_files[name]) for name, path in self._predictions.items()}
        parts = gather_parts(counts, self._distributed)
        return None if parts is None else self.evaluate_parts(parts)

    def _settings(self) -> Any:
        settings = script_settings(self._script)
        self._script.generateMatrix(settings)  # lists the labels
        return settings

    def _compare(self, prediction: str, truth: str) -> _PairCounts:
        settings = self._settings()
        confusion, stats = self._script.generateMatrix(settings), self._script.generateInstanceStats(settings)
        for group in stats.values():
            for entry in group.values():
                entry.update({key: Additions() for key, value in entry.items() if isinstance(value, float)})
        with script_errors(truth):
            self._script.evaluatePair(prediction, truth, confusion, stats, {}, settings)
        return _PairCounts(confusion, stats)

    def evaluate_parts(self, parts: Sequence[Mapping[str, _PairCounts]]) -> dict[str, Any]:
        """Return metrics of the counts of all ranks."""
        script, settings = self._script, self._settings()
        confusion, stats = script.generateMatrix(settings), script.generateInstanceStats(settings)
        for counts in self._merged(parts).values():
            confusion += counts.confusion
            for group, entries in counts.instances.items():
                for name, entry in entries.items():
                    for key, added in entry.items():
                        for value in added.values if isinstance(added, Additions) else ():
                            stats[group][name][key] += value
        names = {label: self._labels.id2label[label].name for label in settings.evalLabels}
        iou = {n: script.getIouScoreForLabel(i, confusion, settings) for i, n in names.items()}
        instance = {n: script.getInstanceIouScoreForLabel(i, confusion, stats, settings) for i, n in names.items()}
        groups = self._labels.category2labels
        iou_sup = {g: script.getIouScoreForCategory(g, confusion, settings) for g in groups}
        instance_sup = {g: script.getInstanceIouScoreForCategory(g, confusion, stats, settings) for g in groups}
        summary = {
            key: 100.0 * float(script.getScoreAverage(scores, settings))
            for key, scores in (("IoU", iou), ("iIoU", instance), ("IoU_sup", iou_sup), ("iIoU_sup", instance_sup))
        }
        logger.info("Cityscapes semantic segmentation:\n%s", create_small_table(summary))
        classes = [self._labels.id2label[int(i)].name for i in self._ids]
        rows = [(n, 100.0 * float(iou[n]), 100.0 * float(instance[n])) for n in classes]
        logger.info("IoU per class:\n%s", side_by_side(("class", "IoU", "iIoU"), rows, width=9))
        per_class = {f"IoU-{n}": value for n, value, _ in rows}
        per_class.update({f"iIoU-{n}": value for n, _, value in rows if self._labels.name2label[n].hasInstances})
        # Under the usual name too: the best checkpoint is selected by it.
        return OrderedDict(sem_seg={**summary, "mIoU": summary["IoU"], **per_class})


class CityscapesInstanceEvaluator(_CityscapesEvaluator):
    """Average precision of the 8 classes with instances, by cityscapesScripts.

    Results: `{"segm": {"AP", "AP50", "AP-<class>" ...}}` in percent, NaN where there is no ground truth.
    """

    kind = "instanceIds"

    def __init__(self, dataset_name: str, result_dir: str | None = None, *, distributed: bool = True) -> None:
        self._script = load_script("evalInstanceLevelSemanticLabeling")
        super().__init__(dataset_name, result_dir, distributed=distributed)
        names = self._metadata.get("thing_classes")
        if not names:
            raise ValueError(f"dataset {dataset_name!r} has no thing_classes in its metadata")
        unknown = sorted(set(names) - set(self._labels.name2label))
        if unknown:
            raise ValueError(f"thing_classes of dataset {dataset_name!r} are not labels of Cityscapes: {unknown}")
        self._class_labels = [self._labels.name2label[name] for name in names]

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Write the predictions of a batch: inputs with `file_name`, outputs with `instances`.

        Raises ValueError for an unknown class or a wrong size, FileNotFoundError for a missing annotation.
        """
        for image, output in zip(inputs, outputs, strict=True):
            if "instances" not in output:
                raise ValueError("the model output has no 'instances'; set MODEL.MASK_FORMER.TEST.INSTANCE_ON True")
            self._truth(image, output["instances"].image_size)
            self._predictions[image["file_name"]] = self._write(image, output["instances"])

    def _write(self, image: Mapping[str, Any], instances: Instances) -> str:
        """Write one PNG per mask, and the text file that lists them with label and score; return the text file."""
        lines = []
        scores, classes = instances.scores.tolist(), instances.pred_classes.tolist()
        for number, (score, label) in enumerate(zip(scores, classes, strict=True)):
            if not 0 <= label < len(self._class_labels):
                raise ValueError(
                    f"{image['file_name']}: predicted class {label} is not a class index in "
                    f"[0, {len(self._class_labels) - 1}] of dataset {self._dataset_name!r}; set "
                    f"MODEL.SEM_SEG_HEAD.NUM_CLASSES {len(self._class_labels)}"
                )
            class_label = self._class_labels[label]
            if not class_label.hasInstances or class_label.ignoreInEval or not np.isfinite(score):
                continue
            mask = instances.pred_masks[number].cpu().numpy() > 0.5
            path = self._path(image, f"_{number}.png")
            Image.fromarray(mask.astype(np.uint8) * 255).save(path, compress_level=1)
            lines.append(f"{os.path.basename(path)} {class_label.id} {score}\n")
        path = self._path(image, "_pred.txt")
        with open(path, "w", encoding="ascii") as file:
            file.writelines(lines)
        return path

    def evaluate(self) -> dict[str, Any] | None:
        """Return AP over all predicted images; None on all ranks but the main one."""
        matches = {name: self._compare(path, self._truth_files[name]) for name, path in self._predictions.items()}
        parts = gather_parts(matches, self._distributed)
        return None if parts is None else self.evaluate_parts(parts)

    def _settings(self) -> Any:
        settings = script_settings(self._script)
        settings.predictionPath = self._directory
        self._script.setInstanceLabels(settings)
        return settings

    def _compare(self, prediction: str, truth: str) -> Any:
        """Return the script's matches of one image."""
        with script_errors(truth):
            objects = load_script("instances2dict").instances2dict([truth])
            matches = self._script.matchGtWithPreds([prediction], [truth], objects, self._settings())
        return matches[os.path.abspath(truth)]

    def evaluate_parts(self, parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return AP of the matches of all ranks."""
        settings = self._settings()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # the mean over no class is NaN, as intended
            scores = self._script.evaluateMatches(self._merged(parts), settings)
            averages = self._script.computeAverages(scores, settings)
        metrics = {"AP": 100.0 * float(averages["allAp"]), "AP50": 100.0 * float(averages["allAp50%"])}
        logger.info("Cityscapes instances:\n%s", create_small_table(metrics))
        rows = [(n, 100.0 * float(x["ap"]), 100.0 * float(x["ap50%"])) for n, x in averages["classes"].items()]
        logger.info("AP per class:\n%s", side_by_side(("class", "AP", "AP50"), rows, width=9))
        return OrderedDict(segm={**metrics, **{f"AP-{name}": ap for name, ap, _ in rows}})
