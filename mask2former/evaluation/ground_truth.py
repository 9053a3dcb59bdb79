"""Ground truth for evaluation: COCO instances with checked masks, and panoptic annotations."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import os
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from detectron2.utils.file_io import PathManager
from pycocotools.coco import COCO

from ..data.datasets.coco_annotations import InstanceAnnotations, read_instances
from ..data.datasets.coco_panoptic import read_panoptic_json
from ..data.image_io import read_panoptic_png
from ..errors import BadRecordError, report_bad_records
from ..structures.rle import checked_rle, encode_label_map


class PanopticTruth:
    """Panoptic annotations by image id, with the checks of training; id maps are read on demand."""

    def __init__(self, json_file: str, root: str, *, skip_bad_records: bool = False) -> None:
        """
        Args:
            json_file: COCO panoptic annotation file.
            root: directory of the annotation PNGs.
            skip_bad_records: leave out and report images with bad annotations instead of raising an error.

        Raises:
            FileNotFoundError: the annotation file or the directory is missing.
            BadRecordError: the file is not a panoptic annotation file with ground truth, or an annotation is malformed.
        """
        self.json_file = json_file
        self.root = root
        self._read = read_panoptic_json(json_file, skip_bad_records=skip_bad_records)
        if not PathManager.isdir(root):
            raise FileNotFoundError(f"panoptic annotations: no directory {root} with the PNGs that {json_file} names")
        self.content = self._read.content
        self.categories = self._read.categories

    @property
    def annotations(self) -> list[dict[str, Any]]:
        """Return one dict per image: `image_id`, `file_name`, `segments_info`."""
        return list(self._read.annotations.values())

    def annotation(self, image_id: Any) -> dict[str, Any]:
        """Return the annotation of an image.

        Raises ValueError if the file does not list the image, BadRecordError if its annotation was left out.
        """
        # Dataset loaders convert numeric ids to int, the JSON may hold strings: compare as strings.
        annotation = self._read.annotations.get(str(image_id))
        if annotation is not None:
            return annotation
        if str(image_id) in self._read.left_out:
            raise BadRecordError(self.json_file, "its annotation is malformed", f"image {image_id!r}")
        raise ValueError(f"{self.json_file} has no annotation for image {image_id!r}")

    def id_map(self, annotation: dict[str, Any], size: tuple[int, int] | None = None) -> np.ndarray:
        """Read the (h, w) int32 segment ids of one annotation.

        Args:
            annotation: of this ground truth.
            size: height and width of the image; None takes them from the annotation file, if it has them.

        Raises BadRecordError if the PNG is missing, broken, not an RGB image, or of another size.
        """
        path = os.path.join(self.root, annotation["file_name"])
        ids = read_panoptic_png(path)
        size = size or self._read.sizes.get(str(annotation["image_id"]))
        if size is not None and ids.shape != size:
            raise BadRecordError(path, f"is {list(ids.shape)} (height, width), its image {list(size)}")
        return ids


def image_size(image: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return height and width of an input of an evaluator, None if it has none."""
    return (image["height"], image["width"]) if "height" in image and "width" in image else None


logger = logging.getLogger(__name__)

_READERS = 8  # threads


def index_coco(dataset: dict[str, Any]) -> COCO:
    """Build a pycocotools index of an annotation dict (shared, not copied), without the output of pycocotools."""
    coco = COCO()
    coco.dataset = dataset
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def load_coco_truth(
    path: str | os.PathLike[str],
    *,
    skip_bad_records: bool = False,
    benchmark: bool = True,
    needs: Collection[str] = (),
) -> COCO:
    """Load a COCO annotation file with the checks of training, and repair what pycocotools does not handle.

    - Annotations are renumbered from 1: pycocotools takes the id 0 for "unmatched", which silently lowers AP, and
      keeps only the last of several annotations that share an id.
    - A missing or impossible `area` is the area of the mask, or of the box where there is none; they are counted in the
      log.
    - Annotations with an empty segmentation are left out, and their number is logged.

    A file without `annotations` (a test set) gives a dataset without them.

    Args:
        path: file name.
        skip_bad_records, benchmark, needs: see `read_instances`.

    Raises:
        FileNotFoundError: no such file.
        BadRecordError: the file or, without `skip_bad_records`, one of its records is malformed; or no object has a
            pixel in its image.
    """
    file = os.fspath(path)
    content = read_instances(file, skip_bad_records=skip_bad_records, benchmark=benchmark, needs=needs)
    if content.degenerate:
        logger.warning("%s: %d annotations with an empty segmentation are left out", file, len(content.degenerate))
    dataset: dict[str, Any] = {
        "images": list(content.images.values()),
        "categories": [{"id": key, "name": name} for key, name in content.categories.items()],
    }
    if content.has_truth:
        dataset["annotations"] = _completed(content, "bbox" in needs)
    return index_coco(dataset)


def _completed(content: InstanceAnnotations, boxes: bool) -> list[dict[str, Any]]:
    """Return the annotations with masks as RLE, areas and numbers from 1; report what does not fit together."""
    result = []
    counts: Counter[str] = Counter()
    for number, annotation in enumerate(content.annotations, start=1):
        entry = {**annotation, "id": number}
        pixels = None
        if "segmentation" in entry:
            image = content.images[entry["image_id"]]
            entry["segmentation"] = _to_rle(entry["segmentation"], (image["height"], image["width"]))
            pixels = float(mask_util.area(entry["segmentation"]))
            counts["empty"] += not pixels
            counts["corners"] += boxes and "bbox" in entry and _is_corners(entry["bbox"], entry["segmentation"])
        elif "bbox" not in entry:
            where = f"annotation {number} (counting from 1)"
            raise BadRecordError(content.file, "has neither segmentation nor bbox", where)
        if "area" not in entry:
            counts["area"] += 1
            entry["area"] = float(entry["bbox"][2] * entry["bbox"][3]) if pixels is None else pixels
        result.append(entry)
    _report(content.file, counts, len(result))
    return result


