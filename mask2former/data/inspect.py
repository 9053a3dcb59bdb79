"""Check a dataset before training: find missing or broken files, and count how often each class occurs."""

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
from .clip_records import by_track
from .datasets.semantic_folder import pair_files
from .datasets.ytvis_json import frame_records
from .image_io import check_image_size, read_image, read_label_map, read_panoptic_png
from .learnable import Finding, check_label_maps, check_objects, check_segments, label_finding, why_no_objects

# Type of a dataset -> key of its records; the first match decides.
DATASET_TYPES = {"panoptic": "pan_seg_file_name", "instance": "annotations", "semantic": "sem_seg_file_name"}


@dataclass(frozen=True)
class Rules:
    """Constraints on the records of a dataset."""

    dataset_type: str  # a key of DATASET_TYPES, or "unlabeled"
    names: tuple[str, ...]  # class names
    num_labels: int  # number of classes in the label maps
    ignore_label: int


@dataclass
class Inspection:
    """Contents of one record, per class index, and its problems."""

    problems: list[str] = field(default_factory=list)  # training or evaluation would fail
    notes: list[str] = field(default_factory=list)  # unusual, but harmless
    size: tuple[int, int] | None = None  # height and width of the image
    pixels: Counter[int] = field(default_factory=Counter)
    objects: Counter[int] = field(default_factory=Counter)
    crowds: int = 0
    void: int = 0  # pixels without a class

    def add(self, label: int, pixels: int) -> None:
        """Count an object or segment of class `label` with so many pixels."""
        self.pixels[label] += pixels
        self.objects[label] += 1


@dataclass
class DatasetReport:
    """Contents and problems of a dataset; `mask2former.data.inspect_report.format_report` prints it."""

    name: str
    rules: Rules
    total: int  # number of records of the dataset
    records: list[dict[str, Any]]  # those that were checked
    inspections: list[Inspection]  # of `records`, in the same order
    problems: list[str]
    notes: list[str]
    finding: Finding = field(default_factory=Finding)  # on the ground truth as a whole


def check_dataset(name: str, limit: int | None = None, workers: int | None = None) -> DatasetReport:
    """Check every record of a registered dataset, with a progress bar.

    Args:
        name: registered name.
        limit: check at most this many records, evenly spread; None checks all.
        workers: worker processes; None for one per core, at most 16.

    Raises:
        ValueError: no such dataset, or its annotation file is malformed (BadRecordError).
        FileNotFoundError: files that list the records are missing; shows the expected directories.
    """
    if name not in DatasetCatalog:
        raise ValueError(f"no dataset {name!r} is registered; see mask2former.data.register_all")
    loaded = by_track(DatasetCatalog.get(name))
    records = [frame for record in loaded for frame in frame_records(record)]
    if not records:
        raise ValueError(f"dataset {name!r} has no records; check its annotation file")
    rules = dataset_rules(name, records[0])
    report = check_records(name, rules, records, limit, workers)
    problems, notes = _unpaired(name, rules)
    report.problems[:0], report.notes[:0] = problems, notes
    report.finding = _finding(report, loaded)
    return report


def _finding(report: DatasetReport, loaded: Sequence[dict[str, Any]]) -> Finding:
    """Return what is wrong with the ground truth as a whole: with all objects, or the maps that were read."""
    rules, inspections = report.rules, report.inspections
    if rules.dataset_type == "instance":
        finding = check_objects(loaded, "videos" if "file_names" in loaded[0] else "images")
        why = why_no_objects([report.name]) if "has an object" in finding.error else ""
        return finding._replace(error="; ".join(filter(None, [finding.error, why])))
    if rules.dataset_type == "panoptic":
        return Finding() if any(inspection.objects for inspection in inspections) else check_segments(loaded)
    if rules.dataset_type == "semantic":
        pixels: Counter[int] = Counter()
        for inspection in inspections:
            pixels.update(inspection.pixels)
        void = sum(inspection.void for inspection in inspections)
        read = sum(not inspection.problems for inspection in inspections)
        finding = label_finding({**pixels, rules.ignore_label: void}, read, rules.names, rules.ignore_label)
        if finding != Finding() and len(inspections) < report.total:  # a part; the others may have what it lacks
            finding = check_label_maps(loaded, rules.names, rules.ignore_label)
        return finding
    return Finding()


