"""Sample predictions beside their ground truth, drawn from what an evaluation computes anyway."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage, has_event_storage
from PIL import Image

from ..data.image_io import read_label_map, read_panoptic_png
from ..structures.classes import ClassTable
from ..structures.colors import Color, color_of, shade_of
from ..structures.mask_list import MaskList
from ..structures.masks import segmentation_to_patch
from ..structures.task import Task
from ..visualization import Region, add_caption, draw_regions, regions_from_map

logger = logging.getLogger(__name__)

MIN_SCORE = 0.5
"""Instances with a lower score are not drawn."""

_SIDES = (320, 640)  # pixels: smallest and largest longest edge of a panel
_MAX_OBJECTS = 200
_GAP = 6  # pixels between the panels
_SEARCHED = 1000  # records that are searched for an image's ground truth; bad ones before it may have been skipped


class Previews:
    """Draws the first `count` images of an evaluation and puts them into the event storage, for the loggers.

    Nothing that is predicted or measured changes, and no random number is drawn.

    Args:
        name: of the dataset; images are called `preview/<name>/<file>`.
        records: of the dataset, as in detectron2, in the order of the evaluation; for the ground truth.
        classes: names and colors.
        count: number of images.
        image_format: order of the channels of sample["image"], "RGB" or "BGR".
    """

    def __init__(
        self, name: str, records: Sequence[Mapping[str, Any]], classes: ClassTable, count: int, image_format: str
    ) -> None:
        self._name, self._records, self._classes = name, records, classes
        self._left, self._image_format = count, image_format

    def add(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Draw a batch of the evaluation until there are enough; a failure is logged and ends the drawing."""
        for sample, output in zip(inputs, outputs, strict=False) if self._left > 0 else ():
            try:
                image = self.draw(sample, output)
            except Exception as error:  # a drawing must not end a training
                logger.warning(
                    "No sample predictions of %s (TEST.PREVIEW_IMAGES): %s: %s", self._name, type(error).__name__, error
                )
                self._left = 0
                return
            stem = Path(str(sample.get("file_name", self._left))).stem
            tensor = torch.from_numpy(np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1)))
            get_event_storage().put_image(f"preview/{self._name}/{stem}", tensor)
            self._left -= 1
            if self._left <= 0:
                return

    def draw(self, sample: Mapping[str, Any], output: Mapping[str, Any]) -> Image.Image:
        """Draw the prediction and, where the records have it, the ground truth to its right.

        Raises:
            ValueError: the sample has no 8-bit color image, or the output no known part.
        """
        image = self._image(sample)
        size = image.shape[:2]
        panels = [_panel(image, *self._prediction(output))]
        truth = self._truth(sample, output, size)
        if truth is not None:
            panels.append(_panel(image, *truth))
        width = sum(panel.width for panel in panels) + _GAP * (len(panels) - 1)
        out = Image.new("RGB", (width, max(panel.height for panel in panels)), (18, 20, 24))
        for number, panel in enumerate(panels):
            out.paste(panel, (number * (panels[0].width + _GAP), 0))
        return out

    def _image(self, sample: Mapping[str, Any]) -> np.ndarray:
        """Return the image (h, w, 3) uint8 RGB at the size of the results."""
        pixels = sample["image"]
        if pixels.dtype != torch.uint8 or pixels.dim() != 3 or len(pixels) != 3:
            raise ValueError(f"the image is {tuple(pixels.shape)} {pixels.dtype}, not (3, H, W) uint8")
        image = pixels.permute(1, 2, 0).numpy()
        if self._image_format == "BGR":
            image = image[:, :, ::-1]
        height, width = int(sample.get("height", image.shape[0])), int(sample.get("width", image.shape[1]))
        return cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=cv2.INTER_AREA)

    # ---- regions
    def _prediction(self, output: Mapping[str, Any]) -> tuple[list[Region], str]:
        if output.get(Task.PANOPTIC.output, (None, None))[1] is not None:
            id_map, segments = output[Task.PANOPTIC.output]
            return self._panoptic(id_map.cpu().numpy(), segments), f"prediction: {len(segments)} segments"
        if Task.INSTANCE.output in output:
            return self._predicted_instances(output[Task.INSTANCE.output])
        if Task.SEMANTIC.output in output:
            scores = output[Task.SEMANTIC.output]
            return self._semantic((scores.argmax(dim=0) if scores.dim() == 3 else scores).cpu().numpy()), "prediction"
        raise ValueError(f"the output has only {sorted(output)}")

    def _predicted_instances(self, predicted: Any) -> tuple[list[Region], str]:
        scores = predicted.scores.float().cpu().numpy()
        order = np.argsort(-scores, kind="stable")
        order = order[scores[order] >= MIN_SCORE]
        if not len(order):
            best = f", best score {scores.max():.2f}" if len(scores) else ""
            return [], f"prediction: 0 objects{best}"
        shown = torch.from_numpy(order[:_MAX_OBJECTS].copy()).to(predicted.scores.device)
        masks = MaskList.from_dense(predicted.pred_masks[shown].cpu().numpy().astype(bool))
        labels = predicted.pred_classes[shown].cpu().tolist()
        texts = [f"{scores[i]:.2f}" for i in order[:_MAX_OBJECTS]]
        return self._objects(masks, labels, texts), f"prediction: {len(order)} objects"

    def _truth(
        self, sample: Mapping[str, Any], output: Mapping[str, Any], size: tuple[int, int]
    ) -> tuple[list[Region], str] | None:
        """Return the ground truth of the kind that is predicted, else of another kind, None where there is none."""
        record = self._record(sample)
        kinds = [Task.PANOPTIC, Task.INSTANCE, Task.SEMANTIC]
        for task in sorted(kinds, key=lambda kind: kind.output not in output):  # stable: predicted kinds first
            if task is Task.PANOPTIC and "pan_seg_file_name" in record:
                segments = record["segments_info"]
                regions = self._panoptic(read_panoptic_png(record["pan_seg_file_name"]), segments)
                return regions, f"ground truth: {len(segments)} segments"
            if task is Task.INSTANCE and "annotations" in record:
                objects = [entry for entry in record["annotations"] if not entry.get("iscrowd")]
                masks = MaskList((segmentation_to_patch(entry["segmentation"], size) for entry in objects), size)
                labels = [int(entry["category_id"]) for entry in objects]
                return self._objects(masks, labels, [""] * len(masks)), f"ground truth: {len(masks)} objects"
            if task is Task.SEMANTIC and "sem_seg_file_name" in record:
                return self._semantic(read_label_map(record["sem_seg_file_name"])), "ground truth"
        return None

    def _record(self, sample: Mapping[str, Any]) -> Mapping[str, Any]:
        for index in range(min(len(self._records), _SEARCHED)):
            record = self._records[index]
            if record.get("file_name") == sample.get("file_name"):
                return record
        return {}

    def _objects(self, masks: MaskList, labels: Sequence[int], texts: Sequence[str]) -> list[Region]:
        """Color objects one by one where there is one class, else by class in shades."""
        single, seen = len(self._classes) == 1, Counter[int]()
        regions = []
        for number, (patch, label, text) in enumerate(zip(masks, labels, texts, strict=True)):
            color = color_of(number) if single else self._shade(label, seen)
            name = "" if single else self._classes.names[label]
            if patch.bits.size:
                regions.append(Region(patch.bits, patch.left, patch.top, color, f"{name} {text}".strip()))
        return regions

    def _panoptic(self, id_map: np.ndarray, segments: Sequence[Mapping[str, Any]]) -> list[Region]:
        seen = Counter[int]()
        colors, texts = {}, {}
        for segment in segments:
            key, label = int(segment["id"]), int(segment["category_id"])
            colors[key], texts[key] = self._shade(label, seen), self._classes.names[label]
        return regions_from_map(id_map, colors, texts)

    def _semantic(self, labels: np.ndarray) -> list[Region]:
        present = [int(k) for k in np.unique(labels) if 0 <= k < len(self._classes)]
        names, colors = self._classes.names, self._classes.colors
        return regions_from_map(labels, {k: colors[k] for k in present}, {k: names[k] for k in present})

    def _shade(self, label: int, seen: Counter[int]) -> Color:
        color = shade_of(self._classes.colors[label], seen[label])
        seen[label] += 1
        return color


def _panel(image: np.ndarray, regions: Sequence[Region], caption: str) -> Image.Image:
    longest = max(image.shape[:2])
    scale = min(max(longest, _SIDES[0]), _SIDES[1]) / longest
    return add_caption(draw_regions(image, regions, scale=scale), caption)


def open_previews(cfg: CfgNode, name: str, loader: Any) -> Previews | None:
    """Prepare the sample predictions of an evaluation; None where they are off or nobody can see them.

    They need TEST.PREVIEW_IMAGES > 0, a training (evaluations alone have no loggers), images, and are drawn by rank 0.

    Args:
        loader: of `build_test_loader`; another loader gives predictions without ground truth.
    """
    if cfg.TEST.PREVIEW_IMAGES < 1 or not cfg.LOGGERS or not comm.is_main_process() or not has_event_storage():
        return None
    if cfg.MODEL.META_ARCHITECTURE == "VideoMaskFormer":
        return None  # of images only
    count = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    classes = ClassTable.from_metadata(MetadataCatalog.get(name).as_dict(), count) or ClassTable.numbered(count)
    records = getattr(getattr(loader, "dataset", None), "records", ())
    return Previews(name, records, classes, cfg.TEST.PREVIEW_IMAGES, cfg.INPUT.FORMAT)