def warn_of_crowded(dataset: str, kind: str, of_objects: Iterable[Hashable], most: int, key: str) -> None:
    """Warn where there are more objects than a model returns: the others count as missed, whatever it has learned.

    Args:
        dataset: its name.
        kind: what has the objects, as "images".
        of_objects: the image, or the clip, of each object.
        most: number of objects that the model can find in one of them.
        key: of the config, which sets this number unless there are fewer queries.
    """
    counts = [count for count in Counter(of_objects).values() if count > most]
    if counts:
        logger.warning(
            "dataset %s: %s with more than %d objects: %d (up to %d). The model can find no more than that, and the "
            "others count as missed; the smaller of %s and MODEL.MASK_FORMER.NUM_OBJECT_QUERIES is this number",
            dataset,
            kind,
            most,
            len(counts),
            max(counts),
            key,
        )


def _report(file: str, counts: Mapping[str, int], total: int) -> None:
    if total and counts["empty"] == total:
        raise BadRecordError(
            file,
            f"none of its {total} objects has a pixel in its image; coordinates are in pixels, not in [0, 1], from the "
            "upper left corner of the image",
        )
    texts = {
        "empty": "have no pixel in their image and can only be missed; coordinates are in pixels",
        "area": "have no 'area' that is a number of 0 or more; that of the mask (or of the box) is used",
    }
    if counts["corners"] > total / 2:
        texts["corners"] = "have a 'bbox' that looks like [x1, y1, x2, y2]; it must be [x, y, width, height]"
    for key, text in texts.items():
        if counts[key]:
            logger.warning("%s: %d of %d annotations %s", file, counts[key], total, text)


def _to_rle(segmentation: list[list[float]] | dict[str, Any], size: tuple[int, int]) -> Any:
    """Encode a checked segmentation as pycocotools' `annToRLE` does."""
    if isinstance(segmentation, list):
        codes = mask_util.frPyObjects(segmentation, *size)
        return codes[0] if len(codes) == 1 else mask_util.merge(codes)
    return checked_rle(segmentation, size) if isinstance(segmentation["counts"], list) else segmentation


def _is_corners(box: Sequence[float], rle: Any) -> bool:
    """Return whether a box fits its mask as two corners, but not as a corner and a size."""
    x, y, width, height = mask_util.toBbox(rle).tolist()
    far = [abs(box[2] - width), abs(box[3] - height)]
    return max(far) > 2 and max(abs(box[2] - x - width), abs(box[3] - y - height)) <= 2


def truth_from_panoptic(
    panoptic: PanopticTruth, thing_ids: Collection[int] | None = None, *, skip_bad_records: bool = False
) -> COCO:
    """Convert the things of panoptic annotations to instance ground truth; crowd regions stay crowds.

    Args:
        panoptic: annotations.
        thing_ids: categories that are things; those with `isthing` in the annotation file if None.
        skip_bad_records: leave out and report images whose PNG is bad.

    Raises:
        BadRecordError: a PNG is bad, without `skip_bad_records`.
    """
    things = {
        i: c for i, c in panoptic.categories.items() if c.get("isthing") and (thing_ids is None or i in thing_ids)
    }
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    problems: list[BadRecordError] = []
    # Threads, not processes: decoding and comparing release the GIL, and CUDA may already be initialized.
    with ThreadPoolExecutor(_READERS) as pool:
        for made in pool.map(functools.partial(_things_or_error, panoptic, things), panoptic.annotations):
            if isinstance(made, BadRecordError):
                if not skip_bad_records:
                    raise made
                problems.append(made)
                continue
            image, records = made
            images.append(image)
            annotations.extend({"id": n, **ann} for n, ann in enumerate(records, start=len(annotations) + 1))
    report_bad_records(panoptic.root, problems, len(problems))
    return index_coco({"images": images, "categories": list(things.values()), "annotations": annotations})


def _things_or_error(
    panoptic: PanopticTruth, things: Collection[int], annotation: dict[str, Any]
) -> tuple[dict[str, Any], list[dict[str, Any]]] | BadRecordError:
    try:
        return _things_of(panoptic, things, annotation)
    except BadRecordError as error:
        return error


def _things_of(
    panoptic: PanopticTruth, things: Collection[int], annotation: dict[str, Any]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the COCO image record and the annotations, without `id`, of one image."""
    ids = panoptic.id_map(annotation)
    rles = encode_label_map(ids)
    records = [
        {
            "image_id": annotation["image_id"],
            "category_id": segment["category_id"],
            "iscrowd": int(segment.get("iscrowd", 0)),
            "segmentation": rles[segment["id"]],
            "area": float(mask_util.area(rles[segment["id"]])),
            "bbox": mask_util.toBbox(rles[segment["id"]]).tolist(),
        }
        for segment in annotation["segments_info"]
        if segment["category_id"] in things and segment["id"] in rles
    ]
    return {"id": annotation["image_id"], "height": ids.shape[0], "width": ids.shape[1]}, records