def check_records(
    name: str,
    rules: Rules,
    records: Sequence[dict[str, Any]],
    limit: int | None = None,
    workers: int | None = None,
) -> DatasetReport:
    """Check records in detectron2's format, with a progress bar; see `check_dataset`."""
    total = len(records)
    if limit is not None and limit < total:
        records = [records[index] for index in np.linspace(0, total - 1, max(1, limit)).round().astype(int)]
    inspections = list(map_parallel(functools.partial(inspect_record, rules), records, f"checking {name}", workers))
    problems = [problem for inspection in inspections for problem in inspection.problems]
    notes = [note for inspection in inspections for note in inspection.notes]
    return DatasetReport(name, rules, total, list(records), inspections, problems, notes)


def dataset_rules(name: str, record: dict[str, Any]) -> Rules:
    """Return the constraints on a dataset from its metadata and one of its records."""
    metadata = MetadataCatalog.get(name)
    dataset_type = next((name for name, key in DATASET_TYPES.items() if key in record), "unlabeled")
    things, stuff = metadata.get("thing_classes") or [], metadata.get("stuff_classes") or []
    names = things if dataset_type == "instance" else stuff or things
    return Rules(dataset_type, tuple(names), len(stuff), metadata.get("ignore_label", 255))


def _unpaired(name: str, rules: Rules) -> tuple[list[str], list[str]]:
    """Return problems and notes about files that no record names."""
    metadata = MetadataCatalog.get(name)
    problems, notes = [], []
    images, labels = metadata.get("image_root"), metadata.get("sem_seg_root")
    if rules.dataset_type == "semantic" and images and labels:
        files = pair_files(images, labels)
        problems += [f"{path}: has no label map of the same name in {labels}" for path in files.without_labels]
        problems += [f"{path}: has no image of the same name in {images}" for path in files.without_image]
    json_file = metadata.get("json_file")
    if json_file and not os.path.exists(json_file):
        notes.append(f"{json_file}: does not exist; it is needed to evaluate instance AP")
    return problems, notes


def inspect_record(rules: Rules, record: dict[str, Any]) -> Inspection:
    """Read all files of a record and count its classes; broken files become problems, not exceptions."""
    inspection = Inspection()
    path = str(record.get("file_name", ""))
    try:
        inspection.size = read_image(path).shape[:2]
        check_image_size(dict(record), inspection.size, path)
    except BadRecordError as error:
        inspection.problems.append(str(error))
        height, width = record.get("height"), record.get("width")
        inspection.size = inspection.size or ((height, width) if height and width else None)
    if "pan_seg_file_name" in record:
        _guard(_inspect_segments, inspection, rules, record)
    elif "annotations" in record:
        _guard(_inspect_annotations, inspection, rules, record)
    if "sem_seg_file_name" in record:
        _guard(_inspect_labels, inspection, rules, record)
    return inspection


def _guard(inspect: Any, inspection: Inspection, rules: Rules, record: dict[str, Any]) -> None:
    try:
        inspect(inspection, rules, record)
    except BadRecordError as error:
        inspection.problems.append(str(error))


def _check_shape(path: str, shape: tuple[int, ...], inspection: Inspection, record: dict[str, Any]) -> None:
    if inspection.size is not None and shape != inspection.size:
        raise BadRecordError(
            path,
            f"is {shape[1]}x{shape[0]} (width x height), its image {record['file_name']} "
            f"{inspection.size[1]}x{inspection.size[0]}",
        )


def _is_class(value: Any, rules: Rules) -> bool:
    return isinstance(value, int) and 0 <= value < len(rules.names)


