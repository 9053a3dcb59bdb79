"""Looking through a dataset before training: what is missing or broken, and how often each class occurs."""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..errors import BadRecordError, first_few
from ..structures.masks import SegmentationError, segmentation_to_patch
from ..utils.parallel import map_parallel
from .datasets.semantic_folder import pair_files
from .datasets.ytvis_json import frame_records
from .image_io import check_image_size, read_image, read_label_map, read_panoptic_png

# Kinds of datasets, by what their records have; the first that fits.
KINDS = {"panoptic": "pan_seg_file_name", "instance": "annotations", "semantic": "sem_seg_file_name"}


@dataclass(frozen=True)
class Rules:
    """What the records of a dataset must keep to."""

    kind: str  # a key of KINDS, or "unlabeled"
    names: tuple[str, ...]  # of the classes
    num_labels: int  # classes of the label maps
    ignore_label: int


@dataclass
class Inspection:
    """What one record holds, per class index, and what is wrong with it."""

    problems: list[str] = field(default_factory=list)  # training or evaluation would fail
    notes: list[str] = field(default_factory=list)  # odd, but harmless
    size: tuple[int, int] | None = None  # height and width of the image
    pixels: Counter[int] = field(default_factory=Counter)
    objects: Counter[int] = field(default_factory=Counter)
    crowds: int = 0
    void: int = 0  # pixels without a class

    def add(self, label: int, pixels: int) -> None:
        """Count an object or segment."""
        self.pixels[label] += pixels
        self.objects[label] += 1


@dataclass
class DatasetReport:
    """What a dataset holds; `mask2former.data.inspect_report.format_report` writes it down."""

    name: str
    rules: Rules
    total: int  # records of the dataset
    records: list[dict[str, Any]]  # those that were looked at
    inspections: list[Inspection]  # of these, in the same order
    problems: list[str]
    notes: list[str]


def check_dataset(name: str, limit: int | None = None, workers: int | None = None) -> DatasetReport:
    """Look through a registered dataset with a progress bar.

    Args:
        name: registered name.
        limit: look at so many records, evenly spread; None looks at all.
        workers: processes; None takes as many as are good.

    Raises:
        ValueError: no such dataset, or its annotations are malformed as a whole (BadRecordError).
        FileNotFoundError: files are missing without which there are no records; shows the expected directories.
    """
    if name not in DatasetCatalog:
        raise ValueError(f"no dataset {name!r} is registered")
    records = [frame for record in DatasetCatalog.get(name) for frame in frame_records(record)]
    total = len(records)
    if not total:
        raise ValueError(f"dataset {name!r} has no records")
    if limit is not None and limit < total:
        records = [records[index] for index in np.linspace(0, total - 1, max(1, limit)).round().astype(int)]
    rules = dataset_rules(name, records[0])
    inspections = list(map_parallel(functools.partial(inspect_record, rules), records, f"checking {name}", workers))
    problems, notes = _unpaired(name, rules)
    problems += [problem for found in inspections for problem in found.problems]
    notes += [note for found in inspections for note in found.notes]
    return DatasetReport(name, rules, total, records, inspections, problems, notes)


def dataset_rules(name: str, record: dict[str, Any]) -> Rules:
    """The rules of a dataset from its metadata and one of its records."""
    metadata = MetadataCatalog.get(name)
    kind = next((kind for kind, key in KINDS.items() if key in record), "unlabeled")
    things, stuff = metadata.get("thing_classes") or [], metadata.get("stuff_classes") or []
    names = things if kind == "instance" else stuff or things
    return Rules(kind, tuple(names), len(stuff), metadata.get("ignore_label", 255))


def _unpaired(name: str, rules: Rules) -> tuple[list[str], list[str]]:
    """Problems and notes about files that no record names."""
    metadata = MetadataCatalog.get(name)
    problems, notes = [], []
    images, labels = metadata.get("image_root"), metadata.get("sem_seg_root")
    if rules.kind == "semantic" and images and labels:
        found = pair_files(images, labels)
        problems += [f"{path}: has no label map of its name below {labels}" for path in found.without_labels]
        problems += [f"{path}: has no image of its name below {images}" for path in found.without_image]
    json_file = metadata.get("json_file")
    if json_file and not os.path.exists(json_file):
        notes.append(f"{json_file}: does not exist; the evaluation of instance AP needs it")
    return problems, notes


