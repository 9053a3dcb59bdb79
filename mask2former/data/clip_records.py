"""Records of videos in either form of annotations: an object with its frames, or a frame with its objects.

The first is that of `video_records`; the second is what mappers of other projects read (`mask2former_video`).
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.build import check_metadata_consistency, print_instances_class_histogram

from .dataset_mappers.clip_mappers import as_tracks
from .datasets.catalog import Records

logger = logging.getLogger(__name__)


def holds_videos(names: Iterable[str]) -> bool:
    """Return whether one of the registered datasets holds videos."""
    return any(MetadataCatalog.get(name).get("evaluator_type") == "ytvis" for name in names)


def load_clip_records(names: Sequence[str], filter_empty: bool) -> Records:
    """Load datasets, some of them videos, as detectron2's `get_detection_dataset_dicts` does; it knows one form only.

    Args:
        names: registered names.
        filter_empty: leave out videos and images without an object, or with crowd regions only.

    Raises:
        AssertionError: a dataset is empty, or all are after filtering.
    """
    loaded = [DatasetCatalog.get(name) for name in names]
    for name, records in zip(names, loaded, strict=True):
        assert len(records), f"Dataset '{name}' is empty!"
    joined = list(itertools.chain.from_iterable(loaded))
    kept = joined
    if filter_empty and "annotations" in joined[0]:
        kept = with_objects(joined)
        logger.info("Removed %d videos or images with no usable annotations.", len(joined) - len(kept))
    assert kept, f"No valid data found in {','.join(names)}."
    classes = MetadataCatalog.get(names[0]).get("thing_classes")
    if classes and "annotations" in kept[0]:
        check_metadata_consistency("thing_classes", names)
        print_instances_class_histogram(by_track(kept), classes)
    return kept


def with_objects(records: Iterable[dict[str, Any]]) -> Records:
    """Return the records with an annotation that is no crowd region."""
    return [record for record in records if any(map(_is_object, _objects(record)))]


def by_track(records: Records) -> Records:
    """Return the records with one annotation an object, whose "segmentations" are those of all frames; others as is.

    Raises:
        BadRecordError: the annotations have neither form.
    """
    if not any(_is_by_frame(record) for record in records):
        return records
    return [
        {**record, "annotations": as_tracks(record["annotations"], record["file_names"][0], len(record["file_names"]))}
        if _is_by_frame(record)
        else record
        for record in records
    ]


def _is_by_frame(record: Mapping[str, Any]) -> bool:
    annotations = record.get("annotations")
    return "file_names" in record and isinstance(annotations, list) and any(isinstance(a, list) for a in annotations)


def _objects(record: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    annotations = record.get("annotations") or []
    return itertools.chain.from_iterable(annotations) if _is_by_frame(record) else annotations


def _is_object(entry: Any) -> bool:
    return not (isinstance(entry, Mapping) and entry.get("iscrowd", 0))