def _not_a_class(rules: Rules) -> str:
    return f"is not a class index in [0, {len(rules.names) - 1}]"


def _inspect_segments(inspection: Inspection, rules: Rules, record: dict[str, Any]) -> None:
    path = record["pan_seg_file_name"]
    ids = read_panoptic_png(path)
    _check_shape(path, ids.shape, inspection, record)
    area = count_values(ids)
    inspection.void += area.pop(0, 0)
    for segment in record.get("segments_info") or []:
        number, label = segment.get("id"), segment.get("category_id")
        pixels = area.pop(number, 0) if isinstance(number, int) else None
        if pixels is None or number < 1:
            inspection.problems.append(f"{path}: segment id {number!r} is not an integer above 0")
        elif not _is_class(label, rules):
            inspection.problems.append(f"{path}: segment {number}: category_id {label!r} {_not_a_class(rules)}")
        elif not pixels:
            inspection.notes.append(f"{path}: segment {number} ({rules.names[label]}) has no pixels")
        elif segment.get("iscrowd", 0):
            inspection.crowds += 1
        else:
            inspection.add(label, pixels)
    if area:
        unknown = first_few([str(number) for number in sorted(area)])
        inspection.problems.append(
            f"{path}: ids {unknown} have {sum(area.values())} pixels but are not in segments_info"
        )


def _inspect_annotations(inspection: Inspection, rules: Rules, record: dict[str, Any]) -> None:
    if inspection.size is None:
        return  # masks cannot be checked without the image size; the image is reported already
    for position, annotation in enumerate(record["annotations"]):
        where = f"{record['file_name']}: annotation {annotation.get('id', f'number {position} of the image')}"
        label = annotation.get("category_id")
        if not _is_class(label, rules):
            inspection.problems.append(f"{where}: category_id {label!r} {_not_a_class(rules)}")
            continue
        try:
            patch = segmentation_to_patch(annotation.get("segmentation"), inspection.size)
        except SegmentationError as error:
            inspection.problems.append(f"{where}: {error}")
            continue
        if not patch.bits.size:
            inspection.notes.append(f"{where} ({rules.names[label]}): has no pixels inside the image")
        elif annotation.get("iscrowd", 0):
            inspection.crowds += 1
        else:
            inspection.add(label, int(np.count_nonzero(patch.bits)))


def _inspect_labels(inspection: Inspection, rules: Rules, record: dict[str, Any]) -> None:
    path = record["sem_seg_file_name"]
    labels = read_label_map(path)
    _check_shape(path, labels.shape, inspection, record)
    area = count_values(labels)
    void = area.pop(rules.ignore_label, 0)
    unknown = [label for label in area if not 0 <= label < rules.num_labels]
    if unknown:
        inspection.problems.append(
            f"{path}: {sum(area[label] for label in unknown)} pixels have the values "
            f"{first_few([str(label) for label in unknown])}, which are neither a class index in "
            f"[0, {rules.num_labels - 1}] nor the ignore label {rules.ignore_label}"
        )
    if rules.dataset_type == "semantic":
        inspection.void += void
        inspection.pixels.update({label: count for label, count in area.items() if label not in unknown})


def count_values(values: np.ndarray) -> dict[int, int]:
    """Count each value of a map int (H, W), in ascending order; fast where neighbors are mostly equal."""
    flat = values.reshape(-1)
    if not flat.size:
        return {}
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    present, run_values = np.unique(flat[starts], return_inverse=True)
    counts = np.zeros(len(present), np.int64)
    np.add.at(counts, run_values.reshape(-1), np.diff(starts, append=flat.size))
    return dict(zip(present.tolist(), counts.tolist(), strict=True))


def presence(inspections: Sequence[Inspection]) -> Counter[int]:
    """Return in how many records each class occurs."""
    return Counter(label for inspection in inspections for label, pixels in inspection.pixels.items() if pixels)
