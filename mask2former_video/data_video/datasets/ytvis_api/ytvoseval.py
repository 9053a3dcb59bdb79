"""Video AP with the interface of the tools of YouTube-VIS, over the metric of this project."""

from __future__ import annotations

import copy
import datetime
import math
import sys
from typing import Any

import numpy as np

from ...._sibling import core
from .ytvos import YTVOS

_metric = core("evaluation.video_ap")
_AREAS = core("evaluation.coco_ap").AREAS


class Params:
    """What is compared, and how: the attributes have the names and defaults of the tools.

    Args:
        iouType: must be "segm".
    """

    def __init__(self, iouType: str = "segm") -> None:
        if iouType != "segm":
            raise ValueError(f"iouType is {iouType!r}, but video AP compares masks: use 'segm'")
        defaults = _metric.VideoApSettings()
        self.iouType = iouType
        self.vidIds: list[int] = []
        self.catIds: list[int] = []
        self.iouThrs = defaults.iou_thresholds
        self.recThrs = defaults.recall_points
        self.maxDets = list(defaults.max_dets)
        self.areaRng = defaults.areas.tolist()
        self.areaRngLbl = list(_AREAS)
        self.useCats = 1


class YTVOSeval:
    """Evaluation: `evaluate`, `accumulate`, `summarize`, in this order.

    Args:
        cocoGt: ground truth.
        cocoDt: results, of `cocoGt.loadRes`.
        iouType: must be "segm".

    Attributes:
        params: settings, which may be changed before `evaluate`; `useCats` must be 1.
        eval: of `accumulate`: "precision" (T, R, K, A, M), "recall" (T, K, A, M), -1 without ground truth; "counts",
            "params", "date". The tools' "scores" and `evalVids` are not there: the metric has none for each video.
        stats: of `summarize`: AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100, ARs, ARm, ARl, from 0 to 1, or -1.
    """

    def __init__(self, cocoGt: YTVOS | None = None, cocoDt: YTVOS | None = None, iouType: str = "segm") -> None:
        self.cocoGt, self.cocoDt = cocoGt, cocoDt
        self.params = Params(iouType)
        self.eval: dict[str, Any] = {}
        self.stats: Any = []
        self._scores: Any = None
        if cocoGt is not None:
            self.params.vidIds = sorted(cocoGt.getVidIds())
            self.params.catIds = sorted(cocoGt.getCatIds())

    def evaluate(self) -> None:
        """Match results and ground truth.

        Raises:
            ValueError: a setting that the metric does not have, no ground truth, or results that do not fit it.
        """
        self.eval = {}
        self.params.maxDets = sorted(self.params.maxDets)
        self._scores = self._compare(self.params)

    def _compare(self, p: Params) -> Any:
        if self.cocoGt is None or self.cocoDt is None:
            raise ValueError("YTVOSeval needs cocoGt and cocoDt")
        if not p.useCats:
            raise ValueError("params.useCats 0 is not supported: classes are always compared")
        settings = _metric.VideoApSettings(
            np.asarray(p.iouThrs, dtype=np.float64),
            np.asarray(p.recThrs, dtype=np.float64),
            np.asarray(p.areaRng, dtype=np.float64),
            tuple(sorted(p.maxDets)),
            list(np.unique(p.vidIds)),
        )
        categories = [int(number) for number in np.unique(p.catIds)]
        return _metric.evaluate_videos(self.cocoGt.checked, self.cocoDt.results, categories, settings=settings)

    def accumulate(self, p: Params | None = None) -> None:
        """Fill `eval`; other settings than those of `evaluate` are compared anew."""
        if self._scores is None:
            raise ValueError("call evaluate() first")
        if p is not None:
            self._scores = self._compare(p)
        precision, recall = self._scores.precision, self._scores.recall
        self.eval = {
            "params": copy.deepcopy(p or self.params),
            "counts": list(precision.shape),
            "date": datetime.datetime.now().strftime("%Y-%m-%d %H:%M:%S"),
            "precision": precision,
            "recall": recall,
        }

    def summarize(self) -> None:
        """Fill `stats` and write them to the standard output.

        Raises:
            ValueError: `accumulate` was not called, or there are other sizes than all, small, medium and large.
        """
        if not self.eval:
            raise ValueError("call accumulate() first")
        if self._scores.precision.shape[3] != len(_AREAS):
            raise ValueError(f"a summary needs params.areaRng of {', '.join(_AREAS)}")
        scores, limits = self._scores, self._scores.max_dets
        rows = [("AP", "0.50:0.95", "all", limits[-1], scores.ap())]
        rows += [("AP", f"{iou:.2f}", "all", limits[-1], scores.ap(iou=iou)) for iou in (0.5, 0.75)]
        rows += [("AP", "0.50:0.95", area, limits[-1], scores.ap(area=area)) for area in _AREAS[1:]]
        rows += [("AR", "0.50:0.95", "all", limit, scores.ar_at(limit)) for limit in limits]
        rows += [("AR", "0.50:0.95", area, limits[-1], scores.ar(area)) for area in _AREAS[1:]]
        values = [-1.0 if math.isnan(row[-1]) else row[-1] / 100 for row in rows]
        for (name, iou, area, limit, _), value in zip(rows, values, strict=True):
            title = "Average Precision" if name == "AP" else "Average Recall"
            text = f" {title:<18} ({name}) @[ IoU={iou:<9} | area={area:>6s} | maxDets={limit:>3d} ] = {value:0.3f}\n"
            sys.stdout.write(text)
        self.stats = np.array(values)

    def __str__(self) -> str:
        self.summarize()
        return ""
