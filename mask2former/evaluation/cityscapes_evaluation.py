"""Cityscapes metrics by the official scripts: IoU of classes and categories, and instance AP.

COCO's AP of the same predictions is another number (sizes, crowds and the curve are treated differently), so papers
report the one computed here.
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
from PIL import Image

from ..utils.tables import side_by_side
from .cityscapes_scripts import Additions, load_script, script_errors, script_settings
from .gathering import gather_parts
from .semantic_evaluation import first_highest

logger = logging.getLogger(__name__)

IMAGE_END = "_leftImg8bit"


def truth_file(record: Mapping[str, Any], gt_dir: str | None, kind: str) -> str:
    """The annotation file of an image: `gtFine/<split>/<city>/<name>_gtFine_<kind>.png`.

    Args:
        record: with `sem_seg_file_name`, beside which it is, or with `file_name` below a directory of the city's name.
        gt_dir: directory of the cities, for records without `sem_seg_file_name`.
        kind: "labelIds" or "instanceIds".
    """
    labels = record.get("sem_seg_file_name")
    if labels:
        return os.path.join(os.path.dirname(labels), f"{os.path.basename(labels).rsplit('_', 1)[0]}_{kind}.png")
    city, name = os.path.split(record["file_name"])
    if not gt_dir:
        raise ValueError(f"{record['file_name']}: the dataset's metadata has no gt_dir, where its annotations are")
    return os.path.join(gt_dir, os.path.basename(city), f"{core_name(name)}_gtFine_{kind}.png")


def core_name(file_name: str) -> str:
    """`<city>_<sequence>_<frame>` of the path of an image."""
    return os.path.splitext(os.path.basename(file_name))[0].removesuffix(IMAGE_END)


class _CityscapesEvaluator(DatasetEvaluator):
    """What both evaluators share: each process writes and compares its own images; the main one sums up.

    Predictions go through files, which the scripts read, in a directory of each process's own: no file system needs to
    be shared.
    """

    kind = ""  # of the annotation files

    def __init__(self, dataset_name: str, result_dir: str | None = None, *, distributed: bool = True) -> None:
        """
        Args:
            dataset_name: registered dataset. Its records tell where the annotation files are: `sem_seg_file_name`,
                or `file_name` and the metadata's `gt_dir`.
            result_dir: where the files for the scripts, which the Cityscapes server reads too, are kept, in one
                directory a process; a directory that is removed afterwards if None.
            distributed: collect results from all processes.

        Raises:
            ValueError: cityscapesScripts is not installed, or records do not tell the annotation file.
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
        """The annotation file of an image, after a look at its size: the scripts end the process if it differs."""
        path = self._truth_files.get(image["file_name"])
        if path is None:
            raise ValueError(f"{image['file_name']} is not an image of dataset {self._dataset_name!r}")
        for needed in (path, path.replace("labelIds", "instanceIds")):
            if not os.path.isfile(needed):
                raise FileNotFoundError(f"Cityscapes annotations: no file {needed} for image {image['file_name']}")
        with Image.open(path) as label_map:
            if label_map.size[::-1] != size:
                raise ValueError(f"{path}: prediction is (h, w) = {size}, ground truth is {label_map.size[::-1]}")
        return path

    def _path(self, image: Mapping[str, Any], end: str) -> str:
        return os.path.join(self._directory, core_name(image["file_name"]) + end)

    def _merged(self, parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Results by image, in the order of the dataset; an image that several processes report counts once."""
        found: dict[str, Any] = {}
        for part in parts:
            for name, entry in part.items():
                found.setdefault(name, entry)
        merged = {name: found[name] for name in self._truth_files if name in found}
        unseen = len(self._truth_files) - len(merged)
        if unseen:
            logger.warning(
                "dataset %s: %d of %d images were not predicted and are left out",
                self._dataset_name,
                unseen,
                len(self._truth_files),
            )
        return merged


@dataclass
class _PairCounts:
    """One image's counts as the script makes them."""

    confusion: np.ndarray
    instances: dict[str, dict[str, dict[str, Any]]]


class CityscapesSemSegEvaluator(_CityscapesEvaluator):
    """IoU of the 19 classes and 7 categories, and the instance-weighted iIoU, by cityscapesScripts.

    Results: `{"sem_seg": {"IoU", "iIoU", "IoU_sup", "iIoU_sup", "mIoU", "IoU-<class>" ..., "iIoU-<class>" ...}}` in
    percent, mIoU the same as IoU, NaN where there is nothing to compare.
    """

    kind = "labelIds"

    def __init__(self, dataset_name: str, result_dir: str | None = None, *, distributed: bool = True) -> None:
        self._script = load_script("evalPixelLevelSemanticLabeling")
        super().__init__(dataset_name, result_dir, distributed=distributed)
        evaluated = {x.trainId: x.id for x in self._labels.labels if not x.ignoreInEval}
        self._ids = np.array([evaluated[i] for i in range(len(evaluated))], dtype=np.uint8)

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Write the predictions of a batch: inputs with `file_name`, outputs with `sem_seg` (19, h, w) scores.

        Raises ValueError for a wrong number of classes or a wrong size, FileNotFoundError for a missing annotation.
        """
        for image, output in zip(inputs, outputs, strict=True):
            if "sem_seg" not in output:
                raise ValueError("the model returns no 'sem_seg'; MODEL.MASK_FORMER.TEST.SEMANTIC_ON True is needed")
            scores = output["sem_seg"]
            if scores.dim() != 3 or len(scores) != len(self._ids):
                raise ValueError(
                    f"Cityscapes has {len(self._ids)} classes, the model predicts {tuple(scores.shape)}; "
                    "set MODEL.SEM_SEG_HEAD.NUM_CLASSES"
                )
            classes = first_highest(scores).cpu().numpy()
            self._truth(image, classes.shape)
            path = self._path(image, "_pred.png")
            Image.fromarray(self._ids[classes]).save(path, compress_level=1)
            self._predictions[image["file_name"]] = path

    def evaluate(self) -> dict[str, Any] | None:
        """Metrics over all predicted images; None on all but the main process."""
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
        """Metrics of the counts of all processes."""
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
        # The usual name as well: by it the best checkpoint is chosen.
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
                raise ValueError("the model returns no 'instances'; MODEL.MASK_FORMER.TEST.INSTANCE_ON True is needed")
            self._truth(image, output["instances"].image_size)
            self._predictions[image["file_name"]] = self._write(image, output["instances"])

    def _write(self, image: Mapping[str, Any], instances: Instances) -> str:
        """One PNG a mask, and the text file that lists them with label and score."""
        lines = []
        scores, classes = instances.scores.tolist(), instances.pred_classes.tolist()
        for number, (score, label) in enumerate(zip(scores, classes, strict=True)):
            if not 0 <= label < len(self._class_labels):
                raise ValueError(
                    f"{image['file_name']}: class {label} is not one of dataset {self._dataset_name!r} "
                    f"({len(self._class_labels)} classes); set MODEL.SEM_SEG_HEAD.NUM_CLASSES"
                )
            known = self._class_labels[label]
            if not known.hasInstances or known.ignoreInEval or not np.isfinite(score):
                continue
            mask = instances.pred_masks[number].cpu().numpy() > 0.5
            path = self._path(image, f"_{number}.png")
            Image.fromarray(mask.astype(np.uint8) * 255).save(path, compress_level=1)
            lines.append(f"{os.path.basename(path)} {known.id} {score}\n")
        path = self._path(image, "_pred.txt")
        with open(path, "w", encoding="ascii") as file:
            file.writelines(lines)
        return path

    def evaluate(self) -> dict[str, Any] | None:
        """AP over all predicted images; None on all but the main process."""
        matches = {name: self._compare(path, self._truth_files[name]) for name, path in self._predictions.items()}
        parts = gather_parts(matches, self._distributed)
        return None if parts is None else self.evaluate_parts(parts)

    def _settings(self) -> Any:
        settings = script_settings(self._script)
        settings.predictionPath = self._directory
        self._script.setInstanceLabels(settings)
        return settings

    def _compare(self, prediction: str, truth: str) -> Any:
        """The script's matches of one image."""
        with script_errors(truth):
            objects = load_script("instances2dict").instances2dict([truth])
            matches = self._script.matchGtWithPreds([prediction], [truth], objects, self._settings())
        return matches[os.path.abspath(truth)]

    def evaluate_parts(self, parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """AP of the matches of all processes."""
        settings = self._settings()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a mean over no class at all is NaN, as it should be
            scores = self._script.evaluateMatches(self._merged(parts), settings)
            averages = self._script.computeAverages(scores, settings)
        metrics = {"AP": 100.0 * float(averages["allAp"]), "AP50": 100.0 * float(averages["allAp50%"])}
        logger.info("Cityscapes instances:\n%s", create_small_table(metrics))
        rows = [(n, 100.0 * float(x["ap"]), 100.0 * float(x["ap50%"])) for n, x in averages["classes"].items()]
        logger.info("AP per class:\n%s", side_by_side(("class", "AP", "AP50"), rows, width=9))
        return OrderedDict(segm={**metrics, **{f"AP-{name}": ap for name, ap, _ in rows}})
