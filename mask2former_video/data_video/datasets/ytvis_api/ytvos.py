"""Files of YouTube-VIS with the interface of its tools, over the checked reader of this project."""

from __future__ import annotations

import copy
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_util

from ...._sibling import core

_reader = core("data.datasets.ytvis_json")
_metric = core("evaluation.video_ap")
_files = core("utils.file_io")


class YTVOS:
    """Index of a file in the format of YouTube-VIS.

    Args:
        annotation_file: JSON file; without one, set `dataset` and call `createIndex`.

    Attributes:
        dataset: content of the file.
        checked: `VideoAnnotations` of it, for the metric.
        anns, cats, vids: by id, as they stand in the file.
        vidToAnns, catToVids: video id -> annotations; category id -> video ids.
        results: of `loadRes`: the records that were given.

    Raises:
        FileNotFoundError: no such file.
        BadRecordError: the file is malformed.
    """

    def __init__(self, annotation_file: str | None = None) -> None:
        self.dataset: dict[str, Any] = {}
        self.checked: Any = None
        self.anns: dict[int, dict[str, Any]] = {}
        self.cats: dict[int, dict[str, Any]] = {}
        self.vids: dict[int, dict[str, Any]] = {}
        self.vidToAnns: dict[int, list[dict[str, Any]]] = defaultdict(list)
        self.catToVids: dict[int, list[int]] = defaultdict(list)
        self.results: list[dict[str, Any]] = []
        self._file = "dataset" if annotation_file is None else str(annotation_file)
        if annotation_file is not None:
            self.dataset = _files.read_json_object(self._file, lists=("videos", "categories"))
            self.createIndex()

    def createIndex(self) -> None:
        """Check `dataset` and build the index of it."""
        self.checked = _reader.check_ytvis_content(self._file, self.dataset)
        self._index(self.dataset.get("annotations") or [])

    def _index(self, annotations: Iterable[dict[str, Any]]) -> None:
        self.cats = {entry["id"]: entry for entry in self.dataset["categories"]}
        self.vids = {entry["id"]: entry for entry in self.dataset["videos"]}
        self.anns, self.vidToAnns, self.catToVids = {}, defaultdict(list), defaultdict(list)
        for entry in annotations:
            self.anns[entry["id"]] = entry
            self.vidToAnns[entry["video_id"]].append(entry)
            self.catToVids[entry["category_id"]].append(entry["video_id"])

    def info(self) -> None:
        """Write what the file says about itself to the standard output."""
        for key, value in self.dataset.get("info", {}).items():
            sys.stdout.write(f"{key}: {value}\n")

    def getAnnIds(
        self,
        vidIds: Any = (),
        catIds: Any = (),
        areaRng: Sequence[float] = (),
        iscrowd: bool | None = None,
    ) -> list[int]:
        """Return ids of annotations: of these videos and categories, with a mean area (pixels) between the two given.

        Empty arguments select all.
        """
        videos, categories = _as_list(vidIds), _as_list(catIds)
        entries = (entry for v in videos for entry in self.vidToAnns.get(v, ())) if videos else self.anns.values()
        return [
            entry["id"]
            for entry in entries
            if (not categories or entry["category_id"] in categories)
            and (not len(areaRng) or areaRng[0] < self._area(entry) < areaRng[1])
            and (iscrowd is None or bool(entry.get("iscrowd", 0)) == bool(iscrowd))
        ]

    def _area(self, entry: Mapping[str, Any]) -> float:
        if "avg_area" in entry:
            return float(entry["avg_area"])
        areas = entry.get("areas")
        given = self._shape(entry["segmentations"], entry).areas if areas is None else [area or 0 for area in areas]
        return float(_metric.mean_area(np.array(given, dtype=np.float64)))

    def getCatIds(self, catNms: Any = (), supNms: Any = (), catIds: Any = ()) -> list[int]:
        """Return ids of categories with these names, supercategories and ids; empty arguments select all."""
        names, above, ids = _as_list(catNms), _as_list(supNms), _as_list(catIds)
        return [
            entry["id"]
            for entry in self.dataset["categories"]
            if (not names or entry["name"] in names)
            and (not above or entry.get("supercategory") in above)
            and (not ids or entry["id"] in ids)
        ]

    def getVidIds(self, vidIds: Any = (), catIds: Any = ()) -> list[int]:
        """Return ids of the videos, of those given if any, that show all these categories."""
        selected = set(_as_list(vidIds)) or set(self.vids)
        for category in _as_list(catIds):
            selected &= set(self.catToVids.get(category, ()))
        return sorted(selected)

    def loadAnns(self, ids: Any = ()) -> list[dict[str, Any]]:
        """Return the annotations with these ids."""
        return [self.anns[number] for number in _as_list(ids)]

    def loadCats(self, ids: Any = ()) -> list[dict[str, Any]]:
        """Return the categories with these ids."""
        return [self.cats[number] for number in _as_list(ids)]

    def loadVids(self, ids: Any = ()) -> list[dict[str, Any]]:
        """Return the videos with these ids."""
        return [self.vids[number] for number in _as_list(ids)]

    def loadRes(self, resFile: str | Sequence[Mapping[str, Any]]) -> YTVOS:
        """Return an index of results.

        Args:
            resFile: file of results.json, or its records {"video_id", "category_id", "score", "segmentations"}; they
                are not changed. The index also has "id", "iscrowd", "areas", "bboxes" and "avg_area" of each.

        Raises:
            ValueError: not a list of records, an unknown video, or a segmentation that does not fit it.
        """
        given = _files.parse_json(str(resFile)) if isinstance(resFile, str) else resFile
        if not isinstance(given, (list, tuple)) or not all(isinstance(record, Mapping) for record in given):
            raise ValueError(f"results are a list of records, not {type(given).__name__}")
        found = type(self)()
        found._file, found.checked = self._file, self.checked
        found.results = [dict(record) for record in given]
        entries = [self._result(dict(record), number) for number, record in enumerate(found.results, 1)]
        found.dataset = {key: copy.copy(value) for key, value in self.dataset.items() if key != "annotations"}
        found.dataset["annotations"] = entries
        found._index(entries)
        return found

    def _result(self, entry: dict[str, Any], number: int) -> dict[str, Any]:
        if entry.get("video_id") not in self.vids:
            raise ValueError(f"result {number} is of video {entry.get('video_id')!r}, which {self._file} does not list")
        shape = self._shape(entry["segmentations"], entry)
        boxes = [None if code is None else [float(v) for v in mask_util.toBbox(code)] for code in shape.codes]
        areas = [None if code is None else int(area) for code, area in zip(shape.codes, shape.areas, strict=True)]
        common = {"id": number, "iscrowd": 0, "areas": areas, "avg_area": _metric.mean_area(shape.areas)}
        return {"bboxes": boxes, **entry, **common}

    def _shape(self, segmentations: Sequence[Any], entry: Mapping[str, Any]) -> Any:
        video = self.vids[entry["video_id"]]
        return _metric.clip_shape(segmentations, (video["height"], video["width"]))

    def annToRLE(self, ann: Mapping[str, Any], frameId: int) -> Any:
        """Return the RLE of an object in a frame, None where it is not visible."""
        return self._shape([ann["segmentations"][frameId]], ann).codes[0]

    def annToMask(self, ann: Mapping[str, Any], frameId: int) -> np.ndarray:
        """Return the mask uint8 (H, W) of an object in a frame, empty where it is not visible."""
        code = self.annToRLE(ann, frameId)
        if code is None:
            video = self.vids[ann["video_id"]]
            return np.zeros((video["height"], video["width"]), np.uint8)
        return mask_util.decode(code)


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, Iterable) and not isinstance(value, str) else [value]