def inspect_record(rules: Rules, record: dict[str, Any]) -> Inspection:
    """Read everything that a record names and count its classes; never raises for what a file can be."""
    found = Inspection()
    path = str(record.get("file_name", ""))
    try:
        found.size = read_image(path).shape[:2]
        check_image_size(dict(record), found.size, path)
    except BadRecordError as error:
        found.problems.append(str(error))
        height, width = record.get("height"), record.get("width")
        found.size = found.size or ((height, width) if height and width else None)
    if "pan_seg_file_name" in record:
        _guard(_inspect_segments, found, rules, record)
    elif "annotations" in record:
        _guard(_inspect_annotations, found, rules, record)
    if "sem_seg_file_name" in record:
        _guard(_inspect_labels, found, rules, record)
    return found


def _guard(inspect: Any, found: Inspection, rules: Rules, record: dict[str, Any]) -> None:
    try:
        inspect(found, rules, record)
    except BadRecordError as error:
        found.problems.append(str(error))


def _check_shape(path: str, shape: tuple[int, ...], found: Inspection, record: dict[str, Any]) -> None:
    if found.size is not None and shape != found.size:
        raise BadRecordError(
            path,
            f"is {shape[1]}x{shape[0]} (width x height), its image {record['file_name']} "
            f"{found.size[1]}x{found.size[0]}",
        )


def _is_class(value: Any, rules: Rules) -> bool:
    return isinstance(value, int) and 0 <= value < len(rules.names)


def _inspect_segments(found: Inspection, rules: Rules, record: dict[str, Any]) -> None:
    path = record["pan_seg_file_name"]
    ids = read_panoptic_png(path)
    _check_shape(path, ids.shape, found, record)
    area = count_values(ids)
    found.void += area.pop(0, 0)
    for segment in record.get("segments_info") or []:
        number, label = segment.get("id"), segment.get("category_id")
        pixels = area.pop(number, 0) if isinstance(number, int) else None
        if pixels is None or number < 1:
            found.problems.append(f"{path}: the id of a segment is an integer above 0, not {number!r}")
        elif not _is_class(label, rules):
            found.problems.append(f"{path}: segment {number}: {label!r} is no class of 0-{len(rules.names) - 1}")
        elif not pixels:
            found.notes.append(f"{path}: segment {number} ({rules.names[label]}) has no pixel")
        elif segment.get("iscrowd", 0):
            found.crowds += 1
        else:
            found.add(label, pixels)
    if area:
        unknown = first_few([str(number) for number in sorted(area)])
        found.problems.append(f"{path}: ids {unknown} have {sum(area.values())} pixels but are not in segments_info")


def _inspect_annotations(found: Inspection, rules: Rules, record: dict[str, Any]) -> None:
    if found.size is None:
        return  # without the image's size no mask can be checked; the image is a problem already
    for position, annotation in enumerate(record["annotations"]):
        where = f"{record['file_name']}: annotation {annotation.get('id', f'number {position} of the image')}"
        label = annotation.get("category_id")
        if not _is_class(label, rules):
            found.problems.append(f"{where}: {label!r} is no class of 0-{len(rules.names) - 1}")
            continue
        try:
            patch = segmentation_to_patch(annotation.get("segmentation"), found.size)
        except SegmentationError as error:
            found.problems.append(f"{where}: {error}")
            continue
        if not patch.bits.size:
            found.notes.append(f"{where} ({rules.names[label]}): has no pixel inside the image")
        elif annotation.get("iscrowd", 0):
            found.crowds += 1
        else:
            found.add(label, int(np.count_nonzero(patch.bits)))


def _inspect_labels(found: Inspection, rules: Rules, record: dict[str, Any]) -> None:
    path = record["sem_seg_file_name"]
    labels = read_label_map(path)
    _check_shape(path, labels.shape, found, record)
    area = count_values(labels)
    void = area.pop(rules.ignore_label, 0)
    unknown = [label for label in area if not 0 <= label < rules.num_labels]
    if unknown:
        found.problems.append(
            f"{path}: {sum(area[label] for label in unknown)} pixels have the values "
            f"{first_few([str(label) for label in unknown])}, which are neither a class (0-{rules.num_labels - 1}) "
            f"nor the value to ignore, {rules.ignore_label}"
        )
    if rules.kind == "semantic":
        found.void += void
        found.pixels.update({label: count for label, count in area.items() if label not in unknown})


def count_values(values: np.ndarray) -> dict[int, int]:
    """How often each value of a map int (H, W) occurs, by rising value; fast where neighbors are mostly equal."""
    flat = values.reshape(-1)
    if not flat.size:
        return {}
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    present, run_values = np.unique(flat[starts], return_inverse=True)
    counts = np.zeros(len(present), np.int64)
    np.add.at(counts, run_values.reshape(-1), np.diff(starts, append=flat.size))
    return dict(zip(present.tolist(), counts.tolist(), strict=True))


def presence(inspections: Sequence[Inspection]) -> Counter[int]:
    """In how many records each class occurs."""
    return Counter(label for found in inspections for label, pixels in found.pixels.items() if pixels)
